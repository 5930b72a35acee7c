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
- TRL computes logits at every position wherever Triton is absent, for the sake of accelerators that
  recompile when shapes change. A CPU does not, so there only the positions that the loss is over
  are computed, as on a GPU.
- TRL turns the adapters of a quantized base into bfloat16, in which a step of 1e-5 changes most
  weights not at all; they stay float32.
- TRL patches the model's `forward` at each construction; the patch is taken off again when a phase
  ends.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from coevolve.prompts import Renderer
from coevolve.recipe.optimization import Optimization, Sft
from coevolve.scoring.roles import Role, Roles
from coevolve.seeds import derive_seed
from coevolve.training.distributed import sharding
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.divergence import DivergenceGuard

T = TypeVar("T")
RewardFunction = Callable[..., list[float]]
IGNORED = -100


@dataclass(frozen=True)
class SftRow:
    """Token ids of a prompt and of the response to learn."""

    prompt: Sequence[int]
    response: Sequence[int]

    def columns(self) -> dict[str, list[int]]:
        """The columns of TRL's pre-tokenised format; the loss is on the response only."""
        return {
            "input_ids": [*self.prompt, *self.response],
            "labels": [IGNORED] * len(self.prompt) + list(self.response),
        }


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for: a phase of a few updates meets a few
    of them.
    """

    def __init__(self, count: int, make: Callable[[int], T]):
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(int(index))


@dataclass
class Segment:
    """A training phase under way: where it begins, or how far it came.

    Attributes:
        step: optimizer steps done.
        weights: of the role, on the CPU; empty where it begins with those that it has.
        optimizer: `exp_avg|NAME`, ... on the CPU, by the trained parameters' names; empty for a new
            optimizer. What a trainer has beside it (PPO's value function) is there as `own|NAME`.
        rollouts: of each process, the completions that more than one update is over,
            `0|advantages`, ...; empty where the next update begins with new ones.
        figures: what was gathered for the next line of the log.
        samples: of RL, what was written last: `index` of the prompt, `completion`, each reward,
            `advantage`. For people; not saved.
    """

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    rollouts: list[dict[str, Tensor]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def own(self) -> dict[str, Tensor]:
        """What the trainer has beside the optimizer, by name."""
        return {
            name.partition("|")[2]: value for name, value in self.optimizer.items() if is_own(name)
        }


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
        """After each step but the last; may keep what `capture` gives; raises Interrupted to leave
        the phase here.
        """

    def between(self) -> None:
        """Between two parts of one step; raises Interrupted to leave the phase before this step."""

    def poll(self) -> None:
        """Between two tokens; raises StopRequested to leave what is being generated or scored."""


@dataclass(frozen=True)
class Schedule:
    """What warm-up and decay of the learning rate go over: `steps` optimizer steps, the first of
    them `first`.
    """

    first: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What SFT and GRPO of one phase have in common.

    Steps are counted from the first phase of the same name in the run, so that data and learning
    rate go on with them.

    Attributes:
        first: the optimizer step at which the phase begins.
        steps: the one at which it ends, at the latest.
        tokens: ends it with the step by which the phase has been trained on so many, prompts
            included.
        segment: where it goes on.
        token_budget: tokens of one forward pass in generation.
        folder: the run's directory, for a batch that a step could not be taken on.
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
    log_every: int
    callback: TrainerCallback
    watcher: Watcher
    segment: Segment
    token_budget: int
    folder: Path


def steps_of(settings: Optimization, examples_per_epoch: int) -> int:
    """Optimizer steps of a phase: as given, or enough for the epochs asked for."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * examples_per_epoch / settings.train_batch_size))


def order_of_rows(rows: int, count: int, seed: int) -> np.ndarray:
    """Indices of the first `count` rows of a phase: pass after pass over all of them, each pass
    shuffled anew.
    """
    passes = math.ceil(count / rows)
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:count]


