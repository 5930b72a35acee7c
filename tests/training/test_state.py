"""A run's state and what a checkpoint holds of it are the same; the stages of a run are a list."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from coevolve.remid.results import ChosenReasoning
from coevolve.scoring.roles import ROLES
from coevolve.scoring.scores import Scores
from coevolve.training import loop
from coevolve.training.checkpoints import CheckpointWriter, read_checkpoint
from coevolve.training.documents import FormOfExport, HeldOut, RecordState, Verdict
from coevolve.training.engines import Segment
from coevolve.training.outcome import Outcome
from coevolve.training.state import Evaluated, RunState, Snapshot


def pair(seed):
    generator = torch.Generator().manual_seed(seed)
    return {role: {"w": torch.randn(2, 3, generator=generator)} for role in ROLES}


def full_state():
    """With something in every field."""
    scores = Scores(np.array([-2.5, -0.1]), np.array([3, 1]))
    evaluated = Evaluated(scores, ["warm", None])
    optimizer = {"connector_rl": {"exp_avg|w": torch.ones(2)}}
    tokens = {"tokens": 410, "total_tokens": 0}
    return RunState(
        pair=pair(0),
        reasoning=["kind", ["calm", "mild"]],
        cold_reasoning=[["kind"], "sad"],
        chosen=[1],
        optimizers=optimizer,
        updates=dict.fromkeys(ROLES, 4),
        progress={"connector_rl": 4},
        rounds=[4],
        where={"coevolve/round": 1, "coevolve/phase": "connector_rl"},
        done=["cold-start-connector"],
        stage="round-1-connector_rl",
        segment=Segment(
            2, pair(1)[ROLES[0]], {"own|x": torch.ones(1)}, [{"0|a": torch.ones(1)}], tokens
        ),
        texts=["written so far"],
        best=Snapshot(pair(2), optimizer, [["kind", "warm"], "sad"], [0], evaluated),
        verdicts=[Verdict(round=1, phase="connector_rl", before=2.0, after=None, kept=None)],
        held_out_reasoning=["warm", None],
        held_out_written=3,
        probe=evaluated,
        kept={"direct": pair(5), "cold": pair(3), "trained": pair(4), "baseline": pair(6)},
        baseline_perplexity=1.75,
        trained_updates=dict.fromkeys(ROLES, 9),
        form=FormOfExport(
            form=ChosenReasoning(kind="mixture", weight=0.25),
            held_out={"mixture": HeldOut(perplexity=2.5, n=2, weight=0.25)},
        ),
        outcome=Outcome(
            {"full": {"IDTest": scores}},
            {"IDTest": ["a", "b"]},
            None,
            {"IDTest": 1.2},
            {("perfect", "IDTest"): 0.1},
        ),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def written(state, folder):
    source = {"source": "b", "fingerprint": "f"}
    document = state.document(
        processes=2,
        record=RecordState(step=7, seconds=0.1, trackers={}),
        parents={key: {"base": source, "continued_from": None} for key in ROLES},
    )
    writer = CheckpointWriter(folder, keep=1)
    return read_checkpoint(writer.write("x", document.values(), state.tensors(), best=False))


@pytest.mark.parametrize("field", [field.name for field in fields(RunState)])
def test_every_field_comes_back_from_a_checkpoint(tmp_path, field):
    state = full_state()
    checkpoint = written(state, tmp_path)
    again = RunState.read(checkpoint.state, checkpoint.tensors, {"IDTest"})
    assert getattr(state, field) not in (None, "", 0)
    assert same(getattr(state, field), getattr(again, field))


def test_a_pair_that_is_the_best_is_known_as_such_and_measures_of_lost_splits_go(tmp_path):
    state = full_state()
    state.best = replace(state.best, pair=dict(state.pair))
    checkpoint = written(state, tmp_path)
    again = RunState.read(checkpoint.state, checkpoint.tensors, set())
    assert again.holds_best and again.outcome.scores == {"full": {}}
    assert not full_state().holds_best


def test_the_stages_of_a_run_are_called_as_ever(recipe_of, build, tmp_path):
    """Checkpoints name them."""
    rounds = {"count": 2, "phases": ["connector_rl", {"kind": "refresh", "every": 2}, "evaluate"]}
    context, _ = build(
        recipe_of(rounds=rounds, baselines={"without_reasoning": False, "oracle": True}), tmp_path
    )
    examples = context.data.validation[:2]
    context = replace(context, data=replace(context.data, tests={"IDTest": examples}))
    assert " ".join(stage.name for stage in loop.stages(context)) == (
        "cold-start-connector cold-start-estimator cold-start-gate round-1-connector_rl"
        " round-1-evaluate-gate round-1-diagnosis round-2-connector_rl round-2-refresh"
        " round-2-evaluate-gate round-2-diagnosis trained full-IDTest full-marginal-IDTest form"
        " full-forms-IDTest export"
        " without_corl-1 without_corl-1-gate without_corl-2 without_corl-2-gate"
        " without_corl-IDTest without_corl-marginal-IDTest"
        " oracle-IDTest"
    )
