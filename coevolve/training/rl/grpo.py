"""GRPO of one role with TRL's trainer as its engine; PPO and RLOO stand on it (`ppo`).

Deviations from the plain trainer, beside those of `engines`:
- Completions are sampled with noise that belongs to their place in the order (see
  `scoring.generate`), by vLLM too: one engine for the run (see `training.generation`).
- There is no dropout, so that ratios of new to old probabilities begin at 1.
- The reference for the KL term is the role as it was when the phase began (TRL's own choice needs
  an adapter called `default`, or a model that can be loaded from a path).
- The estimator's GRPO may add the golden responses' negative log-likelihood to each step's loss.
- A prompt that several completions share is run once, forward and backward (`shared_prompts`).
- A server may write each batch of completions while the one before is trained on (`ahead`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig

from coevolve.libraries.trl import OpenGRPOTrainer, add_head
from coevolve.libraries.vllm import Written
from coevolve.recipe.rl import Grpo
from coevolve.scoring.generate import Sampling, generate
from coevolve.seeds import derive_seed
from coevolve.training.arguments import common_arguments
from coevolve.training.distributed import sharding
from coevolve.training.engines import Plan, Resumable, RewardFunction, Segment, train, trainer_of
from coevolve.training.generation import Engine, UnderWay
from coevolve.training.rl.ahead import PREFIX, Ahead
from coevolve.training.rl.shared_prompts import SharedPrompts
from coevolve.training.rows import IGNORED, Rows, order_of_rows

Rewards = Sequence[tuple[str, RewardFunction, float]]
"""Name, function and weight of each."""

SAME_NAME = (
    *("num_iterations", "max_completion_length", "temperature", "loss_type", "epsilon", "delta"),
    *("importance_sampling_level", "epsilon_high", "top_entropy_quantile", "scale_rewards"),
    *("mask_truncated_completions", "vllm_importance_sampling_correction"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"),
    *("vllm_importance_sampling_clip_min", "top_p", "top_k", "min_p"),
)
"""Options that TRL has under the recipe's names."""


