"""Shared prefixes cover every prompt once, cost no more than none,
and rows are laid out by cost.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coevolve.scoring.cost import Cost, arrange
from coevolve.scoring.sharing import Prefix, shared_prefixes

part = st.lists(st.integers(0, 2), max_size=4)
prompts = st.lists(
    st.builds(
        lambda parts: (*(token for part in parts for token in part), 9), st.lists(part, max_size=4)
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


def walk(prefix, above=()):
    """Each prefix with those that it stands on."""
    yield prefix, above
    for longer in prefix.below:
        yield from walk(longer, (*above, prefix))


def price(root: Prefix, prompts, rows, token, run):
    """What all passes over the tree cost."""
    total = 0.0
    for prefix, _ in walk(root):
        total += (prefix.end - prefix.start) * token + run * (prefix is not root)
        total += sum((len(prompts[i]) - prefix.end) * token * rows[i] for i in prefix.prompts)
    return total


@given(prompts, st.data(), st.floats(0, 30), st.sampled_from([0, 1, 2, 4]))
def test_prefixes_fit_their_prompts_and_save_what_they_cost(prompts, data, run, depth):
    rows = data.draw(st.lists(st.integers(1, 4), min_size=len(prompts), max_size=len(prompts)))
    root = shared_prefixes(prompts, rows, token=1.0, run=run, depth=depth)
    assert sorted(index for prefix, _ in walk(root) for index in prefix.prompts) == list(
        range(len(prompts))
    )
    for prefix, above in walk(root):
        assert len(above) <= depth
        if above:
            assert prefix.start == above[-1].end < prefix.end
            assert (
                prompts[prefix.prompt][: prefix.start] == prompts[above[-1].prompt][: prefix.start]
            )
        for index in prefix.prompts:
            assert prompts[index][: prefix.end] == prompts[prefix.prompt][: prefix.end]
    nothing = shared_prefixes(prompts, rows, token=1.0, run=run, depth=0)
    assert nothing.below == [] and len(nothing.prompts) == len(prompts)
    assert price(root, prompts, rows, 1.0, run) <= price(nothing, prompts, rows, 1.0, run) + 1e-9


def test_the_tree_of_a_template_two_dialogues_and_their_reasonings():
    template, one, two = [1] * 10, [2] * 10, [3] * 10
    prompts = [
        template + one + [4],
        template + one + [5],
        template + two + [4],
        template + two + [5, 6],
        [7, 8],
    ]
    root = shared_prefixes(prompts, [1] * 5, token=1.0, run=2.0)
    assert root.prompts == [4]
    (kept,) = root.below
    assert (kept.start, kept.end, kept.prompts) == (0, 10, [])
    assert [(prefix.start, prefix.end, prefix.prompts) for prefix in kept.below] == [
        (10, 20, [0, 1]),
        (10, 20, [2, 3]),
    ]
    # One level, for a model whose cache cannot be built upon: the dialogues save more than the
    # template.
    shallow = shared_prefixes(prompts, [1] * 5, token=1.0, run=2.0, depth=1)
    assert [(prefix.start, prefix.end, prefix.prompts) for prefix in shallow.below] == [
        (0, 20, [0, 1]),
        (0, 20, [2, 3]),
    ]
    # A pass that costs more than ten tokens twice over is not worth a dialogue's two reasonings.
    dear = shared_prefixes(prompts, [1] * 5, token=1.0, run=25.0)
    assert [(prefix.end, prefix.prompts) for prefix in dear.below] == [(10, [0, 1, 2, 3])]


def test_a_short_template_of_long_prompts_is_not_shared():
    """Behind a prefix all attention is computed, behind nothing half of it: 200 x 200 / 2 pairs are
    dearer than it.
    """
    prompts = [[1] * 10 + [k] * 200 for k in range(2, 12)]
    rows = [3] * len(prompts)
    with_template = shared_prefixes(prompts, rows, token=1.0, run=2.0, pair=0.0001)
    assert [(prefix.end, len(prefix.below)) for prefix in with_template.below] == [(10, 10)]
    without = shared_prefixes(prompts, rows, token=1.0, run=2.0, pair=0.01)
    assert [(prefix.start, prefix.end) for prefix in without.below] == [(0, 210)] * 10
    # Where the segments are short, as reasonings are beside their dialogue, attention is no reason
    # against it.
    group = [[1] * 200 + [k] * 20 for k in range(8)]
    shared = shared_prefixes(group, [1] * 8, token=1.0, run=2.0, pair=0.01)
    assert [prefix.end for prefix in shared.below] == [200]


def test_a_prompt_that_another_begins_with_and_a_long_chain():
    prompts = [[1] * length for length in range(1, 3000)]
    root = shared_prefixes(prompts, [2] * len(prompts), token=1.0, run=0.1)
    assert max(len(above) for _, above in walk(root)) == 4
    assert sorted(index for prefix, _ in walk(root) for index in prefix.prompts) == list(
        range(len(prompts))
    )


COST = Cost(token=1.0, attention=0.01, copied=0.02, run=5.0)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=25),
    st.integers(0, 100),
    st.integers(1, 400),
    st.booleans(),
)
def test_rows_hold_every_segment_once_beside_its_own_kind(segments, cached, budget, pack):
    lengths, groups = [length for length, _ in segments], [group for _, group in segments]
    rows = arrange(lengths, groups, cached, COST, budget, pack=pack)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len({groups[index] for index in row}) == 1 for row in rows)
    assert pack or all(len(row) == 1 for row in rows)
    widths = [sum(lengths[index] for index in row) for row in rows]
    assert COST.of_rows(widths, cached, budget) <= COST.of_rows(lengths, cached, budget) + 1e-9


@pytest.mark.parametrize(
    ("length", "cached", "packed"),
    [(5, 800, True), (300, 800, False), (60, 0, False)],
    ids=["short", "long", "no cache"],
)
def test_what_is_packed(length, cached, packed):
    """The price of side by side is attention to the others' tokens, that of apart is a copy of the
    prefix for each.
    """
    rows = arrange([length] * 8, [0] * 8, cached, COST, 10**6, pack=True)
    assert any(len(row) > 1 for row in rows) == packed


def test_a_dearer_width_does_not_hide_a_cheaper_one_behind_it():
    """Lengths 37 to 61 make uneven rows of one or two, dearer than rows of one, and even ones of
    four.
    """
    smollm2 = Cost(token=212e6, attention=69e3, copied=1.4e6, run=2.7e9)
    lengths = [37, 39, 41, 44, 46, 48, 50, 52, 55, 57, 58, 61]
    rows = arrange(lengths, [0] * 12, 800, smollm2, 16_384, pack=True)
    widths = [sum(lengths[index] for index in row) for row in rows]
    assert smollm2.of_rows(widths, 800, 16_384) < 0.85 * smollm2.of_rows(lengths, 800, 16_384)


def test_a_models_cost_is_counted():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=3, **shape))
    cost = Cost.of(model.model, model.config, torch.device("cpu"), torch.float32)
    linear = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    norms = 3 * 2 * 8 + 8
    assert cost.token == 2 * (linear + norms)
    assert cost.attention == 4 * 3 * 8  # the products with keys and with values, of 4 heads of 2
    assert cost.of_pass(2, 5, 7) == cost.run + 2 * (
        5 * cost.token + 5 * 12 * cost.attention + 12 * cost.copied
    )
