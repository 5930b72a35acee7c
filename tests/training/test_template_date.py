"""A chat template that shows the date shows the day on which the run began, for as long as anybody
works with it.
"""

import json

import pytest

from coevolve import ProbabilityEstimator
from coevolve.scoring.models import load_tokenizer
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.export import export_checkpoint
from coevolve.training.run import train
from coevolve.worlds.tiny import write_tiny_base

DAY = "2024-02-29"


def date_of(folder):
    """The date in the manifest, and in a prompt of the estimator that it belongs to."""
    estimator = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    prompt = estimator.renderer.chat([{"role": "user", "content": "hi"}])
    return estimator.manifest["template_date"], prompt.split(" ")[0]


def test_a_run_keeps_the_day_on_which_it_began(recipe_of, tmp_path, stop_after, caplog):
    base = write_tiny_base(tmp_path / "base", 0, hidden=32, layers=1, heads=2)
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    recipe = recipe_of(
        data={"world": {"train": 12, "test": 2}, "validation": 4},
        model={"base": str(base)},
        rounds={"count": 0},
        baselines={"without_corl": False, "without_reasoning": False},
        evaluation={"marginal_samples": 0},
    )
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, run, stop=stop_after(30))
    # As if it had begun on another day.
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "template_date": DAY}))
    train(recipe, run)
    assert date_of(run / "estimator") == (DAY, DAY)
    *_, last = sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    export_checkpoint(last, tmp_path / "exported")
    assert date_of(tmp_path / "exported") == (DAY, DAY)
    assert "template_date" not in caplog.text

    # An estimator from before that was recorded.
    manifest = json.loads((run / "estimator" / "manifest.json").read_text())
    del manifest["template_date"], manifest["identity"]
    manifest["version"] = 2
    (run / "estimator" / "manifest.json").write_text(json.dumps(manifest))
    ProbabilityEstimator.from_pretrained(run / "estimator", device="cpu")
    assert caplog.text.count("the manifest does not say which it was trained with") == 1
