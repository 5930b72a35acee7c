"""The numerics of PPO and RLOO as pure functions on tensors.

Shapes: B completions, T tokens each (padded on the right), N completions of whole groups. A mask is
    1 at the tokens of
a completion and 0 at padding, and what stands at padding never matters. Log-probabilities and KL
are in nats.

Where a figure is over all completions of a batch and each process has a part of them, `total` adds
up a tensor over the processes; left out, this process has them all. Such sums are taken in float64,
so that they hardly depend on how the batch is divided.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs_BT: Tensor, reference_BT: Tensor, kind: KlEstimator = "k1") -> Tensor:
    """Estimates of KL(policy || reference) per token, from tokens of the policy. (B, T), nats.

    Schulman (2020), joschu.net/blog/kl-approx.html, with r = reference / policy: k1 = -log r is
    unbiased but may be negative; k2 = (log r)^2 / 2 is biased and of low variance; k3 = r - 1 -
    log r is unbiased and never negative.
    """
    _same_shape(log_probs_BT, reference_BT)
    log_ratio_BT = reference_BT - log_probs_BT
    if kind == "k1":
        return -log_ratio_BT
    if kind == "k2":
        return log_ratio_BT.square() / 2
    if kind == "k3":
        # expm1 keeps the digits where the two are close, and r - 1 - log r is of second order.
        return torch.expm1(log_ratio_BT) - log_ratio_BT
    raise ValueError(f"kind must be k1, k2 or k3, found {kind!r}")


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token, (B, T): -kl_coef * KL, and the completion's score at its last.

    Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", section 2.2:
    R(x, y) = r(x, y) - beta * log(pi(y|x) / rho(y|x)), the second term told apart by tokens.
    """
    _same_shape(kl_BT, mask_BT)
    if scores_B.shape != kl_BT.shape[:1]:
        raise ValueError(
            f"scores must have shape {tuple(kl_BT.shape[:1])}, found {tuple(scores_B.shape)}"
        )
    rewards_BT = (-kl_coef * kl_BT).masked_fill(mask_BT == 0, 0.0)
    return rewards_BT + last_token(mask_BT) * scores_B.unsqueeze(1)


def last_token(mask_BT: Tensor) -> Tensor:
    """1 at the last token of each completion, 0 elsewhere; shape (B, T), int."""
    following_BT = torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], dim=1)
    return ((mask_BT != 0) & (following_BT == 0)).to(torch.long)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates. Shape (B, T), 0 at padding.

    Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", eq. 11, 12 and 16: delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam
    A_{t+1}. V is of the state in which a token was chosen. A completion ends with its last token,
    where V and A of the next state are 0, also if it was cut off: its score is all that it gets.
    """
    _same_shape(rewards_BT, values_BT, mask_BT)
    alive_BT = mask_BT != 0
    if bool((alive_BT[:, 1:] & ~alive_BT[:, :-1]).any()):
        raise ValueError("a completion's tokens must stand together at the left of its row")
    rewards_BT, values_BT = (x.masked_fill(~alive_BT, 0.0) for x in (rewards_BT, values_BT))
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # Padding has reward, value and advantage 0, so the last token sees zeros behind it.
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B).masked_fill(
            ~alive_BT[:, t], 0.0
        )
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT


def moments(
    x_BT: Tensor, mask_BT: Tensor, total: Total | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, mean, sum of squared deviations) over all completions; float64 scalars."""
    _same_shape(x_BT, mask_BT)
    total = total or _unchanged
    kept = x_BT.detach()[mask_BT != 0].double()
    count, summed = total(torch.stack([kept.new_tensor(float(kept.numel())), kept.sum()]))
    mean = summed / count.clamp(min=1.0)
    # In a second pass: the difference of two large sums would lose the digits of a small variance.
    return count, mean, total((kept - mean).square().sum())


