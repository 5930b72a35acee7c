"""The exported estimator as a directory: what lies where, and the manifest that says so.

estimator/
  manifest.json      written last: what everything is, with the SHA-256 of every file
  connector/         a PEFT adapter directory, or a whole model where training was in full
  estimator/         likewise
  tokenizer/         with the chat template
  base/              the base model, where it cannot be had from a hub
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError, DataError
from coevolve.files import read_json, sha256_file, write_json

FORMAT = "coevolve-estimator"
VERSION = 1
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
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise ArtifactError(f"{folder / MANIFEST}: accepted is format {FORMAT!r}, version {VERSION}.")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest but missing. Copy the whole directory again.")
        if verify and sha256_file(path) != expected:
            raise ArtifactError(f"{path}: its SHA-256 differs from the manifest's. Copy or export it again.")
    return manifest


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished directory in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
