"""What a role's weights start from, and the record of it that lies beside every adapter.

An adapter is a difference to one base model. Onto another one of the same shape it loads without a
word, and means nothing; so the fingerprint of its base goes with it, and is compared wherever it is
put to use. `coevolve_parent.json`:

  base            source, fingerprint and quantization of the model that the adapter was trained on
  continued_from  source and fingerprint of the adapter that its training began with; null for a
                  new one
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from coevolve.errors import ArtifactError, DataError
from coevolve.files import read_json, sha256_file, write_json
from coevolve.scoring.models import INDEX, PACKAGED, base_fingerprint, require_finite, snapshot

PARENT = "coevolve_parent.json"
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_OF_ADAPTER = "base_model_name_or_path"
"""Under this name an adapter's configuration says to PEFT what it belongs on."""

ON_A_FROZEN_BASE: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    # The others change the base model's weights when they start.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Values with which an adapter leaves the base model as it is, so that two can share one."""

_MEANING = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    "fan_in_fan_out",
)
"""What a configuration makes of the tensors, whose names and shapes say all about where they go."""

_ELSEWHERE = (
    *_MEANING,
    *ON_A_FROZEN_BASE,
    # Where the tensors go, which their own names say.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_bias"),
    # Of the beginning and of training, and without a say in scores.
    *("task_type", "inference_mode", "lora_dropout", "auto_mapping", BASE_OF_ADAPTER),
    *("revision", "peft_version", "megatron_core", "qalora_group_size", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "runtime_config"),
)
"""Fields that may have a value; in any other (aLoRA, QALoRA, ...) one would go unnoticed."""

SETTINGS = ("config.json", "generation_config.json", INDEX)
_SAID_BY_THE_LIBRARY = ("transformers_version", "_name_or_path")


@dataclass(frozen=True)
class Base:
    """A base model: as the recipe names it, where it lies, and the hash of its weights."""

    source: str
    path: str
    fingerprint: str

    def portable(self, folder: str | None) -> str | None:
        """What an adapter's configuration is to call it: a hub id; `./FOLDER`, by which PEFT finds
        it from the estimator's directory; nothing where it is left in a folder elsewhere.
        """
        if folder is not None:
            return f"./{folder}"
        return None if Path(self.path).is_dir() else self.source


@dataclass(frozen=True)
class Origin:
    """What a role starts from: a base (in memory as `4bit`, `8bit` or None), and perhaps the PEFT
    directory that training goes on from, with its fingerprint when the run began.
    """

    base: Base
    quantization: Literal["4bit", "8bit"] | None = None
    adapter: str | None = None
    adapter_fingerprint: str | None = None

    def parent(self) -> dict[str, Any]:
        """The record of it, as JSON."""
        base = {"source": self.base.source, "fingerprint": self.base.fingerprint}
        continued = {"source": self.adapter, "fingerprint": self.adapter_fingerprint}
        return {
            "base": {**base, "quantization": self.quantization},
            "continued_from": None if self.adapter is None else continued,
        }

    def published(self, *, included: bool = True) -> dict[str, Any]:
        """The record for others: without this machine's folders, but for the whole path of a base
        model which is not included and has to be found.
        """
        parent, own_name = self.parent(), self.base.source in ("tiny", *PACKAGED)
        if not own_name and Path(self.base.path).is_dir():
            path = Path(self.base.path).resolve()
            parent["base"]["source"] = f"./{path.name}" if included else str(path)
        if self.adapter is not None:
            parent["continued_from"]["source"] = f"./{Path(self.adapter).name}"
        return parent


def write_parent(folder: Path, parent: Mapping[str, Any]) -> None:
    """Put the record beside an adapter."""
    write_json(folder / PARENT, parent)


def read_parent(folder: Path) -> dict[str, Any] | None:
    """The record beside an adapter; None where there is none, ArtifactError if it is damaged."""
    if not (folder / PARENT).is_file():
        return None
    try:
        parent = read_json(folder / PARENT)
        base = {name: parent["base"][name] for name in ("source", "fingerprint", "quantization")}
        return {"base": base, "continued_from": parent["continued_from"]}
    except (DataError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / PARENT}: no record of a parent ({error}). Copy the adapter again."
        ) from None


def require_parent(what: str, parent: Mapping[str, Any], origin: Origin) -> None:
    """Raise ArtifactError, with both fingerprints, unless the parent of `what` is `origin`."""
    expected = origin.parent()
    called = {"base": "base model", "continued_from": "adapter that it continued from"}
    for name, is_called in called.items():
        before, after = (_fingerprint(record[name]) for record in (parent, expected))
        if before != after:
            found = f"the {is_called} has fingerprint {before}; here it would be {after}"
            raise ArtifactError(f"{what}: {found}. Put the original one back.")


def require_base(what: str, parent: Mapping[str, Any], fingerprint: str, base: str) -> None:
    """Raise ArtifactError unless `what` was trained on the base model given."""
    expected = parent["base"]
    if expected["fingerprint"] != fingerprint:
        raise ArtifactError(
            f"{base}: this base model's fingerprint is {fingerprint}, but {what} was trained on "
            f"{expected['fingerprint']} ({expected['source']}). Give the right one."
        )