def whiten(
    x_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True, total: Total | None = None
) -> Tensor:
    """x with variance 1 over all tokens, and mean 0 unless it is to stay. (B, T), 0 at padding.

    As in Ziegler et al. (2019) and TRL's PPO: the unbiased variance plus 1e-8 under the root.
    """
    count, mean, squares = moments(x_BT, mask_BT, total)
    variance = squares / (count - 1.0).clamp(min=1.0)
    scale = torch.rsqrt(variance + 1e-8) if count > 1 else torch.ones_like(variance)
    white_BT = (x_BT - mean.to(x_BT.dtype)) * scale.to(x_BT.dtype)
    if not shift_mean:
        white_BT = white_BT + mean.to(x_BT.dtype)
    return white_BT.masked_fill(mask_BT == 0, 0.0)


def clipped_policy_loss(
    log_probs_BT: Tensor, old_log_probs_BT: Tensor, advantages_BT: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """(loss per token, whether the clipped term decided it), each of shape (B, T).

    Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7, as a loss:
    -min(ratio A, clip(ratio, 1 - low, 1 + high) A), where ratio = policy / policy that sampled.
    """
    _same_shape(log_probs_BT, old_log_probs_BT, advantages_BT)
    ratio_BT = torch.exp(log_probs_BT - old_log_probs_BT)
    free_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * torch.clamp(ratio_BT, 1.0 - low, 1.0 + high)
    return torch.maximum(free_BT, clipped_BT), clipped_BT.detach() > free_BT.detach()


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, cliprange: float | None
) -> tuple[Tensor, Tensor]:
    """(loss per token, whether the clipped term decided it), each (B, T); None clips nothing.

    max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, as in the PPO authors' code; Engstrom
    et al. (2020), "Implementation Matters in Deep Policy Gradients", section 2.
    """
    _same_shape(values_BT, old_values_BT, returns_BT)
    free_BT = (values_BT - returns_BT).square()
    if cliprange is None:
        return free_BT / 2, torch.zeros_like(free_BT, dtype=torch.bool)
    held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange, cliprange)
    clipped_BT = (held_BT - returns_BT).square()
    return torch.maximum(free_BT, clipped_BT) / 2, clipped_BT.detach() > free_BT.detach()


def adapted_kl_coef(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """The coefficient for the next batch; KL and target are in nats per response.

    Ziegler et al. (2019), section 2.2: e = clip((KL - target) / target, -0.2, 0.2); beta' = beta (1
    + K e), with K = 0.1 there.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return kl_coef * (1.0 + gain * error)


def explained_variance(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, total: Total | None = None
) -> Tensor:
    """1 - Var(R - V) / Var(R) over all tokens: 1 is perfect, 0 a constant; NaN if R is constant."""
    _same_shape(values_BT, returns_BT)
    _, _, returns = moments(returns_BT, mask_BT, total)
    _, _, residual = moments(returns_BT - values_BT, mask_BT, total)
    return torch.where(returns > 0, 1.0 - residual / returns, torch.nan)


def leave_one_out_advantages(scores_N: Tensor, group: int) -> Tensor:
    """The score of each completion minus the mean of the others of its group, N of whole groups.

    Kool et al. (2019), "Buy 4 REINFORCE Samples, Get a Baseline for Free!", eq. 8; for language
    models Ahmadian et al. (2024), "Back to Basics", section 3.2 (RLOO).
    """
    if group < 2 or scores_N.dim() != 1 or scores_N.numel() % group:
        raise ValueError(
            f"{tuple(scores_N.shape)} scores do not divide into groups of {group}, or these have "
            "no others"
        )
    grouped = scores_N.view(-1, group)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).view(-1)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _same_shape(first: Tensor, *others: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (first, *others)]
    if first.dim() != 2 or len(set(shapes)) != 1:
        raise ValueError(
            f"expected tensors of one shape (B, T), found {', '.join(map(str, shapes))}"
        )