def run_grpo(
    plan: Plan,
    prompts: Sequence[str],
    rewards: Rewards,
    settings: Grpo,
    *,
    trainer: "type[RoleGRPOTrainer] | None" = None,
    **options: Any,
) -> Segment:
    """GRPO of the role, from the segment's step to the end; options as of `RoleGRPOTrainer`.

    A reward gets each completion's place in `prompts` as `index`.
    """
    order = order_of_completions(len(prompts), plan, settings)
    used, places = np.unique(order, return_inverse=True)
    columns = {"prompt": [prompts[index] for index in used], "index": used.tolist()}
    names, functions, weights = zip(*rewards, strict=True)
    trainer = trainer or SharedPromptTrainer
    engine = None
    if settings.use_vllm:
        assert plan.engines is not None  # a run has them
        engine = plan.engines.of(plan.role, settings)
    with (
        trainer.own_options(plan, settings) as own,
        trainer_of(plan) as (model, scratch),
        without_dropout(model),
    ):
        made = trainer(
            model=model,
            reward_funcs=[
                _reward(plan, *one, first=names[0]) for one in zip(names, functions, strict=True)
            ],
            args=_grpo_arguments(plan, settings, model, scratch, list(weights)),
            train_dataset=Dataset.from_dict(columns),
            processing_class=plan.renderer.tokenizer,
            callbacks=[plan.callback],
            plan=plan,
            order=places,
            settings=settings,
            engine=engine,
            **options,
            **own,
        )
        try:
            return train(made)
        finally:
            if made.ahead is not None:
                made.ahead.leave()


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped, whatever the mode, nor where checkpointing computes again."""
    found = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("p" if isinstance(module, torch.nn.Dropout) else "attention_dropout",)
        if isinstance(getattr(module, name, None), float)
    ]
    try:
        for module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, share in found:
            setattr(module, name, share)


def order_of_completions(prompts: int, plan: Plan, settings: Grpo) -> np.ndarray:
    """For each batch that the trainer asks for from the segment's step on, the prompt of each of
    its completions. TRL asks for all of them at every micro-step, and uses them when it generates.
    """
    _, accumulation = settings.micro_batch(plan.processes.count)
    group, updates = settings.num_generations, settings.updates_per_batch
    together = settings.train_batch_size * settings.updates_per_generation // group
    order = order_of_rows(prompts, math.ceil(plan.steps / updates) * together, plan.seed)
    batches = order.reshape(-1, together)
    batch_of_step = np.arange(plan.segment.step, plan.steps) // updates
    micro_steps = np.repeat(batch_of_step, accumulation)
    return np.repeat(batches[micro_steps], group, axis=1).reshape(-1)


class RoleGRPOTrainer(Resumable, OpenGRPOTrainer):
    """TRL's GRPOTrainer on rendered prompts, with a reference of our own (what `Roles.frozen` gave,
    where `kl_weight` is above 0) and, with a weight, a negative log-likelihood of golden rows.
    """

    def __init__(
        self,
        *args: Any,
        settings: Grpo,
        golden_rows: Rows | None = None,
        golden_nll_weight: float = 0.0,
        reference: torch.nn.Module | None = None,
        engine: Engine | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.group, self.engine = settings.num_generations, engine
        self.regex = settings.vllm_structured_outputs_regex
        self.ahead = Ahead(self.plan.processes) if settings.async_generation else None
        if engine is not None:
            self.sampled_by(self._sync)
        self.reward_names = [function.__name__ for function in kwargs["reward_funcs"]]
        self._golden_rows, self._golden_nll_weight = golden_rows, golden_nll_weight
        self._golden_batch = settings.train_batch_size
        # Constructed with beta=0, TRL looks for no reference; from here on it uses this one.
        self.kl_term = settings.kl_weight
        if reference is not None:
            add_head(reference, self.args.temperature)
            sharding.say_undivided(self, reference)
            self.reference = reference
        # What ends a reasoning or a response elsewhere is what ends a completion.
        self.stop_ids = self.plan.renderer.stop_ids(kwargs["model"])
        self.micro_step = self.plan.segment.step * self.args.gradient_accumulation_steps
        self._load_rollouts()

    @classmethod
    @contextmanager
    def own_options(cls, plan: Plan, settings: Grpo) -> Iterator[dict[str, Any]]:
        """What a trainer is built with beside what all have in common; lasts as long as it does."""
        yield {}

    def rollouts(self) -> list[dict[str, Tensor]]:
        # Counted in whole steps, for a step that was left halfway has moved `micro_step`.
        micro_steps = self.state.global_step * self.args.gradient_accumulation_steps
        following = math.ceil(micro_steps / self.micro_steps_of_batch)
        mine = {} if self.ahead is None or self.over else self.ahead.state(following)
        if micro_steps % self.micro_steps_of_batch:
            mine |= {
                f"{part}|{name}": value.detach().cpu().clone()
                for part, rows in enumerate(self.batch_in_parts)
                for name, value in rows.items()
            }
        everywhere = self.plan.processes.gather(mine)
        return everywhere if any(everywhere) else []

    @property
    def micro_steps_of_batch(self) -> int:
        """So many are over one batch of completions."""
        return self.args.steps_per_generation * self.args.num_iterations

    def samples(self) -> list[dict[str, Any]]:
        written = self.written
        if not written["completion"]:  # gone on with in the middle of a batch
            return self.plan.segment.samples
        columns = {
            "index": written["extra"]["index"],
            "completion": written["completion"],
            **{f"reward/{name}": values for name, values in written["rewards"].items()},
            "advantage": written["advantages"],
        }
        rows = zip(*columns.values(), strict=False)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _load_rollouts(self) -> None:
        rollouts = self.plan.segment.rollouts
        # Those of another number of processes are of no use: the batch is generated again, by the
        # policy as it is now.
        if len(rollouts) == self.plan.processes.count:
            parts: dict[int, dict[str, Tensor]] = {}
            mine = rollouts[self.plan.processes.rank]
            if self.ahead is not None:
                self.ahead.load(mine)
            for key, value in mine.items():
                part, _, name = key.partition("|")
                if not part.startswith(PREFIX):
                    parts.setdefault(int(part), {})[name] = value.to(self.accelerator.device)
            if parts:
                self.go_on_with([parts[part] for part in sorted(parts)])

    def write(self, prompts: list[str]) -> dict[str, Any]:
        """Completions by seed, place and weights only, which can be left in the middle."""
        plan, batch = self.plan, self.micro_step // self.micro_steps_of_batch
        prompt_ids, how = self._asked(prompts, batch)
        if self.engine is not None:
            sampled = self._sampled(batch, prompt_ids, how)
            return {
                "prompt_ids": prompt_ids,
                "completion_ids": [x.ids for x in sampled],
                "logprobs": [x.log_probs for x in sampled],
            }
        how |= {"token_budget": plan.token_budget, "pad_id": self.processing_class.pad_token_id}
        with self._whole_model() as model:
            work = partial(generate, model, prompt_ids, poll=plan.watcher.poll, **how)
            written = plan.processes.together(work)
        ids = [x.ids if x.stopped_by is None else [*x.ids, x.stopped_by] for x in written]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    def _sampled(
        self, batch: int, prompt_ids: list[list[int]], how: dict[str, Any]
    ) -> list[Written]:
        """What the engine writes, perhaps while the batch before was trained on."""
        engine, role, poll = self.engine, self.plan.role, self.plan.watcher.poll
        assert engine is not None

        def write() -> list[Written]:
            return engine.write(role, prompt_ids, poll=poll, regex=self.regex, **how)

        def begin_next() -> UnderWay | None:
            prompts = self._prompts_of(batch + 1)
            if not prompts:
                return None
            following, how = self._asked(prompts, batch + 1)
            return engine.begin(role, following, regex=self.regex, **how)

        return write() if self.ahead is None else self.ahead.of(batch, write, begin_next, poll)

    def _asked(self, prompts: list[str], batch: int) -> tuple[list[list[int]], dict[str, Any]]:
        """This process's prompts in a batch of completions, as ids, and how they are to be
        answered.
        """
        # A rendered prompt already holds its control tokens, the beginning of the text included.
        prompt_ids = self.processing_class(text=prompts, add_special_tokens=False)["input_ids"]
        first, seed = self.plan.processes.rank * len(prompt_ids), self.plan.seed
        args = self.args
        return prompt_ids, {
            "max_new_tokens": args.max_completion_length,
            "stop_ids": self.stop_ids,
            "sampling": Sampling(
                derive_seed(seed, "completions", batch),
                *(args.temperature, args.top_p, args.top_k, args.min_p or 0.0),
            ),
            "keys": range(first, first + len(prompt_ids)),
        }

    def _prompts_of(self, batch: int) -> list[str]:
        """Those of this process in a batch that this phase comes to; none past its end."""
        processes = self.plan.processes
        rows = self.args.train_batch_size * self.args.steps_per_generation
        begun = self.plan.segment.step * self.args.gradient_accumulation_steps
        micro_step = batch * self.micro_steps_of_batch - begun
        first = (micro_step * processes.count + processes.rank) * rows
        dataset: Any = self.train_dataset
        return [dataset[place]["prompt"] for place in self.order[first : first + rows].tolist()]

    def _sync(self) -> None:
        """Let the engine have the role as it is by now."""
        assert self.engine is not None
        if self.ahead is not None:
            self.ahead.settle()  # what is under way is by the role as it was
        with sharding.whole_parameters(self):
            weights = self.weights()
        self.engine.update(self.plan.role, weights)

    def rewarded(self, *args: Any) -> Tensor:
        with self._whole_model():
            return super().rewarded(*args)

    @contextmanager
    def _whole_model(self) -> Iterator[torch.nn.Module]:
        """The bare model in evaluation mode, its parameters on every process, also under ZeRO-3."""
        with sharding.bare_model(self) as model:
            training = model.training
            try:
                yield model.eval()
            finally:
                model.train(training)

    def loss(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.policy_loss(model, *args, **kwargs)
        if self._golden_nll_weight and self.model.training:
            nll = self._golden_nll(model)
            total = self.accelerator.reduce(nll.detach(), reduction="mean").item()
            self.figures["golden_nll"].append(total * self.args.gradient_accumulation_steps)
            loss = loss + self._golden_nll_weight * nll
        return loss

    def policy_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the advantages say."""
        return super().loss(*args, **kwargs)

    def _golden_nll(self, model: torch.nn.Module) -> Tensor:
        """This micro-step's share of the mean negative log-likelihood per token (nats) of the
        step's golden responses; they add up to it, divided by the number of processes.
        """
        size, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        step, micro_step = divmod(self.micro_step, steps)
        golden = self._golden_rows
        assert golden is not None  # since the term has a weight
        visits = range(step * self._golden_batch, (step + 1) * self._golden_batch)
        of_step, at = golden.visited([visit % len(golden) for visit in visits], visits[0])
        rows = [of_step[number].columns() for number in at]
        tokens = sum(label != IGNORED for row in rows for label in row["labels"])
        device, processes = self.accelerator.device, self.accelerator.num_processes
        first = (micro_step * processes + self.accelerator.process_index) * size

        def padded(name: str, value: int) -> Tensor:
            columns = [torch.tensor(row[name]) for row in rows[first : first + size]]
            return pad_sequence(columns, batch_first=True, padding_value=value).to(device)

        ids, mask = padded("input_ids", self.processing_class.pad_token_id), padded("input_ids", -1)
        return model(
            input_ids=ids,
            attention_mask=(mask >= 0).long(),
            labels=padded("labels", IGNORED),
            num_items_in_batch=torch.tensor(tokens / processes, device=device),
        ).loss


