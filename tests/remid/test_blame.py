"""Contributions add up to R-EMI, act as leaving the example out does, and find what was planted;
tokens add up too.
"""

import json

import numpy as np
import pytest

from coevolve import ProbabilityEstimator
from coevolve.errors import RecipeError
from coevolve.information.contrast import Contrast
from coevolve.information.emi import emi
from coevolve.prompts import Renderer, prompt_set
from coevolve.remid.blame import (
    TokenScoring,
    blame_examples,
    blame_grid,
    contributions,
    losses,
    remi_of,
)
from coevolve.remid.measures import PUBLISHED, Measure
from coevolve.remid.pairs import negative_pairs
from coevolve.remid.score import Scoring, score_corpus, score_examples
from coevolve.remid.subsets import evaluated_examples
from coevolve.scoring.models import load_model, load_tokenizer
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import SeparateRoles
from coevolve.scoring.scores import Scores
from coevolve.worlds.corpus import world_corpus, world_of
from coevolve.worlds.language import SLOTS
from coevolve.worlds.role_players import role_players
from coevolve.worlds.tiny import write_tiny_base


def remi_by_loops(matrix):
    """CLUB of (N, N) differences, model minus golden."""
    count = len(matrix)
    own = sum(matrix[i, i] for i in range(count)) / count
    return own - sum(matrix[i, j] for i in range(count) for j in range(count) if i != j) / (
        count * (count - 1)
    )


def estimate(model, golden=None, form="club"):
    """R-EMI over all pairs of (N, N) log-probabilities, six tokens a response."""
    golden = np.zeros_like(model) if golden is None else golden
    contrasts = (
        Contrast.from_matrix(Scores(m, np.full(len(m), 6)), "per_response") for m in (model, golden)
    )
    return emi(*contrasts, form)


@pytest.mark.parametrize("form", ["club", "barber_agakov", "leave_one_out"])
def test_contributions_average_to_remi(form):
    model, golden = np.random.default_rng(0).standard_normal((2, 9, 9)) - 5
    remi = estimate(model, golden, form)
    found = contributions(remi)
    assert found.total.mean() == pytest.approx(remi.value)
    assert found.matched.mean() == pytest.approx(remi.value)
    assert found.as_context.mean() == pytest.approx(0, abs=1e-12)
    assert found.as_response.mean() == pytest.approx(0, abs=1e-12)


def test_parts_of_club_are_row_and_column_means():
    model, golden = np.random.default_rng(0).standard_normal((2, 6, 6))
    difference = model - golden
    remi = estimate(model, golden)
    assert remi.value == pytest.approx(remi_by_loops(difference))
    off = [[difference[i, j] for j in range(6) if j != i] for i in range(6)]
    columns = [[difference[j, i] for j in range(6) if j != i] for i in range(6)]
    mean, found = np.mean(off), contributions(remi)
    np.testing.assert_allclose(found.matched, np.diagonal(difference) - mean)
    np.testing.assert_allclose(found.as_context, [mean - np.mean(row) for row in off])
    np.testing.assert_allclose(found.as_response, [mean - np.mean(column) for column in columns])


def test_an_examples_contribution_is_what_leaving_it_out_takes_away():
    rng = np.random.default_rng(1)
    count = 60
    difference = (
        rng.standard_normal((count, count))
        + 2 * rng.standard_normal((count, 1))
        + rng.standard_normal(count)
    )
    difference += np.diag(3 * rng.standard_normal(count))
    remi = estimate(difference)
    found = contributions(remi).total
    without = [
        remi_by_loops(np.delete(np.delete(difference, i, axis=0), i, axis=1)) for i in range(count)
    ]
    expected = -(found - remi.value) / (count - 1)
    np.testing.assert_allclose(np.array(without) - remi.value, expected, atol=0.1 * expected.std())


def test_losses_average_to_remid_over_sampled_pairs(corpus, estimator, responses):
    scored = score_corpus(estimator, corpus, responses, Scoring(negatives=5)).subsets
    for name in responses:
        remi = [remi_of(subset, name, PUBLISHED).value for subset in scored]
        for index, (_, loss) in enumerate(losses(scored, name, PUBLISHED)):
            assert loss.mean() == pytest.approx(remi[0] - remi[index] if index else -remi[0])


class Truth:
    """The world's own p(y | x) as the estimator."""

    def reason(self, examples):
        return [""] * len(examples)

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        contexts, texts = [examples[i] for i, _ in pairs], [responses[j] for _, j in pairs]
        return Scores(world_of(0).golden.log_prob(contexts, texts), np.full(len(pairs), SLOTS + 1))


@pytest.fixture(scope="module")
def world():
    """(corpus, responses of a perfect model that answers every tenth example as if it were
    another).
    """
    corpus = world_corpus(0, train=1, test=60)
    examples = evaluated_examples(corpus)
    answers = role_players(world_of(0))["perfect"].respond(examples, np.random.default_rng(0))
    for index in range(0, len(examples), 10):
        answers[index] = answers[(index + 7) % len(examples)]
    return corpus, {
        "mixed up": {x.sample_id: text for x, text in zip(examples, answers, strict=True)}
    }


