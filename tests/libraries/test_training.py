"""What training reaches inside transformers and TRL: they use it in a run of two steps, and a run
in which they no longer do ends with an error that names it.
"""

import sys
from contextlib import contextmanager

import pytest
import torch
from library_runs import gone
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import utils

from coevolve.errors import LibraryError
from coevolve.libraries import trl as seam
from coevolve.libraries.hooks import hooks_of
from coevolve.libraries.transformers import FIRST_STEP, GRADIENT
from coevolve.training import engines
from coevolve.training.engines import LeftHalfway

ATTRIBUTES = {
    kind: {hook.name: hook for hook in hooks_of(trainer)}
    for kind, trainer in (("sft", seam.OpenSFTTrainer), ("rl", seam.OpenGRPOTrainer))
}
OVERRIDDEN = {hook.name: hook for hook in (GRADIENT, *seam.METHODS)}
LIBRARIES = ("transformers", "trl")


def by_a_library(frame):
    return frame.f_globals["__name__"].partition(".")[0] in LIBRARIES


@contextmanager
def seen_by_libraries(monkeypatch, names):
    """The names that transformers and TRL ask trainers for, inside."""
    seen = set()

    def getattribute(self, name):
        if name in names and by_a_library(sys._getframe(1)):
            seen.add(name)
        return object.__getattribute__(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__getattribute__", getattribute, raising=False)
        yield seen


@contextmanager
def renamed(monkeypatch, name):
    """Inside, the libraries' own code has another name for an attribute or a method of trainers."""
    other = f"{name}_of_the_next_release"

    def getattribute(self, asked):
        mine = asked == name and by_a_library(sys._getframe(1))
        return object.__getattribute__(self, other if mine else asked)

    def assign(self, asked, value):
        mine = asked == name and by_a_library(sys._getframe(1))
        object.__setattr__(self, other if mine else asked, value)

    with monkeypatch.context() as patch:
        for kind in (Trainer, SFTTrainer, GRPOTrainer):
            if name in vars(kind):
                patch.setattr(kind, other, vars(kind)[name], raising=False)
        patch.setattr(Trainer, "__getattribute__", getattribute, raising=False)
        patch.setattr(Trainer, "__setattr__", assign, raising=False)
        yield patch


def test_libraries_use_what_is_reached_in_two_steps_of_each_trainer(runs, monkeypatch):
    names = {*ATTRIBUTES["rl"], *OVERRIDDEN, FIRST_STEP.name}
    with seen_by_libraries(monkeypatch, names) as seen:
        runs.rl(runs.plan())
    assert seen == names
    names = {*ATTRIBUTES["sft"], GRADIENT.name, FIRST_STEP.name}
    with seen_by_libraries(monkeypatch, names) as seen:
        runs.sft(runs.plan())
    assert seen == names


def test_the_head_is_theirs(runs, monkeypatch):
    """Positions without a label are left out because TRL asks, and the reference has TRL's head."""
    asked, heads = [], []

    @contextmanager
    def only_asked_for(model):
        with seam.only_asked_for(model):
            ours = utils._use_triton
            utils._use_triton = lambda device: asked.append(device.type) or ours(device)
            yield

    theirs = utils.add_fused_lm_head

    def add_head(model, temperature=1.0):
        heads.append(model)
        theirs(model, temperature=temperature)

    monkeypatch.setattr(engines, "only_asked_for", only_asked_for)
    monkeypatch.setattr(utils, "add_fused_lm_head", add_head)
    before = utils._use_triton
    runs.rl(runs.plan())
    assert set(asked) == {"cpu"} and len(heads) == 1
    assert before(torch.device("cpu")) is False


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, hooks in ATTRIBUTES.items() for name in hooks]
)
def test_an_attribute_that_is_renamed_is_named(runs, monkeypatch, kind, name):
    hook = ATTRIBUTES[kind][name]
    with renamed(monkeypatch, name), pytest.raises(LibraryError) as caught:
        getattr(runs, kind)(runs.plan())
    assert f".{name}, by which {hook.purpose}, is missing. Known to work: " in str(caught.value)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_method_that_is_gone_changed_or_passed_by_is_named(runs, monkeypatch, name):
    hook, kinds = OVERRIDDEN[name], (Trainer, GRPOTrainer)
    owner = next(kind for kind in kinds if name in vars(kind))
    with renamed(monkeypatch, name), pytest.raises(LibraryError, match="is no longer called"):
        runs.rl(runs.plan())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda self, *, another: None)
        with pytest.raises(LibraryError, match=rf"{name}, .* takes \(another\), where \("):
            runs.rl(runs.plan())
    missing = rf"{name}, by which {hook.purpose}, is missing"
    with gone(hook), pytest.raises(LibraryError, match=missing):
        runs.rl(runs.plan())


@pytest.mark.parametrize("hook", [*seam.HEAD, FIRST_STEP], ids=str)
def test_what_else_is_gone_is_named(runs, hook):
    missing = f"{hook.name}, by which {hook.purpose}, is missing"
    with gone(hook), pytest.raises(LibraryError, match=missing):
        runs.sft(runs.plan())


def test_a_head_that_gives_no_log_probabilities_is_named(runs):
    model = runs.roles.module("connector")
    with pytest.raises(LibraryError, match=r"add_fused_lm_head, by which .* no longer makes"):
        seam.run_head(model, input_ids=torch.tensor([[1, 2]]))  # without it, as transformers is


def test_completions_that_are_not_ours_end_the_run(runs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(seam, "_write", None)  # TRL goes its own way without one
        with pytest.raises(LibraryError, match=r"rollout_func, by which .* is no longer called"):
            runs.rl(runs.plan())


def test_a_phase_that_would_begin_at_another_step_does_not_begin(runs, monkeypatch):
    with pytest.raises(LeftHalfway) as left:
        runs.sft(runs.plan(leave_after=1))
    theirs = Trainer._prepare_for_training

    def prepare(self, *args, **kwargs):
        result = theirs(self, *args, **kwargs)
        self.state.global_step = 0
        return result

    monkeypatch.setattr(Trainer, "_prepare_for_training", prepare)
    with pytest.raises(LibraryError, match="create_scheduler, by which a phase begins at any step"):
        runs.sft(runs.plan(left.value.segment))


def test_no_release_of_theirs_has_a_name_of_ours():
    """A method of ours that a library comes to have as well would be called by it unseen."""
    public = {"get_train_dataloader", "create_scheduler", "create_optimizer", "compute_loss"}
    from coevolve.training.rl.algorithms import ALGORITHMS

    for trainer in (engines.RoleSFTTrainer, *map(ALGORITHMS.get, ALGORITHMS)):
        theirs = [kind for kind in trainer.__mro__ if kind.__module__.startswith(LIBRARIES)]
        names = {name for kind in theirs for name in vars(kind)}
        ours = {
            name
            for kind in trainer.__mro__
            if kind.__module__.startswith("coevolve.")
            for name in vars(kind)
            if not name.startswith("__")
        }
        assert ours & names == (public | set(OVERRIDDEN)) & ours
