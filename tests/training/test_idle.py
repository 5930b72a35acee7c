"""While one role is trained, the other and the base stay the same to the bit, dropout and rewards
notwithstanding.

Alone, and on two processes under DDP, ZeRO-2 and ZeRO-3. Launched as a script, this file is what
each process does.
"""

import json
import sys
from pathlib import Path

import pytest

TUNINGS = ("lora", "ranks", "full", "mixed")
SFT = {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8, "weight_decay": 0.1}
GRPO = {
    "steps": 2,
    "learning_rate": 1e-3,
    "train_batch_size": 8,
    "per_device_train_batch_size": 2,
    "num_generations": 4,
    "beta": 0.1,
    "max_completion_length": 8,
}


@pytest.mark.parametrize(
    "kind",
    [
        "one",
        *(
            pytest.param(kind, marks=pytest.mark.slow(seconds=20))
            for kind in ("ddp", "zero2", "zero3")
        ),
    ],
)
def test_the_idle_role_does_not_move(kind, launcher, recipe_of, tmp_path):
    for tuning in TUNINGS:
        recipe = recipe_of(tuning, connector_rl=GRPO, estimator_rl=GRPO, estimator_sft=SFT)
        (tmp_path / f"{tuning}.json").write_text(recipe.model_dump_json())
    launcher.run(kind, [__file__, tmp_path], tmp_path / "log")
    phases = json.loads((tmp_path / "phases.json").read_text())
    assert len(phases) == len(TUNINGS) * 4 and all(phase["moved"] > 0 for phase in phases)
    assert {phase["backend"] for phase in phases} == {
        {"one": "NO", "ddp": "MULTI_CPU"}.get(kind, "DEEPSPEED")
    }


def work(folder):
    """What each process does."""
    from accelerate import PartialState

    from coevolve.recipe import Recipe
    from coevolve.training.distributed.processes import Processes
    from coevolve.training.distributed.stopping import Stop

    processes = Processes(PartialState(cpu=True).device, Stop())
    phases = []
    for tuning in TUNINGS:
        recipe = Recipe.model_validate(json.loads((folder / f"{tuning}.json").read_text()))
        phases += Pair(recipe, folder / tuning, processes).phases()
    if processes.main:
        (folder / "phases.json").write_text(json.dumps(phases))
    processes.close()


def add_dropout(config):
    """A whole model has no adapter whose dropout could be on, so its configuration asks for it."""
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.2}))


class Unwatched:
    """Lets every phase go on to its end."""

    def after_step(self, step, capture):
        pass

    def between(self):
        pass

    def poll(self):
        pass


class Pair:
    """Two roles whose every weight is looked at before and after each phase."""

    def __init__(self, recipe, folder, processes):
        self.folder = folder
        from coevolve.preflight.dialogues import load_corpus
        from coevolve.training.phases import connector_rows, estimator_rows
        from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

        self.recipe, self.processes = recipe, processes
        self.train = load_corpus(recipe).require("IDTrain")
        origins = processes.on_main_first(lambda: prepare_origins(recipe, folder))
        processes.on_main(lambda: add_dropout(Path(origins["connector"].base.path) / "config.json"))
        self.estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
        self.roles = self.estimator.roles
        traces = [example.trace for example in self.train]
        self.rows = {
            "connector": connector_rows(self.estimator, self.train, traces),
            "estimator": estimator_rows(self.estimator, self.train, traces),
        }

    def phases(self):
        """SFT and RL of each role; of each phase, how many tensors of the learner moved, and under
        what.
        """
        return [
            self.phase(role, kind)
            for kind in (self.sft, self.grpo)
            for role in ("connector", "estimator")
        ]

    def phase(self, role, train):
        import torch
        from accelerate.state import AcceleratorState
        from transformers import TrainerCallback

        from coevolve.training.engines import Plan, Schedule, Segment

        learner = self.roles.module(role)
        learns = {
            f"{role}: {name}"
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad
        }
        before, own = self.everything(), self.roles.weights(role)
        self.require_dropout(learner)
        steps = 3 if train == self.sft else 2
        plan = Plan(
            roles=self.roles,
            role=role,
            renderer=self.estimator.renderer_of(role),
            processes=self.processes,
            first=0,
            steps=steps,
            tokens=None,
            schedule=Schedule(0, steps),
            seed=3,
            callback=TrainerCallback(),
            watcher=Unwatched(),
            segment=Segment(),
            token_budget=512,
            folder=self.folder,
        )
        train(plan, own)
        after = self.everything()
        assert set(before) == set(after)
        # On one base each role's module is the same one, with the other's adapter and the base in
        # it.
        shared = self.roles.module("connector") is self.roles.module("estimator")
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        allowed = {
            f"{each}: {name.partition(': ')[2]}"
            for name in learns
            for each in ("connector", "estimator")
        }
        odd = sorted(moved - (allowed if shared else learns))
        assert not odd, f"{role}: {odd[:3]} moved as well"
        backend = str(AcceleratorState().distributed_type).rpartition(".")[2]
        return {"role": role, "moved": len(moved & learns), "backend": backend}

    def everything(self):
        """Every parameter and buffer of both modules."""
        return {
            f"{role}: {name}": tensor.detach().clone()
            for role in ("connector", "estimator")
            for name, tensor in self.roles.module(role).state_dict().items()
        }

    def require_dropout(self, learner):
        """Two passes in training mode differ, so dropout is on."""
        import torch

        ids = torch.tensor([self.rows["connector"][0].prompt])
        if any("lora_B" in name for name, _ in learner.named_parameters()):
            # A new adapter adds nothing yet, with dropout or without; its configuration has to do.
            assert all(config.lora_dropout > 0 for config in learner.peft_config.values())
            return
        learner.train()
        one, two = (learner(input_ids=ids).logits for _ in range(2))
        learner.eval()
        assert not torch.equal(one, two)

    def sft(self, plan, own):
        from coevolve.training.engines import run_sft

        run_sft(plan, self.rows[plan.role], self.recipe.estimator_sft)

    def grpo(self, plan, own):
        from coevolve.training.rl.grpo import run_grpo

        settings = self.recipe.connector_rl
        prompts = [plan.renderer.tokenizer.decode(row.prompt) for row in self.rows[plan.role]]
        with self.roles.frozen(plan.role, own) as reference:
            run_grpo(
                plan, prompts, [("asks_everybody", self.reward, 1.0)], settings, reference=reference
            )

    def reward(self, completion_ids, index, **columns):
        """Asks both roles and the reference, as the rewards do, and prefers what can differ in an
        untrained model.
        """
        examples = [self.train[place] for place in index]
        traces = [example.trace for example in examples]
        scores = self.estimator.log_prob(examples, ["yes"] * len(examples), traces)
        self.estimator.reason(examples[:1])
        with self.roles.acting("ref"):
            pass
        return [
            float(score) / 10 + sum(ids) / len(ids)
            for score, ids in zip(scores.mean, completion_ids, strict=True)
        ]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
