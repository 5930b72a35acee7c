"""A grid so small that it takes seconds: two estimators and three models of the synthetic world."""

import yaml

from coevolve.files import write_jsonl
from coevolve.preflight.dialogues import load_corpus
from coevolve.recipe import check_recipe
from coevolve.remid.subsets import distributions
from tests.chat.conftest import serve  # noqa: F401
from tests.training.conftest import SFT, VALUES

NOTHING = {"without_corl": False, "without_reasoning": False}
ESTIMATOR = {
    **{name: x for name, x in VALUES.items() if not name.endswith(("_rl", "_sft", "refresh"))},
    "data": {"world": {"seed": 3, "hops": "one", "train": 40, "test": 11}, "validation": 8},
    "rounds": {"count": 0},
    "baselines": NOTHING,
    "evaluation": {"marginal_samples": 0},
    "export": {"form": "greedy"},
}
WORDS = {"steps": 80, "learning_rate": 3e-3, "train_batch_size": 16}
RPM = {
    "name": "rpm",
    "data": {"world": {"seed": 3, "hops": "one", "train": 40, "test": 11}, "validation": 8},
    "model": {name: x for name, x in VALUES["model"].items() if name != "max_reasoning_tokens"},
    "rpm": {
        "method": "sft",
        "max_response_tokens": 8,
        "samples": 2,
        "sft": WORDS,
        "dpo": {**SFT, "steps": 4},
    },
}
GRID = {
    "name": "small",
    "seed": 5,
    "estimator": {"train": "estimator.yaml", "set": ["seed=6"]},
    "reward": {"train": "estimator.yaml"},
    "models": {
        "start": {"rpm": "rpm.yaml", "remedy": "none"},
        "dpo": {"rpm": "rpm.yaml", "start": "start", "set": ["rpm.method=dpo"]},
        "theirs": {"responses": "theirs.jsonl", "start": "start", "remedy": "dpo"},
    },
    "ask": {"temperature": 0.0, "max_new_tokens": 8, "keep_cut_off": True, "on_failure": "drop"},
    "measure": {"negatives_per_context": 6, "missing": "drop"},
    "judge": {"scores": "judged.jsonl", "scale": [1, 5]},
}


def write(folder, changes=None):
    """The grid's files in a folder; the grid."""
    for name, values in (("estimator", ESTIMATOR), ("rpm", RPM), ("grid", GRID)):
        values = {**values, **(changes or {})} if name == "grid" else values
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "grid.yaml"


def write_answers(folder):
    """The responses of `theirs`, two of three golden, and a judge's scores."""
    corpus = load_corpus(check_recipe(ESTIMATOR, "estimator"))
    tests = [x for split in corpus.test_splits for x in corpus.splits[split]]
    texts = [
        (x if place % 3 else tests[place - 1]).golden_response for place, x in enumerate(tests)
    ]
    rows = [{"sample_ID": x.sample_id, "response": y} for x, y in zip(tests, texts, strict=True)]
    write_jsonl(folder / "theirs.jsonl", rows)
    names = [subset.row for subset in distributions(corpus)]
    pairs = [(model, name) for model in GRID["models"] for name in names]
    scores = [
        {"model": m, "subset": s, "score": 1 + place % 5} for place, (m, s) in enumerate(pairs)
    ]
    write_jsonl(folder / "judged.jsonl", scores)