def check_adapter(folder: Path, base: Base, quantization: str | None) -> list[str]:
    """Refuse an adapter that is not of this base model, or changes the base's own weights
    (ArtifactError); returns what a person should know about one that is.

    An adapter of other software has no record of its parent. Then its configuration must name the
    base model: a folder is compared by fingerprint; a hub id, of which a revision may be another,
    by name only, and that is said.
    """
    config, parent = read_config(folder), read_parent(folder)
    require_plain(config, folder / CONFIG)
    if parent is not None:
        require_base(f"the adapter {folder}", parent, base.fingerprint, base.source)
        trained = parent["base"]["quantization"]
        said = f"was trained on a base with quantization {trained}, goes on with {quantization}"
        return [] if trained == quantization else [f"adapter {folder}: {said}"]
    named = config.get(BASE_OF_ADAPTER)
    if named and Path(named).is_dir():
        named_base = {"base": {"source": named, "fingerprint": base_fingerprint(named)}}
        require_base(f"the adapter {folder}", named_base, base.fingerprint, base.source)
        said = f"its {CONFIG} names {named}, whose fingerprint is that of {base.source}"
        return [f"adapter {folder}: no {PARENT}; {said}"]
    if named in (base.source, base.path):
        said = f"taken for one of {named}, by that name in its {CONFIG} only"
        return [f"adapter {folder}: no {PARENT}; {said}"]
    raise ArtifactError(
        f"{folder}: no {PARENT}, and its {CONFIG} says that it was trained on {named!r}; the base "
        f"model is {base.source!r} (fingerprint {base.fingerprint}). Give that one, or, if it is "
        f"the same under another name, set base_model_name_or_path to {base.source!r}."
    )


def adapter_fingerprint(folder: Path) -> str:
    """SHA-256 over an adapter's weights and what its configuration makes of them."""
    config = read_config(folder)
    meaning = json.dumps({name: config.get(name) for name in _MEANING}, sort_keys=True)
    return hashlib.sha256(f"{sha256_file(folder / WEIGHTS)}{meaning}".encode()).hexdigest()


def base_settings(base: str) -> dict[str, str]:
    """SHA-256, by file, of what else than weights decides a base's scores: settings, own code."""
    folder, found = snapshot(base, [*SETTINGS, "*.py"]), {}
    for file in sorted([*(folder / name for name in SETTINGS), *folder.glob("*.py")]):
        if file.suffix == ".py":
            found[file.name] = sha256_file(file)
        elif file.is_file():
            try:
                values = read_json(file)
            except DataError as error:
                raise ArtifactError(str(error)) from None
            if isinstance(values, dict):
                values = {k: x for k, x in values.items() if k not in _SAID_BY_THE_LIBRARY}
            text = json.dumps(values, sort_keys=True)
            found[file.name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def require_settings(place: str, recorded: Mapping[str, str] | None) -> None:
    """Raise ArtifactError unless a base model's settings are those recorded, if any were."""
    if recorded is None:
        return
    found = base_settings(place)
    other = sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))
    if other:
        raise ArtifactError(
            f"{place}: {', '.join(other)} differ{'s' * (len(other) == 1)} from what the estimator "
            "was exported with, which could change scores. Give the base model (or the hub's "
            "revision of it) that it was."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a complete PEFT directory; ArtifactError where it is not."""
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder}: no {CONFIG}, so no PEFT adapter. Check the path.")
    if not (folder / WEIGHTS).is_file():
        hint = f" {PICKLED} is pickled and not read; save it as safetensors."
        raise ArtifactError(f"{folder}: no {WEIGHTS}.{hint * (folder / PICKLED).exists()}")
    try:
        config = read_json(folder / CONFIG)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / CONFIG}: accepted is an object.")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A PEFT directory's tensors, on the CPU; ArtifactError unless they are finite safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS}: no safetensors file ({error}). Copy it again."
        ) from None
    require_finite(folder / WEIGHTS, tensors.items())
    return tensors


def require_plain(config: Mapping[str, Any], path: Path) -> None:
    """Raise ArtifactError unless a configuration says only what loading and scoring here follow."""
    why = "only adapters that leave the base as it is are used"
    require_values(config, ON_A_FROZEN_BASE, path, why)
    for name in sorted(set(config) - set(_ELSEWHERE)):
        if config[name] not in (None, False, [], {}):
            raise ArtifactError(
                f"{path}: {name} is {config[name]!r}, which scoring would not follow. Merge the "
                "adapter into its base."
            )


def require_values(
    config: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]], path: Path, why: str
) -> None:
    """Raise ArtifactError unless all values are accepted ones, the first being PEFT's default."""
    for field, values in accepted.items():
        if config.get(field, values[0]) not in values:
            listed = " or ".join(map(repr, values))
            raise ArtifactError(
                f"{path}: {field} is {config[field]!r}; accepted is {listed}: {why}. Merge this "
                "one into its base."
            )


def _fingerprint(record: Mapping[str, Any] | None) -> str:
    return "none" if record is None else record["fingerprint"]
