"""By which reader a model's responses are read: the estimator, the model's own weights, one that
was fitted to its responses, or the best of those there are.

Any conditional gives a lower bound of what responses say about their contexts
(`coevolve.information.density_ratio`). The estimator has learned golden responses, and cannot read
what is said in another way; what another reader finds beyond it is information about the context
that golden responses do not have.
"""

from typing import Literal, get_args

from coevolve.errors import RecipeError
from coevolve.information.estimate import Estimate, mutual_information
from coevolve.information.readers import Chosen, best_readers, halves, read_by
from coevolve.remid.measures import RECOMMENDED, Measure
from coevolve.remid.score import ScoredCorpus

ReaderKind = Literal["estimator", "own", "fitted", "best"]
ESTIMATOR: Literal["estimator"] = "estimator"
LEAST_FITTED = 32
"""Responses that a reader is fitted to, those among them by which it is told when to stop."""


class Reading:
    """Estimates of scored responses, each by its reader. With `own` golden responses, which
    nobody's weights wrote, are the estimator's; with `fitted` they have a reader of their own, too.
    With `best` golden and every model have the choice of all that read them, subset by subset, by
    the calibrated bound.
    """

    def __init__(self, scored: ScoredCorpus, kind: ReaderKind = ESTIMATOR) -> None:
        if kind not in get_args(ReaderKind):
            accepted = ", ".join(get_args(ReaderKind))
            raise RecipeError(f"reader is {kind!r}; accepted are {accepted}.")
        self.scored, self.kind = scored, kind
        for model in scored.models:
            for subset in scored.subsets:
                asked = kind not in (ESTIMATOR, "best")
                if asked and kind not in subset.readings.get(model, {}):
                    raise RecipeError(
                        f"reader {kind}: {model!r} has none in {subset.subset.row}. Give it one, "
                        "or choose the reader best, which takes what each model has."
                    )
        self._chosen: dict[tuple[int, str | None], Chosen] = {}
        seed = scored.scoring.seed
        self.halves = [halves(subset.subset.ids, seed) for subset in scored.subsets]

    def estimate(
        self, index: int, model: str | None, measure: Measure, contexts: int | None = None
    ) -> Estimate:
        """Mutual information of a model's responses (None: golden) in a subset, of each response in
        the first `contexts` other contexts, by its reader.
        """
        chosen = self.chosen(index, model)
        found = {name: self.by(name, index, model, measure, contexts) for name in set(chosen)}
        return read_by(found, chosen, self.halves[index])

    def by(
        self,
        reader: str,
        index: int,
        model: str | None,
        measure: Measure,
        contexts: int | None = None,
    ) -> Estimate:
        """The same by one reader."""
        name = None if reader == ESTIMATOR else reader
        subset = self.scored.subsets[index]
        contrast = subset.contrast(model, measure.normalisation, contexts, name)
        return mutual_information(contrast, measure.form)

    def chosen(self, index: int, model: str | None) -> Chosen:
        """The reader of each half."""
        there = self.scored.subsets[index].readings.get(model, {})
        if self.kind != "best":
            reader = self.kind if self.kind in there else ESTIMATOR
            return reader, reader
        if (index, model) not in self._chosen:
            names = [ESTIMATOR, *there]
            bounds = {name: self.by(name, index, model, RECOMMENDED) for name in names}
            self._chosen[index, model] = best_readers(bounds, self.halves[index])
        return self._chosen[index, model]

    def names(self, index: int, model: str | None) -> list[str] | None:
        """The readers, each once; None where there is no choice but the estimator."""
        return None if self.kind == ESTIMATOR else list(dict.fromkeys(self.chosen(index, model)))
