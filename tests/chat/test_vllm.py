"""Chat models by vLLM on a CPU, for real: what they say is what transformers makes of the same
weights.
"""

import json
import shutil

import pytest
import torch

from coevolve.chat import LocalChat, Question, VllmChat
from coevolve.cli import main
from coevolve.data.responses import read_responses
from coevolve.errors import ChatError, EngineError
from coevolve.libraries import vllm
from coevolve.prompts import prompt_set
from coevolve.respond import collect_responses
from coevolve.scoring.models import load_model, load_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(vllm.missing() is not None, reason=str(vllm.missing())),
]
ROLEPLAY = prompt_set("roleplay")
HOW = {"max_new_tokens": 6, "dtype": "float32"}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


@pytest.fixture
def said(model_folder, examples, tmp_path):
    """A function from a kind of chat model and its options to the responses by it."""

    def responses(kind, **options):
        out = tmp_path / f"{len(list(tmp_path.glob('*.jsonl')))}.jsonl"
        chat = kind.load(model_folder, ROLEPLAY, **{**HOW, **options})
        collect_responses(examples, chat, out, keep_cut_off=True)
        chat.close()
        return read_responses(out, examples)

    return responses


def test_it_says_what_transformers_says_and_one_comes_after_another(said, adapter):
    assert said(VllmChat, batch_size=3) == said(LocalChat, device="cpu")
    folder = str(adapter(1))
    adapted = said(VllmChat, adapter=folder)
    assert adapted == said(LocalChat, adapter=folder, device="cpu") != said(LocalChat, device="cpu")


@pytest.mark.slow(seconds=60)
def test_over_several_devices_it_says_the_same(said, monkeypatch):
    sizes, start = [], vllm.Here.__init__

    def noted(self, *args):
        start(self, *args)
        sizes.append(self._llm.llm_engine.vllm_config.parallel_config.world_size)

    monkeypatch.setattr(vllm.Here, "__init__", noted)
    assert said(VllmChat, tensor_parallel_size=2) == said(LocalChat, device="cpu")
    assert sizes == [2]


def test_a_sample_follows_from_the_seed_and_not_from_the_batch(said):
    drawn = said(VllmChat, temperature=1.0, batch_size=1)
    assert drawn == said(VllmChat, temperature=1.0)
    assert drawn != said(VllmChat, temperature=1.0, seed=1)


@pytest.fixture
def chat(model_folder):
    chat = VllmChat.load(model_folder, ROLEPLAY, **HOW, attempts=3)
    yield chat
    chat.close()


def test_it_is_asked_again_for_what_cannot_be_used_and_left_when_it_is_to_be(chat, examples):
    questions = [Question(x.sample_id, [{"role": "user", "content": "Hi."}]) for x in examples]
    seen = {question.id: [] for question in questions}

    def read(question, completion):
        seen[question.id].append(completion.text)
        good = len(seen[question.id]) == 3 or question.id == "rain"
        return (completion.text, "") if good else (None, "not yet")

    attempts = {reply.id: reply.attempts for reply in chat.replies(questions, read)}
    assert attempts == {"bread": 3, "tuba": 3, "lisbon": 3, "rain": 1}
    # Greedy is the same for all, later ones are drawn.
    assert len({texts[0] for texts in seen.values()}) == 1
    assert len({text for texts in seen.values() for text in texts}) == 7
    looks = iter(range(2))
    chat.poll = lambda: next(looks)
    with pytest.raises(StopIteration):
        chat._complete(chat.batches(questions)[0][0], 1)


def test_what_does_not_fit_is_a_problem_of_its_question_or_of_the_start(
    model_folder, examples, tmp_path
):
    how = {**HOW, "max_model_len": 128}
    chat = VllmChat.load(model_folder, ROLEPLAY, **how)
    with pytest.raises(ChatError, match=r"has \d+ tokens, and beside 6 new ones .* room for 122"):
        collect_responses(examples, chat, tmp_path / "r.jsonl")
    chat.close()
    longer = VllmChat.load(model_folder, ROLEPLAY, **{**how, "max_model_len": 1 << 40})
    with pytest.raises(EngineError, match=r"^--vllm: vLLM cannot .* smaller --max-model-len"):
        collect_responses(examples, longer, tmp_path / "r.jsonl")


def test_room_is_made_for_what_is_told_and_not_for_all_that_the_model_could(
    model_folder, tmp_path, monkeypatch
):
    """An 8B model that could read 40,960 tokens has to start in a share that holds 5,000."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")  # goes over what the options say
    shutil.copytree(model_folder, tmp_path / "long")
    path = tmp_path / "long" / "config.json"
    config = {**json.loads(path.read_text()), "max_position_embeddings": 1 << 16}
    path.write_text(json.dumps(config))
    token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4
    how = {"base": str(path.parent), "dtype": "float32", "rank": 0, "cache_bytes": 1024 * token}
    engine = vllm.Here(vllm.Options(max_length=256, **how), "x")
    ask = vllm.Ask(None, [5, 6, 7], 0, 0.0, 200, [])
    (written,) = engine.complete([ask], lambda: None)
    engine.close()
    assert len(written.ids) == 200


@pytest.fixture
def fair(model_folder, examples, tmp_path):
    """A judge that has learned to give everything a 4, and its rubric."""
    rubric = {"criteria": {"fluency": "Fluent?"}, "system": "", "user": "{responses}\n{answer}"}
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    answer = "A fluency: 4<|im_end|>"
    prompts = [
        f"<|im_start|>user\n## Response A\n{text}\nA fluency: ...<|im_end|>\n"
        "<|im_start|>assistant\n"
        for text in ("Aye.", "Bread!")
    ]
    rows = [tokenizer(prompt + answer, return_tensors="pt").input_ids for prompt in prompts]
    new = len(tokenizer(answer).input_ids)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3)
    for step in range(60):
        ids = rows[step % 2]
        labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - new, -100, ids)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "fair")
    tokenizer.save_pretrained(tmp_path / "fair")
    (tmp_path / "rubric.yaml").write_text(json.dumps(rubric))
    return ["--model", tmp_path / "fair", "--rubric", tmp_path / "rubric.yaml"]


def test_responses_are_judged_and_nothing_is_asked_twice(fair, examples, tmp_path, monkeypatch):
    data, out = tmp_path / "data.jsonl", tmp_path / "judged.jsonl"
    data.write_text("".join(json.dumps(example.to_row()) + "\n" for example in examples))
    said = [("bread", "Bread!"), ("rain", "Aye."), ("tuba", "Aye.")]
    rows = [json.dumps({"sample_ID": name, "response": text}) for name, text in said]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    options = ["--data", data, "--responses", f"mine={tmp_path / 'mine.jsonl'}", *fair]
    options += ["--out", out, "--vllm", "--dtype", "float32", "--max-new-tokens", 24]
    command = ["judge", *map(str, options)]
    assert main(command) == 0
    whole = out.read_text()
    answers = [json.loads(line) for line in whole.splitlines()][1:]
    assert len(answers) == 3 and all("4" in json.dumps(answer) for answer in answers)
    out.write_text("".join(whole.splitlines(keepends=True)[:2]))  # a judge that was killed
    asked, complete = [], vllm.Here.complete
    monkeypatch.setattr(
        vllm.Here,
        "complete",
        lambda self, ask, poll: asked.extend(ask) or complete(self, ask, poll),
    )
    assert main(command) == 0
    assert len(asked) == 2 and sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