def run_sft(plan: Plan, rows: Sequence[SftRow], settings: Sft) -> Segment:
    """Fine-tune the role on `rows`, from the segment's step to the end."""
    order = order_of_rows(len(rows), plan.steps * settings.train_batch_size, plan.seed)
    order = order[plan.segment.step * settings.train_batch_size :]
    used, places = np.unique(order, return_inverse=True)
    with trainer_of(plan) as (model, scratch):
        return train(
            plan,
            lambda: RoleSFTTrainer(
                model=model,
                args=SFTConfig(
                    **common_arguments(plan, settings, model, scratch),
                    max_length=None,
                    packing=False,
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                train_dataset=Dataset.from_list([rows[index].columns() for index in used]),
                processing_class=plan.renderer.tokenizer,
                callbacks=[plan.callback],
                plan=plan,
                order=places,
            ),
        )


class Resumable:
    """What makes a trainer of transformers begin at the segment's step and show its state.

    A mixin before the trainer class. It stands in for transformers' own `resume_from_checkpoint`,
    which reads pickles, depends on the number of processes, and leaves GRPO's buffer out.
    """

    def __init__(self, *args: Any, plan: Plan, order: np.ndarray, **kwargs: Any):
        self.plan = plan
        self.order = order
        trained = [
            (parameter, parameter.data)
            for parameter in kwargs["model"].parameters()
            if parameter.requires_grad
        ]
        super().__init__(*args, **kwargs)
        for parameter, data in trained:
            if parameter.dtype != data.dtype:
                parameter.data = data
        self.add_callback(_Steps(self))
        self.guard = DivergenceGuard(
            plan.folder, plan.role, plan.processes, plan.renderer.tokenizer
        )

    def capture(self) -> Segment:
        """Everything that the next step depends on. A collective call."""
        with sharding.whole_parameters(self):
            own = self.own_state()
            weights = {
                n: value
                for n, value in self.plan.roles.weights(self.plan.role).items()
                if n not in own
            }
        return Segment(
            step=self.state.global_step,
            weights=weights,
            optimizer={
                **sharding.optimizer_state(self),
                **{f"{sharding.OWN}|{name}": value for name, value in own.items()},
            },
            rollouts=self.rollouts(),
            figures=self._figures_of_step,
            samples=self.samples(),
        )

    @property
    def over(self) -> bool:
        """Whether the phase has come to its end, by steps or by tokens. The same on all processes."""
        # TRL's GRPO counts them in the one, its SFT in the other.
        tokens = self.state.num_input_tokens_seen or self._total_train_tokens
        spent = self.plan.tokens is not None and tokens >= self.plan.tokens
        return spent or self.state.global_step >= self.plan.steps

    def own_state(self) -> dict[str, Tensor]:
        """What the trainer goes on from beside the optimizer and the role's weights; a copy on the
        CPU.
        """
        return {}

    def rollouts(self) -> list[dict[str, Tensor]]:
        """Of each process; empty where the next step begins with new ones."""
        return []

    def samples(self) -> list[dict[str, Any]]:
        """What the role wrote last, on the main process."""
        return []

    def _note_figures(self) -> None:
        """Remember what was gathered by the end of this step, since the next one may be left
        halfway.
        """
        self._figures_of_step = {
            "metrics": copy.deepcopy(dict(self._metrics["train"])),
            "tokens": self.state.num_input_tokens_seen,
            "total_tokens": self._total_train_tokens,
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
        }

    def restore_figures(self) -> None:
        """Go on gathering where the segment left off. Called when the loop has set its own to zero."""
        figures = self.plan.segment.figures
        if figures:
            self._metrics["train"].update(copy.deepcopy(figures["metrics"]))
            self.state.num_input_tokens_seen = figures["tokens"]
            self._total_train_tokens = figures["total_tokens"]
            self._tr_loss.fill_(figures["loss"])
            self._total_loss_scalar = figures["total_loss"]
            self._globalstep_last_logged = figures["logged"]
        self._figures_of_step = figures

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return _Order(self.order)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        position = super()._init_training_state(*args, **kwargs)
        self.state.global_step = self._seen_step = self.plan.segment.step
        return position

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        segment = self.plan.segment
        optimizer = {name: value for name, value in segment.optimizer.items() if not is_own(name)}
        if optimizer:
            sharding.load_optimizer_state(self, optimizer)
        if sharding.zero_stage(self):
            sharding.before_deepspeed_step(self, self._check_step)
        if segment.step > self.plan.schedule.first:
            sharding.set_schedule(self, segment.step - self.plan.schedule.first)
        return prepared

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        return super().create_scheduler(self.plan.schedule.steps, *args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        self.guard.see(inputs, found[0] if return_outputs else found)
        return found

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if not sharding.zero_stage(self):  # DeepSpeed has taken its step by now
            self._check_step(float(norm))
        return norm

    def _check_step(self, gradient: float) -> None:
        self.guard.check(self.state.global_step, gradient, self.samples())

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # Only here is a step over, its line of the log included. The loop comes by once more at its
        # end.
        if self.state.global_step > self._seen_step:
            self._seen_step = self.state.global_step
            self._note_figures()
            # After the last one the phase is over, summary and all, before anybody saves or leaves.
            if not self.over:
                self.plan.watcher.after_step(self.state.global_step, self.capture)


class RoleSFTTrainer(Resumable, SFTTrainer):
    """TRL's SFTTrainer on rows in a given order, from any step."""


class _Order(Sampler):
    """Row numbers in the order given."""

    def __init__(self, indices: np.ndarray):
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)


class _Steps(TrainerCallback):
    """Sets the random states before each step, and lets the watcher look after it."""

    def __init__(self, trainer: Resumable):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_figures()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.trainer.plan
        self.trainer.guard.begin()
        set_seed(derive_seed(plan.seed, "step", state.global_step, plan.processes.rank))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or self.trainer.over

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.plan.watcher.between()


def train(plan: Plan, build: Callable[[], Resumable]) -> Segment:
    """Build the trainer and let it run to its end; returns how it ended.

    Raises:
        LeftHalfway: it was interrupted.
    """
    trainer = build()
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
    """The role's module ready to train, and afterwards without what trainers leave on it; and a
    folder for TRL.
    """
    model = plan.roles.module(plan.role)
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    use_triton = trl_utils._use_triton
    if next(model.parameters()).device.type == "cpu":
        trl_utils._use_triton = lambda device: True
    try:
        with tempfile.TemporaryDirectory() as scratch:
            yield model, scratch
    finally:
        trl_utils._use_triton = use_triton
        bare.__dict__.pop("forward", None)
        model.zero_grad(set_to_none=True)
        model.eval()


def common_arguments(
    plan: Plan, settings: Optimization, model: torch.nn.Module, scratch: str
) -> dict[str, Any]:
    """What SFT and GRPO share. Everything that TRL sets differently by default is said here."""
    device = next(model.parameters()).device
    rows, accumulation = settings.micro_batch(plan.processes.count)
    return {
        "output_dir": scratch,
        "max_steps": plan.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * plan.schedule.steps),
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing,
        # The weights' dtype is the recipe's; autocast on top of it would make scores depend on who
        # computes them.
        "bf16": False,
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,  # only the role's own ask for gradients, and all of them are used
        "dataloader_pin_memory": device.type != "cpu",
        # Nothing is trained on a loss that is no number; the filter would hide it from the log.
        "logging_nan_inf_filter": False,
        "seed": plan.seed,
        "data_seed": plan.seed,
        "logging_steps": plan.log_every,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
