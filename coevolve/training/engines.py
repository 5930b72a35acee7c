"""SFT and GRPO of one role with TRL's trainers as engines, which can begin and end at any optimizer step.

Deviations from the plain trainers:
- Prompts and responses reach them as the token ids that scoring uses; they tokenise nothing themselves.
- Which rows an update is over follows from the seed alone: one order for the whole phase, cut into updates. A pass over
  the data is finished before the next begins, and a row at its end is neither dropped nor doubled, whatever the number
  of processes.
- Completions are sampled with noise that belongs to their place in the order (see `scoring.generate`), and before each
  update the global random states are set from seed, step and process. So there is no random state to be saved, and
  nothing that happens between two updates can disturb it.
- The GRPO reference for the KL term is the role as it was when the phase began (TRL's own choice needs an adapter
  called `default`, or a model that can be loaded from a path).
- The estimator's GRPO may add the golden responses' negative log-likelihood to each step's loss.
- TRL computes logits at every position wherever Triton is absent, for the sake of accelerators that recompile when
  shapes change. A CPU does not, so there only the positions that the loss is over are computed, as on a GPU.
- TRL patches the model's `forward` at each construction; the patch is taken off again when a phase ends.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from coevolve.prompts import Renderer
from coevolve.recipe.schema import Grpo, Optimization, Sft
from coevolve.scoring.generate import Sampling, generate
from coevolve.scoring.roles import AdapterRoles, Role, Roles
from coevolve.training import sharding
from coevolve.training.divergence import DivergenceGuard
from coevolve.training.processes import Interrupted, Processes
from coevolve.training.seeds import derive_seed

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


@dataclass
class Segment:
    """A training phase under way: where it begins, and, once it is left, how far it came.

    Attributes:
        step: optimizer steps done.
        weights: of the role, on the CPU; empty where it begins with those that it has.
        optimizer: `exp_avg|NAME`, ... on the CPU, by the trained parameters' names; empty for a new optimizer. What a
            trainer has beside it (PPO's value function) is there as `own|NAME`.
        rollouts: of each process, the completions that more than one update is over, `0|advantages`, ...; empty where
            the next update begins with new ones.
        figures: what was gathered for the next line of the log.
        samples: of RL, what was written last: `index` of the prompt, `completion`, each reward, `advantage`. For
            people; not saved.
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
        return {name.partition("|")[2]: value for name, value in self.optimizer.items() if is_own(name)}


def is_own(name: str) -> bool:
    """Whether an entry of `Segment.optimizer` is the trainer's own."""
    return name.startswith(f"{sharding.OWN}|")


class Watcher(Protocol):
    """What looks after a phase while it runs."""

    def after_step(self, step: int, capture: Callable[[], Segment]) -> None:
        """After each step but the last; may keep what `capture` gives; raises Interrupted to leave the phase here."""

    def between(self) -> None:
        """Between two parts of one step; raises Interrupted to leave the phase before this step."""

    def poll(self) -> None:
        """Between two tokens; raises StopRequested to leave what is being generated or scored."""


@dataclass(frozen=True)
class Plan:
    """What SFT and GRPO of one phase have in common.

    Attributes:
        steps: optimizer steps of the phase.
        segment: where it begins; holds how it ended afterwards.
        token_budget: tokens of one forward pass in generation.
        folder: the run's directory, for a batch that a step could not be taken on.
    """

    roles: Roles
    role: Role
    renderer: Renderer
    processes: Processes
    steps: int
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
    """Indices of the first `count` rows of a phase: pass after pass over all of them, each pass shuffled anew."""
    passes = math.ceil(count / rows)
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:count]


