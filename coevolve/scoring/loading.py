"""Both roles of an estimator directory in memory, on their base model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from coevolve.errors import ArtifactError, CoevolveError
from coevolve.scoring.models import base_fingerprint, load_model, resolve_base
from coevolve.scoring.origins import require_base, require_settings
from coevolve.scoring.roles import ESTIMATOR, ROLES, AdapterRoles, Role, Roles, SeparateRoles


def load_roles(
    folder: Path,
    entries: Mapping[Role, Mapping[str, Any]],
    *,
    bases: Mapping[Role, str],
    quantization: str,
    verify: bool,
    **options: Any,
) -> Roles:
    """Both roles of an estimator directory.

    Args:
        entries: of the manifest that `read_manifest` gave, by role.
        bases: where to take a role's base model from, if not from where the manifest says.
        quantization: of base models: `as trained`, `none`, `4bit` or `8bit`.
        verify: compare a base model that is not a part of the directory with the one that was trained on.
        options: for `load_model`.

    Raises:
        ArtifactError: a base model is another one, both fingerprints are named; or the weights do not fit the model.
    """
    tuning = {role: entries[role]["tuning"] for role in ROLES}
    based = [role for role in ROLES if tuning[role] != "full"]
    if quantization != "as trained" and not based:
        raise ArtifactError(
            f"{folder}: quantization is {quantization!r}, but both roles are whole models, which are not quantized. "
            "Leave it out."
        )
    where = {role: _locate_base(folder, entries[role], bases.get(role)) for role in based}
    if verify:
        # What lies in the directory was checked with its other files.
        outside = {role: where[role] for role in based if role in bases or entries[role]["base"]["folder"] is None}
        found = {place: base_fingerprint(place) for place in set(outside.values())}
        for role, place in outside.items():
            require_base(f"the {role} of {folder}", entries[role], found[place], place)
            require_settings(place, entries[role]["base"]["settings"])
    held = {role: entries[role]["base"]["quantization"] for role in based}
    if quantization != "as trained":
        held = dict.fromkeys(based, None if quantization == "none" else quantization)

    def load(*roles: Role) -> Any:
        """The model of roles that share one, with the adapters of those that have any."""
        if tuning[roles[0]] == "full":
            with _named(folder / roles[0]):
                return load_model(str(folder / roles[0]), exact=True, **options)
        with _named(where[roles[0]]):
            base = load_model(where[roles[0]], quantization=held[roles[0]], **options)
        if tuning[roles[0]] == "none":
            return base
        with _named(folder / roles[0]):
            return AdapterRoles.load(base, {role: folder / role for role in roles}).model

    if len(based) == len(ROLES) and len({(tuning[role], where[role], held[role]) for role in ROLES}) == 1:
        model = load(*ROLES)
        return AdapterRoles(model) if tuning[ESTIMATOR] == "lora" else SeparateRoles.untouched(model)
    untouched = [role for role in ROLES if tuning[role] == "none"]
    return SeparateRoles({role: load(role) for role in ROLES}, untouched=untouched)


def _locate_base(folder: Path, entry: Mapping[str, Any], given: str | None) -> str:
    base = entry["base"]
    if given is None and base["folder"] is not None:
        return str(folder / base["folder"])
    return resolve_base(given or base["source"])


@contextmanager
def _named(place: object) -> Iterator[None]:
    """What the libraries raise for files that they cannot read, as an ArtifactError that names the place."""
    from safetensors import SafetensorError

    try:
        yield
    except CoevolveError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{place}: cannot be loaded ({type(error).__name__}: {reason}). Copy or export the estimator again."
        ) from error
