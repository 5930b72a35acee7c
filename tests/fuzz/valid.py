"""The valid inputs that are damaged: real dialogues, and what a tiny real run wrote. Made once for
each version.
"""

import copy
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = "COEVOLVE_SHARED_DATA"
"""The environment variable with the folder of `roleplay-shared.json`; by default `../shared/data`.
"""

SFT = {"steps": 2, "learning_rate": 2e-3, "train_batch_size": 4}
GRPO = {"steps": 1, "learning_rate": 1e-3, "train_batch_size": 4, "num_generations": 2}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "prompts": "world",
    "data": {"world": {"train": 16, "test": 4}, "validation": 4},
    "model": {
        "base": "tiny",
        "tiny": {"hidden_size": 16, "layers": 1, "heads": 2},
        "tuning": "lora",
        "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0},
        "dtype": "float32",
        "device": "cpu",
        "max_length": 96,
        "max_reasoning_tokens": 12,
    },
    "traces": {"teacher": "rules"},
    "cold_start": {"connector": SFT, "estimator": SFT},
    "rounds": {"count": 1},
    "connector_rl": {**GRPO, "max_completion_length": 8, "rewards": {"target_words": 5}},
    "refresh": {"temperature": 1.0},
    "estimator_sft": SFT,
    "estimator_rl": {
        **GRPO,
        "num_generations": 4,
        "max_completion_length": 6,
        "rewards": {"judge": "likelihood"},
    },
    "baselines": {"without_corl": False, "without_reasoning": False},
}
"""A run of seconds, with every kind of phase in it."""


@dataclass(frozen=True)
class Valid:
    """Where the valid inputs lie.

    Attributes:
        folder: with `lora/`, `full/`, `stopped/` (runs), `remid/`, `bound/` (results), `recipes/`,
            `saved/`.
        corpus: a few real dialogues of every subset, in the RPGBench layout.
    """

    folder: Path
    corpus: dict[str, list[dict[str, Any]]]

    @property
    def run(self) -> Path:
        return self.folder / "lora"

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """A copy of the corpus, to be changed."""
        return copy.deepcopy(self.corpus)


def find() -> Valid | None:
    """The valid inputs that an earlier sitting made with the same code."""
    folder = _place()
    return _open(folder) if (folder / "done").exists() else None


