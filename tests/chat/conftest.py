"""Examples, a tiny chat model, and a real HTTP server on the loopback that speaks, and misspeaks,
the protocol.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coevolve.data.example import Example, Turn

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_example(
    sample_id: str, *turns: str, persona: str = "", character: str | dict = "A sailor."
) -> Example:
    """An example whose turns alternate and end with the user's."""
    speakers = ("user", "agent") if len(turns) % 2 else ("agent", "user")
    dialogue = tuple(Turn(speakers[index % 2], text) for index, text in enumerate(turns))
    return Example(sample_id, "test", persona, character, dialogue, f"golden of {sample_id}")


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return [
        make_example(
            "bread",
            "Do you bake?",
            persona="I play the tuba.",
            character={"name": "Ada", "job": "baker"},
        ),
        make_example("tuba", "Hi.", "Hi, who are you?", "A musician.", persona="I bake."),
        make_example("lisbon", "Ahoy!", "Have you been to Lisbon?"),
        make_example("rain", "Will it rain?"),
    ]


class Server(ThreadingHTTPServer):
    """Answers the n-th request with `script(n, request)`; records what it was asked, and when.

    A script returns a dictionary, whose keys are all optional: status, body (text or bytes),
    headers, delay (seconds before the answer begins), cut (bytes of the body that are sent before
    the connection is closed).
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server: Server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.times.append(time.monotonic())
            number = len(server.requests)
        known = self.path in ("/v1/chat/completions", "/v1/completions")
        answer = server.script(number, request) if known else {"status": 404}
        time.sleep(answer.get("delay", 0))
        body = answer.get("body", "{}")
        body = body if isinstance(body, bytes) else body.encode()
        try:
            self.send_response(answer.get("status", 200))
            for name, value in {
                "Content-Type": "application/json",
                **answer.get("headers", {}),
            }.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: answer.get("cut")])
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has given up waiting
        if "cut" in answer:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts servers; failed requests are sent again at once."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("coevolve.chat.endpoint._FIRST_WAIT", 0.001)
    servers = []

    def start(script) -> Server:
        server = Server(script)
        servers.append(server)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        ["You play a character in a conversation with a user. Give the response."], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """A Qwen3 of two small layers with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM has no smaller ones on a CPU
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_folder(tiny_model, tokenizer, tmp_path_factory):
    """The tiny model as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """Makes LoRA adapters in PEFT folders, strong enough to change what is said."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3ForCausalLM

    def make(seed: int) -> Path:
        base = Qwen3ForCausalLM(tiny_model.config)
        base.load_state_dict(tiny_model.state_dict())
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        folder = tmp_path / f"adapter-{seed}"
        get_peft_model(base, config).save_pretrained(folder)
        return folder

    return make
