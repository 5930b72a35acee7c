"""Checkpoints: read alone, found as the newest of a run, exported.

What is accepted has the bits of the original, where the manifest was not written anew; and while an
older checkpoint is whole, a damaged newer one costs nothing but the work since.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.fuzz.core import Case, RefusedError
from tests.fuzz.mutate import mutate_file, mutate_folder, mutate_json, to_json


class Checkpoints:
    name = "checkpoints"
    share = 10

    def run(self, case: Case) -> None:
        from coevolve.training.checkpoints import read_checkpoint

        run, source = (
            case.inputs / "run",
            case.valid.folder / case.rng.choice(("lora", "lora", "stopped")),
        )
        names = sorted(path.name for path in (source / "checkpoints").iterdir())[-2:]
        for name in names:
            shutil.copytree(source / "checkpoints" / name, run / "checkpoints" / name)
        shutil.copy(source / "run.json", run / "run.json")
        (run / "base").symlink_to(source / "base")
        newest = run / "checkpoints" / names[-1]
        original = read_checkpoint(newest)
        rehashed = not case.untouched and _damage(case, newest)
        how = case.rng.random()
        if how < 0.5:
            _check(case, case.call(read_checkpoint, newest), original, rehashed)
        elif how < 0.85:
            _newest(case, run, original, rehashed, older=names[0])
        else:
            case.command("export", newest, "--out", case.outputs / "estimator")
            if source == case.valid.run:  # the other one has no estimator of its own yet
                _check_export(case, case.outputs / "estimator", rehashed)


def _newest(case: Case, run: Path, original: Any, rehashed: bool, *, older: str) -> None:
    from coevolve.training.checkpoints import newest_checkpoint

    said: list[str] = []
    try:
        found = case.call(newest_checkpoint, run, said.append)
    except RefusedError as error:
        case.wrong_if(True, "the older checkpoint is whole, and was not taken", error)
        raise
    case.wrong_if(found is None, "no checkpoint was found, and nothing said")
    if found.folder.name != older:
        _check(case, found, original, rehashed)
    else:
        # A newest one that is no longer there at all cannot be spoken of.
        gone = original.folder.is_dir()
        case.wrong_if(gone and not said, "an older checkpoint was taken, and nothing said")


def _damage(case: Case, folder: Path) -> bool:
    """Damage a checkpoint; returns whether its manifest was written anew to fit."""
    rng = case.rng
    files = sorted(path for path in folder.iterdir() if path.is_file())
    how = rng.random()
    if how < 0.15:
        case.note(mutate_folder(rng, folder))
        return False
    if how < 0.45:
        case.note(mutate_file(rng, folder / "manifest.json", as_json=0.8))
        return False
    weights = [file for file in files if file.suffix == ".safetensors"]
    file = folder / "state.json" if rng.random() < 0.5 else rng.choice(weights)
    case.note(
        mutate_file(rng, file, as_json=0.9)
        if file.suffix == ".json"
        else mutate_tensors(case, file)
    )
    if rng.random() < 0.5:
        return False
    rewrite_manifest(folder)
    case.note("the manifest fits")
    return True


def mutate_tensors(case: Case, file: Path) -> str:
    """Damage a safetensors file: its header as the JSON that it is, or its bytes."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if case.chance(0.5):
        header, did = mutate_json(case.rng, json.loads(content[8 : 8 + size]))
        text = to_json(header).encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % 8)
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
        return f"{file.name}: header: {did}"
    return mutate_file(case.rng, file)


def rewrite_manifest(folder: Path) -> None:
    """Sizes and hashes as an adversary, or a careless script, would put them right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _check(case: Case, found: Any, original: Any, rehashed: bool) -> None:
    import torch

    if rehashed:
        return
    case.wrong_if(found.state != original.state, "another state")
    # The manifest names the files; one that names fewer is not all of the checkpoint.
    case.wrong_if(
        found.tensors.keys() != original.tensors.keys(),
        "other files",
        found.tensors.keys() ^ original.tensors.keys(),
    )
    for group, tensors in original.tensors.items():
        equal = tensors.keys() == found.tensors[group].keys() and all(
            torch.equal(tensor, found.tensors[group][name]) for name, tensor in tensors.items()
        )
        case.wrong_if(not equal, "other weights", group)


def _check_export(case: Case, folder: Path, rehashed: bool) -> None:
    original = case.valid.run / "estimator"
    for role in ("connector", "estimator"):
        one, other = (place / role / "adapter_model.safetensors" for place in (folder, original))
        case.wrong_if(not one.is_file(), "exported without weights", role)
        case.wrong_if(
            not rehashed and one.read_bytes() != other.read_bytes(), "exported other weights", role
        )


AREA = Checkpoints()
