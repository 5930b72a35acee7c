"""How much memory of each GPU a run needs, part by part, before it is there.

Models are built on the device `meta`, where tensors have shapes and no content, and a forward and a
backward pass of the largest batch is counted there, operation by operation. Attention counts as a
fused kernel, which keeps what it is given, what it gives, and a number for each row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from coevolve.libraries.torch import CountedMemory
from coevolve.preflight.models import BaseFacts, empty_model
from coevolve.recipe import Recipe
from coevolve.recipe.rl import Grpo
from coevolve.recipe.rpm import Dpo
from coevolve.scoring.divided import divisible
from coevolve.scoring.models import choose_dtype
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role, Roles
from coevolve.training.distributed.launch import Kind, training_sections, vllm_sections
from coevolve.training.setup import compose_roles, role_settings

CONTEXT = 2e9
"""Bytes of CUDA itself and its libraries: the one part that is not counted."""
QUANTIZED = {"4bit": 0.516, "8bit": 1.0}
"""Bytes of a weight; NF4 has a scale for 64 weights, itself in a byte (arXiv 2305.14314)."""
CARDS = (16, 24, 40, 80, 141, 192)
"""GB that GPUs have."""
FULL = 0.95
"""Of a GPU, so that what the allocator breaks into pieces does not matter."""
_FUSED = "fused_on_meta"
_Batch = tuple[Role, bool, tuple[int, int, int]]
"""(role, whether by gradient checkpointing, (rows, tokens, tokens with logits))."""


@dataclass(frozen=True)
class Part:
    """Bytes of one GPU, and what makes them fewer (empty: nothing)."""

    what: str
    bytes: float
    remedy: str = ""


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest prompts and responses that there are, or that a recipe lets be."""

    connector: int
    estimator: int
    response: int


def memory_of(
    recipe: Recipe, bases: Mapping[Role, BaseFacts], longest: Longest, kind: Kind, processes: int
) -> tuple[list[Part], list[Part]]:
    """(of each GPU: what stays, then the larger of training and scoring; of the disk) for a run of
    so many processes.
    """
    roles = roles_on_meta(recipe, bases)
    trained = {role: _trained(roles, role) for role in ROLES}
    parts, count = [], processes if recipe.model.sharded else 1
    frozen = _frozen(roles, recipe.model.quantization)
    if frozen and count > 1:
        what, held = f"frozen base, in {count} parts", _frozen(roles, None, count)
        parts.append(Part(what, held, "more processes"))
    elif frozen:
        less = "model.quantization=4bit, or model.sharded=true under DDP"
        parts.append(Part("frozen base", frozen, less))
    parts.append(Part("weights of both roles", sum(trained.values())))
    largest = max(ROLES, key=lambda role: trained[role])
    full = roles.tuning[largest] == "full"
    in_8_bits = all(x.optim == "adamw_8bit" for _, x in training_sections(recipe))
    parts.append(_optimizer(trained[largest], kind, processes, full, in_8_bits=in_8_bits))
    passes = [*training_passes(recipe, roles, longest, processes), _scoring(recipe, bases)]
    parts += [max(passes, key=lambda part: part.bytes), Part("CUDA", CONTEXT)]
    parts += _vllm(
        recipe, bases, sum(part.bytes for part in parts), frozen or max(trained.values())
    )
    # Both roles, the best pair of before, and two moments of each role's optimizer.
    keep, both = recipe.checkpoints.keep, sum(trained.values())
    kept = Part(f"{keep} checkpoints", keep * 4 * both, "checkpoints.keep=1")
    return parts, [kept, Part("the exported estimator", both)]


def fits(parts: list[Part]) -> str:
    """In words, what holds it, and what would need less."""
    need = sum(part.bytes for part in parts) / 1e9
    room = next((f"one of {card} GB" for card in CARDS if FULL * card >= need), "none")
    largest = max(parts, key=lambda part: part.bytes)
    less = f" Less by {largest.remedy}." if largest.remedy else ""
    return f"{need:.1f} GB: of usual GPUs {room} holds it. The largest part: {largest.what}.{less}"


def roles_on_meta(recipe: Recipe, bases: Mapping[Role, BaseFacts]) -> Roles:
    """Both roles as a run has them, without a weight; attention is the fused kernel's."""
    AttentionInterface.register(_FUSED, _fused)
    how = {"dtype": choose_dtype(recipe.model.dtype), "attn_implementation": _FUSED}

    def load(role: Role) -> PreTrainedModel:
        return empty_model(recipe, bases[role], **how).eval()

    same = bases[ROLES[0]].config == bases[ROLES[1]].config
    return compose_roles(recipe, role_settings(recipe), load, same_base=same)


def _trained(roles: Roles, role: Role) -> float:
    """Bytes of a role's own weights."""
    whole, own = roles.tuning[role] == "full", f".{role}."
    named = roles.module(role).named_parameters()
    return float(sum(_bytes(x) for name, x in named if whole or ("lora_" in name and own in name)))


