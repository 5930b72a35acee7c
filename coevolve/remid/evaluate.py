"""R-EMI of role-playing models per subset, and R-EMID of every shifted subset against the in-distribution one.

Li et al.: Understanding Generalization in Role-Playing Models via Information Theory, 2025 (arXiv 2512.17270).

Choices made here that the paper leaves open:
- IDTest is one distribution even where its rows have several subset tags: it is pooled, and its pairs run over all
  of it. Elsewhere a pair never crosses two subsets.
- Golden and every model are scored over the same mismatched pairs, in the same contexts with the same reasoning.
- An average over subsets weighs each subset the same, whatever its size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError, RecipeError
from coevolve.information.emi import emi, emid
from coevolve.information.estimate import Contrast, Estimate, check_form, mutual_information
from coevolve.information.log_probs import UNITS, Normalisation, check_normalisation
from coevolve.information.perplexity import perplexity
from coevolve.remid.pairs import PUBLISHED_NEGATIVES, Negatives, negative_pairs
from coevolve.remid.score import (
    Estimator,
    Progress,
    Reporter,
    Responses,
    ScoredSubset,
    distributions,
    evaluated_examples,
    golden_by_id,
    responses_by_id,
    score_subset,
)

SCHEMA = "coevolve.remid/1"


def evaluate_remid(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    *,
    negatives: Negatives = PUBLISHED_NEGATIVES,
    seed: int = 0,
    normalisation: Normalisation = "per_token",
    form: str = "club",
    contexts_at_once: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score golden and model responses on a corpus's test splits, and compute R-EMI and R-EMID.

    Args:
        estimator: writes one reasoning per example, shared by golden and all models, and scores responses.
        corpus: IDTest is required; its shifted splits are compared with it.
        responses: per model, sample_ID -> response for all test examples, or a list in `evaluated_examples` order.
        negatives: mismatched pairs per subset, or "all"; published: 1,000, or all where there are fewer.
        seed: of the sample of pairs.
        normalisation: `per_token` (published) or `per_response`.
        form: the estimator of mutual information, a key of `coevolve.information.estimate.FORMS`.
        contexts_at_once: contexts given to the estimator in one call, between two reports of progress.
        progress: called with what is happening, the contexts done, and the contexts in all.

    Returns:
        The results, as `summarise` describes them.

    Raises:
        DataError: IDTest is absent, no model is given, a response is missing, blank or of an unknown sample, or a
            subset has a single example. Raised before anything is scored.
        RecipeError: an unusable `negatives`, `normalisation`, `form` or `contexts_at_once`.
        ArtifactError: the estimator gave scores of another shape, or one that is not a finite number.
    """
    check_normalisation(normalisation)
    check_form(form)
    if contexts_at_once < 1:
        raise RecipeError(f"contexts_at_once is {contexts_at_once}; accepted are integers from 1 up.")
    subsets = distributions(corpus)
    by_id = _all_responses(responses, corpus)
    pairs = [
        negative_pairs(
            [x.sample_id for x in subset.examples], negatives, seed=seed, where=f"{corpus.source}: {subset.row}"
        )
        for subset in subsets
    ]
    reporter = Reporter(progress, sum(len(subset.examples) for subset in subsets))
    scored = [
        score_subset(estimator, subset, by_id, chosen, contexts_at_once, reporter)
        for subset, chosen in zip(subsets, pairs, strict=True)
    ]
    return summarise(scored, negatives=negatives, seed=seed, normalisation=normalisation, form=form)


def summarise(
    scored: Sequence[ScoredSubset], *, negatives: Negatives, seed: int, normalisation: Normalisation, form: str
) -> dict[str, Any]:
    """The results of schema `coevolve.remid/1`, JSON values only.

    Args:
        scored: the in-distribution subset first, then the shifted ones.
        negatives, seed: the settings by which the pairs were drawn, recorded as they are.

    Returns:
        (numbers other than perplexities and counts are in `unit`)
        - schema; normalisation; unit; form; negatives; seed; models: their names in the order given;
        - subsets, a list: row, split, subset, shift (null in distribution), examples, negatives (pairs used);
          golden: {mutual_information, positive, negative, perplexity, tokens};
          models: {name: {mutual_information, positive, negative, remi, remid (null in distribution)}};
          positive and negative being the mean log-probabilities of matched and mismatched pairs, and tokens the
          golden responses' in all;
        - by_shift: {shift: {name: {remi, remid}}}, means over the subsets of that shift;
        - average: {name: {remi, remid}}, means over all shifted subsets; empty where there are none.
    """
    models = [name for name in scored[0].positive if name is not None]
    remi = {name: [_remi(subset, name, normalisation, form) for subset in scored] for name in models}
    rows = []
    for index, subset in enumerate(scored):
        row = _describe(subset, normalisation, form)
        for name in models:
            row["models"][name]["remi"] = remi[name][index].value
            row["models"][name]["remid"] = emid(remi[name][0], remi[name][index]).value if index else None
        rows.append(row)
    shifted = rows[1:]
    shifts = dict.fromkeys(row["shift"] for row in shifted)
    return {
        "schema": SCHEMA,
        "normalisation": normalisation,
        "unit": UNITS[normalisation],
        "form": form,
        "negatives": negatives,
        "seed": seed,
        "models": models,
        "subsets": rows,
        "by_shift": {shift: _average([row for row in shifted if row["shift"] == shift], models) for shift in shifts},
        "average": _average(shifted, models) if shifted else {},
    }


def _all_responses(responses: Mapping[str, Responses], corpus: Corpus) -> dict[str | None, dict[str, str]]:
    """Golden under None, then each model's, all checked."""
    if not responses:
        raise DataError("no model's responses were given; accepted is a mapping from model name to its responses.")
    examples = evaluated_examples(corpus)
    by_id: dict[str | None, dict[str, str]] = {None: golden_by_id(examples, corpus.source)}
    return by_id | {name: responses_by_id(name, given, examples) for name, given in responses.items()}


def _remi(scored: ScoredSubset, model: str, normalisation: Normalisation, form: str) -> Estimate:
    return emi(scored.contrast(model, normalisation), scored.contrast(None, normalisation), form)


def _describe(scored: ScoredSubset, normalisation: Normalisation, form: str) -> dict[str, Any]:
    """A subset's row of the results, still without R-EMI and R-EMID."""
    subset = scored.subset
    numbers = {name: _numbers(scored.contrast(name, normalisation), form) for name in scored.positive}
    golden = numbers.pop(None)
    golden["perplexity"] = perplexity(scored.positive[None])
    golden["tokens"] = int(np.sum(scored.positive[None].tokens))
    return {
        "row": subset.row,
        "split": subset.split,
        "subset": subset.name,
        "shift": subset.shift,
        "examples": len(subset.examples),
        "negatives": len(scored.pairs),
        "golden": golden,
        "models": numbers,
    }


def _numbers(contrast: Contrast, form: str) -> dict[str, float]:
    return {
        "mutual_information": mutual_information(contrast, form).value,
        "positive": float(contrast.positive.mean()),
        "negative": float(contrast.negative.mean()),
    }


def _average(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        name: {measure: float(np.mean([row["models"][name][measure] for row in rows])) for measure in ("remi", "remid")}
        for name in models
    }
