"""Run folders: `status`, and starting the same run again (`train` on a finished run, whose
checkpoint is read anew).

`status` changes nothing and agrees with the file. A run that is gone on with ends with the figures
that it had, and one that is refused is left as it was.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.fuzz.areas.checkpoints import mutate_tensors, rewrite_manifest
from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_file, mutate_folder
from tests.fuzz.strict import Unreadable, strict_json

STATUS_CODES = (0, 1, 3, 75)
WRITTEN = (
    "run/.lock",
    "run/status.json",
    "run/metrics.jsonl",
    "run/samples.jsonl",
    "run/.sent.json",
    "run/console*",
    "run/wandb*",
)
"""What a run says of itself whenever it is started, also where the start is refused."""


class RunFolders:
    name = "run folders"
    share = 5

    def run(self, case: Case) -> None:
        run = case.inputs / "run"
        kind = case.rng.choices(("status", "lora", "stopped"), (70, 24, 6))[0]
        light = kind == "status"
        if light:
            run.mkdir()
            for name in ("run.json", "status.json"):
                shutil.copy(case.valid.run / name, run / name)
            (run / "checkpoints" / "00001-x").mkdir(parents=True)
            (run / ".lock").write_text("{}")
        else:
            shutil.copytree(case.valid.folder / kind, run)
        rehashed = False
        if not case.untouched:
            rehashed = _damage(case, run, light)
        if light:
            _status(case, run)
        else:
            _resume(case, run, kind, rehashed)


def _damage(case: Case, run: Path, light: bool) -> bool:
    """Damage the folder; returns whether a checkpoint was damaged and its manifest written anew."""
    rng = case.rng
    how = rng.random()
    if light:
        name = rng.choice(("status.json", "status.json", "run.json"))
        case.note(
            mutate_file(rng, run / name, as_json=0.8) if how < 0.8 else mutate_folder(rng, run)
        )
        return False
    newest = sorted((run / "checkpoints").iterdir())[-1]
    if how < 0.4:
        name = rng.choice(
            (
                "run.json",
                "run.json",
                "traces.jsonl",
                "metrics.jsonl",
                "status.json",
                "results.json",
                ".sent.json",
            )
        )
        path = run / name
        case.note(
            mutate_file(rng, path, as_json=0.8) if path.is_file() else mutate_folder(rng, run)
        )
        return False
    if how < 0.75:
        file = (
            newest / "state.json"
            if rng.random() < 0.7
            else rng.choice(sorted(newest.glob("*.safetensors")))
        )
        case.note(
            mutate_file(rng, file, as_json=1.0)
            if file.suffix == ".json"
            else mutate_tensors(case, file)
        )
        rewrite_manifest(newest)
        case.note("the manifest fits")
        return True
    if how < 0.85:
        case.note(mutate_file(rng, newest / "manifest.json", as_json=0.8))
        return False
    case.note(mutate_folder(rng, run))
    return False


def _status(case: Case, run: Path) -> None:
    said = case.command("status", run, accepted=STATUS_CODES)
    state = _state(run / "status.json", case.valid.run / "status.json")
    if state is not None:
        expected = {"finished": 0, "failed": 1}.get(state, 75)
        case.wrong_if(
            said.status != expected, "another exit status than the state's", (state, said.status)
        )
    case.wrong_if("state: " not in said.out, "no state is shown", said.out)


def _state(path: Path, original: Path) -> str | None:
    """What the file says, where nothing else in it was damaged; what becomes of such a one is for
    the tool to say.
    """
    if not path.is_file():
        return None
    try:
        status = strict_json(path.read_bytes())
    except Unreadable:
        return None
    known = isinstance(status, dict) and isinstance(status.get("state"), str)
    if not known:
        return None
    # As text: 3.0 is no 3 in a file.
    texts = [
        json.dumps({**said, "state": ""}) for said in (status, strict_json(original.read_bytes()))
    ]
    return status["state"] if texts[0] == texts[1] else None


def _resume(case: Case, run: Path, kind: str, rehashed: bool) -> None:
    case.note(kind)
    ended = {"lora": case.valid.run / "results.json", "stopped": case.valid.folder / "stopped.json"}
    expected = _figures(ended[kind])
    recipe = case.valid.folder / "recipes" / f"{kind}.yaml"
    case.may_change += WRITTEN
    case.command("train", recipe, "--output-dir", run)
    case.may_change.append("run/*")
    figures = _figures(run / "results.json")
    if not rehashed:
        case.wrong_if(
            figures != expected, "other figures than the run had", _difference(figures, expected)
        )
    for split, value in figures.get("perplexity", {}).get("full", {}).items():
        case.wrong_if(
            not (isinstance(value, float) and 0 < value < 1e9), "no perplexity", (split, value)
        )


def _figures(path: Path) -> dict[str, Any]:
    results = json.loads(path.read_text("utf-8"))
    return {name: value for name, value in results.items() if name != "seconds"}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


AREA = RunFolders()
