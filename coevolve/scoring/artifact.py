"""The exported estimator as a directory: what lies where, and the manifest that says so.

estimator/
  manifest.json      written last: what everything is, with the SHA-256 of every file
  README.md          the card, written of the manifest
  check.json         the test vector (`coevolve.scoring.vector`); absent where nothing was trained
  connector/         a PEFT adapter directory with the record of its parent, or a whole model where
                     it was trained whole; its tokenizer with the chat template
  estimator/         likewise
  tokenizer/         only where both roles are the base model as it is, and have no folders
  base/              the base model of the roles, where it cannot be had from a hub
  connector-base/    only where the connector has another base model

What is checked, and against whom. A file that loading could read is listed with its SHA-256 or is
an error. `identity` is the SHA-256 of the manifest without that field, so that it stands for all of
it: prompts, roles and files. Each role's weights and base model have a fingerprint of their own
beside it, and the tensors must be those of the model, name by name. Whoever changes a part and
computes the hashes in `files` anew is found out. Whoever computes everything anew has made a
different estimator: no directory can vouch for itself, but that one has another identity. Results
carry the identity, so that a number says of which estimator it is. A manifest of version 1 or 2
holds no identity; it is computed, and what such a manifest records is compared. The card is listed,
but as loading never reads it, it may be edited.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from coevolve.errors import ArtifactError, CoevolveError, DataError, RecipeError
from coevolve.files import read_json, sha256_file, write_json, write_text
from coevolve.prompts import PromptSet, Renderer
from coevolve.prompts.rendering import VERSION as RENDERING
from coevolve.scoring.card import CARD, model_card
from coevolve.scoring.manifest_fields import BASE, ENTRY, FIELDS, FORM, OBJECT, REASONING, Check
from coevolve.scoring.models import snapshot, weights_fingerprint
from coevolve.scoring.origins import (
    CONFIG,
    PARENT,
    WEIGHTS,
    adapter_fingerprint,
    read_parent,
    require_base,
    require_settings,
)
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import ROLES, Role, Tuning

FORMAT = "coevolve-estimator"
VERSION = 4
MANIFEST = "manifest.json"
AGAIN = "Copy or export the estimator again."
NORMALISATION = (
    "log_prob sums are nats per response, over the response's own tokens and its end of turn; "
    "means are nats per token; a perplexity is exp(-sum of log-probabilities / number of tokens) "
    "over all responses together"
)

HARMLESS = (
    *("README.md", "LICENSE", "LICENSE.txt", ".git", ".gitattributes", ".gitignore", ".DS_Store"),
)
"""Files that loading never reads; they may lie anywhere and are not listed."""
_HARMLESS_FOLDERS = (".git", ".cache")  # beside the manifest only: a clone's, a download's
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add format, version, hashes and identity (unless it has one); write the manifest last."""
    write_text(folder / CARD, model_card(manifest))
    files = {name: sha256_file(folder / name) for name in sorted([CARD, *_files(folder)])}
    complete = {"format": FORMAT, "version": VERSION, **manifest, "files": files}
    complete.setdefault("identity", identity(complete))
    write_json(folder / MANIFEST, complete)
    return complete


