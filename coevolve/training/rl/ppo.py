"""PPO and RLOO on the machinery of GRPO: the same completions, minibatches, order and resuming,
other advantages.

Deviations from Schulman et al. (2017), Ziegler et al. (2019) and TRL's former PPOTrainer:
- A completion that is cut off gets its score at its last token like any other; there is no value to
  bootstrap from.
- Advantages are whitened over the whole batch of completions, not over the share of each process.
- Losses are means over the tokens of the batch, however they are divided into minibatches (TRL's
  `dapo`).
- Values are counted from the mean reward of the first batch of completions. From zero, a head would
  first have to find that mean, with weights that see each token differently.
- RLOO differs from TRL's in the loss, which is GRPO's with its `loss_type`: ratios are by token
  unless `importance_sampling_level` says otherwise.

Shapes: B completions of this process, T tokens, N completions of all processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from coevolve.errors import ArtifactError, RewardError
from coevolve.libraries.trl import run_head
from coevolve.recipe.rl import Grpo
from coevolve.scoring.roles import REFERENCE
from coevolve.training.engines import Plan
from coevolve.training.rl.grpo import RoleGRPOTrainer
from coevolve.training.rl.policy_gradient import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    leave_one_out_advantages,
    moments,
    token_rewards,
    whiten,
)
from coevolve.training.rl.value_function import HEAD, ValueFunction
from coevolve.training.rows import IGNORED

KL_COEF = "kl_coef"
COUNT, RATIO_SQUARED = "count", "ratio squared"
VALUE_OFFSET = "value_offset"


def _saved_value_function(plan: Plan) -> dict[str, Tensor]:
    """The weights to go on from; empty at the beginning."""
    segment = plan.segment
    numbers = (KL_COEF, VALUE_OFFSET)
    weights = {name: value for name, value in segment.own.items() if name not in numbers}
    begun = segment.step > plan.first or bool(segment.optimizer)
    if begun and not any(HEAD in name.split(".") for name in weights):
        raise ArtifactError(
            f"{plan.rl_field}.algorithm is ppo, but what it is to go on from (step {segment.step}) "
            "has no value head. Set algorithm to what it was, or begin a new run in another "
            "--output-dir."
        )
    return weights


class KlInRewardTrainer(RoleGRPOTrainer):
    """What RLOO and PPO share: the KL to the reference is part of the reward, not of the loss."""

    def __init__(self, *args: Any, settings: Grpo, **kwargs: Any):
        super().__init__(*args, settings=settings, **kwargs)
        self.kl_term = 0.0
        self.has_reference = settings.kl_weight > 0
        self.kl_coef, self.normalize = settings.kl_weight, settings.normalize_advantages

    def put_advantages(
        self, batch: dict[str, Tensor], scores_B: Tensor, log_ratio_BT: Tensor
    ) -> None:
        """Put the advantages, (B,) or (B, T), into TRL's batch, and what else the loss needs, by
        weighted sums of the rewards and log policy - log reference (0 without one) of each token.
        """
        raise NotImplementedError

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().scored(inputs)
        # TRL leaves them out where each batch is used for one update.
        if "old_per_token_logps" not in batch:
            with torch.no_grad():
                batch["old_per_token_logps"] = self._of_batch(self.log_probs, self.model, batch)
        log_ratio_BT = torch.zeros_like(batch["old_per_token_logps"])
        if self.has_reference:
            with self.plan.roles.acting(REFERENCE) as reference, torch.no_grad():
                reference_BT = self._of_batch(super().log_probs, reference, batch)
            log_ratio_BT = batch["old_per_token_logps"] - reference_BT
        self.put_advantages(batch, self._own(self._scores_N), log_ratio_BT)
        self._show_advantages(batch)
        return batch

    def rewarded(self, *args: Any) -> Tensor:
        rewards = super().rewarded(*args)
        missing = torch.isnan(rewards).all(dim=1).nonzero()
        if len(missing):
            raise RewardError(
                f"{self.plan.rl_field}: completion {missing[0].item()} of {len(rewards)} got no "
                f"value from any of the rewards {', '.join(self.reward_names)}; each completion "
                "needs one."
            )
        weights = rewards.new_tensor(self.args.reward_weights)
        self._scores_N = (rewards * weights).nansum(dim=1)
        return rewards

    def _of_batch(
        self, log_probs: Callable[..., Any], model: torch.nn.Module, batch: dict[str, Tensor]
    ) -> Tensor:
        rows = self.args.per_device_train_batch_size
        return log_probs(model, *_sequence(batch), batch_size=rows)[0]

    def _show_advantages(self, batch: dict[str, Tensor]) -> None:
        """In the samples, in place of those of GRPO: of a completion, the mean over its tokens."""
        advantages, mask_BT = batch["advantages"], batch["completion_mask"]
        if advantages.dim() == 2:
            advantages = (advantages * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
        shown, found = self.written["advantages"], self.accelerator.gather(advantages).tolist()
        for _ in found:
            shown.pop()
        shown.extend(found)

    def _own(self, values_N: Tensor) -> Tensor:
        """This process's part of what all have."""
        size = len(values_N) // self.accelerator.num_processes
        return values_N[self.accelerator.process_index * size :][:size]

    def _total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(value, reduction="sum")

    def _mean(self, values_B: Tensor) -> float:
        """Over the completions of all processes."""
        values_B1 = values_B.unsqueeze(1)
        return moments(values_B1, torch.ones_like(values_B1), self._total)[1].item()

    def _log_means(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Log the mean of each tensor over what the mask keeps, on all processes."""
        sums = self._sums_of(values, mask)
        count = max(sums.pop(COUNT), 1.0)
        for name, total in sums.items():
            self.figures[name].append(total / count)

    def _sums_of(self, values: dict[str, Tensor], mask: Tensor) -> dict[str, float]:
        """Sums over what the mask keeps, on all processes, and as COUNT how many that are."""
        kept = {COUNT: torch.ones_like(mask, dtype=torch.float64), **values}
        sums = [x.detach().double().masked_fill(mask == 0, 0.0).sum() for x in kept.values()]
        return dict(zip(kept, self._total(torch.stack(sums)).tolist(), strict=True))


class RoleRLOOTrainer(KlInRewardTrainer):
    """RLOO: a completion's reward, less its KL, minus the mean of the others in its group."""

    def put_advantages(
        self, batch: dict[str, Tensor], scores_B: Tensor, log_ratio_BT: Tensor
    ) -> None:
        mask_BT = batch["completion_mask"]
        if self.has_reference:
            self._log_means({"kl": log_ratio_BT}, mask_BT)
        scores_B = scores_B - self.kl_coef * (log_ratio_BT * mask_BT).sum(1)
        advantages_N = leave_one_out_advantages(self.accelerator.gather(scores_B), self.group)
        if self.normalize:
            advantages_N1 = advantages_N.unsqueeze(1)
            advantages_N = whiten(advantages_N1, torch.ones_like(advantages_N1)).squeeze(1)
        batch["advantages"] = self._own(advantages_N)


class RolePPOTrainer(KlInRewardTrainer):
    """PPO: advantages by a value function of each token's state, trained beside the policy."""

    def __init__(self, *args: Any, value: ValueFunction, settings: Grpo, **kwargs: Any):
        value.require_gradients()
        self.value, self.options = value, settings.ppo
        super().__init__(*args, settings=settings, **kwargs)
        own = self.plan.segment.own
        self.kl_coef = own[KL_COEF].item() if KL_COEF in own else self.kl_coef
        self.value_offset = own[VALUE_OFFSET].item() if VALUE_OFFSET in own else None
        self._numbers_of_step = self._numbers()
        self._values_BT: Any = None
        self._sums: dict[str, float] = {}

    @classmethod
    @contextmanager
    def own_options(cls, plan: Plan, settings: Grpo) -> Iterator[dict[str, Any]]:
        backbone = settings.ppo.value_backbone
        value = ValueFunction(plan.roles.module(plan.role), plan.role, backbone)
        with value.attached(_saved_value_function(plan)):
            yield {"value": value}

    def put_advantages(
        self, batch: dict[str, Tensor], scores_B: Tensor, log_ratio_BT: Tensor
    ) -> None:
        options, mask_BT = self.options, batch["completion_mask"]
        old_BT = batch["old_per_token_logps"]
        kl_BT = kl_estimate(old_BT, old_BT - log_ratio_BT, options.kl_estimator)
        rewards_BT = token_rewards(scores_B, kl_BT, mask_BT, self.kl_coef)
        self._log_rollout(scores_B, kl_BT * mask_BT, old_BT * mask_BT)
        if options.whiten_rewards:
            rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, total=self._total)
        if self.value_offset is None:
            self.value_offset = self._mean(rewards_BT.sum(1))
            self._values_BT = self._values_BT + self.value_offset
        values_BT = self._values_BT.masked_fill(mask_BT == 0, 0.0)
        advantages_BT = gae(rewards_BT, values_BT, mask_BT, options.gamma, options.lam)
        returns_BT = advantages_BT + values_BT
        explained = explained_variance(values_BT, returns_BT, mask_BT, self._total).item()
        self.figures["val/explained_variance"].append(explained)
        batch["advantages"] = whiten(advantages_BT, mask_BT, total=self._total)
        batch["old_values"], batch["returns"] = values_BT, returns_BT

    def _log_rollout(self, scores_B: Tensor, kl_BT: Tensor, log_probs_BT: Tensor) -> None:
        """Log what the completions were worth, and adapt the KL coefficient for the next ones."""
        kl_B, everyone = kl_BT.sum(1), torch.ones_like(scores_B)
        self._log_means(
            {
                "objective/kl": kl_B,
                "objective/entropy": -log_probs_BT.sum(1),
                "objective/non_score_reward": -self.kl_coef * kl_B,
                "objective/rlhf_reward": scores_B - self.kl_coef * kl_B,
                "objective/scores": scores_B,
            },
            everyone,
        )
        self.figures["objective/kl_coef"].append(self.kl_coef)
        # Of groups, in which nothing is compared here.
        self.figures.pop("frac_reward_zero_std", None)
        target, gain = self.options.kl_target, self.options.kl_gain
        if target is not None:
            kl = self.figures["objective/kl"][-1]
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, target, gain)

    def policy_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> Tensor:
        mask_BT, old_BT = inputs["completion_mask"], inputs["old_per_token_logps"]
        sequence = _sequence(inputs)
        log_probs_BT, entropies_BT, _ = self.log_probs(model, *sequence, compute_entropy=True)
        values_BT, low, high = self._values_BT, self.args.epsilon, self.args.epsilon_high
        clip = low, low if high is None else high
        policy_BT, policy_clipped_BT = clipped_policy_loss(
            log_probs_BT, old_BT, inputs["advantages"], *clip
        )
        if "importance_sampling_ratio" in inputs:  # of what vLLM sampled from and what is trained
            policy_BT = policy_BT * inputs["importance_sampling_ratio"]
        value_BT, value_clipped_BT = clipped_value_loss(
            values_BT, inputs["old_values"], inputs["returns"], self.options.cliprange_value
        )
        log_ratio_BT = (log_probs_BT - old_BT).detach()
        self._log_update(
            {
                "val/ratio": log_ratio_BT.exp(),
                RATIO_SQUARED: log_ratio_BT.exp().square(),
                "policy/approxkl_avg": log_ratio_BT.square() / 2,
                "policy/clipfrac_avg": policy_clipped_BT,
                "policy/entropy_avg": entropies_BT,
                "entropy": entropies_BT,  # TRL's name in GRPO, by which a collapse is noticed
                "loss/policy_avg": policy_BT,
                "loss/value_avg": value_BT,
                "val/clipfrac_avg": value_clipped_BT,
            },
            mask_BT,
        )
        loss_BT = policy_BT + self.options.vf_coef * value_BT
        return (loss_BT * mask_BT).sum() / self._tokens_per_step(inputs)

    def _log_update(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Log means over the tokens of a whole update, over all of its micro-steps."""
        for name, total in self._sums_of(values, mask).items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        if self.accelerator.sync_gradients:  # the last micro-step
            count = max(self._sums.pop(COUNT), 1.0)
            means = {name: total / count for name, total in self._sums.items()}
            self._sums = {}
            means["val/ratio_var"] = max(means.pop(RATIO_SQUARED) - means["val/ratio"] ** 2, 0.0)
            for name, mean in means.items():
                self.figures[name].append(mean)

    def _tokens_per_step(self, inputs: dict[str, Any]) -> Tensor:
        """An update's tokens on one process, on average: gradients add up over micro-steps only."""
        updates = self.args.steps_per_generation / self.args.gradient_accumulation_steps
        parts = self.accelerator.num_processes * updates
        return inputs["num_items_in_batch"].clamp(min=1.0) / parts

    def log_probs(
        self,
        model: torch.nn.Module,
        ids: Tensor,
        mask: Tensor,
        width: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """TRL's, of the policy; beside it, in `_values_BT`, the values of the same states."""
        with self.value.reading(width) as values:
            found = super().log_probs(model, ids, mask, width, batch_size=batch_size, **kwargs)
            if self.value.backbone == "adapter":
                values.clear()
                self._pass_through_adapter(model, ids, mask, batch_size or len(ids))
        self._values_BT = torch.cat(values) + (self.value_offset or 0.0)
        return found

    def _pass_through_adapter(
        self, model: torch.nn.Module, ids: Tensor, mask: Tensor, rows: int
    ) -> None:
        with self.value.acting():
            for first in range(0, len(ids), rows):
                part = slice(first, first + rows)
                # Without labels there is nothing to project onto the vocabulary.
                labels = torch.full_like(ids[part], IGNORED)
                run_head(model, input_ids=ids[part], attention_mask=mask[part], labels=labels)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        rate = self.options.value_learning_rate
        if rate is not None:
            named = self.value.parameters().items()
            head = [value for name, value in named if HEAD in name.split(".")]
            own = set(map(id, head))
            for group in optimizer.param_groups:
                group["params"] = [value for value in group["params"] if id(value) not in own]
            optimizer.add_param_group({"params": head, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def own_state(self) -> dict[str, Tensor]:
        named = self.value.parameters().items()
        weights = {name: value.detach().cpu().clone() for name, value in named}
        return weights | self._numbers_of_step

    def _numbers(self) -> dict[str, Tensor]:
        found = {KL_COEF: self.kl_coef, VALUE_OFFSET: self.value_offset}
        there = {name: x for name, x in found.items() if x is not None}
        return {name: torch.tensor(x, dtype=torch.float64) for name, x in there.items()}

    def note_step(self) -> None:
        super().note_step()
        # A step that is left halfway has set them for a batch that will be generated again.
        self._numbers_of_step = self._numbers()


def _sequence(batch: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Ids and mask of prompt and completion together, and the completion's width."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return ids, mask, batch["completion_ids"].shape[1]