class SharedPromptTrainer(SharedPrompts, RoleGRPOTrainer):
    """The same, with a prompt that several completions share run once."""


def _grpo_arguments(
    plan: Plan, settings: Grpo, model: torch.nn.Module, scratch: str, reward_weights: list[float]
) -> GRPOConfig:
    _, accumulation = settings.micro_batch(plan.processes.count)
    group, whole = settings.num_generations, settings.train_batch_size
    return GRPOConfig(
        **common_arguments(plan, settings, model, scratch),
        **{name: getattr(settings, name) for name in SAME_NAME},
        # TRL refuses groups of one, in which GRPO has no advantages. PPO, which compares nothing
        # within groups, says that the whole batch is one.
        num_generations=group if group > 1 else whole * settings.updates_per_generation,
        steps_per_generation=accumulation * settings.updates_per_generation,
        reward_weights=reward_weights,
        beta=0.0,
        remove_unused_columns=False,
    )


def _reward(plan: Plan, name: str, function: RewardFunction, *, first: str) -> RewardFunction:
    """The function by name; a failure or stop reaches all processes. `first` notes the prompts."""

    def reward(**columns: Any) -> list[float]:
        if name == first:
            columns["log_extra"]("index", columns["index"])
        return plan.processes.together(lambda: function(**columns))

    reward.__name__ = name
    return reward
