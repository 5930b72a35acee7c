"""Tiny random models of many architectures, and how far their scores are from float64.

    python -m tests.scoring.architectures        the table of coevolve/scoring/README.md

Windows are of 5 or 6 tokens and chunks of 8, which the texts cross; matrices are enlarged, so that
predictions are far from uniform and a misplaced token shows.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import peft
import pytest
import torch
import transformers

from coevolve.errors import ArtifactError
from coevolve.scoring.backbone import Backbone
from coevolve.scoring.generate import generate
from coevolve.scoring.logprob import score_pairs
from coevolve.scoring.selfcheck import checked
from coevolve.scoring.ways import ways_of

VOCABULARY = 61

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
STATES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
LAYERS = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
DECODER = {"vocab_size": VOCABULARY, "d_model": 32, **LAYERS, "max_position_embeddings": 128}
BART = {**DECODER, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"pad_token_id": 0}

HEAD = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
TWICE = {
    "num_hidden_layers": 4,
    "layer_types": WINDOW["layer_types"] * 2,
    "num_kv_shared_layers": 2,
}
TWICE |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"v_head_dim": 8, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
INDEXED = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
MAMBA |= {"mamba_chunk_size": 8}
SMALL_STATE = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {**LINEAR, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}


class Row(NamedTuple):
    """An architecture: its class without what it ends in, its settings, and what else differs."""

    name: str
    settings: dict[str, Any]
    config: str = "{}Config"
    model: str = "{}ForCausalLM"
    scale: float = 4.0


def shaped(name: str, *settings: dict[str, Any], **more: Any) -> Row:
    """With the common shape and what is different."""
    merged = dict(SHAPE)
    for some in settings:
        merged |= some
    return Row(name, merged, **more)


def text_of(name: str, *settings: dict[str, Any]) -> Row:
    """The language model of one that also sees or hears."""
    return shaped(name, *settings, config="{}TextConfig")


ROWS: dict[str, Row] = {
    "afmoe": shaped("Afmoe", HEAD, WINDOW, EXPERTS, {"num_dense_layers": 1}),
    "apertus": shaped("Apertus"),
    "arcee": shaped("Arcee"),
    "bamba": shaped("Bamba", MAMBA, {"attn_layer_indices": [1]}),
    "bart": Row("Bart", BART),
    "bert": Row("Bert", BERT, model="BertLMHeadModel"),
    "bert, decoder": Row("Bert", {**BERT, "is_decoder": True}, model="BertLMHeadModel"),
    "big_bird, decoder": Row(
        "BigBird", {**BERT, "is_decoder": True, "attention_type": "original_full"}
    ),
    "biogpt": shaped("BioGpt"),
    "bitnet": shaped("BitNet"),
    "bloom": Row("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": Row("CodeGen", {**GPT, "rotary_dim": 4}),
    "cohere": shaped("Cohere", {"logit_scale": 3.0}),
    "cohere2": shaped("Cohere2", WINDOW, {"logit_scale": 3.0}),
    "ctrl": Row("CTRL", {**GPT, "dff": 48}, model="CTRLLMHeadModel"),
    "cwm": shaped("Cwm", HEAD, WINDOW),
    "deepseek_v2": shaped("DeepseekV2", LATENT, ROUTED),
    "deepseek_v3": shaped("DeepseekV3", LATENT, ROUTED),
    "deepseek_v32": shaped("DeepseekV32", LATENT, ROUTED, INDEXED),
    "diffllama": shaped("DiffLlama"),
    "doge": shaped("Doge"),
    "electra": Row("Electra", {**BERT, "embedding_size": 32}),
    "ernie4_5": shaped("Ernie4_5"),
    "exaone4": shaped("Exaone4", WINDOW),
    "falcon, alibi": shaped("Falcon", {"alibi": True, "new_decoder_architecture": False}),
    "falcon, rotary": shaped("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_h1": shaped("FalconH1", MAMBA, {"mamba_d_ssm": 32, "mamba_n_heads": 4}),
    "falcon_mamba": Row("FalconMamba", {**STATES, "state_size": 4}, scale=2.0),
    "gemma": shaped("Gemma", HEAD),
    "gemma2": shaped("Gemma2", HEAD, WINDOW, {"final_logit_softcapping": 2.0}),
    "gemma3": text_of("Gemma3", HEAD, WINDOW),
    "gemma3n": text_of(
        "Gemma3n",
        HEAD,
        WINDOW,
        TWICE,
        {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2},
    ),
    "gemma4": text_of("Gemma4", HEAD, WINDOW, TWICE, {"global_head_dim": 16}),
    "glm": shaped("Glm", HEAD),
    "glm4": shaped("Glm4", HEAD),
    "glm4_moe": shaped("Glm4Moe", HEAD, ROUTED),
    "gpt2": Row("GPT2", GPT, model="GPT2LMHeadModel"),
    "gpt_bigcode": Row("GPTBigCode", GPT),
    "gpt_neo": Row(
        "GPTNeo",
        {
            **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4},
            **{"attention_types": [[["global", "local"], 1]], "window_size": 5},
            **{"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2},
        },
    ),
    "gpt_neox": shaped("GPTNeoX"),
    "gpt_oss": shaped("GptOss", HEAD, LOCAL, WINDOW),
    "gptj": Row("GPTJ", {**GPT, "rotary_dim": 4}),
    "granite": shaped("Granite", {"logits_scaling": 0.3}),
    "granitemoehybrid": shaped(
        "GraniteMoeHybrid",
        MAMBA,
        LOCAL,
        {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    ),
    "helium": shaped("Helium", HEAD),
    "hunyuan_v1_dense": shaped("HunYuanDenseV1", HEAD),
    "jamba": shaped(
        "Jamba",
        SMALL_STATE,
        {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        {"expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    "jetmoe": shaped("JetMoe", LOCAL, {"kv_channels": 8}),
    "lfm2": shaped("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "llama": shaped("Llama"),
    "llama, longrope": shaped("Llama", {"rope_parameters": LONGROPE}),
    "llama4": text_of(
        "Llama4",
        HEAD,
        {**LOCAL, "num_experts_per_tok": 1, "attention_chunk_size": 6, "intermediate_size_mlp": 48},
        {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
        {"moe_layers": [1]},
    ),
    "longcat_flash": shaped(
        "LongcatFlash",
        LATENT,
        {"n_routed_experts": 4, "moe_topk": 2, "expert_ffn_hidden_size": 16, "head_dim": 8},
        {"ffn_hidden_size": 48, "num_layers": 2, "zero_expert_num": 1},
    ),
    "mamba": Row("Mamba", {**STATES, "state_size": 4}, scale=2.0),
    "mamba2": Row(
        "Mamba2",
        {**STATES, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        scale=2.0,
    ),
    "mbart": Row("MBart", BART),
    "minimax": shaped("MiniMax", HEAD, LOCAL, LINEAR, {"block_size": 8}),
    "minimax_m2": shaped("MiniMaxM2", HEAD, LOCAL),
    "ministral": shaped("Ministral", HEAD, {"sliding_window": 6}),
    "mistral": shaped("Mistral", {"sliding_window": 6}),
    "mixtral": shaped("Mixtral", LOCAL),
    "modernbert-decoder": shaped(
        "ModernBertDecoder", {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}
    ),
    "mpt": Row(
        "Mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    ),
    "musicgen": Row(
        "Musicgen",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        | {"ffn_dim": 48, "max_position_embeddings": 128, "num_codebooks": 2, "pad_token_id": 60},
        config="{}DecoderConfig",
    ),
    "nanochat": shaped("NanoChat"),
    "nemotron": shaped("Nemotron"),
    "nemotron_h": shaped(
        "NemotronH",
        HEAD,
        {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8},
        {"n_groups": 1, "ssm_state_size": 8, "chunk_size": 8},
    ),
    "olmo": shaped("Olmo"),
    "olmo2": shaped("Olmo2"),
    "olmo3": shaped("Olmo3", WINDOW),
    "olmo_hybrid": shaped("OlmoHybrid", LINEAR),
    "olmoe": shaped("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "openai-gpt": Row("OpenAIGPT", GPT, model="OpenAIGPTLMHeadModel"),
    "opt": shaped("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "pegasus": Row("Pegasus", BART),
    "persimmon": shaped("Persimmon"),
    "phi": shaped("Phi"),
    "phi3": shaped("Phi3", {"sliding_window": 6}),
    "phimoe": shaped("Phimoe", LOCAL, {"sliding_window": 6}),
    "prophetnet": Row(
        "ProphetNet",
        {
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "num_decoder_layers": 2,
                "pad_token_id": 0,
            },
            **{
                "num_decoder_attention_heads": 4,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 128,
            },
        },
    ),
    "qwen2": shaped("Qwen2"),
    "qwen2_moe": shaped("Qwen2Moe", EXPERTS, {"shared_expert_intermediate_size": 16}),
    "qwen3": shaped("Qwen3", HEAD),
    "qwen3_5": text_of("Qwen3_5", DELTA),
    "qwen3_moe": shaped("Qwen3Moe", HEAD, EXPERTS),
    "qwen3_next": shaped("Qwen3Next", DELTA, {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "recurrent_gemma": shaped(
        "RecurrentGemma",
        {"lru_width": 32, "attention_window_size": 6, "num_hidden_layers": 3},
        scale=2.0,
    ),
    "roberta": Row("Roberta", BERT),
    "roberta, decoder": Row("Roberta", {**BERT, "is_decoder": True}),
    "roformer, decoder": Row("RoFormer", {**BERT, "is_decoder": True, "embedding_size": 32}),
    "rwkv": Row("Rwkv", {**STATES, "attention_hidden_size": 32, "context_length": 128}, scale=2.0),
    "seed_oss": shaped("SeedOss", HEAD),
    "smollm3": shaped("SmolLM3"),
    "stablelm": shaped("StableLm"),
    "starcoder2": shaped("Starcoder2", {"sliding_window": 6}),
    "trocr": Row("TrOCR", {**DECODER, "cross_attention_hidden_size": 32}),
    "vaultgemma": shaped("VaultGemma", HEAD, WINDOW),
    "whisper": Row(
        "Whisper",
        {
            **BART,
            "max_target_positions": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
        },
    ),
    "xlm": Row(
        "XLM",
        {"vocab_size": VOCABULARY, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True}
        | {"max_position_embeddings": 128, "pad_index": 0},
        model="XLMWithLMHeadModel",
    ),
    "xlnet": Row(
        "XLNet",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        model="XLNetLMHeadModel",
    ),
    "xlstm": Row(
        "xLSTM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_heads": 2, "chunk_size": 8}
        | {"num_blocks": 2, "num_hidden_layers": 2, "mode": "inference"},
    ),
    "youtu": shaped("Youtu", LATENT, scale=1.0),
    "zamba": shaped(
        "Zamba",
        SMALL_STATE,
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "n_mamba_heads": 2,
        },
    ),
    "zamba2": shaped(
        "Zamba2",
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "chunk_size": 8,
        },
        {"mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1},
        {"use_mamba_kernels": False, "num_mem_blocks": 1},
    ),
}


def build(name: str) -> Any:
    """A random model of an architecture, far from uniform, in evaluation mode."""
    row = ROWS[name]
    torch.manual_seed(0)
    config = getattr(transformers, row.config.format(row.name))(**row.settings)
    model = getattr(transformers, row.model.format(row.name))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(row.scale if parameter.ndim > 1 else 1)
    return model


def adapted(model: Any) -> Any:
    """The same under a random LoRA adapter, of state-space layers on what goes into them, as PEFT
    asks.
    """
    options = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "init_lora_weights": False,
        "exclude_modules": r".*\.router",
    }
    try:
        config = peft.LoraConfig(target_modules="all-linear", **options)
        return peft.get_peft_model(copy.deepcopy(model), config).eval()
    except (ValueError, NotImplementedError):
        config = peft.LoraConfig(target_modules=["in_proj", "gate_proj", "q_proj"], **options)
        return peft.get_peft_model(copy.deepcopy(model), config).eval()


def in_float64(model: Any) -> Any:
    """A copy in float64, its experts by plain matrix products: the grouped ones are float32's."""
    exact = copy.deepcopy(model).double()
    exact.config._experts_implementation = "eager"
    return exact


