"""Work spread over processes: every item once, in order, by about the same cost."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coevolve.scoring.reasoning import Reasoning
from coevolve.training.distributed.estimator import DistributedEstimator
from coevolve.training.distributed.processes import Interrupted, Processes, shares
from coevolve.training.distributed.stopping import Stop
from coevolve.training.rows import order_of_rows


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 9))
def test_every_item_is_in_one_share(costs, count):
    split = shares(costs, count)
    assert len(split) == count and sorted(index for share in split for index in share) == list(
        range(len(costs))
    )
    assert all(share == sorted(share) for share in split)
    loads = [sum(costs[index] for index in share) for share in split]
    # Longest first, to the least busy: no two differ by more than one item.
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 5))
def test_a_pass_is_finished_before_the_next_begins(rows, count, seed):
    order = order_of_rows(rows, count, seed).tolist()
    assert len(order) == count
    for start in range(0, count, rows):
        part = order[start : start + rows]
        assert len(set(part)) == len(part) and set(part) <= set(range(rows))


def alone(stop=None):
    return Processes(torch.device("cpu"), stop or Stop())


def test_one_process_does_it_all():
    processes = alone()
    assert processes.distribute([3, 1, 2], lambda share: [10 * index for index in share]) == [
        0,
        10,
        20,
    ]
    assert processes.agree(True, False) == (True, False)
    assert processes.on_main(lambda: 7) == 7 and processes.gather("x") == ["x"]


def test_being_asked_to_stop_shows_where_all_agree():
    stop = Stop()
    processes = alone(stop)
    stop.reason = "SIGTERM"
    # Saving is not stopped by being asked to stop.
    assert processes.on_main(lambda: "saved") == "saved"
    for act in (
        processes.agree,
        lambda: processes.together(lambda: 1),
        lambda: processes.together(stop.poll),
    ):
        with pytest.raises(Interrupted):
            act()


def test_a_failure_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        alone().together(lambda: 1 / 0)


class TwoInTurn:
    """Two processes' shares, out of order, worked on one after the other."""

    count = 2

    def distribute(self, costs, work):
        shares = [list(range(len(costs)))[1::2][::-1], list(range(len(costs)))[::2]]
        done = {i: of for share in shares for i, of in zip(share, work(share), strict=True)}
        return [done[index] for index in range(len(costs))]


def test_divided_scores_are_those_of_one_process(recipe_of, build, tmp_path):
    context, _ = build(recipe_of(), tmp_path)
    plain, divided = context.estimator, DistributedEstimator(context.estimator, TwoInTurn())
    examples = context.data.validation[:5]
    responses = [example.golden_response for example in examples]
    pairs = np.array([[4, 0], [1, 1], [4, 4], [0, 3], [1, 0]])
    for form in (Reasoning(), Reasoning("mixture", 2, 5, 0.4)):
        for found, expected in (
            (estimator.log_prob(examples, responses, form) for estimator in (divided, plain)),
            (e.log_prob_pairs(examples, responses, form, pairs) for e in (divided, plain)),
        ):
            np.testing.assert_allclose(found.sum, expected.sum, atol=1e-5)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
