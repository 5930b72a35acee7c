"""PPO's numerics against arrays worked out by hand, a slow literal definition, and finite
differences.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coevolve.training.rl.policy_gradient import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    last_token,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_batch(seed, *, arrays):
    """Arrays (B, T) of floats and a mask whose rows have 0 to T tokens; rubbish at padding."""
    generator = torch.Generator().manual_seed(seed)
    batch, width = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
    lengths = torch.randint(0, width + 1, (batch, 1), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths).long()
    found = [
        torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(arrays)
    ]
    return *(x.masked_fill(mask == 0, 1e6) for x in found), mask


SEEDS = st.integers(0, 2**31)


def test_gae_by_hand():
    rewards, values = tensor([1.0, 0.0, 2.0, 9.0]), tensor([0.5, 1.0, -1.0, 9.0])
    mask = torch.tensor([[1, 1, 1, 0]])
    # delta = 1 + 0.5 * 1 - 0.5 = 1;  0 - 0.5 - 1 = -1.5;  2 + 0 - (-1) = 3;  gamma * lam = 0.25
    # A_2 = 3;  A_1 = -1.5 + 0.25 * 3 = -0.75;  A_0 = 1 + 0.25 * -0.75 = 0.8125
    assert gae(rewards, values, mask, 0.5, 0.5).tolist() == [[0.8125, -0.75, 3.0, 0.0]]


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_weighted_sum_of_temporal_differences(seed, gamma, lam):
    rewards, values, mask = random_batch(seed, arrays=2)
    found = gae(rewards, values, mask, gamma, lam)
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for t in range(mask.shape[1]):
            expected = 0.0
            for k in range(t, length):
                following = values[b, k + 1].item() if k + 1 < length else 0.0
                delta = rewards[b, k].item() + gamma * following - values[b, k].item()
                expected += (gamma * lam) ** (k - t) * delta
            assert found[b, t].item() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(SEEDS)
def test_with_lambda_1_the_return_is_what_came_after(seed):
    rewards, values, mask = random_batch(seed, arrays=2)
    returns = (gae(rewards, values, mask, 1.0, 1.0) + values) * mask
    expected = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, expected, atol=1e-9)


def test_a_mask_with_a_hole_and_odd_shapes_are_refused():
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="stand together at the left"):
        gae(x, x, torch.tensor([[1, 0, 1]]), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"found \(1, 3\), \(3,\)"):
        clipped_value_loss(x, x[0], x, 0.2)
    with pytest.raises(ValueError, match=r"scores must have shape \(1,\), found \(2,\)"):
        token_rewards(torch.zeros(2), x, torch.ones(1, 3), 0.1)


def test_rewards_by_hand():
    kl, mask = (
        tensor([1.0, 2.0, 4.0], [1.0, 7.0, 7.0], [5.0, 5.0, 5.0]),
        torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
    )
    rewards = token_rewards(tensor([10.0, 20.0, 30.0])[0], kl, mask, 0.5)
    assert rewards.tolist() == [[-0.5, -1.0, 8.0], [19.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert last_token(mask).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_kl_estimates_by_hand():
    policy, reference = (
        tensor([math.log(0.5), math.log(0.2)]),
        tensor([math.log(0.25), math.log(0.4)]),
    )
    log2 = math.log(2)
    assert kl_estimate(policy, reference, "k1").tolist() == [pytest.approx([log2, -log2])]
    assert kl_estimate(policy, reference, "k2").tolist() == [
        pytest.approx([log2**2 / 2, log2**2 / 2])
    ]
    assert kl_estimate(policy, reference, "k3").tolist() == [
        pytest.approx([0.5 - 1 + log2, 2 - 1 - log2])
    ]
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(policy, reference, "k4")


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), SEEDS)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(logits, seed):
    """Over a small vocabulary the expectation is a sum, and the divergence is known."""
    policy = torch.log_softmax(torch.tensor([logits], dtype=torch.float64), -1)
    noise = torch.randn(
        policy.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    reference = torch.log_softmax(policy + noise, -1)
    true = (policy.exp() * (policy - reference)).sum().item()
    for kind in ("k1", "k3"):
        assert (policy.exp() * kl_estimate(policy, reference, kind)).sum().item() == pytest.approx(
            true, abs=1e-9
        )
    assert kl_estimate(policy, reference, "k3").min() >= 0


def test_whitening_by_hand():
    x, mask = tensor([1.0, 3.0], [5.0, 100.0]), torch.tensor([[1, 1], [1, 0]])
    # mean 3, unbiased variance (4 + 0 + 4) / 2 = 4
    assert whiten(x, mask).tolist() == [pytest.approx([-1.0, 0.0]), pytest.approx([1.0, 0.0])]
    assert whiten(x, mask, shift_mean=False).tolist() == [
        pytest.approx([2.0, 3.0]),
        pytest.approx([4.0, 0.0]),
    ]
    assert whiten(tensor([7.0]), torch.tensor([[1]])).tolist() == [[0.0]]
    assert whiten(tensor([7.0, 7.0]), torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0]]


@settings(deadline=None)
@given(SEEDS)
def test_processes_together_whiten_as_one(seed):
    """Each of two processes has some of the rows, and they exchange sums only."""
    x, mask = random_batch(seed, arrays=1)
    x, mask = torch.cat([x, -2 * x]), torch.cat([mask, mask])
    whole, cut = (
        whiten(x, mask),
        int(torch.randint(0, len(x) + 1, (), generator=torch.Generator().manual_seed(seed))),
    )
    parts = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    said = [[], []]
    # What the first says depends on nobody; what it says next, on the sum of the first.
    for place in range(2):
        for rank, (part, part_mask) in enumerate(parts):
            heard = []

            def total(mine, rank=rank, heard=heard, place=place):
                heard.append(mine)
                if len(heard) <= place:
                    return said[0][len(heard) - 1] + said[1][len(heard) - 1]
                return mine

            whiten(part, part_mask, total=total)
            said[rank] = heard[: place + 1]
    for rank, (part, part_mask) in enumerate(parts):
        answers = [said[0][0] + said[1][0], said[0][1] + said[1][1]]
        found = whiten(part, part_mask, total=lambda _, answers=answers: answers.pop(0))
        assert torch.allclose(found, whole[:cut] if rank == 0 else whole[cut:], atol=1e-9)


def test_the_policy_loss_by_hand():
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=torch.float64)
    advantages = tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, clipped = clipped_policy_loss(
        ratios.log(), torch.zeros_like(ratios), advantages, 0.2, 0.3
    )
    assert loss.tolist() == [pytest.approx([-1.3, 1.5, -0.5, 0.8, -2.2])]
    assert clipped.tolist() == [[True, False, False, True, False]]


def test_the_value_loss_by_hand():
    values, old, returns = tensor([1.0, 1.0, 0.1]), tensor([0.0, 0.0, 0.0]), tensor([2.0, 0.0, 1.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    # held at 0.2: (0.2 - 2)^2 > (1 - 2)^2;  (0.2 - 0)^2 < (1 - 0)^2;  not held
    assert loss.tolist() == [pytest.approx([1.62, 0.5, 0.405])]
    assert clipped.tolist() == [[True, False, False]]
    assert clipped_value_loss(values, old, returns, None)[0].tolist() == [
        pytest.approx([0.5, 0.5, 0.405])
    ]


@settings(deadline=None)
@given(SEEDS)
def test_losses_are_their_definitions(seed):
    new, old, advantages, values, old_values, returns, mask = random_batch(seed, arrays=6)
    policy, _ = clipped_policy_loss(new / 9, old / 9, advantages, 0.2, 0.28)
    value, _ = clipped_value_loss(values, old_values, returns, 0.3)
    for b, t in mask.nonzero().tolist():
        ratio, advantage = (
            math.exp((new[b, t].item() - old[b, t].item()) / 9),
            advantages[b, t].item(),
        )
        expected = -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        assert policy[b, t].item() == pytest.approx(expected, abs=1e-12)
        v, o, r = (x[b, t].item() for x in (values, old_values, returns))
        assert value[b, t].item() == pytest.approx(
            max((v - r) ** 2, (min(max(v, o - 0.3), o + 0.3) - r) ** 2) / 2, abs=1e-12
        )


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_finite_differences(seed):
    new, old, advantages, values, old_values, returns, mask = random_batch(seed, arrays=6)
    alive = mask != 0

    def loss(log_probs, predicted):
        policy, _ = clipped_policy_loss(log_probs, old, advantages, 0.2, 0.2)
        value, _ = clipped_value_loss(predicted, old_values, returns, 0.2)
        return (policy + 0.1 * value).masked_fill(~alive, 0.0).sum() / alive.sum()

    new, values = new.masked_fill(~alive, 0.0), values.masked_fill(~alive, 0.0)
    old, old_values, returns = (x.masked_fill(~alive, 0.0) for x in (old, old_values, returns))
    # Clipping makes kinks; random ratios are away from them.
    assert torch.autograd.gradcheck(
        loss, (new.requires_grad_(), values.requires_grad_()), eps=1e-6, atol=1e-7
    )
    found = torch.autograd.grad(loss(new, values), (new, values))
    assert all(bool((gradient[~alive] == 0).all()) for gradient in found)
    assert all(bool(gradient.any()) for gradient in found)


def test_on_policy_the_gradient_is_that_of_the_policy_gradient_theorem():
    log_probs, advantages = tensor([-1.0, -2.0]).requires_grad_(), tensor([0.5, -3.0])
    clipped_policy_loss(log_probs, log_probs.detach(), advantages, 0.2, 0.2)[0].sum().backward()
    assert log_probs.grad.tolist() == [[-0.5, 3.0]]


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (0.0, 0.098), (-9.0, 0.098)]
)
def test_the_adaptive_coefficient_by_hand(kl, expected):
    assert adapted_kl_coef(0.1, kl, 6.0, 0.1) == pytest.approx(expected)


def test_explained_variance_by_hand():
    returns, mask = tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask).item() == 0.0
    # residuals 1, 0, 1 vary by 2/3 of the sum of squares; returns by 2
    assert explained_variance(tensor([0.0, 2.0, 2.0, 0.0]), returns, mask).item() == pytest.approx(
        1 - (2 / 3) / 2
    )
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask).item())


def test_leave_one_out_by_hand():
    found = leave_one_out_advantages(torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0]), 3)
    assert found.tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    for scores, group in ((torch.ones(4), 3), (torch.ones(4), 1), (torch.ones(2, 2), 2)):
        with pytest.raises(ValueError, match="do not divide into groups"):
            leave_one_out_advantages(scores, group)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_leave_one_out_is_its_definition_and_sums_to_nothing(scores):
    found = leave_one_out_advantages(torch.tensor(scores, dtype=torch.float64), 2).tolist()
    assert found == pytest.approx(
        [scores[0] - scores[1], scores[1] - scores[0], scores[2] - scores[3], scores[3] - scores[2]]
    )
    assert sum(found) == pytest.approx(0.0, abs=1e-9)