def without_cache(model: Any) -> dict[str, bool]:
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}


@torch.no_grad()
def plain(model: Any, prompt: list[int], response: list[int]) -> float:
    """Nats of a response by one pass over one row and the log-softmax in float64: nothing of
    coevolve's.
    """
    logits = (
        model(input_ids=torch.tensor([prompt + response]), **without_cache(model))
        .logits[0]
        .double()
    )
    log_probs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return log_probs[range(len(response)), response].sum().item()


def texts() -> tuple[list[list[int]], list[list[int]]]:
    """Contexts that begin alike and responses, across windows and chunks."""
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    start = draw(12)
    return [start + draw(count) for count in (9, 28, 20)], [draw(count) for count in (3, 5, 8)]


LAYOUTS = {
    "side by side on prefixes": {"run": 0.5, "copied": 0.1, "attention": 0.0},
    "one to a row on prefixes": {"run": 0.5, "copied": 0.0, "attention": 1.0},
    "in rows": {"run": 1e3, "copied": 1.0, "attention": 1.0},
}
"""Costs, in those of a token, under which each way to score is the cheapest."""


@contextmanager
def costing(**costs: float) -> Iterator[None]:
    """As if passes cost this."""
    known: Callable[..., None] = Backbone.__init__

    def changed(backbone: Backbone, *args: Any) -> None:
        known(backbone, *args)
        for name, value in costs.items():
            object.__setattr__(backbone.cost, name, value * backbone.cost.token)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "__init__", changed)
        yield


