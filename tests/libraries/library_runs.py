"""Phases of two steps on a tiny model, and what is reached in a library taken away."""

import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

CONNECTOR = "connector"


def load_helpers():
    """Those of `tests/training`."""
    path = Path(__file__).parents[1] / "training" / "conftest.py"
    spec = spec_from_file_location("training_helpers", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Runs:
    """A pair of roles, and phases of two steps of its connector."""

    def __init__(self, folder, processes):
        from coevolve.preflight.dialogues import load_corpus
        from coevolve.recipe import check_recipe
        from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

        helpers = load_helpers()
        rl = {"beta": 0.1, "updates_per_generation": 2, "per_device_train_batch_size": 4}
        sft = {**helpers.SFT, "steps": 2}
        values = helpers.values(connector_rl=rl, cold_start={CONNECTOR: sft})
        self.recipe, self.folder, self.processes = check_recipe(values, "tiny"), folder, processes
        self.train = load_corpus(self.recipe).require("IDTrain")
        origins = processes.on_main_first(lambda: prepare_origins(self.recipe, folder))
        renderers = build_renderers(self.recipe, origins)
        self.estimator = build_estimator(self.recipe, origins, renderers)
        self.roles = self.estimator.roles
        self.cold = self.roles.weights(CONNECTOR)

    def plan(self, segment=None, leave_after=None):
        from transformers import TrainerCallback

        from coevolve.training.engines import Plan, Schedule, Segment

        segment = segment or Segment()
        self.roles.load_weights(CONNECTOR, segment.weights or self.cold)
        return Plan(
            roles=self.roles,
            role=CONNECTOR,
            renderer=self.estimator.renderer,
            processes=self.processes,
            first=0,
            steps=2,
            tokens=None,
            schedule=Schedule(0, 2),
            seed=3,
            callback=TrainerCallback(),
            watcher=Watcher(leave_after),
            segment=segment,
            token_budget=512,
            folder=self.folder,
            rl_field="connector_rl",
        )

    def sft(self, plan):
        from coevolve.training.engines import run_sft
        from coevolve.training.phases import connector_rows

        rows = connector_rows(self.estimator, self.train, [x.trace for x in self.train])
        return run_sft(plan, rows, self.recipe.cold_start.connector)

    def rl(self, plan):
        from coevolve.training.rl.algorithms import run_rl

        prompts = [plan.renderer.connector(example) for example in self.train]
        with self.roles.frozen(CONNECTOR, self.cold) as reference:
            return run_rl(
                plan,
                prompts,
                [("remainder", remainder, 1.0)],
                self.recipe.connector_rl,
                reference=reference,
            )


class Watcher:
    """Leaves a phase after a step."""

    def __init__(self, leave_after):
        self.leave_after = leave_after

    def after_step(self, step, capture):
        from coevolve.training.distributed.processes import Interrupted

        if step == self.leave_after:
            raise Interrupted

    def between(self):
        pass

    def poll(self):
        pass


def remainder(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]


@contextmanager
def gone(hook, on=None):
    """Inside, a library has not what a hook names; `on` is an instance of its owner."""
    if on is None:
        module, _, inside = hook.owner.partition(":")
        on = import_module(module)
        on = getattr(on, inside) if inside else on
    places = on.__mro__ if isinstance(on, type) else [on, *type(on).__mro__]
    places = [place for place in places if hook.name in getattr(place, "__dict__", {})]
    assert places, hook
    kept = [vars(place)[hook.name] for place in places]
    for place in places:
        delattr(place, hook.name)
    try:
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            setattr(place, hook.name, value)
