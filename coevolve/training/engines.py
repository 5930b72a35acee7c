"""TRL's trainers as engines that can begin and end at any optimizer step; SFT of one role by them
(GRPO is in `grpo`).

Deviations from the plain trainers:
- Prompts and responses reach them as the token ids that scoring uses; they tokenise nothing
  themselves.
- Which rows an update is over follows from the seed alone: one order for the whole phase, cut into
  updates. A pass over the data is finished before the next begins, and a row at its end is neither
  dropped nor doubled, whatever the number of processes.
- Before each update the global random states are set from seed, step and process. So there is no
  random state to be saved, and nothing that happens between two updates can disturb it.
- On a CPU, as on a GPU, logits are computed only at the positions that the loss is over.
- TRL turns the adapters of a quantized base into bfloat16, in which a step of 1e-5 changes most
  weights not at all; they stay float32.
- TRL patches the model's `forward` at each construction; the patch is taken off again when a phase
  ends.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, SFTConfig

from coevolve.libraries.hooks import hooks_of, require
from coevolve.libraries.torch import hooks_as_before, staying
from coevolve.libraries.transformers import FIRST_STEP
from coevolve.libraries.trl import Open, OpenDPOTrainer, OpenSFTTrainer, only_asked_for
from coevolve.prompts import Renderer
from coevolve.recipe.optimization import Optimization, Sft
from coevolve.recipe.rpm import Dpo
from coevolve.scoring.roles import Role, Roles
from coevolve.scoring.ways import bare
from coevolve.seeds import derive_seed
from coevolve.training.arguments import common_arguments
from coevolve.training.distributed import sharding
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.divergence import DivergenceGuard
from coevolve.training.generation import Engines
from coevolve.training.rows import Rows, order_of_rows

RewardFunction = Callable[..., list[float]]


@dataclass
class Segment:
    """A training phase under way: where it begins, or how far it came.

    Attributes:
        weights: of the role, on the CPU; empty where it begins with those that it has.
        optimizer: `exp_avg|NAME`, ... on the CPU, by the trained parameters' names; empty for a new
            optimizer. What a trainer has beside it (PPO's value function) is there as `own|NAME`.
        rollouts: of each process, the completions that more than one update is over,
            `0|advantages`, ..., and those written ahead, `ahead-3|ids`, ...; empty where the next
            update begins with new ones.
        tokens: how many it has seen, as SFT and RL count them.
        samples: of RL, what was written last, for people.
    """

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    rollouts: list[dict[str, Tensor]] = field(default_factory=list)
    tokens: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def own(self) -> dict[str, Tensor]:
        """What the trainer has beside the optimizer, by name."""
        own = {name: value for name, value in self.optimizer.items() if is_own(name)}
        return {name.partition("|")[2]: value for name, value in own.items()}


def is_own(name: str) -> bool:
    """Whether an entry of `Segment.optimizer` is the trainer's own."""
    return name.startswith(f"{sharding.OWN}|")


class LeftHalfway(Interrupted):
    """A training phase was left; `segment` is where it goes on."""

    def __init__(self, segment: Segment):
        super().__init__()
        self.segment = segment


class Watcher(Protocol):
    """What looks after a phase while it runs."""

    def after_step(self, step: int, capture: Callable[[], Segment]) -> None:
        """After each step but the last; may keep `capture()`; raises Interrupted to leave."""

    def between(self) -> None:
        """Between two parts of one step; raises Interrupted to leave the phase before this step."""

    def poll(self) -> None:
        """Between two tokens; raises StopRequested to leave what is being generated or scored."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up and decay of the learning rate go over `steps` steps, beginning with `first`."""

    first: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What SFT and GRPO of one phase have in common. Steps count from the run's first phase of the
    name, so that data and learning rate go on with them.

    Attributes:
        first, steps: the optimizer steps at which the phase begins, and ends at the latest.
        tokens: trained on, prompts included; the step that reaches them is the last.
        token_budget: of one forward pass in generation.
        folder: the run's directory, for a batch that a step could not be taken on.
        engines: for generation by vLLM.
        rl_field: where the recipe has the role's settings of RL, for errors.
    """

    roles: Roles
    role: Role
    renderer: Renderer
    processes: Processes
    first: int
    steps: int
    tokens: int | None
    schedule: Schedule
    seed: int
    callback: TrainerCallback
    watcher: Watcher
    segment: Segment
    token_budget: int
    folder: Path
    engines: Engines | None = None
    rl_field: str = ""


def steps_of(settings: Optimization, examples_per_epoch: int) -> int:
    """Optimizer steps of a phase: as given, or enough for the epochs asked for."""
    if settings.steps is not None or settings.epochs is None:  # the recipe gives one of them
        return settings.steps or 1
    return max(1, math.ceil(settings.epochs * examples_per_epoch / settings.train_batch_size))


def run_sft(plan: Plan, rows: Rows, settings: Sft) -> Segment:
    """Fine-tune the role on `rows`, from the segment's step to the end."""
    first, end = (step * settings.train_batch_size for step in (plan.segment.step, plan.steps))
    order = order_of_rows(len(rows), end, plan.seed)[first:]
    used, places = rows.visited(order.tolist(), first)
    with trainer_of(plan) as (model, scratch):
        trainer = RoleSFTTrainer(
            model=model,
            args=SFTConfig(
                **common_arguments(plan, settings, model, scratch),
                max_length=None,
                packing=False,
                padding_free=settings.padding_free,
                activation_offloading=settings.activation_offloading,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([row.columns() for row in used]),
            processing_class=plan.renderer.tokenizer,
            callbacks=[plan.callback],
            plan=plan,
            order=np.array(places),
        )
        return train(trainer)


class Resumable(Open):
    """What makes a trainer of transformers begin at the segment's step and show its state.

    A mixin before one of `libraries.trl`'s trainers. It stands in for transformers' own
    `resume_from_checkpoint`, which reads pickles, depends on the number of processes, and leaves
    GRPO's buffer out.
    """

    def __init__(self, *args: Any, plan: Plan, order: np.ndarray, **kwargs: Any):
        self.plan, self.order = plan, order
        trained = [(x, x.data) for x in kwargs["model"].parameters() if x.requires_grad]
        super().__init__(*args, **kwargs)
        for parameter, data in trained:
            if parameter.dtype != data.dtype:
                parameter.data = data
        self.add_callback(_Steps(self))
        self.tokens_of_step = plan.segment.tokens
        tokenizer = plan.renderer.tokenizer
        self.guard = DivergenceGuard(plan.folder, plan.role, plan.processes, tokenizer)

    def capture(self) -> Segment:
        """Everything that the next step depends on. A collective call."""
        with sharding.whole_parameters(self):
            own, weights = self.own_state(), self.weights()
        named = {f"{sharding.OWN}|{name}": value for name, value in own.items()}
        return Segment(
            step=self.state.global_step,
            weights=weights,
            optimizer=sharding.optimizer_state(self) | named,
            rollouts=self.rollouts(),
            tokens=self.tokens_of_step,
            samples=self.samples(),
        )

    def weights(self) -> dict[str, Tensor]:
        """The role's, with which it answers; on the CPU. They have to be there in full."""
        weights, own = self.plan.roles.weights(self.plan.role), self.own_state()
        return {name: value for name, value in weights.items() if name not in own}

    @property
    def over(self) -> bool:
        """Whether the phase has come to its end, by steps or tokens. The same on all processes."""
        # TRL's GRPO counts them in the one, its SFT in the other.
        tokens = self.state.num_input_tokens_seen or self.total_tokens
        spent = self.plan.tokens is not None and tokens >= self.plan.tokens
        return spent or self.state.global_step >= self.plan.steps

    def own_state(self) -> dict[str, Tensor]:
        """What it goes on from beside the optimizer and the role's weights; a copy on the CPU."""
        return {}

    def rollouts(self) -> list[dict[str, Tensor]]:
        """Of each process; empty where the next step begins with new ones."""
        return []

    def samples(self) -> list[dict[str, Any]]:
        """What the role wrote last, on the main process."""
        return []

    def note_step(self) -> None:
        """Remember what was counted by this step's end: the next may be left halfway."""
        seen = self.state.num_input_tokens_seen
        self.tokens_of_step = {"tokens": seen, "total_tokens": self.total_tokens}

    def begin(self) -> None:
        """Go on where the segment left off. The loop is about to take its first step."""
        segment = self.plan.segment
        require(hooks_of(type(self)), self)
        sharding.begin(self, self.check_step)
        optimizer = {name: value for name, value in segment.optimizer.items() if not is_own(name)}
        if optimizer:
            sharding.load_optimizer_state(self, optimizer)
        if segment.step > self.plan.schedule.first:
            sharding.set_schedule(self, segment.step - self.plan.schedule.first)
        if segment.tokens:
            self.state.num_input_tokens_seen = segment.tokens["tokens"]
            self.total_tokens = segment.tokens["total_tokens"]

    def get_train_dataloader(self) -> DataLoader:
        """The rows in their order. TRL's GRPO asks for a whole batch of completions at a time."""
        rows: Any = self.train_dataset
        loader = DataLoader(
            rows,
            batch_size=self.args.train_batch_size * getattr(self.args, "steps_per_generation", 1),
            sampler=self.order.tolist(),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        # Asked for once the state is new, and before the loop notes at which step it begins.
        self.state.global_step = self.plan.segment.step
        return super().create_scheduler(self.plan.schedule.steps, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = self.loss(model, inputs, *args, **kwargs)
        self.guard.see(inputs, loss)
        return loss

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """Of one micro-step."""
        return super().compute_loss(*args, **kwargs)

    def check_step(self, gradient: float) -> None:
        """Raise DivergenceError rather than let a step be taken on what is no number."""
        self.guard.check(self.state.global_step, gradient, self.samples())


def run_dpo(plan: Plan, pairs: Sequence[dict[str, Any]], settings: Dpo) -> Segment:
    """Train the role to prefer, from the segment's step to the end.

    A pair has `prompt_ids`, `chosen_ids` and `rejected_ids`, and what the role gave to these before
    it was trained: `ref_chosen_logps` and `ref_rejected_logps`, nats per response.
    """
    first, end = (step * settings.train_batch_size for step in (plan.segment.step, plan.steps))
    order = order_of_rows(len(pairs), end, plan.seed)[first:]
    used, places = np.unique(order, return_inverse=True)
    with trainer_of(plan) as (model, scratch):
        trainer = RoleDPOTrainer(
            model=model,
            args=DPOConfig(
                **common_arguments(plan, settings, model, scratch),
                beta=settings.beta,
                max_length=None,
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list([pairs[index] for index in used]),
            processing_class=plan.renderer.tokenizer,
            callbacks=[plan.callback],
            plan=plan,
            order=places,
        )
        return train(trainer)


class RoleDPOTrainer(Resumable, OpenDPOTrainer):
    """TRL's DPOTrainer on pairs in a given order, from any step."""


class RoleSFTTrainer(Resumable, OpenSFTTrainer):
    """TRL's SFTTrainer on rows in a given order, from any step."""


class _Steps(TrainerCallback):
    """Sets the random states before each step, and lets the watcher look after it."""

    def __init__(self, trainer: Resumable):
        self.trainer = trainer
        self.seen = trainer.plan.segment.step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.seen:
            raise FIRST_STEP.lost("is called before the loop's state is new")
        self.trainer.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.trainer.plan
        if self._note_step(state):
            # Only now is the step before over, its line of the log included; after the last one
            # the phase is over, summary and all, before anybody saves or leaves.
            plan.watcher.after_step(state.global_step, self.trainer.capture)
        self.trainer.guard.begin()
        set_seed(derive_seed(plan.seed, "step", state.global_step, plan.processes.rank))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradient = self.trainer.take_gradient()
        if not sharding.zero_stage(self.trainer):  # DeepSpeed has taken its step by now
            self.trainer.check_step(gradient)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_called()
        control.should_training_stop = control.should_training_stop or self.trainer.over

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.plan.watcher.between()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_step(state)

    def _note_step(self, state: Any) -> bool:
        """Note what was counted by the end of a step; False if it is noted already."""
        if state.global_step == self.seen:
            return False
        self.seen = state.global_step
        self.trainer.note_step()
        return True


def train(trainer: Resumable) -> Segment:
    """Let the trainer run to its end; returns how it ended, or raises LeftHalfway with it."""
    trainer.remove_callback(PrinterCallback)  # the record shows the figures
    left = False
    try:
        trainer.train()
    except Interrupted:
        left = True
    segment = trainer.capture()
    sharding.release(trainer)
    if left:
        raise LeftHalfway(segment)
    return segment


@contextmanager
def trainer_of(plan: Plan) -> Iterator[tuple[torch.nn.Module, str]]:
    """The role's module ready to train, afterwards without what trainers leave on it; a folder."""
    model = plan.roles.module(plan.role)
    parts = plan.processes.parts
    try:
        with (
            nullcontext() if parts is None else staying(model, parts.names(model)),
            hooks_as_before(model),
            only_asked_for(bare(model)),
            tempfile.TemporaryDirectory() as scratch,
        ):
            yield model, scratch
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
