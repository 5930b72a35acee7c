"""R-EMI of role-playing models per subset, and R-EMID of every shifted subset against the
in-distribution one.

Li et al.: Understanding Generalization in Role-Playing Models via Information Theory, 2025 (arXiv
2512.17270).

Choices made here that the paper leaves open:
- IDTest is one distribution even where its rows have several subset tags: it is pooled, and its
  pairs run over all of it. Elsewhere a pair never crosses two subsets.
- Golden and every model are scored over the same mismatched pairs, in the same contexts with the
  same reasoning.
- Forms that average over K other contexts shrink with K. R-EMID therefore takes both of its R-EMIs
  at the smaller K of the two subsets, and so need not be the difference of the R-EMIs shown, each
  at the K of its own subset.
- An average over subsets weighs each subset the same, whatever its size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus
from coevolve.errors import DataError, RecipeError
from coevolve.information.contrast import Contrast
from coevolve.information.emi import difference, emid
from coevolve.information.estimate import FORMS, Estimate, check_form, mutual_information
from coevolve.information.log_probs import UNITS, Normalisation, check_normalisation
from coevolve.information.perplexity import perplexity
from coevolve.information.uncertainty import (
    LEVEL,
    REPLICATES,
    bootstrap,
    chance_above,
    draw_examples,
    holm,
    interval,
    p_value,
    standard_error,
)
from coevolve.remid.pairs import (
    PUBLISHED_NEGATIVES,
    Negatives,
    check_negatives,
    negative_pairs,
    negatives_value,
)
from coevolve.remid.score import (
    Estimator,
    Progress,
    Reasoning,
    Reporter,
    Responses,
    ScoredSubset,
    Subset,
    distributions,
    evaluated_examples,
    golden_by_id,
    responses_by_id,
    score_subset,
)

SCHEMA = "coevolve.remid/2"
SmallSubsets = Literal["error", "show"]
LEAST_CONTEXTS = 32
"""In how many other contexts each response must have been scored for `calibrated` to be the
default.
"""


@dataclass(frozen=True)
class Measure:
    """A form of mutual information in a normalisation."""

    form: str
    normalisation: Normalisation = "per_response"

    def __post_init__(self) -> None:
        check_form(self.form)
        check_normalisation(self.normalisation)

    @property
    def unit(self) -> str:
        """`nats per token` or `nats per response`."""
        return UNITS[self.normalisation]

    @property
    def of_each_response(self) -> bool:
        """Whether it averages over other contexts response by response, and so depends on their
        number.
        """
        return FORMS[self.form].needs == "mismatched of each response"


PUBLISHED = Measure("club", "per_token")
RECOMMENDED = Measure("calibrated", "per_response")


def evaluate_remid(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    *,
    measures: Sequence[Measure] | None = None,
    negatives: Negatives = PUBLISHED_NEGATIVES,
    seed: int = 0,
    reasoning: Reasoning | None = None,
    small_subsets: SmallSubsets = "error",
    contexts_at_once: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score golden and model responses on a corpus's test splits, and compute R-EMI and R-EMID.

    Arguments, returns and errors: of `score_corpus` and `summarise`, one after the other.
    """
    scored, left_out = score_corpus(
        estimator,
        corpus,
        responses,
        measures=measures,
        negatives=negatives,
        seed=seed,
        reasoning=reasoning,
        small_subsets=small_subsets,
        contexts_at_once=contexts_at_once,
        progress=progress,
    )
    return summarise(
        scored,
        left_out=left_out,
        measures=measures,
        negatives=negatives,
        seed=seed,
        reasoning=reasoning,
    )


