"""What a run leaves on disk on its way: `run.json` once, and the weights of both roles after each round.

run/
  run.json                    recipe, base model, data fingerprint, package versions
  metrics.jsonl               every figure, a line at a time
  traces.jsonl                the teacher's reasonings
  checkpoints/0-cold-start/   connector.safetensors, estimator.safetensors, manifest.json (last)
  checkpoints/1-round-1/      ...
  estimator/                  the export
  results.json                the figures at the end
"""

import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from coevolve.errors import ArtifactError
from coevolve.files import read_json, sha256_file, write_json
from coevolve.recipe import Recipe, check_recipe, recipe_values
from coevolve.scoring.roles import ROLES, Role, Roles
from coevolve.training.setup import Base

RUN = "run.json"
MANIFEST = "manifest.json"
PACKAGES = ("coevolve", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets")


def start_run(folder: Path, recipe: Recipe, base: Base, data_fingerprint: str) -> None:
    """Write `run.json`."""
    write_json(
        folder / RUN,
        {
            "recipe": recipe_values(recipe),
            "base": {"source": base.source, "path": base.path, "fingerprint": base.fingerprint},
            "data_fingerprint": data_fingerprint,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    )


def read_run(folder: Path) -> tuple[Recipe, Base, dict[str, Any]]:
    """The recipe, the base model and the rest of `run.json`.

    Raises:
        ArtifactError: there is no run in the folder.
    """
    if not (folder / RUN).is_file():
        raise ArtifactError(f"{folder}: no {RUN}, so no run of coevolve. Give the --output-dir of a `coevolve train`.")
    run = read_json(folder / RUN)
    return check_recipe(run["recipe"], str(folder / RUN)), Base(**run["base"]), run


def save_checkpoint(folder: Path, roles: Roles, facts: Mapping[str, Any]) -> None:
    """Write both roles' weights and, last, a manifest with their hashes and `facts`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = {}
    for role in ROLES:
        path = temporary / f"{role}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in roles.weights(role).items()}, path)
        files[path.name] = sha256_file(path)
    write_json(temporary / MANIFEST, {**facts, "files": files})
    temporary.rename(folder)


def load_checkpoint(folder: Path) -> tuple[dict[Role, dict[str, Tensor]], dict[str, Any]]:
    """Each role's weights, and the manifest.

    Raises:
        ArtifactError: the checkpoint is incomplete or damaged; the file is named.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder}: no {MANIFEST}, so no complete checkpoint.")
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: listed in the manifest but missing. Use another checkpoint.")
        if sha256_file(folder / name) != expected:
            raise ArtifactError(f"{folder / name}: its SHA-256 differs from the manifest's. Use another checkpoint.")
    return {role: load_file(folder / f"{role}.safetensors") for role in ROLES}, manifest