def run_sft(plan: Plan, rows: Sequence[SftRow], settings: Sft) -> None:
    """Fine-tune the role on `rows`, from the segment's step to the end."""
    order = order_of_rows(len(rows), plan.steps * settings.train_batch_size, plan.seed)
    with _trainer_of(plan) as (model, scratch):
        return _train(
            plan,
            lambda: RoleSFTTrainer(
                model=model,
                args=SFTConfig(
                    **_common_arguments(plan, settings, model, scratch),
                    max_length=None,
                    packing=False,
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                train_dataset=Dataset.from_list([row.columns() for row in rows]),
                processing_class=plan.renderer.tokenizer,
                callbacks=[plan.callback],
                plan=plan,
                order=order[plan.segment.step * settings.train_batch_size :],
            ),
        )


def run_grpo(
    plan: Plan,
    prompts: Sequence[str],
    rewards: Sequence[tuple[str, RewardFunction, float]],
    settings: Grpo,
    *,
    golden_rows: Sequence[SftRow] = (),
    golden_nll_weight: float = 0.0,
    reference: torch.nn.Module | None = None,
    trainer: "Callable[..., RoleGRPOTrainer] | None" = None,
) -> None:
    """GRPO of the role, from the segment's step to the end.

    Args:
        prompts: rendered prompts; a reward gets each completion's place in this list as `index`.
        rewards: (name, function, weight).
        golden_rows: what the negative log-likelihood term is over, if its weight is not 0.
        reference: what `Roles.frozen` yielded, where `kl_weight` is above 0.
        trainer: builds another trainer than GRPO's.
    """
    with _trainer_of(plan) as (model, scratch):
        return _train(
            plan,
            lambda: (trainer or RoleGRPOTrainer)(
                model=model,
                reward_funcs=[_reward(plan, name, function) for name, function, _ in rewards],
                args=_grpo_arguments(plan, settings, model, scratch, [weight for _, _, weight in rewards]),
                train_dataset=Dataset.from_dict({"prompt": list(prompts), "index": list(range(len(prompts)))}),
                processing_class=plan.renderer.tokenizer,
                callbacks=[plan.callback],
                plan=plan,
                order=order_of_completions(len(prompts), plan, settings),
                golden_rows=golden_rows,
                golden_nll_weight=golden_nll_weight,
                golden_batch=settings.train_batch_size,
                kl_weight=settings.kl_weight,
                kl_reference=reference,
            ),
        )


def order_of_completions(prompts: int, plan: Plan, settings: Grpo) -> np.ndarray:
    """For each batch that the trainer asks for from the segment's step on, the prompt of each of its completions.

    TRL asks for the whole batch of completions at every micro-step and uses it when it generates.
    """
    _, accumulation = settings.micro_batch(plan.processes.count)
    together = settings.train_batch_size * settings.updates_per_generation // settings.num_generations
    updates = settings.updates_per_generation * settings.num_iterations
    batches = order_of_rows(prompts, math.ceil(plan.steps / updates) * together, plan.seed).reshape(-1, together)
    batch_of_step = np.arange(plan.segment.step, plan.steps) // updates
    micro_steps = np.repeat(batch_of_step, accumulation)
    return np.repeat(batches[micro_steps], settings.num_generations, axis=1).reshape(-1)


class Resumable:
    """What makes a trainer of transformers begin at the segment's step and show its state.

    A mixin before the trainer class. It stands in for transformers' own `resume_from_checkpoint`, which reads pickles,
    depends on the number of processes, and leaves GRPO's buffer out.
    """

    def __init__(self, *args: Any, plan: Plan, order: np.ndarray, **kwargs: Any):
        self.plan = plan
        self.order = order
        super().__init__(*args, **kwargs)
        self.add_callback(_Steps(self))
        self.guard = DivergenceGuard(plan.folder, plan.role, plan.processes, plan.renderer.tokenizer)

    def capture(self) -> Segment:
        """Everything that the next step depends on. A collective call."""
        with sharding.whole_parameters(self):
            own = self.own_state()
            weights = {n: value for n, value in self.plan.roles.weights(self.plan.role).items() if n not in own}
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

    def own_state(self) -> dict[str, Tensor]:
        """What the trainer goes on from beside the optimizer and the role's weights; a copy on the CPU."""
        return {}

    def rollouts(self) -> list[dict[str, Tensor]]:
        """Of each process; empty where the next step begins with new ones."""
        return []

    def samples(self) -> list[dict[str, Any]]:
        """What the role wrote last, on the main process."""
        return []

    def _note_figures(self) -> None:
        """Remember what was gathered by the end of this step, since the next one may be left halfway."""
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
        if segment.step:
            sharding.set_schedule(self, segment.step)
        return prepared

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
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
        # Only here is a step over, its line of the log included. The loop comes by once more at its end.
        if self.state.global_step > self._seen_step:
            self._seen_step = self.state.global_step
            self._note_figures()
            # After the last one the phase is over, summary and all, before anybody saves or leaves.
            if self.state.global_step < self.plan.steps:
                self.plan.watcher.after_step(self.state.global_step, self.capture)


class RoleSFTTrainer(Resumable, SFTTrainer):
    """TRL's SFTTrainer on rows in a given order, from any step."""


class RoleGRPOTrainer(Resumable, GRPOTrainer):
    """TRL's GRPOTrainer on rendered prompts, with a reference of our own and an optional golden NLL term."""

    def __init__(
        self,
        *args: Any,
        golden_rows: Sequence[SftRow],
        golden_nll_weight: float,
        golden_batch: int,
        kl_weight: float,
        kl_reference: torch.nn.Module | None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._golden_rows = list(golden_rows)
        self._golden_nll_weight = golden_nll_weight
        self._golden_batch = golden_batch
        # Constructed with beta=0, TRL looks for no reference; from here on it uses the one that is already there.
        self.beta = kl_weight
        if kl_reference is not None:
            trl_utils.add_fused_lm_head(kl_reference, temperature=self.temperature)
            sharding.mark_whole(self, kl_reference.get_output_embeddings())
            self.ref_model = kl_reference
        # The end of a turn that scoring counts is the one that ends a completion.
        self._stop_id = self.plan.renderer.end_of_turn_id
        self.eos_token_ids = [self._stop_id]
        self._step = self.plan.segment.step * self.args.gradient_accumulation_steps
        self._load_rollouts()

    def rollouts(self) -> list[dict[str, Tensor]]:
        # Counted in whole steps, for a step that was left halfway has moved `_step`.
        micro_steps = self.state.global_step * self.args.gradient_accumulation_steps
        if micro_steps % (self.args.steps_per_generation * self.num_iterations) == 0:
            return []
        mine = {
            f"{part}|{name}": value.detach().cpu().clone()
            for part, rows in enumerate(self._buffered_inputs)
            for name, value in rows.items()
        }
        return self.plan.processes.gather(mine)

    def samples(self) -> list[dict[str, Any]]:
        columns = {
            "index": self._logs["extra"]["index"],
            "completion": self._logs["completion"],
            **{f"reward/{name}": values for name, values in self._logs["rewards"].items()},
            "advantage": self._logs["advantages"],
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]

    def _load_rollouts(self) -> None:
        rollouts = self.plan.segment.rollouts
        # Those of another number of processes are of no use: the batch is generated again, by the policy as it is now.
        if len(rollouts) == self.plan.processes.count:
            parts: dict[int, dict[str, Tensor]] = {}
            for key, value in rollouts[self.plan.processes.rank].items():
                part, _, name = key.partition("|")
                parts.setdefault(int(part), {})[name] = value.to(self.accelerator.device)
            self._buffered_inputs = [parts[part] for part in sorted(parts)]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # A rendered prompt already holds its control tokens, the beginning of the text included.
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Completions that depend on seed, place in the order and weights only, and that can be left in the middle."""
        if self.use_vllm:
            return self.plan.processes.together(
                lambda: super(RoleGRPOTrainer, self)._generate_single_turn(prompt_ids, *args, **kwargs)
            )
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)
        first = self.plan.processes.rank * len(prompt_ids)
        with self._whole_model() as model:
            generations = self.plan.processes.together(
                lambda: generate(
                    model,
                    prompt_ids,
                    max_new_tokens=self.max_completion_length,
                    stop_id=self._stop_id,
                    pad_id=self._tokenizer.pad_token_id,
                    sampling=Sampling(derive_seed(self.plan.seed, "completions", batch), self.temperature),
                    keys=range(first, first + len(prompt_ids)),
                    token_budget=self.plan.token_budget,
                    poll=self.plan.watcher.poll,
                )
            )
        return [[*done.ids, self._stop_id] if done.finished else done.ids for done in generations], None

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        self._log_completion_extra("index", [row["index"] for row in inputs])
        with self._whole_model():
            return super()._calculate_rewards(inputs, *args, **kwargs)

    @contextmanager
    def _whole_model(self) -> Iterator[torch.nn.Module]:
        """The bare model in evaluation mode, with all of its parameters on every process, also under ZeRO-3."""
        with sharding.bare_model(self) as model:
            training = model.training
            try:
                yield model.eval()
            finally:
                model.train(training)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss = self._policy_loss(model, inputs)
        if self._golden_nll_weight and self.model.training:
            nll = self._golden_nll(model)
            total = self.accelerator.reduce(nll.detach(), reduction="mean").item()
            self._metrics["train"]["golden_nll"].append(total * self.args.gradient_accumulation_steps)
            loss = loss + self._golden_nll_weight * nll
        return loss

    def _policy_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """What the advantages say."""
        return super()._compute_loss(model, inputs)

    def _golden_nll(self, model: torch.nn.Module) -> Tensor:
        """This micro-step's share of the mean negative log-likelihood per token (nats) of the step's golden responses.

        The shares of all processes and micro-steps add up to it, divided by the number of processes, by which the
        averaging of gradients will divide.
        """
        size, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        step, micro_step = divmod(self._step, steps)
        rows = [
            self._golden_rows[(step * self._golden_batch + place) % len(self._golden_rows)].columns()
            for place in range(self._golden_batch)
        ]
        tokens = sum(label != IGNORED for row in rows for label in row["labels"])
        first = (micro_step * self.accelerator.num_processes + self.accelerator.process_index) * size
        rows = rows[first : first + size]
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            padded_rows = [row[name] + [value] * (width - len(row[name])) for row in rows]
            return torch.tensor(padded_rows, device=self.accelerator.device)

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        return model(
            input_ids=padded("input_ids", self.processing_class.pad_token_id),
            attention_mask=torch.tensor(mask, device=self.accelerator.device),
            labels=padded("labels", IGNORED),
            num_items_in_batch=torch.tensor(tokens / self.accelerator.num_processes, device=self.accelerator.device),
        ).loss


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

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.plan.watcher.between()


def _train(plan: Plan, build: Callable[[], Resumable]) -> None:
    """Build the trainer and let it run to its end, or to where it is interrupted; the segment then says how far."""
    trainer = build()
    trainer.remove_callback(PrinterCallback)  # the record shows the figures
    left = None
    try:
        trainer.train()
    except Interrupted as interrupted:
        left = interrupted
    vars(plan.segment).update(vars(trainer.capture()))
    sharding.release(trainer)
    if left is not None:
        raise left


@contextmanager
def _trainer_of(plan: Plan) -> Iterator[tuple[torch.nn.Module, str]]:
    """The role's module ready to train, and afterwards without what trainers leave on it; and a folder for TRL."""
    roles = plan.roles
    model = roles.module(plan.role)
    bare = model.get_base_model() if isinstance(roles, AdapterRoles) else model
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


def _common_arguments(plan: Plan, settings: Optimization, model: torch.nn.Module, scratch: str) -> dict[str, Any]:
    """What SFT and GRPO share. Everything that TRL sets differently by default is said here."""
    device = next(model.parameters()).device
    rows, accumulation = settings.micro_batch(plan.processes.count)
    return {
        "output_dir": scratch,
        "max_steps": plan.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * plan.steps),
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing,
        # The weights' dtype is the recipe's; autocast on top of it would make scores depend on who computes them.
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


def _grpo_arguments(
    plan: Plan, settings: Grpo, model: torch.nn.Module, scratch: str, reward_weights: list[float]
) -> GRPOConfig:
    _, accumulation = settings.micro_batch(plan.processes.count)
    group = settings.num_generations
    arguments = GRPOConfig(
        **_common_arguments(plan, settings, model, scratch),
        **_vllm_arguments(settings),
        # TRL refuses groups of one, in which GRPO has no advantages. PPO needs no groups: TRL's check gets the whole
        # batch as one group, and the trainer the truth.
        num_generations=group if group > 1 else settings.train_batch_size * settings.updates_per_generation,
        num_iterations=settings.num_iterations,
        steps_per_generation=accumulation * settings.updates_per_generation,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        top_k=0,
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_sampling_level,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        delta=settings.delta,
        top_entropy_quantile=settings.top_entropy_quantile,
        scale_rewards=settings.scale_rewards,
        mask_truncated_completions=settings.mask_truncated_completions,
        reward_weights=reward_weights,
        beta=0.0,
        remove_unused_columns=False,
    )
    arguments.num_generations = group
    return arguments


def _vllm_arguments(settings: Grpo) -> dict[str, Any]:
    if not settings.use_vllm:
        return {"use_vllm": False}
    return {
        "use_vllm": True,
        "vllm_mode": settings.vllm_mode,
        "vllm_server_base_url": settings.vllm_server_base_url,
        "vllm_gpu_memory_utilization": settings.vllm_gpu_memory_utilization,
        "vllm_tensor_parallel_size": settings.vllm_tensor_parallel_size,
    }


def _reward(plan: Plan, name: str, function: RewardFunction) -> RewardFunction:
    """The function under its name; a failure or a stop on one process reaches all of them."""

    def reward(**columns: Any) -> list[float]:
        return plan.processes.together(lambda: function(**columns))

    reward.__name__ = name
    return reward