def score_corpus(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    *,
    measures: Sequence[Measure] | None = None,
    negatives: Negatives = PUBLISHED_NEGATIVES,
    seed: int = 0,
    reasoning: Reasoning | None = None,
    small_subsets: SmallSubsets = "error",
    contexts_at_once: int = 32,
    progress: Progress | None = None,
) -> tuple[list[ScoredSubset], list[Subset]]:
    """The log-probabilities that every measure is made of.

    Args:
        estimator: writes the reasonings, shared by golden and all models, and scores responses.
        corpus: IDTest is required; its shifted splits are compared with it.
        responses: per model, sample_ID -> response for all test examples, or a list in
            `evaluated_examples` order.
        measures: what will be asked of the scores, so that what they lack is an error before
            anything is scored.
        negatives: mismatched pairs per subset: a number (published: 1,000, or all where there are
            fewer), "all", or `PerContext(K)`. Forms that average over contexts want all, or K in
            the hundreds.
        seed: of the choice of pairs, and of the bootstrap.
        reasoning: the protocol by which r is chosen; greedy by default.
        small_subsets: what becomes of a shifted subset of one example: an error, or it is shown
            without numbers.
        contexts_at_once: contexts given to the estimator in one call, between two reports of
            progress.
        progress: called with what is happening, the contexts done, and the contexts in all.

    Returns:
        (scored subsets, the in-distribution one first; shifted subsets that were too small to be
        scored)

    Raises:
        DataError: IDTest is absent, no model is given, a response is missing, blank or of an
            unknown sample, a subset has a single example, or a measure needs pairs that `negatives`
            does not give. Raised before anything is scored.
        RecipeError: an unusable `negatives`, `small_subsets` or `contexts_at_once`.
        ArtifactError: the estimator gave scores of another shape, or one that is not a finite
            number.
    """
    check_negatives(negatives)
    if contexts_at_once < 1:
        raise RecipeError(
            f"contexts_at_once is {contexts_at_once}; accepted are integers from 1 up."
        )
    if small_subsets not in ("error", "show"):
        raise RecipeError(f"small_subsets is {small_subsets!r}; accepted are 'error' and 'show'.")
    subsets = distributions(corpus)
    by_id = _all_responses(responses, corpus)
    left_out = [s for s in subsets[1:] if small_subsets == "show" and len(s.examples) < 2]
    subsets = [subset for subset in subsets if subset not in left_out]
    pairs = [
        negative_pairs(
            [x.sample_id for x in subset.examples],
            negatives,
            seed=seed,
            where=f"{corpus.source}: {subset.row}",
        )
        for subset in subsets
    ]
    for subset, chosen in zip(subsets, pairs, strict=True):
        _check_pairs(subset, chosen, measures or ())
    reporter = Reporter(progress, sum(len(subset.examples) for subset in subsets))
    scored = [
        score_subset(
            estimator,
            subset,
            by_id,
            chosen,
            contexts_at_once,
            reporter,
            reasoning=reasoning,
            marginal=any(FORMS[measure.form].needs == "marginal" for measure in measures or ()),
        )
        for subset, chosen in zip(subsets, pairs, strict=True)
    ]
    return scored, left_out


def summarise(
    scored: Sequence[ScoredSubset],
    *,
    left_out: Sequence[Subset] = (),
    measures: Sequence[Measure] | None = None,
    negatives: Negatives,
    seed: int,
    reasoning: Reasoning | None = None,
) -> dict[str, Any]:
    """The results of schema `coevolve.remid/2`, as JSON values:
    `coevolve.remid.results.RemidResults` has every field.

    Args:
        scored: the in-distribution subset first, then the shifted ones.
        left_out: subsets without scores, to be listed with the reason.
        measures: the first is the main one, the others stand beside it. By default `calibrated` per
            response with the published CLUB per token beside it, where each response was scored in
            32 other contexts or in all there are; else the published one alone, which is all that a
            sample of pairs allows.
        negatives, seed, reasoning: the settings by which the scores came about, recorded as they
        are; `seed` also
            draws the bootstrap.

    `coevolve remid` adds estimator, data_fingerprint and unanswered.
    """
    measures = list(measures or default_measures(scored))
    models = [name for name in scored[0].positive if name is not None]
    blocks = [_Measured(scored, models, measure, seed).block() for measure in measures]
    main, beside = blocks[0], blocks[1:]
    rows = [
        _describe(subset) | numbers for subset, numbers in zip(scored, main["subsets"], strict=True)
    ]
    for row, subset in zip(rows, scored, strict=True):
        row["golden"] |= {
            "perplexity": perplexity(subset.positive[None]),
            "tokens": int(np.sum(subset.positive[None].tokens)),
        }
    return {
        "schema": SCHEMA,
        "reasoning": (reasoning or Reasoning()).describe(),
        "negatives": negatives_value(negatives),
        "seed": seed,
        "level": LEVEL,
        "replicates": REPLICATES,
        "models": models,
        **main,
        "subsets": sorted(
            rows + [_describe_left_out(subset, models) for subset in left_out],
            key=lambda row: list(SHIFT_OF_SPLIT).index(row["split"]),
        ),
        "beside": beside,
    }


def default_measures(scored: Sequence[ScoredSubset]) -> tuple[Measure, ...]:
    """What is measured unless something else is asked for; see `summarise`."""
    enough = all(
        subset.contexts >= min(LEAST_CONTEXTS, len(subset.subset.examples) - 1) for subset in scored
    )
    return (RECOMMENDED, PUBLISHED) if enough else (PUBLISHED,)


