"""A real signal in the midst of every stage of a run: saved, out,
and gone on with to the same end.
"""

import json
import os
import signal
import time
from contextlib import contextmanager

import pytest

from coevolve.training.distributed.processes import Interrupted
from coevolve.training.distributed.stopping import Stop
from coevolve.training.run import train
from coevolve.training.run_folder import RunFolder

TEACHER = """
from coevolve.teachers import Answer


class Teacher:
    settings = {"kind": "ours"}

    def __init__(self, prompts, train, poll, **more):
        self.prompts, self.poll = prompts, poll

    def answers(self, examples):
        for example in examples:
            self.poll()
            yield Answer(example.sample_id, f"[Connections] x [Features] {example.golden_response}")


def slow_reward(completions, **columns):
    return [float(len(x)) for x in completions]
"""
SHORT = ("trained", "-gate", "truth")
"""Stages that need not look: what there is of them to wait for is looked at with their examples."""


class InTheMidst(Stop):
    """Sends SIGTERM to this process at the second look in a stage that was not left before: the
    first is at its beginning.
    """

    def __init__(self, left):
        super().__init__()
        self.left, self.stage, self.looks, self.at = left, "preparation", 0, 0.0

    def begin(self, stage):
        self.stage, self.looks = stage, 0

    @contextmanager
    def raising(self, at_once=True):
        with super().raising(at_once):
            assert not self.requested  # a signal raises
            yield

    @property
    def requested(self):
        self.looks += 1
        if self.looks >= 2 and self.stage not in self.left and self.reason is None:
            self.left.append(self.stage)
            self.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().requested


@pytest.mark.slow
def test_every_stage_is_left_where_a_signal_finds_it(recipe_of, tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(TEACHER)
    own = f"{tmp_path / 'ours.py'}"
    recipe = recipe_of(
        traces={"teacher": f"custom:{own}:Teacher"},
        baselines={"oracle": True, "without_corl": True, "without_reasoning": True},
        cold_start={"refresh": {"cross_fit": 2, "temperature": 1.0}},
        connector_rl={"rewards": {"target_words": 5, "custom": {f"{own}:slow_reward": 0.1}}},
    )
    seen, say = [], RunFolder.say_status
    stop = None

    def noted(folder, state, *, stage, **more):
        if state == "running":
            seen.append(stage)
            if stop is not None:
                stop.begin(stage)
        return say(folder, state, stage=stage, **more)

    monkeypatch.setattr(RunFolder, "say_status", noted)
    whole = train(recipe, tmp_path / "whole")
    stages, left, results = list(dict.fromkeys(seen)), [], None
    while results is None:
        stop = InTheMidst(left)
        try:
            with stop.listening():
                results = train(recipe, tmp_path / "run", stop=stop)
        except Interrupted:
            assert stop.reason == "SIGTERM" and time.monotonic() - stop.at < 30
            status = json.loads((tmp_path / "run" / "status.json").read_text())
            assert (status["state"], status["reason"]) == ("interrupted", "SIGTERM")
    assert {**results, "seconds": 0} == {**whole, "seconds": 0}
    missed = {x for x in stages if x not in left and not x.endswith(SHORT)}
    assert not missed and len(left) > 25, (missed, left)


def test_a_reward_that_takes_long_is_left_at_once(recipe_of, tmp_path):
    """It does not look by itself; the step that it is of is taken again."""
    (tmp_path / "own.py").write_text(
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "def reward(completions, **columns):\n"
        "    if not Path(__file__ + '.asked').exists():\n"
        "        Path(__file__ + '.asked').touch()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(600)\n"
        "    return [float(len(x)) for x in completions]\n"
    )
    rewards = {"target_words": 5, "custom": {f"{tmp_path / 'own.py'}:reward": 0.1}}
    off = {"without_corl": False, "without_reasoning": False}
    recipe, stop = recipe_of(connector_rl={"rewards": rewards}, baselines=off), Stop()
    began = time.monotonic()
    with pytest.raises(Interrupted), stop.listening():
        train(recipe, tmp_path / "run", stop=stop)
    assert time.monotonic() - began < 120
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["stage"] == "round-1-connector_rl" and "step-0" in status["checkpoint"]
    assert train(recipe, tmp_path / "run")["perplexity"]
