"""The parts of an estimator directory in memory: its tokenizers, and both roles on their base."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError
from coevolve.prompts import PromptSet, Renderer
from coevolve.prompts.template import say_once
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import base_fingerprint, load_model, load_tokenizer, resolve_base
from coevolve.scoring.origins import require_base, require_settings
from coevolve.scoring.roles import ESTIMATOR, ROLES, AdapterRoles, Role, Roles, SeparateRoles


def load_renderers(
    folder: Path,
    entries: Mapping[Role, Mapping[str, Any]],
    prompts: PromptSet,
    *,
    date: str | None,
    trust_remote_code: bool,
) -> dict[Role, Renderer]:
    """The prompts with each role's tokenizer; one renderer where they have the same.

    `entries` are the manifest's, by role. Raises ArtifactError where a tokenizer cannot be used, or
    has another chat template than the manifest says.
    """
    by_folder: dict[str, Renderer] = {}
    for entry in entries.values():
        place = folder / entry["tokenizer"]
        if entry["tokenizer"] not in by_folder:
            with _named(place):
                tokenizer = load_tokenizer(str(place), trust_remote_code=trust_remote_code)
                by_folder[entry["tokenizer"]] = Renderer(prompts, tokenizer, date=date)
        if by_folder[entry["tokenizer"]].tokenizer.chat_template != entry["chat_template"]:
            why = "its chat template is not the one in the manifest"
            raise ArtifactError(f"{place}: {why}. Copy or export the estimator again.")
    if any(renderer.date not in (None, date) for renderer in by_folder.values()):
        say_once(
            f"{folder}: its chat template shows today's date, as the manifest does not say which "
            "it was trained with, and scores change from day to day. Export the estimator again."
        )
    return {role: by_folder[entries[role]["tokenizer"]] for role in ROLES}


def load_roles(
    folder: Path,
    entries: Mapping[Role, Mapping[str, Any]],
    *,
    bases: Mapping[Role, str],
    quantization: str,
    verify: bool,
    **options: Any,
) -> Roles:
    """Both roles of an estimator directory, `entries` being the manifest's.

    Args:
        bases: where to take a role's base model from, if not from where the manifest says.
        quantization: of base models: `as trained`, `none`, `4bit` or `8bit`.
        verify: compare a base model outside the directory with the one that was trained on.
        options: for `load_model`.

    Raises:
        ArtifactError: a base model is another one, or the weights do not fit the model.
    """
    tuning = {role: entries[role]["tuning"] for role in ROLES}
    based = [role for role in ROLES if tuning[role] != "full"]
    if quantization != "as trained" and not based:
        why = f"quantization is {quantization!r}, but both roles are whole models"
        raise ArtifactError(f"{folder}: {why}, which are not quantized. Leave it out.")
    where = {role: locate_base(folder, role, entries[role], bases.get(role)) for role in ROLES}
    # What lies in the directory was checked with its other files.
    given = [role for role in based if role in bases or entries[role]["base"]["folder"] is None]
    fingerprint = cache(base_fingerprint)
    for role in given if verify else ():
        place = where[role]
        with _named(place, "Put the base model back, or say where it is"):
            require_base(f"the {role} of {folder}", entries[role], fingerprint(place), place)
            require_settings(place, entries[role]["base"]["settings"])
    held = dict.fromkeys(ROLES)
    held |= {role: entries[role]["base"]["quantization"] for role in based}
    if quantization != "as trained":
        held |= dict.fromkeys(based, None if quantization == "none" else quantization)

    def load(*roles: Role) -> Any:
        """The model of roles that share one, with the adapters of those that have any."""
        first = roles[0]
        how: Any = {"quantization": held[first], "exact": tuning[first] == "full", **options}
        with _named(where[first]):
            model = load_model(where[first], **how)
        if tuning[first] != "lora":
            return model
        with _named(folder / first):
            return AdapterRoles.load(model, {role: folder / role for role in roles}).model

    alike = len({(tuning[role], where[role], held[role]) for role in ROLES}) == 1
    if len(based) == len(ROLES) and alike:
        one, adapters = load(*ROLES), tuning[ESTIMATOR] == "lora"
        return AdapterRoles(one) if adapters else SeparateRoles.untouched(one)
    untouched = [role for role in ROLES if tuning[role] == "none"]
    return SeparateRoles({role: load(role) for role in ROLES}, untouched=untouched)


def locate_base(
    folder: Path, role: Role, entry: Mapping[str, Any], given: str | None = None
) -> str:
    """Where the model is that a role stands on: its own folder, `given`, or by the manifest."""
    base = entry["base"]
    if entry["tuning"] == "full":
        return str(folder / role)
    if given is None and base["folder"] is not None:
        return str(folder / base["folder"])
    return resolve_base(given or base["source"])


def _named(
    place: object, advice: str = "Copy or export the estimator again"
) -> AbstractContextManager[None]:
    return explained(f"{place}: cannot be loaded", advice)