def contributions(scored: Sequence[ScoredSubset], measure: Measure) -> Iterator[dict[str, Any]]:
    """What each example adds to R-EMI: {row, sample_ID, model, remi}; over a subset they average to
    its R-EMI.

    An example counts as context and as response, in its own pair and in the mismatched ones (its
    Hajek projection).
    """
    for subset in scored:
        golden = mutual_information(subset.contrast(None, measure.normalisation), measure.form)
        for model in subset.positive:
            if model is None:
                continue
            own = mutual_information(subset.contrast(model, measure.normalisation), measure.form)
            remi = difference(own, golden)
            of_examples = remi.influence.of_examples()
            values = remi.value + of_examples - of_examples.mean()
            for example, value in zip(subset.subset.examples, values, strict=True):
                yield {
                    "row": subset.subset.row,
                    "sample_ID": example.sample_id,
                    "model": model,
                    "remi": float(value),
                }


@dataclass(frozen=True)
class _Replicated:
    """A number, its standard error, and its deviations over the redrawn examples, (replicates,)."""

    value: float
    error: float
    deviations: np.ndarray

    @classmethod
    def combined(cls, weights: Sequence[float], parts: Sequence["_Replicated"]) -> "_Replicated":
        """The weighted sum of numbers that are replicated over the same redrawn examples."""
        deviations = np.tensordot(weights, [part.deviations for part in parts], axes=1)
        value = float(np.dot(weights, [part.value for part in parts]))
        return cls(value, float(deviations.std()), deviations)

    def numbers(self, name: str) -> dict[str, float]:
        low, high = interval(self.value, self.deviations)
        return {
            name: self.value,
            f"{name}_error": self.error,
            f"{name}_low": low,
            f"{name}_high": high,
        }

    def loss_numbers(self) -> dict[str, float]:
        return self.numbers("remid") | {"chance_of_loss": chance_above(self.value, self.deviations)}


NO_LOSS = dict.fromkeys(
    ("remid", "remid_error", "remid_low", "remid_high", "chance_of_loss", "holm_p")
)