def make() -> Valid:
    """Make them; call it in a process of its own, for training starts threads."""
    folder = _place()  # not made elsewhere and moved: a run knows where its base model lies
    with open(_made(folder.parent) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _made(folder)
            corpus = _real_rows() or _written_rows()
            (folder / "corpus.json").write_text(json.dumps(corpus, ensure_ascii=False), "utf-8")
            with open(folder / "log", "w") as log, redirect_stdout(log), redirect_stderr(log):
                _make_runs(folder)
                _make_saved(folder)
            (folder / "done").write_text("")
    return _open(folder)


def _open(folder: Path) -> Valid:
    return Valid(folder, json.loads((folder / "corpus.json").read_text("utf-8")))


def _place() -> Path:
    """Named after the code that writes them and the data that they begin with."""
    digest = hashlib.sha256()
    for path in sorted((*(ROOT / "coevolve").rglob("*.py"), Path(__file__))):
        digest.update(path.read_bytes())
    digest.update(str(_shared()).encode())
    return Path(tempfile.gettempdir()) / f"coevolve-fuzz-{os.getuid()}" / digest.hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _shared() -> Path | None:
    """The file of real dialogues, where it is there."""
    path = Path(os.environ.get(DATA) or ROOT.parent / "shared" / "data") / "roleplay-shared.json"
    return path if path.is_file() else None


def _real_rows() -> dict[str, list[dict[str, Any]]] | None:
    """Two real dialogues of each subset, three of IDTrain."""
    path = _shared()
    if path is None:
        return None
    chosen: dict[str, list[dict[str, Any]]] = {}
    for split, rows in json.loads(path.read_text("utf-8")).items():
        for row in rows:
            same = [
                other for other in chosen.get(split, ()) if other["subset_tag"] == row["subset_tag"]
            ]
            if len(same) < (3 if split == "IDTrain" else 2):
                chosen.setdefault(split, []).append(row)
    return chosen


def _written_rows() -> dict[str, list[dict[str, Any]]]:
    """In place of real ones: objects and prose as characters, several languages, one to four
    exchanges.
    """
    subsets = {
        "IDTrain": ("IDTrain",) * 3,
        "IDTest": ("IDTest",) * 2,
        "OOD1Test": ("german", "german", "chinese"),
        "OOD2Test": ("literature",) * 2,
        "OOD3Test": ("turn_composition", "word_composition"),
    }
    says = {"german": "Magst du meinen Hund? Er heißt Bär.", "chinese": "我的狗很可爱。你喜欢它吗"}

    def row(split: str, number: int, tag: str) -> dict[str, Any]:
        said = says.get(tag, "Do you like my dog, as a sailor?")
        turns = [{"user_query": "Hi!"}, {"agent_response": "Ahoy there."}] * (1 + number)
        prose = "Ann, a sailor of 52 who has seen every port."
        return {
            "sample_ID": f"{split}-{tag}-{number:05d}",
            "subset_tag": tag,
            "user_persona": "I have a dog.\nI live by the sea.",
            "agent_character": {"name": "Ann", "age": 52, "traits": ["calm"]}
            if number % 2
            else prose,
            "dialogue_context": [*turns, {"user_query": said}],
            "agent_golden_response": f"As a sailor I always wanted a dog, number {number}.",
        }

    return {
        split: [row(split, number, tag) for number, tag in enumerate(tags)]
        for split, tags in subsets.items()
    }


def _make_runs(folder: Path) -> None:
    """The run with adapters and its `remid` and `bound`; one whose roles are tuned in full, cold
    start only; one that was stopped in the middle of reinforcement learning, with the results that
    it comes to when it goes on.
    """
    from coevolve.cli import main
    from coevolve.recipe import check_recipe
    from coevolve.training.run import train

    recipes = _made(folder / "recipes")
    full = {**RECIPE, "model": {**RECIPE["model"], "tuning": "full"}, "rounds": {"count": 0}}
    stopped = {
        **RECIPE,
        "connector_rl": {**RECIPE["connector_rl"], "steps": 3, "updates_per_generation": 2},
    }
    stopped["checkpoints"] = {"every_steps": 1, "keep": 99}
    for name, values in (("lora", RECIPE), ("full", full), ("stopped", stopped)):
        (recipes / f"{name}.yaml").write_text(json.dumps(values, indent=1))
        train(check_recipe(values, name), folder / name)
    _forget_the_end(folder / "stopped")
    run = folder / "lora"
    judged = [f"{name}={run / 'world' / name}.jsonl" for name in ("perfect", "noise_0.4")]
    common = [
        "--estimator",
        run / "estimator",
        "--data",
        run / "world" / "dialogues.json",
        "--device",
        "cpu",
    ]
    common += ["--no-cache", "--responses", *judged, "--negatives", "6"]
    for command in (["remid", *common], ["bound", *common, "--base", run / "estimator" / "base"]):
        if main([str(part) for part in (*command, "--out", folder / str(command[0]))]):
            raise SystemExit(f"the valid inputs could not be made: {command[0]} failed")


def _forget_the_end(run: Path) -> None:
    """Leave a run as it was at its first checkpoint inside a phase of reinforcement learning, but
    for the results.
    """
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    inside = next(name for name in names if "_rl-step-" in name)
    for name in names:
        if name > inside or name < names[names.index(inside) - 1]:
            shutil.rmtree(run / "checkpoints" / name)
    shutil.rmtree(run / "estimator")
    (run / "results.json").rename(run.with_name("stopped.json"))


def _make_saved(folder: Path) -> None:
    """The corpus as `datasets` and Parquet keep it."""
    import datasets

    datasets.disable_progress_bars()
    corpus = json.loads((folder / "corpus.json").read_text("utf-8"))
    splits = {
        name: datasets.Dataset.from_list([_flat(row) for row in rows])
        for name, rows in corpus.items()
    }
    rows = [{**_flat(row), "split": name} for name, rows in corpus.items() for row in rows]
    saved = _made(folder / "saved")
    datasets.DatasetDict(splits).save_to_disk(str(saved / "splits"))
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(str(saved / "one"))
    one.to_parquet(str(saved / "one.parquet"))
    one.to_json(str(saved / "one.jsonl"), force_ascii=False)
    for name, split in splits.items():
        split.to_parquet(str(_made(saved / "folder") / f"{name}.parquet"))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A column cannot hold strings and objects, so characters are JSON text where rows differ."""
    character = row["agent_character"]
    return (
        row
        if isinstance(character, str)
        else {**row, "agent_character": json.dumps(character, ensure_ascii=False)}
    )