def distance(model: Any) -> float:
    """The largest difference of a response's score from float64, in nats,
    over all ways to score.
    """
    contexts, responses = texts()
    pairs = [(i, j) for i in range(len(contexts)) for j in range(len(responses))]
    reference = in_float64(model)
    exact = np.array([plain(reference, contexts[i], responses[j]) for i, j in pairs])
    found = []
    for costs in LAYOUTS.values():
        with costing(**costs):
            found.append(
                [
                    x.sum()
                    for x in score_pairs(model, contexts, responses, np.array(pairs), pad_id=0)
                ]
            )
    return float(np.abs(np.array(found) - exact).max())


@torch.no_grad()
def writes_as_plain_passes_do(model: Any) -> bool:
    """Whether greedy continuations are the most probable tokens of plain passes,
    one after another.
    """
    prompts = texts()[0]
    for prompt, written in zip(
        prompts, generate(model, prompts, max_new_tokens=6, stop_ids=(), pad_id=0), strict=True
    ):
        ids = list(prompt)
        for token in written.ids:
            if (
                model(input_ids=torch.tensor([ids]), **without_cache(model))
                .logits[0, -1]
                .argmax()
                .item()
                != token
            ):
                return False
            ids.append(token)
    return True


class Measured(NamedTuple):
    """A row of the table: how a model is run and how far from float64 it is,
    or why it is not run.
    """

    scores: str = ""
    writes: str = ""
    far: float = np.nan
    far_adapted: float = np.nan
    refusal: str = ""

    def row(self, name: str) -> str:
        """In Markdown."""
        if self.refusal:
            return f"| {name} | refused: {self.refusal} | | | |"
        return (
            f"| {name} | {self.scores} | {self.writes} | {self.far:.0e} | {self.far_adapted:.0e} |"
        )


def measured(name: str) -> Measured:
    """Check a model of the architecture as if it was loaded, and measure it."""
    model = build(name)
    try:
        checked(model)
    except ArtifactError as error:
        return Measured(refusal=str(error).split(") ", 1)[1].split(". ")[0])
    ways = ways_of(model)
    assert writes_as_plain_passes_do(model), name
    return Measured(ways.scores, ways.generates, distance(model), distance(adapted(model)))


HEADER = """\
| architecture | scored | writes | from float64 | with LoRA |
|---|---|---|---|---|"""

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    print(HEADER, *(measured(name).row(name) for name in ROWS), sep="\n", flush=True)