class _Measured:
    """One measure of all subsets. Examples are redrawn once per subset, so that models and subsets
    are paired.
    """

    def __init__(
        self, scored: Sequence[ScoredSubset], models: Sequence[str], measure: Measure, seed: int
    ) -> None:
        self.scored, self.models, self.measure = scored, models, measure
        self.draws = [
            draw_examples(len(subset.subset.examples), np.random.default_rng([seed, index]))
            for index, subset in enumerate(scored)
        ]
        self._information: dict[tuple[int, str | None, int], Estimate] = {}
        self.remi = {
            name: [self._remi(index, name) for index in range(len(scored))] for name in models
        }
        self.remid = {
            name: [self._remid(index, name) for index in range(1, len(scored))] for name in models
        }

    def block(self) -> dict[str, Any]:
        """The part of the results that belongs to this measure."""
        shifts = [subset.subset.shift for subset in self.scored[1:]]
        members = {
            shift: [i for i, other in enumerate(shifts) if other == shift]
            for shift in dict.fromkeys(shifts)
        }
        return {
            "form": self.measure.form,
            "normalisation": self.measure.normalisation,
            "unit": self.measure.unit,
            "bias": FORMS[self.measure.form].bias,
            "subsets": self._rows(),
            "by_shift": {shift: self._averages(indices) for shift, indices in members.items()},
            "average": self._averages(range(len(shifts))) if shifts else {},
            "comparisons": list(self._comparisons()),
        }

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for index, subset in enumerate(self.scored):
            models = {
                name: self._numbers(index, name) | self.remi[name][index].numbers("remi") | NO_LOSS
                for name in self.models
            }
            rows.append(
                {"row": subset.subset.row, "golden": self._numbers(index, None), "models": models}
            )
        for name, losses in self.remid.items():
            adjusted = holm([p_value(loss.value, loss.deviations) for loss in losses])
            for row, loss, p in zip(rows[1:], losses, adjusted, strict=True):
                row["models"][name] |= loss.loss_numbers() | {"holm_p": p}
        return rows

    def _numbers(self, index: int, model: str | None) -> dict[str, float | bool]:
        contrast = self._contrast(index, model)
        estimate = self._estimate(index, model, self.scored[index].contexts)
        return {
            "mutual_information": estimate.value,
            "mutual_information_error": standard_error(estimate.influence),
            "positive": float(np.mean(contrast.matched / contrast.divisors)),
            "negative": float(
                np.mean(contrast.mismatched / contrast.divisors[contrast.pairs[:, 1]])
            ),
            **({"at_floor": True} if estimate.at_floor else {}),
        }

    def _averages(self, indices: Sequence[int]) -> dict[str, dict[str, float]]:
        """Means over shifted subsets, given by their places among these."""
        weights = np.full(len(indices), 1 / len(indices))
        return {
            name: {"remi": float(np.mean([self.remi[name][index + 1].value for index in indices]))}
            | _Replicated.combined(
                weights, [self.remid[name][index] for index in indices]
            ).loss_numbers()
            for name in self.models
        }

    def _comparisons(self) -> Iterator[dict[str, Any]]:
        whole = {"remi": {name: self.remi[name][0] for name in self.models}}
        if len(self.scored) > 1:
            weights = np.full(len(self.scored) - 1, 1 / (len(self.scored) - 1))
            whole["remid"] = {
                name: _Replicated.combined(weights, self.remid[name]) for name in self.models
            }
        for a, b in combinations(self.models, 2):
            for name, of_model in whole.items():
                between = _Replicated.combined([1, -1], [of_model[a], of_model[b]])
                low, high = interval(between.value, between.deviations)
                yield {
                    "models": [a, b],
                    "measure": name,
                    "value": between.value,
                    "error": between.error,
                    "low": low,
                    "high": high,
                    "chance_above_0": chance_above(between.value, between.deviations),
                }

    def _remi(self, index: int, model: str) -> _Replicated:
        remi = self._emi(index, model, self.scored[index].contexts)
        return _Replicated(
            remi.value, standard_error(remi.influence), bootstrap(remi.influence, self.draws[index])
        )

    def _remid(self, index: int, model: str) -> _Replicated:
        contexts = min(self.scored[0].contexts, self.scored[index].contexts)
        p, q = self._emi(0, model, contexts), self._emi(index, model, contexts)
        loss = emid(p, q)
        deviations = bootstrap(p.influence, self.draws[0]) - bootstrap(
            q.influence, self.draws[index]
        )
        return _Replicated(loss.value, loss.standard_error, deviations)

    def _emi(self, index: int, model: str, contexts: int) -> Estimate:
        return difference(
            self._estimate(index, model, contexts), self._estimate(index, None, contexts)
        )

    def _estimate(self, index: int, model: str | None, contexts: int) -> Estimate:
        """Mutual information; with forms that average over contexts, over so many for each
        response.
        """
        key = (index, model, contexts if self.measure.of_each_response else 0)
        if key not in self._information:
            contrast = self._contrast(index, model)
            if self.measure.of_each_response:
                contrast = contrast.first_pairs(contexts * contrast.examples)
            self._information[key] = mutual_information(contrast, self.measure.form)
        return self._information[key]

    def _contrast(self, index: int, model: str | None) -> Contrast:
        return self.scored[index].contrast(model, self.measure.normalisation)


def _check_pairs(subset: Subset, pairs: np.ndarray, measures: Sequence[Measure]) -> None:
    """DataError if a measure wants each response in as many other contexts as any other and the
    pairs do not.
    """
    used = np.bincount(pairs[:, 1], minlength=len(subset.examples))
    for measure in measures:
        if measure.of_each_response and used.min() != used.max():
            raise DataError(
                f"{subset.row}: {measure.form} needs each response in equally many other contexts; a sample of "
                f"{len(pairs)} pairs has them in {used.min()} to {used.max()}. Give negatives 'all' or so many per "
                "context."
            )


def _all_responses(
    responses: Mapping[str, Responses], corpus: Corpus
) -> dict[str | None, dict[str, str]]:
    """Golden under None, then each model's, all checked."""
    if not responses:
        raise DataError(
            "no model's responses were given; accepted is a mapping from model name to its responses."
        )
    examples = evaluated_examples(corpus)
    by_id: dict[str | None, dict[str, str]] = {None: golden_by_id(examples, corpus.source)}
    return by_id | {
        name: responses_by_id(name, given, examples) for name, given in responses.items()
    }


def _describe(scored: ScoredSubset) -> dict[str, Any]:
    return _identity(scored.subset) | {
        "negatives": len(scored.pairs),
        "contexts": scored.contexts,
        "reason": None,
    }


def _describe_left_out(subset: Subset, models: Sequence[str]) -> dict[str, Any]:
    return _identity(subset) | {
        "negatives": 0,
        "contexts": 0,
        "reason": "a single example, for which there is no mismatched pair",
        "golden": None,
        "models": dict.fromkeys(models),
    }


def _identity(subset: Subset) -> dict[str, Any]:
    return {
        "row": subset.row,
        "split": subset.split,
        "subset": subset.name,
        "shift": subset.shift,
        "examples": len(subset.examples),
    }
