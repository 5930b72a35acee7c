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
from itertools import combinations
from typing import Any, Literal

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus
from coevolve.information.emi import difference
from coevolve.information.estimate import FORMS, Estimate
from coevolve.information.perplexity import perplexity
from coevolve.information.uncertainty import LEVEL, Sure, holm_by_name
from coevolve.remid.measures import Measure
from coevolve.remid.pairs import negatives_value
from coevolve.remid.readers import ESTIMATOR, ReaderKind, Reading
from coevolve.remid.results import (
    Beside,
    ChosenReasoning,
    Comparison,
    Golden,
    Losses,
    OfModel,
    RemidResults,
    ShareLine,
    SubsetNumbers,
    SubsetResults,
)
from coevolve.remid.score import (
    Estimator,
    OnStep,
    Reader,
    ScoredCorpus,
    Scoring,
    default_measures,
    score_corpus,
)
from coevolve.remid.subsets import Responses

SCHEMA: Literal["coevolve.remid/3"] = "coevolve.remid/3"


def evaluate_remid(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    scoring: Scoring | None = None,
    *,
    measures: Sequence[Measure] = (),
    readers: Sequence[Reader] = (),
    reader: ReaderKind = "estimator",
    progress: OnStep | None = None,
) -> RemidResults:
    """Score golden and model responses on a corpus's test splits, and compute R-EMI and R-EMID.

    Arguments and errors as for `coevolve.remid.score.score_corpus`, and `summarise`.
    """
    scored = score_corpus(
        estimator, corpus, responses, scoring, measures=measures, readers=readers, progress=progress
    )
    return summarise(scored, measures, reader)


def summarise(
    scored: ScoredCorpus, measures: Sequence[Measure] = (), reader: ReaderKind = "estimator"
) -> RemidResults:
    """R-EMI and R-EMID with their errors; `coevolve remid` adds what was scored by what.

    Args:
        measures: the first is the main one, the others stand beside it; by default
            `coevolve.remid.score.default_measures`.
        reader: by which reader of `scored` responses are read, as `coevolve.remid.readers` has it.
    """
    read = Reading(scored, reader)
    main, *beside = (MeasuredCorpus(scored, m, read) for m in measures or default_measures(scored))
    rows = [
        SubsetResults(
            **subset.subset.identity,
            negatives=len(subset.pairs),
            contexts=subset.contexts,
            reason=None,
            golden=Golden(
                **main.numbers(index, None),
                perplexity=perplexity(subset.positive[None]),
                tokens=int(np.sum(subset.positive[None].tokens)),
            ),
            models=main.of_models(index),
        )
        for index, subset in enumerate(scored.subsets)
    ]
    why = "a single example, for which there is no mismatched pair"
    none: dict[str, Any] = {"negatives": 0, "contexts": 0, "reason": why, "golden": None}
    without = dict.fromkeys(scored.models)
    rows += [SubsetResults(**x.identity, **none, models=without) for x in scored.left_out]
    splits = list(SHIFT_OF_SPLIT)
    return RemidResults(
        schema=SCHEMA,
        reasoning=ChosenReasoning.of(scored.scoring.reasoning),
        negatives=negatives_value(scored.scoring.negatives),
        seed=scored.scoring.seed,
        level=LEVEL,
        models=scored.models,
        **main.summary(),
        subsets=sorted(rows, key=lambda row: splits.index(row.split)),
        beside=[Beside(**one.summary(), subsets=one.rows()) for one in beside],
    )


def shares_of_examples(
    scored: ScoredCorpus, measure: Measure, reader: ReaderKind = "estimator"
) -> Iterator[ShareLine]:
    """What each example adds to R-EMI by all of its pairs (its Hajek projection)."""
    read = Reading(scored, reader)
    for index, subset in enumerate(scored.subsets):
        row = subset.subset.row
        for model in scored.models:
            own, golden = (read.estimate(index, name, measure) for name in (model, None))
            remi = difference(own, golden)
            of_examples = remi.influence.of_examples()[: len(subset.subset.examples)]
            shares = remi.value + of_examples - of_examples.mean()
            for x, share in zip(subset.subset.examples, shares, strict=True):
                yield ShareLine(row=row, sample_ID=x.sample_id, model=model, remi=float(share))


NO_LOSS: Mapping[str, None] = dict.fromkeys(
    ("remid", "remid_error", "remid_low", "remid_high", "chance_of_loss", "holm_p")
)


def _numbers(name: str, number: Sure) -> dict[str, float | None]:
    """A number, its standard error and its interval, as far as examples are enough for these."""
    low, high = number.interval() if number.tells else (None, None)
    error = number.error if number.tells else None
    return {name: number.value, f"{name}_error": error, f"{name}_low": low, f"{name}_high": high}