def identity(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its field `identity`, in canonical JSON."""
    rest = {name: value for name, value in manifest.items() if name != "identity"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(folder: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of an estimator directory that is what it says, or ArtifactError.

    The SHA-256 of every file is computed if `verify`; what costs no reading is checked anyway.
    """
    folder = Path(folder)
    manifest = _parsed(folder)
    files, entries = manifest["files"], manifest["roles"]
    _check_listing(folder, files)
    for role in ROLES:
        _check_parts(folder, role, entries[role], files, manifest["version"])
    if verify:
        for name, expected in files.items():
            if not _is_harmless(name) and sha256_file(folder / name) != expected:
                raise ArtifactError(
                    f"{folder / name}: its SHA-256 differs from the manifest's. {AGAIN}"
                )
        for role in ROLES:
            _check_fingerprints(folder, role, entries[role], files)
    return manifest


def listed_files(folder: Path) -> list[str]:
    """Names of the files that a manifest lists, wherever the others are; ArtifactError."""
    return list(_parsed(folder)["files"])


def read_prompts(manifest: Mapping[str, Any], folder: str | Path) -> PromptSet:
    """The prompts of an estimator's manifest; ArtifactError where they are not as they must be."""
    try:
        prompts: Any = manifest.get("prompts")
        return PromptSet.from_dict(prompts)
    except RecipeError as error:
        raise ArtifactError(f"{Path(folder) / MANIFEST}: {error}") from None


def form_of(manifest: Mapping[str, Any]) -> Reasoning:
    """By which form an estimator scores. Before version 0.4 there was but one."""
    found = manifest.get("form") or {"kind": "greedy"}
    return Reasoning(**{name: value for name, value in found.items() if value is not None})


def role_entry(
    parent: Mapping[str, Any],
    *,
    tuning: Tuning,
    base_folder: str | None,
    tokenizer: str,
    chat_template: str,
    settings: Mapping[str, str] | None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """What a manifest says of a role.

    Args:
        base_folder: where the base model lies in the directory; None where it is not included.
        settings: of the base model (`base_settings`); None where the role was trained whole.
        fingerprint: of the role's own weights; None where it has none.
    """
    return {
        "tuning": tuning,
        "base": {**parent["base"], "folder": base_folder, "settings": settings},
        "continued_from": parent["continued_from"],
        "tokenizer": tokenizer,
        "chat_template": chat_template,
        "fingerprint": fingerprint,
    }


def reasoning_entry(max_new_tokens: int, no_repeat_ngram: int = 0) -> dict[str, Any]:
    """What a manifest says of reasonings."""
    return {
        "max_new_tokens": max_new_tokens,
        "no_repeat_ngram": no_repeat_ngram,
        "decoding": "greedy unless a seed is given",
        "shown_to_the_estimator": "the core features only",
    }


def rendering_entry(renderers: Mapping[Role, Renderer]) -> dict[str, Any]:
    """What a manifest says of how ids are made of examples."""
    rendering = next(iter(renderers.values())).rendering
    return {**rendering, "roles": {role: found.answer for role, found in renderers.items()}}


def copy_model(source: Path, target: Path) -> None:
    """Copy a base model (a folder, or a hub id's snapshot), all that `from_pretrained` reads."""
    kinds = (".safetensors", ".json", ".jinja", ".py")
    source = snapshot(str(source), [f"*{kind}" for kind in kinds])
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix in kinds:
            shutil.copy2(file, target / file.name)


def _parsed(folder: Path) -> dict[str, Any]:
    """The manifest, each field checked by itself, as the newest version would have it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: no {MANIFEST}, so no estimator. Give one of a finished run, or of "
            "`coevolve export`."
        )
    try:
        found = read_json(path)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    known = isinstance(found, dict) and found.get("format") == FORMAT
    if not known or found.get("version") not in range(1, VERSION + 1):
        raise ArtifactError(f"{path}: accepted is format {FORMAT!r}, version 1 to {VERSION}.")
    digest = identity(found)
    if found["version"] < 3:
        found["identity"] = digest
    try:
        manifest = _checked(_upgraded(found) if found["version"] == 1 else found)
    except (CoevolveError, TypeError) as error:
        raise ArtifactError(f"{path}: {error} {AGAIN}") from None
    if manifest["identity"] != digest:
        raise ArtifactError(
            f"{path}: says that its identity is {manifest['identity']}, but that of its content is "
            f"{digest}. {AGAIN}"
        )
    return manifest


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of sound fields, absent ones filled in; ArtifactError names one that is not."""
    _with_fields(manifest, FIELDS, "")
    _with_fields(manifest["reasoning"], REASONING, "reasoning.")
    if manifest.get("form") is not None:
        _with_fields(manifest["form"], FORM, "form.", closed=True)
        form_of(manifest)
    PromptSet.from_dict(manifest["prompts"])
    rendered = (manifest.get("rendering") or {}).get("version", RENDERING)
    if rendered != RENDERING:
        raise ArtifactError(f"rendering.version is {rendered!r}; known here is {RENDERING}.")
    roles = _with_fields(manifest["roles"], dict.fromkeys(ROLES, OBJECT), "roles.", closed=True)
    entries = {}
    for role, found in roles.items():
        entry = _with_fields(found, ENTRY, f"roles.{role}.", closed=True)
        base = _with_fields(entry["base"], BASE, f"roles.{role}.base.", closed=True)
        entries[role] = {**entry, "base": base}
    return {**manifest, "roles": entries}


def _with_fields(
    value: Mapping[str, Any], fields: Mapping[str, Check], where: str, *, closed: bool = False
) -> dict[str, Any]:
    unknown = sorted(set(value) - set(fields)) if closed else []
    if unknown:
        raise ArtifactError(f"{where}{unknown[0]} is unknown; accepted are {', '.join(fields)}.")
    for name, (accepted, check) in fields.items():
        if not check(value.get(name)):
            found = repr(value[name])[:80] if name in value else "missing"
            raise ArtifactError(f"{where}{name} is {found}; accepted is {accepted}.")
    return {**dict.fromkeys(fields), **value}


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one base model and one tokenizer for both roles."""
    old = ("tuning", "base", "chat_template")
    base = _with_fields(manifest, {"base": OBJECT}, "")["base"]
    tuning: Any = manifest.get("tuning")  # the fields are looked at once they are in place
    chat_template: Any = manifest.get("chat_template")
    of_base = {"source": base.get("source"), "fingerprint": base.get("fingerprint")}
    entry = role_entry(
        {"base": {**of_base, "quantization": None}, "continued_from": None},
        tuning=tuning,
        base_folder="base" if base.get("included") else None,
        tokenizer="tokenizer",
        chat_template=chat_template,
        settings=None,
    )
    rest = {name: value for name, value in manifest.items() if name not in old}
    return {**rest, "roles": dict.fromkeys(ROLES, entry)}


def _files(folder: Path) -> list[str]:
    """The files that a manifest must list; ArtifactError where a link leads out of the folder."""
    names = []
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in _HARMLESS_FOLDERS]
        for name in sorted(folders + files):
            path = Path(place, name)
            if path.is_symlink() and (name in folders or _leads_out(path, folder)):
                raise ArtifactError(f"{path}: is a link. Put there what it leads to.")
            if name in files and name not in HARMLESS and path != folder / MANIFEST:
                names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def _is_harmless(name: str) -> bool:
    return PurePosixPath(name).name in HARMLESS


def _leads_out(link: Path, folder: Path) -> bool:
    """Whether a file lies elsewhere, but in the hub's cache, which keeps a snapshot's beside it."""
    # Which takes a link to itself as it is.
    target, root = Path(os.path.realpath(link)), folder.resolve()
    in_hub_cache = "snapshots" in root.parts and target.parent.name == "blobs"
    return not (target.is_relative_to(root) or in_hub_cache)


def _check_listing(folder: Path, files: Mapping[str, str]) -> None:
    """Raise ArtifactError unless the manifest lists the files that are there, and those inside."""
    for name in files:
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or "\\" in name or str(plain) != name:
            raise ArtifactError(
                f"{folder / MANIFEST}: lists {name!r}; accepted are plain paths inside."
            )
    found = set(_files(folder))
    for name in sorted(found | set(files)):
        if PurePosixPath(name).suffix.lower() in _PICKLED:
            raise ArtifactError(
                f"{folder / name}: may be pickled, and is not read. Use safetensors."
            )
    for name in files:
        if not (_is_harmless(name) or (folder / name).is_file()):
            raise ArtifactError(f"{folder / name}: listed in the manifest but missing. {AGAIN}")
    unlisted = sorted(found - set(files))
    if unlisted:
        raise ArtifactError(
            f"{folder / unlisted[0]}: not listed in the manifest ({len(unlisted)} such files), and "
            "could change what is loaded. Take it away, or export the estimator again."
        )


def _check_parts(
    folder: Path, role: Role, entry: Mapping[str, Any], files: Mapping[str, str], version: int
) -> None:
    """Raise ArtifactError unless a role's parts are listed, and its adapter's record agrees."""
    tuning, base = entry["tuning"], entry["base"]
    needed = [f"{entry['tokenizer']}/tokenizer_config.json"]
    if tuning == "lora":
        of_adapter = (CONFIG, WEIGHTS, *([PARENT] if version >= 3 else []))
        needed += [f"{role}/{name}" for name in of_adapter]
    for place in _model_folders(role, entry):
        needed.append(f"{place}/config.json")
        _weights(folder, place, files)
    for name in needed:
        if name not in files:
            raise ArtifactError(
                f"{folder / MANIFEST}: lists no {name}, which the {role} needs. {AGAIN}"
            )
    parent = read_parent(folder / role)
    if tuning == "lora" and parent is not None:
        what, place = f"the adapter {folder / role}", str(folder / MANIFEST)
        require_base(what, parent, base["fingerprint"], place)
        recorded = base["quantization"], entry["continued_from"]
        if (parent["base"]["quantization"], parent["continued_from"]) != recorded:
            why = f"says otherwise than the manifest where the {role} comes from"
            raise ArtifactError(f"{folder / role / PARENT}: {why}. {AGAIN}")


def _check_fingerprints(
    folder: Path, role: Role, entry: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    """Raise ArtifactError unless a role's weights, and its base here, have their fingerprints."""
    found = []
    if entry["fingerprint"] is not None:
        adapter = entry["tuning"] == "lora"
        own = adapter_fingerprint(folder / role) if adapter else _weights(folder, role, files)
        found.append((role, own, entry["fingerprint"]))
    base = entry["base"]
    if base["folder"] is not None:
        weights = _weights(folder, base["folder"], files)
        found.append((base["folder"], weights, base["fingerprint"]))
        require_settings(str(folder / base["folder"]), base["settings"])
    for place, fingerprint, recorded in found:
        if fingerprint != recorded:
            raise ArtifactError(
                f"{folder / place}: its fingerprint is {fingerprint}; the manifest's entry of the "
                f"{role} says {recorded}. {AGAIN}"
            )


def _model_folders(role: Role, entry: Mapping[str, Any]) -> list[str]:
    """Where whole models of a role lie in the directory."""
    own: list[str] = [role] if entry["tuning"] == "full" else []
    return own if entry["base"]["folder"] is None else [*own, entry["base"]["folder"]]


def _weights(folder: Path, place: str, files: Mapping[str, str]) -> str:
    """That of a whole model, as `base_fingerprint` has it, from the hashes of its files."""
    beside = [name for name in files if name.startswith(f"{place}/") and name.count("/") == 1]
    names = sorted(name for name in beside if name.endswith(".safetensors"))
    if not names:
        raise ArtifactError(f"{folder / MANIFEST}: lists no safetensors in {place}. {AGAIN}")
    return weights_fingerprint([files[name] for name in names])
