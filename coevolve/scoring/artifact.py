"""The exported estimator as a directory: what lies where, and the manifest that says so.

estimator/
  manifest.json      written last: what everything is, with the SHA-256 of every file
  connector/         a PEFT adapter directory with the record of its parent, or a whole model where it was trained whole
  estimator/         likewise
  tokenizer/         with the chat template
  base/              the base model of the adapters, where it cannot be had from a hub
  connector-tokenizer/, connector-base/   only where the connector has another base model
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError, DataError, RecipeError
from coevolve.files import read_json, sha256_file, write_json
from coevolve.prompts.sets import PromptSet
from coevolve.scoring.models import base_fingerprint, load_model, resolve_base
from coevolve.scoring.origins import read_parent, require_base
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, AdapterRoles, Role, Roles, SeparateRoles

FORMAT = "coevolve-estimator"
VERSION = 2
MANIFEST = "manifest.json"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add format, version and the hash of every file below `folder`, and write the manifest last."""
    files = {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    complete = {"format": FORMAT, "version": VERSION, **manifest, "files": files}
    write_json(folder / MANIFEST, complete)
    return complete


def read_manifest(folder: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of an estimator directory, after a check that every file is there and unchanged.

    Raises:
        ArtifactError: no estimator, an unknown version, or a missing, damaged or pickled file.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{folder}: no {MANIFEST}, so this is no complete exported estimator. "
            "Give the `estimator` folder of a finished run, or make one with `coevolve export`."
        )
    try:
        manifest = read_json(folder / MANIFEST)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or manifest.get("version") not in (1, VERSION)
    ):
        raise ArtifactError(f"{folder / MANIFEST}: accepted is format {FORMAT!r}, version 1 or {VERSION}.")
    if manifest["version"] == 1:
        manifest = _upgraded(manifest)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest but missing. Copy the whole directory again.")
        if verify and sha256_file(path) != expected:
            raise ArtifactError(f"{path}: its SHA-256 differs from the manifest's. Copy or export it again.")
    return manifest


def read_prompts(manifest: Mapping[str, Any], folder: str | Path) -> PromptSet:
    """The prompts of an estimator directory's manifest.

    Raises:
        ArtifactError: they are missing, or hold what a prompt set may not.
    """
    try:
        return PromptSet.from_dict(manifest.get("prompts"))
    except RecipeError as error:
        raise ArtifactError(f"{Path(folder) / MANIFEST}: {error}") from None


def role_entry(
    parent: Mapping[str, Any], *, tuning: str, base_folder: str | None, tokenizer: str, chat_template: str
) -> dict[str, Any]:
    """What a manifest says of a role.

    Args:
        parent: as `Origin.parent` gives it.
        base_folder: where the base model lies in the estimator directory; None where it is not included.
        tokenizer: its folder there.
    """
    return {
        "tuning": tuning,
        "base": {**parent["base"], "folder": base_folder},
        "continued_from": parent["continued_from"],
        "tokenizer": tokenizer,
        "chat_template": chat_template,
    }


def load_roles(
    folder: Path,
    entries: Mapping[Role, Mapping[str, Any]],
    *,
    bases: Mapping[Role, str],
    quantization: str,
    verify: bool,
    **options: Any,
) -> Roles:
    """Both roles of an estimator directory, in memory.

    Args:
        entries: of the manifest, by role.
        bases: where to take a role's base model from, if not from where the manifest says.
        quantization: of bases under adapters: `as trained`, `none`, `4bit` or `8bit`.
        verify: compute the fingerprint of a base model that is not a part of the directory.
        options: for `load_model`.

    Raises:
        ArtifactError: an adapter is not of the base model that it would be put on; both fingerprints are named.
    """
    adapted = [role for role in ROLES if entries[role]["tuning"] == "lora"]
    if quantization != "as trained" and not adapted:
        raise ArtifactError(
            f"{folder}: quantization is {quantization!r}, but both roles are whole models, which are not quantized. "
            "Leave it out."
        )
    where = {role: _locate_base(folder, role, entries[role], bases.get(role)) for role in adapted}
    if verify:
        # What lies in the directory was checked with its other files.
        outside = {role: where[role] for role in adapted if role in bases or entries[role]["base"]["folder"] is None}
        found = {place: base_fingerprint(place) for place in set(outside.values())}
        for role, place in outside.items():
            require_base(f"the adapter {folder / role}", entries[role], found[place], place)
    held = {role: entries[role]["base"]["quantization"] for role in adapted}
    if quantization != "as trained":
        held = dict.fromkeys(adapted, None if quantization == "none" else quantization)

    def adapters(*roles: Role) -> AdapterRoles:
        base = load_model(where[roles[0]], quantization=held[roles[0]], **options)
        return AdapterRoles.load(base, {role: folder / role for role in roles})

    if len(adapted) == len(ROLES) and (where[CONNECTOR], held[CONNECTOR]) == (where[ESTIMATOR], held[ESTIMATOR]):
        return adapters(*ROLES)
    return SeparateRoles(
        {role: adapters(role).model if role in adapted else load_model(str(folder / role), **options) for role in ROLES}
    )


def _locate_base(folder: Path, role: Role, entry: Mapping[str, Any], given: str | None) -> str:
    """Where a role's base model is, after a check of the adapter's record against the manifest."""
    base, parent = entry["base"], read_parent(folder / role)
    if parent is not None:
        require_base(f"the adapter {folder / role}", parent, base["fingerprint"], str(folder / MANIFEST))
    if given is None and base["folder"] is not None:
        return str(folder / base["folder"])
    return resolve_base(given or base["source"])


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one base model and one tokenizer for both roles."""
    old = ("tuning", "base", "chat_template", "version")
    base = manifest["base"]
    entry = role_entry(
        {
            "base": {"source": base["source"], "fingerprint": base["fingerprint"], "quantization": None},
            "continued_from": None,
        },
        tuning=manifest["tuning"],
        base_folder="base" if base["included"] else None,
        tokenizer="tokenizer",
        chat_template=manifest["chat_template"],
    )
    rest = {name: value for name, value in manifest.items() if name not in old}
    return {**rest, "version": VERSION, "roles": dict.fromkeys(ROLES, entry)}


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished directory in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