def test_mixed_up_responses_are_the_worst(world):
    corpus, responses = world
    scored = score_corpus(Truth(), corpus, responses, Scoring(negatives="all")).subsets
    for subset, (_, loss) in zip(scored, losses(scored, "mixed up", Measure("club")), strict=True):
        planted = {
            index
            for index, x in enumerate(subset.subset.examples)
            if int(x.sample_id[-6:]) % 10 == 0
        }
        worst = set(np.argsort(-loss)[: len(planted)].tolist())
        assert len(worst & planted) >= len(planted) - 2, (
            "two may by chance have fallen on much the same context"
        )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    base = str(
        write_tiny_base(tmp_path_factory.mktemp("base"), seed=0, hidden=32, layers=1, heads=2)
    )
    roles = SeparateRoles.create(load_model(base), keep_base=False)
    return ProbabilityEstimator(
        roles, Renderer(prompt_set("world"), load_tokenizer(base)), max_new_tokens=12
    )


@pytest.fixture(scope="module")
def small(world):
    corpus, responses = world
    splits = {split: corpus.splits[split][:9] for split in ("IDTest", "OOD3Test")}
    corpus = type(corpus)(splits, "small")
    kept = {x.sample_id for x in corpus.examples}
    return corpus, {
        name: {i: text for i, text in given.items() if i in kept}
        for name, given in responses.items()
    }


def test_tokens_add_up_to_the_responses_contrast(tiny, small):
    corpus, responses = small
    subset = score_corpus(tiny, corpus, responses, Scoring(negatives="all")).subsets[1]
    examples = subset.subset.examples
    texts = [examples[2].golden_response, responses["mixed up"][examples[5].sample_id]]
    scoring = TokenScoring(tiny, Reasoning(), other_contexts=len(examples))
    found = scoring.tokens_of([2, 5], texts, subset)
    matrix = tiny.log_prob_matrix(examples, texts, tiny.reason(examples)).sum
    for column, (index, text, tokens) in enumerate(zip([2, 5], texts, found, strict=True)):
        assert [token.text for token in tokens] == [*text.split(), "<|im_end|>"]
        assert sum(token.log_prob for token in tokens) == pytest.approx(
            matrix[index, column], abs=1e-4
        )
        others = np.delete(matrix[:, column], index)
        contrast = matrix[index, column] - others.mean()
        assert sum(token.contribution for token in tokens) == pytest.approx(contrast, abs=1e-4)


def test_tokens_of_a_mixture_add_up_to_the_mixtures_score(tiny, small):
    """Which is the log mean over its reasonings of what each gives the response."""
    corpus, responses = small
    reasoning = Reasoning("marginal", samples=3, seed=7)
    scoring = Scoring(negatives="all", reasoning=reasoning)
    subset = score_corpus(tiny, corpus, responses, scoring).subsets[0]
    examples = subset.subset.examples
    texts = [responses["mixed up"][x.sample_id] for x in examples]
    found = TokenScoring(tiny, reasoning).tokens_of(range(len(examples)), texts, subset)
    sums = [sum(token.log_prob for token in tokens) for tokens in found]
    np.testing.assert_allclose(sums, subset.positive["mixed up"].sum, atol=1e-4)
    scores, written = score_examples(tiny, examples, texts, reasoning)
    each = [tiny.log_prob(examples, texts, tiny.reason(examples, seed=7 + k)).sum for k in range(3)]
    np.testing.assert_allclose(scores.sum, np.log(np.mean(np.exp(each), axis=0)), atol=1e-4)
    np.testing.assert_allclose(scores.sum, sums, atol=1e-4)
    assert written == [tiny.reason(examples, seed=7 + k) for k in range(3)]
    assert len({*map(tuple, written)}) > 1


def test_worst_and_best_are_shown_with_text_and_tokens(tiny, small):
    corpus, responses = small
    scored = score_corpus(tiny, corpus, responses, Scoring(negatives=20))
    blamed = blame_examples(tiny, scored, shown=2, other_contexts=3)
    found = blamed.values()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["row"] for row in found["subsets"]] == ["IDTest", "OOD3Test/dialogue"]
    grid = blame_grid(blamed, "mixed up")
    cells = [cell for block in grid.blocks for row in block.rows for cell in row]
    for row, subset in zip(found["subsets"], scored.subsets, strict=True):
        model = row["models"]["mixed up"]
        assert [x["sample_ID"] for x in model["examples"]] == [
            x.sample_id for x in subset.subset.examples
        ]
        ordered = sorted((x["loss"] for x in model["examples"]), reverse=True)
        assert [x["loss"] for x in model["worst"]] == ordered[:2]
        assert [x["loss"] for x in model["best"]] == ordered[::-1][:2]
        assert model["loss"] == pytest.approx(np.mean(ordered))
        for shown in (*model["worst"], *model["best"]):
            assert shown["response"] == responses["mixed up"][shown["sample_ID"]]
            assert len(shown["tokens"]) == len(shown["golden_tokens"]) == SLOTS + 1
            assert shown["sample_ID"] in cells and shown["response"] in cells
    assert blame_examples(tiny, scored, shown=2, other_contexts=3) == blamed


def test_an_example_in_many_sampled_pairs_is_not_worse_for_it():
    pairs = negative_pairs([str(index) for index in range(40)], 30, seed=0, where="test")
    assert np.ptp(np.bincount(pairs.ravel(), minlength=40)) > 0
    model, golden = (
        Contrast.from_pairs(
            Scores(np.full(40, own), np.ones(40)),
            Scores(np.full(30, own - 1), np.ones(30)),
            pairs,
            "per_response",
        )
        for own in (-1.0, -2.0)
    )
    assert np.ptp(contributions(emi(model, golden)).total) < 1e-12


def test_unusable_numbers_are_refused(tiny, small):
    corpus, responses = small
    scored = score_corpus(tiny, corpus, responses, Scoring(negatives=5))
    with pytest.raises(RecipeError, match="shown is 0"):
        blame_examples(tiny, scored, shown=0)
