"""The synthetic world: its tables, its texts, its shifts, and the teacher's errors."""

from dataclasses import replace

import numpy as np
import pytest

from coevolve.data.example import Example, Turn
from coevolve.errors import DataError, RecipeError
from coevolve.prompts.reasoning import core_features, missing_sections
from coevolve.worlds.language import (
    CONNECTIONS,
    CONNECTIONS_HEADING,
    FACTORS,
    FEATURE_WORDS,
    FEATURES,
    FEATURES_HEADING,
    SLOTS,
    VALUES,
    parse,
    parse_all,
    parse_responses,
    vocabulary,
    write_responses,
)
from coevolve.worlds.world import World, WorldSpec

SECTIONS = (CONNECTIONS_HEADING, FEATURES_HEADING)


@pytest.fixture(scope="module")
def world():
    return World.draw(WorldSpec(seed=3))


@pytest.fixture(scope="module")
def examples(world):
    return world.sample(2000, np.random.default_rng(0), subset="IDTest", prefix="test")


def features_of(trace):
    return [FEATURE_WORDS.index(word) for word in core_features(trace, SECTIONS).split()]


def test_a_spec_names_one_world():
    first, again, other = (World.draw(WorldSpec(seed=seed)) for seed in (5, 5, 6))
    for name in FACTORS:
        np.testing.assert_array_equal(first.factors[name], again.factors[name])
        assert not np.array_equal(first.factors[name], other.factors[name])
    np.testing.assert_array_equal(first.emission, again.emission)
    assert any(not np.array_equal(first.tables[name], other.tables[name]) for name in FEATURES)


def test_tables_are_latin_squares_so_no_single_input_says_anything(world):
    for name, table in world.tables.items():
        for line in (*table, *table.T):
            assert sorted(line) == list(range(VALUES)), name


def test_every_response_has_positive_probability(world):
    assert world.emission.min() > 0
    np.testing.assert_allclose(world.emission.sum(axis=-1), 1)


def test_the_teacher_is_wrong_in_a_fifth_of_the_feature_cells(world):
    for name in CONNECTIONS:
        np.testing.assert_array_equal(world.teacher_tables[name], world.tables[name])
    for name in FEATURES:
        assert (world.teacher_tables[name] != world.tables[name]).sum() == round(0.2 * VALUES**2)


def test_a_shift_redraws_its_own_factor_only(world):
    for what, changed in {**{name: {name} for name in FACTORS}, "all": set(FACTORS)}.items():
        shifted = world.shifted(what, seed=1)
        for name in FACTORS:
            assert np.array_equal(shifted.factors[name], world.factors[name]) == (
                name not in changed
            )
            assert shifted.factors[name].sum() == pytest.approx(1)
        assert shifted.tables is world.tables and shifted.emission is world.emission


def test_a_weaker_shift_stays_closer(world):
    distances = [
        np.abs(world.shifted("user", 1, strength).factors["user"] - world.factors["user"]).sum()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < distances[-1] / 4


def test_a_shift_that_does_not_exist_is_refused(world):
    with pytest.raises(DataError, match="'weather'; accepted are user, character, dialogue, all"):
        world.shifted("weather", 1)
    with pytest.raises(DataError, match=r"strength is 0; accepted is above 0"):
        world.shifted("user", 1, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sharpness", 1.0), ("code_switching", 0.0), ("wrong_cells", 1.2), ("skew", -1), ("seed", -1)],
)
def test_a_spec_that_cannot_be_drawn_is_refused(field, value):
    with pytest.raises(RecipeError, match=f"world.{field} is {value}"):
        WorldSpec(**{field: value})


def test_examples_are_rows_of_the_native_layout_in_known_words(examples):
    words = set(vocabulary())
    assert len({example.sample_id for example in examples}) == len(examples)
    for example in examples[:50]:
        assert Example.from_row(example.to_row(), "row") == example
        texts = [
            example.user_persona,
            example.agent_character,
            *(turn.text for turn in example.dialogue),
        ]
        assert set(" ".join([*texts, example.golden_response]).split()) <= words


def test_inputs_follow_the_factors(world):
    inputs = world.sample_inputs(20_000, np.random.default_rng(1))
    for factor, names in FACTORS.items():
        joint = world.factors[factor]
        cells = np.ravel_multi_index([inputs[name] for name in names], joint.shape)
        counts = np.bincount(cells, minlength=joint.size) / 20_000
        assert np.abs(counts - joint.ravel()).max() < 5 * np.sqrt(joint.max() / 20_000)


def test_responses_are_read_back_and_follow_their_probabilities(world, examples):
    responses = [example.golden_response for example in examples]
    assert write_responses(parse_responses(examples, responses)) == responses
    one = [examples[0]] * 20_000
    drawn = world.golden.respond(one, np.random.default_rng(2))
    texts, counts = np.unique(drawn, return_counts=True)
    commonest = np.argsort(-counts)[:20]
    probabilities = np.exp(world.golden.log_prob(one[:20], texts[commonest].tolist()))
    np.testing.assert_allclose(
        counts[commonest] / len(one), probabilities, atol=5 * np.sqrt(0.25 / len(one))
    )


def test_the_right_trace_is_well_formed_and_says_the_plan(world, examples):
    _, *features = world.golden.plan(parse_all(examples))
    for row, example in enumerate(examples[:200]):
        trace = world.trace(example, teacher=False, rng=np.random.default_rng(0))
        assert missing_sections(trace, SECTIONS) == []
        assert features_of(trace) == [int(feature[row]) for feature in features]
        assert len(trace.split()) == 2 + len(CONNECTIONS) + SLOTS


def test_the_teacher_errs_where_its_tables_are_wrong_as_often_as_it_says(world, examples):
    rng = np.random.default_rng(4)
    right = np.array([features_of(world.trace(x, teacher=False, rng=rng)) for x in examples])
    said = np.array([features_of(world.trace(x, teacher=True, rng=rng)) for x in examples])
    _, *believed = replace(world.golden, tables=world.teacher_tables).plan(parse_all(examples))
    in_wrong_cell = np.stack(believed, axis=1) != right
    assert np.array_equal(said[~in_wrong_cell], right[~in_wrong_cell])
    rate = (said != right)[in_wrong_cell].mean()
    assert rate == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / in_wrong_cell.sum()))
    assert 0.1 < in_wrong_cell.mean() < 0.35


def test_texts_that_are_not_of_this_world_are_named(examples):
    example = examples[0]
    with pytest.raises(DataError, match="'test-000000': culture is 'lunar'; accepted: alpine"):
        parse(replace(example, user_persona="german lunar chess"))
    with pytest.raises(
        DataError,
        match="the character text 'poetic' has 1 words; accepted: style, occupation",
    ):
        parse(replace(example, agent_character="poetic"))
    with pytest.raises(
        DataError, match="speakers user; an example of this world has user, agent, user"
    ):
        parse(replace(example, dialogue=(Turn("user", "food"),)))
    with pytest.raises(DataError, match="has 1 words; accepted are 5"):
        World.draw(WorldSpec()).golden.log_prob([example], ["gern"])
    with pytest.raises(DataError, match="response is 'hello'"):
        parse_responses([example], ["gern gern gern gern hello"])
    with pytest.raises(DataError, match="0 responses for 1 examples"):
        parse_responses([example], [])
