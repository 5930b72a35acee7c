"""Each form gives what its definition says, in memory and after an export, for rows, tokens and
pairs.
"""

import json

import numpy as np
import pytest

from coevolve import ProbabilityEstimator
from coevolve.errors import ArtifactError, RecipeError
from coevolve.files import write_json
from coevolve.scoring.artifact import identity
from coevolve.scoring.reasoning import Reasoning

FORMS = (
    Reasoning("greedy"),
    Reasoning("none"),
    Reasoning("marginal", 3, 7),
    Reasoning("mixture", weight=0.3),
    Reasoning("mixture", 2, 7, 0.8),
    Reasoning("mixture", weight=1.0),
    Reasoning("mixture", 2, 7, 0.0),
)


def parts(form, estimator, examples):
    """(probability, reasonings) of each part, by the definition."""
    greedy, none = estimator.reason(examples), [None] * len(examples)
    drawn = [estimator.reason(examples, seed=form.seed + k) for k in range(form.samples)]
    if form.kind == "marginal":
        return [(1 / form.samples, texts) for texts in drawn]
    if form.kind == "mixture":
        reasoned = [greedy] if form.samples == 1 else drawn
        each = [(form.weight / form.samples, texts) for texts in reasoned]
        return [*each, (1 - form.weight, none)]
    return [(1.0, greedy if form.kind == "greedy" else none)]


def rewritten(folder, change):
    """The manifest changed, and its identity with it, as another version would have written it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["identity"] = identity(manifest)
    write_json(path, manifest)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.weight}")
def test_a_form_is_exported_and_scores_as_defined(exported, examples, responses, form):
    estimator, folder = exported
    rewritten(folder, lambda manifest: manifest.update(form=form.values()))
    loaded = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    assert loaded.form == form
    expected = np.log(
        sum(
            share * np.exp(estimator.log_prob_matrix(examples, responses, texts).sum)
            for share, texts in parts(form, estimator, examples)
        )
    )
    rows = loaded.log_prob(examples, responses)
    np.testing.assert_allclose(rows.sum, np.diag(expected), atol=1e-5)
    matrix = loaded.log_prob_matrix(examples, responses)
    np.testing.assert_allclose(matrix.sum, expected, atol=1e-5)
    pairs = np.array([[0, 3], [2, 2], [5, 1]])
    found = loaded.log_prob_pairs(examples, responses, None, pairs)
    np.testing.assert_allclose(found.sum, expected[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    tokens = loaded.token_log_probs(examples, responses)
    np.testing.assert_allclose([values.sum() for values in tokens], rows.sum, atol=1e-9)
    assert [len(values) for values in tokens] == rows.tokens.tolist()
    assert max(values.max() for values in tokens) <= 0
    # Another form than its own may be asked for.
    greedy = loaded.log_prob(examples, responses, Reasoning())
    assert np.array_equal(
        greedy.sum, loaded.log_prob(examples, responses, loaded.reason(examples)).sum
    )


def test_an_estimator_without_a_form_is_greedy_to_the_digit(exported, examples, responses):
    _, folder = exported
    rewritten(folder, lambda manifest: manifest.pop("form", None))
    loaded = ProbabilityEstimator.from_pretrained(folder, device="cpu")
    assert loaded.form == Reasoning("greedy")
    one = loaded.log_prob(examples, responses, loaded.reason(examples))
    assert np.array_equal(loaded.log_prob(examples, responses).sum, one.sum)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"kind": "guess"}, "form.kind is 'guess'"),
        ({"kind": "mixture"}, "with weight None"),
        (
            {"kind": "mixture", "weight": 1.5},
            "form.weight is 1.5; accepted is a number from 0 to 1",
        ),
        ({"kind": "greedy", "weight": 0.5}, "for 'mixture' only"),
        ({"kind": "marginal", "samples": 0}, "form.samples is 0"),
        ({"kind": "greedy", "sample": 2}, "form.sample is unknown"),
    ],
)
def test_forms_that_cannot_be_are_refused(exported, form, message):
    _, folder = exported
    rewritten(folder, lambda manifest: manifest.update(form=form))
    with pytest.raises(ArtifactError, match=message):
        ProbabilityEstimator.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("weight", [None, -0.1, "0.5", True])
def test_a_mixture_needs_a_share_as_weight(weight):
    with pytest.raises(RecipeError, match="accepted is a number from 0 to 1"):
        Reasoning("mixture", weight=weight)
