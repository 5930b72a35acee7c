"""FSDP2 on two CPU processes: the same weights as DDP, and a plain module with all of its weights
afterwards.

accelerate leaves FSDP out on a machine without a GPU, so `coevolve` refuses it there. torch itself
runs FSDP2 over gloo. This file is started by torchrun as well, with accelerate told that FSDP is
what it has been asked for; all else is as on GPUs.
"""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TUNINGS = ("lora", "full", "tied")
SFT = {
    "steps": 4,
    "learning_rate": 2e-3,
    "train_batch_size": 8,
    "weight_decay": 0.1,
    "max_grad_norm": 0.3,
}
GRPO = {
    "steps": 4,
    "learning_rate": 2e-4,
    "train_batch_size": 8,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": True,
    "num_generations": 4,
    "beta": 0.1,
    "updates_per_generation": 2,
    "max_completion_length": 8,
}

pytestmark = pytest.mark.slow(seconds=15)


@pytest.fixture(scope="module")
def weights(launcher, recipe_of, tmp_path_factory):
    """For DDP and FSDP2, what two processes came to: `TUNING/PHASE/ROLE/PARAMETER` -> tensor."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("fsdp")
    for tuning in TUNINGS:
        shape = {"tiny": {"hidden_size": 36, "layers": 2, "heads": 2}}
        recipe = recipe_of(
            "lora" if tuning == "lora" else "full",
            model=shape,
            connector_rl=GRPO,
            estimator_sft=SFT,
        )
        (folder / f"{tuning}.json").write_text(recipe.model_dump_json())
    come_to = {}
    for kind in ("ddp", "fsdp"):
        launcher.run("ddp", [__file__, kind, folder], folder / f"{kind}.log")
        come_to[kind] = load_file(folder / f"{kind}.safetensors")
    return come_to


@pytest.mark.parametrize("tuning", TUNINGS)
def test_fsdp_gives_the_weights_that_ddp_gives(weights, tuning):
    """They differ by the order of sums, which Adam lets grow where a gradient is near 0: 2e-6 in
    one of 30,000.
    """
    ddp, fsdp = (
        {name: tensor for name, tensor in weights[kind].items() if name.startswith(tuning)}
        for kind in ("ddp", "fsdp")
    )
    assert set(ddp) == set(fsdp)
    for phase in ("sft", "grpo", "other"):
        names = [name for name in ddp if name.split("/")[1] == phase]
        assert names
        for name in names:
            assert (ddp[name] - fsdp[name]).abs().max() < 1e-5, name


def work(kind: str, folder: Path) -> None:
    """What each process does; writes the weights, and checks what can be seen from inside only."""
    import torch
    from accelerate import PartialState
    from safetensors.torch import save_file

    from coevolve.recipe import Recipe
    from coevolve.training.distributed.processes import Processes
    from coevolve.training.distributed.stopping import Stop

    torch.use_deterministic_algorithms(True)
    processes = Processes(PartialState(cpu=True).device, Stop())
    if kind == "fsdp":
        _let_accelerate_take_fsdp()
    weights = {}
    for tuning in TUNINGS:
        recipe = Recipe.model_validate(json.loads((folder / f"{tuning}.json").read_text()))
        run = Run(
            recipe,
            folder / f"{kind}-{tuning}",
            processes,
            divided=kind == "fsdp",
            tied=tuning == "tied",
        )
        weights.update({f"{tuning}/{name}": tensor for name, tensor in run.phases().items()})
    if processes.main:
        save_file(weights, folder / f"{kind}.safetensors")
    processes.close()


def _let_accelerate_take_fsdp() -> None:
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    options = yaml.safe_load((ROOT / "launch" / "fsdp2.yaml").read_text())["fsdp_config"]
    os.environ.update(
        {name.upper(): str(value) for name, value in options.items()}, ACCELERATE_USE_FSDP="true"
    )
    init = AcceleratorState.__init__

    def as_on_gpus(state, *args, fsdp_plugin=None, **kwargs):
        init(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            assert isinstance(fsdp_plugin, FullyShardedDataParallelPlugin)
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = as_on_gpus


class Watch:
    """Notes whether the model is divided, and leaves the phase after a step where it
    is asked to.
    """

    def __init__(self, run, leave_after=None):
        self.run, self.leave_after = run, leave_after

    def after_step(self, step, capture):
        from coevolve.training.distributed.processes import Interrupted

        self.run.check_divided()
        if step == self.leave_after:
            raise Interrupted

    def between(self):
        pass

    def poll(self):
        pass


def tie(folder):
    """Make a saved model one whose output embeddings are its input embeddings."""
    from safetensors.torch import load_file, save_file

    config, file = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    weights = {name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}
    save_file(weights, file, metadata={"format": "pt"})


class Run:
    """The phases on one pair of models."""

    def __init__(self, recipe, folder, processes, *, divided, tied):
        from coevolve.preflight.dialogues import load_corpus
        from coevolve.scoring.roles import CONNECTOR
        from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

        self.recipe, self.processes, self.divided, self.tied = recipe, processes, divided, tied
        self.folder = folder
        self.train = load_corpus(recipe).require("IDTrain")
        origins = processes.on_main_first(lambda: prepare_origins(recipe, folder))
        if tied:
            processes.on_main(lambda: tie(Path(origins[CONNECTOR].base.path)))
        self.estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
        self.roles = self.estimator.roles

    def phases(self):
        """SFT and GRPO of one role, then SFT of the other, each with an interruption that must not
        be seen.
        """
        from coevolve.scoring.roles import CONNECTOR, ESTIMATOR

        return {
            **self.phase("sft", CONNECTOR, self.sft, interrupt_after=3),
            **self.phase("grpo", CONNECTOR, self.grpo, interrupt_after=3),
            **self.phase("other", ESTIMATOR, self.sft, interrupt_after=1),
        }

    def phase(self, name, role, train, *, interrupt_after):
        import torch

        from coevolve.scoring.roles import ROLES
        from coevolve.training.engines import LeftHalfway, Segment

        before = {each: self.roles.weights(each) for each in ROLES}
        self.began = before[role]
        whole = train(self.plan(role, Segment(), Watch(self)))
        self.check_plain()
        after = {each: self.roles.weights(each) for each in ROLES}
        for each in ROLES:
            moved = any(
                not torch.equal(before[each][key], after[each][key]) for key in before[each]
            )
            assert moved == (each == role), f"{name}: {each}"
        assert all(torch.equal(whole.weights[key], after[role][key]) for key in after[role])

        self.roles.load_weights(role, before[role])
        with pytest.raises(LeftHalfway) as caught:
            train(self.plan(role, Segment(), Watch(self, leave_after=interrupt_after)))
        left = caught.value.segment
        self.check_plain()
        assert left.step == interrupt_after and bool(left.rollouts) == (train == self.grpo)
        self.roles.load_weights(role, left.weights)
        left = train(self.plan(role, left, Watch(self)))
        for kind in ("weights", "optimizer"):
            one, two = getattr(whole, kind), getattr(left, kind)
            assert set(one) == set(two) and one
            for key in one:
                assert type(two[key]) is torch.Tensor and torch.equal(one[key], two[key]), (
                    f"{name}: {kind} {key}"
                )
        return {
            f"{name}/{each}/{key}": value for each in ROLES for key, value in after[each].items()
        }

    def plan(self, role, segment, watch):
        from transformers import TrainerCallback

        from coevolve.training.engines import Plan, Schedule

        self.role = role
        return Plan(
            roles=self.roles,
            role=role,
            renderer=self.estimator.renderer,
            processes=self.processes,
            first=0,
            steps=4,
            tokens=None,
            schedule=Schedule(0, 4),
            seed=3,
            callback=TrainerCallback(),
            watcher=watch,
            segment=segment,
            token_budget=512,
            folder=self.folder,
        )

    def sft(self, plan):
        from coevolve.training.engines import run_sft

        return run_sft(plan, self.rows(), self.recipe.estimator_sft)

    def rows(self):
        from coevolve.training.phases import connector_rows

        return connector_rows(self.estimator, self.train, [example.trace for example in self.train])

    def grpo(self, plan):
        from coevolve.training.rl.grpo import run_grpo

        prompts = [self.estimator.renderer.connector(example) for example in self.train]
        rewards, settings = [("likelihood", self.reward, 1.0)], self.recipe.connector_rl
        with self.roles.frozen(plan.role, self.began) as reference:
            return run_grpo(
                plan,
                prompts,
                rewards,
                settings,
                golden_rows=self.rows(),
                golden_nll_weight=1.0,
                reference=reference,
            )

    def reward(self, completion_ids, index, **columns):
        """The other role's log-probability of something short, asked a different number of times on
        each process.
        """
        examples = [self.train[place] for place in index]
        for _ in range(1 + self.processes.rank):
            scores = self.estimator.log_prob(
                examples, ["yes"] * len(examples), [example.trace for example in examples]
            )
        vocabulary = len(self.estimator.renderer.tokenizer)
        return [
            float(score) / 10 + sum(ids) / len(ids) / vocabulary
            for score, ids in zip(scores.mean, completion_ids, strict=True)
        ]

    def check_divided(self):
        from torch.distributed.tensor import DTensor

        parameters = dict(self.roles.module(self.role).named_parameters())
        odd = [
            name
            for name, parameter in parameters.items()
            if isinstance(parameter, DTensor) != self.divided
        ]
        assert not odd, odd
        if self.divided:
            parts = sum(parameter.to_local().numel() for parameter in parameters.values())
            assert parts < 0.7 * sum(parameter.numel() for parameter in parameters.values())

    def check_plain(self):
        import torch
        from peft import PeftModel
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        model = self.roles.module(self.role)
        for module in model.modules():
            assert not isinstance(module, FSDPModule) and "FSDP" not in type(module).__name__, type(
                module
            ).__mro__
            assert not module._state_dict_pre_hooks
        for parameter in model.parameters():
            assert type(parameter) is torch.nn.Parameter and not isinstance(parameter, DTensor)
        copy.deepcopy(model)
        bare = model.get_base_model() if isinstance(model, PeftModel) else model
        assert "forward" not in bare.__dict__ and "generate" not in model.__dict__
        assert (
            bare.get_input_embeddings().weight is bare.get_output_embeddings().weight
        ) == self.tied
        if self.processes.main:  # alone: nothing in it waits for the other process
            self.estimator.log_prob(
                self.train[:2], ["yes"] * 2, [example.trace for example in self.train[:2]]
            )


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