def _frozen(roles: Roles, quantization: str | None, count: int = 1) -> float:
    """Bytes of the bases that stay as they are; of layers in `count` parts, a part of each and the
    largest whole.
    """
    held: dict[int, float] = {}
    divided: dict[int, float] = {}
    for role in (*ROLES, None):
        if roles.has_base if role is None else roles.tuning[role] == "lora":
            with roles.acting(role) as model:
                base = [(x, w) for x, w in model.named_parameters() if "lora_" not in x]
                held |= {id(weight): _held(name, weight, quantization) for name, weight in base}
                for layer, named in divisible(model) if count > 1 else ():
                    divided[id(layer)] = sum(held.get(id(weight), 0.0) for _, weight in named)
    largest = max(divided.values(), default=0.0)
    return sum(held.values()) + largest - (1 - 1 / count) * sum(divided.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _held(name: str, weight: Tensor, quantization: str | None) -> float:
    """Bytes of a frozen weight; embeddings, norms and the head are not quantised."""
    linear = weight.dim() == 2 and "embed" not in name and "lm_head" not in name
    if quantization and linear:
        return weight.numel() * QUANTIZED[quantization]
    return _bytes(weight)


def _vllm(
    recipe: Recipe, bases: Mapping[Role, BaseFacts], rest: float, weights: float
) -> Iterator[Part]:
    """Beside the `rest`: a share of a GPU that has room for both, and in it the weights once more
    with keys and values of one sequence.
    """
    here = [x for _, x in vllm_sections(recipe) if x.vllm_mode == "colocate"]
    if not here:
        return
    share = max(x.vllm_gpu_memory_utilization for x in here)
    room = max(x.vllm_max_model_length or recipe.model.max_length for x in here)
    cache = room * max(bytes_per_token(x.config, recipe.model.dtype) for x in bases.values())
    parts = max(x.vllm_tensor_parallel_size for x in here)
    least = (weights + cache) / parts + CONTEXT  # as training has it, for what is under way
    gpu = max(rest / max(1 - share, 0.01), least / share)
    larger = "a larger" if gpu * share < gpu - rest else "a lower"
    remedy = f"{larger} vllm_gpu_memory_utilization, or vllm_mode=server"
    yield Part(f"vLLM, in {share:.0%} of the GPU", gpu - rest, remedy)


def _optimizer(
    weights: float, kind: Kind, processes: int, full: bool, *, in_8_bits: bool = False
) -> Part:
    """Gradient and Adam's two moments of the role in training."""
    if in_8_bits:  # beside weights of two bytes, or of four under adapters
        size = 2 / (2 if full else 4)
        return Part("gradient and optimizer of one role", (1 + size) * weights)
    divided, name = kind in ("zero2", "zero3", "fsdp"), "gradient and optimizer of one role"
    remedy = "" if divided else "launch/zero2.yaml, which divides them"
    if kind in ("zero2", "zero3") and full:
        # Master weights, moments, gradients in float32, divided; gradients while reduced.
        return Part(name, 16 * weights / 2 / processes + weights)
    return Part(name, 3 * weights / (processes if divided else 1), remedy)


def training_passes(
    recipe: Recipe, roles: Roles, longest: Longest, processes: int
) -> Iterator[Part]:
    """The largest batch of each kind of training, forward and backward."""
    room = recipe.model.max_length
    reasoning = min(recipe.model.max_reasoning_tokens, room)
    shapes: dict[str, _Batch] = {}
    for name, settings in training_sections(recipe):
        role: Role = ESTIMATOR if "estimator" in name or "direct" in name else CONNECTOR
        own = role == CONNECTOR
        completion = reasoning if own else longest.response
        if isinstance(settings, Grpo):
            completion = settings.max_completion_length
        prompt = longest.connector if own else longest.estimator + reasoning
        length = min(prompt + completion, room)
        rows = settings.micro_batch(processes)[0] * (2 if isinstance(settings, Dpo) else 1)
        shape = rows, length, min(completion, length)
        shapes[name] = role, settings.gradient_checkpointing, shape
    for name, (role, checkpointing, shape) in shapes.items():
        if any(_covers(other, shapes[name]) for x, other in shapes.items() if x != name):
            continue
        peak = _backward(roles, role, *shape, checkpointing)
        remedy = f"{name}.per_device_train_batch_size=1" if shape[0] > 1 else ""
        if not checkpointing:
            remedy = f"{name}.gradient_checkpointing=true"
        yield Part(f"{name}: {shape[0]} rows of {shape[1]} tokens, backward", peak, remedy)


def _covers(one: _Batch, other: _Batch) -> bool:
    """Whether one batch surely needs more than another."""
    larger = all(a >= b for a, b in zip(one[2], other[2], strict=True))
    return larger and one[:2] == other[:2] and one[2] != other[2]


def _backward(
    roles: Roles, role: Role, rows: int, length: int, scored: int, checkpointing: bool
) -> int:
    """Bytes at most beside weights and gradients; logits at the scored positions only."""
    model: Any = roles.module(role)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for weight in model.parameters():  # gradients, which the optimizer's part has already
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with CountedMemory() as counted:
        ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=scored).logits
        logits.float().log_softmax(-1).sum().backward()
        del logits
    model.zero_grad(set_to_none=True)
    if checkpointing:
        model.gradient_checkpointing_disable()
    return counted.peak


def _scoring(recipe: Recipe, bases: Mapping[Role, BaseFacts]) -> Part:
    """Keys and values of a forward pass in scoring and generation."""
    tokens = recipe.evaluation.token_budget
    per_token = max(bytes_per_token(base.config, recipe.model.dtype) for base in bases.values())
    lower = f"evaluation.token_budget={max(tokens // 4, 1024)}"
    return Part(f"keys and values of {tokens:,} tokens", float(per_token * tokens), lower)


def bytes_per_token(config: Any, dtype: str) -> int:
    """Of keys and values in a cache."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size: int = 2 * text.num_hidden_layers * heads * width * choose_dtype(dtype).itemsize
    return size


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]).float())
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def _fused(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None