class MeasuredCorpus:
    """One measure of all subsets and models, which are paired over their examples."""

    def __init__(self, scored: ScoredCorpus, measure: Measure, read: Reading) -> None:
        self.subsets, self.models, self.measure = scored.subsets, scored.models, measure
        self.form, self.read = FORMS[measure.form], read
        self._information: dict[tuple[int, str | None, int], Estimate] = {}
        every = range(len(self.subsets))
        self.remi = {name: [self._remi(i, name) for i in every] for name in self.models}
        self.remid = {name: [self._remid(i, name) for i in every[1:]] for name in self.models}
        self._holm = {name: self._adjusted(losses) for name, losses in self.remid.items()}

    def summary(self) -> dict[str, Any]:
        """The fields of `coevolve.remid.results.Measured`."""
        shifts = [subset.subset.shift for subset in self.subsets[1:]]
        return {
            "form": self.measure.form,
            "normalisation": self.measure.normalisation,
            "unit": self.measure.unit,
            "bias": self.form.bias,
            "by_shift": {
                shift: self._averages([i for i, other in enumerate(shifts) if other == shift])
                for shift in dict.fromkeys(shifts)
            },
            "average": self._averages(range(len(shifts))) if shifts else {},
            "comparisons": list(self._comparisons()),
        }

    def rows(self) -> list[SubsetNumbers]:
        """The subsets' numbers."""
        rows = []
        for index, subset in enumerate(self.subsets):
            golden, models = Golden(**self.numbers(index, None)), self.of_models(index)
            rows.append(SubsetNumbers(row=subset.subset.row, golden=golden, models=models))
        return rows

    def of_models(self, index: int) -> dict[str, OfModel | None]:
        models: dict[str, OfModel | None] = {}
        for name in self.models:
            loss: dict[str, Any] = dict(NO_LOSS)
            if index:
                loss |= self._loss_numbers(self.remid[name][index - 1])
                loss["holm_p"] = self._holm[name].get(index - 1)
            numbers = self.numbers(index, name) | _numbers("remi", self.remi[name][index])
            if self.read.kind != ESTIMATOR:
                plain, golden = (self._plain(index, one) for one in (name, None))
                numbers["remi_by_estimator"] = plain - golden
                numbers["beyond_golden"] = self.remi[name][index].value - (plain - golden)
            models[name] = OfModel(**numbers, **loss)
        return models

    def numbers(self, index: int, model: str | None) -> dict[str, Any]:
        """The fields of `coevolve.remid.results.Information`."""
        contrast = self.subsets[index].contrast(model, self.measure.normalisation)
        estimate = self._estimate(index, model, self.subsets[index].contexts)
        divisors, sure = contrast.divisors, self._sure(estimate, index)
        return {
            "mutual_information": estimate.value,
            "mutual_information_error": sure.error if sure.tells else None,
            "positive": float(np.mean(contrast.matched / divisors)),
            "negative": float(np.mean(contrast.mismatched / divisors[contrast.pairs[:, 1]])),
            **({"at_floor": True} if estimate.at_floor else {}),
            **({"readers": readers} if (readers := self.read.names(index, model)) else {}),
        }

    def _averages(self, indices: Sequence[int]) -> dict[str, Losses]:
        """Means over shifted subsets, given by their places among these."""
        return {
            name: Losses(
                remi=float(np.mean([self.remi[name][index + 1].value for index in indices])),
                **self._loss_numbers(Sure.mean([self.remid[name][index] for index in indices])),
            )
            for name in self.models
        }

    def _loss_numbers(self, loss: Sure) -> dict[str, float | None]:
        chance = loss.chance_above() if loss.tells and not self.form.off else None
        return {**_numbers("remid", loss), "chance_of_loss": chance}

    def _adjusted(self, losses: Sequence[Sure]) -> dict[int, float]:
        """Place among the shifted subsets -> Holm's p of no loss, where it can be said."""
        told = [] if self.form.off else [i for i, loss in enumerate(losses) if loss.tells]
        return holm_by_name({index: 1 - losses[index].chance_above(0.0) for index in told})

    def _comparisons(self) -> Iterator[Comparison]:
        whole: dict[Literal["remi", "remid"], dict[str, Sure]] = {
            "remi": {name: self.remi[name][0] for name in self.models}
        }
        if len(self.subsets) > 1:
            whole["remid"] = {name: Sure.mean(self.remid[name]) for name in self.models}
        for a, b in combinations(self.models, 2):
            for measure, of_model in whole.items():
                between = Sure.combined([1, -1], [of_model[a], of_model[b]])
                if between.tells:
                    low, high = between.interval()
                    value, error, above = between.value, between.error, between.chance_above()
                    numbers = {"value": value, "error": error, "low": low, "high": high}
                    yield Comparison(
                        models=[a, b], measure=measure, chance_above_0=above, **numbers
                    )

    def _remi(self, index: int, model: str) -> Sure:
        return self._sure(self._emi(index, model, self.subsets[index].contexts), index)

    def _remid(self, index: int, model: str) -> Sure:
        contexts = min(self.subsets[0].contexts, self.subsets[index].contexts)
        sides = [self._sure(self._emi(i, model, contexts), i) for i in (0, index)]
        return Sure.combined([1, -1], sides)

    @staticmethod
    def _sure(estimate: Estimate, index: int) -> Sure:
        return Sure.of(estimate.value, estimate.influence, estimate.reach, index)

    def _emi(self, index: int, model: str, contexts: int) -> Estimate:
        own, golden = (self._estimate(index, name, contexts) for name in (model, None))
        return difference(own, golden)

    def _estimate(self, index: int, model: str | None, contexts: int) -> Estimate:
        """Mutual information; forms that average over contexts take so many per response."""
        limit = self.measure.limit(contexts)
        key = (index, model, limit or 0)
        if key not in self._information:
            self._information[key] = self.read.estimate(index, model, self.measure, limit)
        return self._information[key]

    def _plain(self, index: int, model: str | None) -> float:
        """Mutual information by the estimator alone."""
        return self.read.by(ESTIMATOR, index, model, self.measure).value
