"""From scores to what a comparison says: rankings, the worst shift, ways of training, readers,
truth.

Numbers of models and their differences are `coevolve.information.uncertainty.Sure`, so that
whatever is averaged or subtracted stays paired over examples.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from coevolve.compare.results import (
    Compared,
    Figure,
    Gain,
    MeasureName,
    Place,
    Ranking,
    ReadBy,
    Remedy,
    Truth,
)
from coevolve.data.corpus import Shift
from coevolve.information.agreement import agreements
from coevolve.information.log_probs import UNITS
from coevolve.information.uncertainty import Sure, holm_by_name
from coevolve.remid.bound_results import BoundResults
from coevolve.remid.evaluate import MeasuredCorpus
from coevolve.remid.judge import Correlation
from coevolve.remid.measures import Measure
from coevolve.remid.readers import ESTIMATOR, ReaderKind, Reading
from coevolve.remid.results import Exact
from coevolve.remid.score import ScoredCorpus
from coevolve.remid.subsets import Subset
from coevolve.remid.table import AVERAGE, SHIFTED
from coevolve.worlds.audit import LEAST_LOSS
from coevolve.worlds.truth import RESPONSE_TOKENS

LEAST_RANKED = 3
"""Models, or pairs, of which there is a correlation."""
Bounds = Mapping[tuple[str, str], float]
"""(model, row of `coevolve remid`) -> upper bound of its R-EMID, nats per response."""


def row_name(subset: Subset) -> str:
    """As a leaderboard has it: `in distribution`, `user shift, German`."""
    if subset.shift is None:
        return "in distribution"
    words = subset.name.replace("_", " ")
    if words == subset.shift:  # the synthetic world has one subset of each
        return SHIFTED[subset.shift]
    shown = words.capitalize() if subset.shift == "user" and words.islower() else words
    return f"{SHIFTED[subset.shift]}, {shown}"


def compare_models(
    scored: ScoredCorpus,
    measure: Measure,
    kind: ReaderKind,
    models: Sequence[Compared],
    *,
    exact: Exact | None = None,
    within: Exact | None = None,
    bound: BoundResults | None = None,
) -> dict[str, Any]:
    """The fields of `CompareResults` that follow from scores.

    Args:
        kind: by which reader responses are read.
        exact, within: true values in the measure's unit, as far as they are known, and how far
            they may be off.
    """
    measured = MeasuredCorpus(scored, measure, Reading(scored, kind))
    bounds = {
        (name, subset.row): of_model.published.total
        for subset in (bound.subsets if bound else ())
        for name, of_model in subset.models.items()
    }
    rows = list(_rows(measured, {"exact": exact or {}, "within": within or {}}, bounds))
    found: dict[str, Any] = {"rows": rows, "readers": _readers(measured)}
    if len(scored.subsets) > 1:
        found["shifts"] = _shifts(measured)
    found["remedies"] = _remedies(measured, models)
    if exact:
        found["truth"] = against_truth(rows, measure)
    return found


def ranked(numbers: Mapping[str, Sure], *, higher: bool) -> list[Place]:
    """Those with a number in order, `higher` first or lower, each against the first."""
    order = sorted(numbers, key=lambda name: numbers[name].value, reverse=higher)
    pairs = {
        pair: Sure.combined([1, -1], [numbers[name] for name in pair])
        for pair in combinations(order, 2)
    }
    adjusted = holm_by_name({pair: between.p for pair, between in pairs.items() if between.tells})
    first, *others = order
    places = [Place(name=first, figure=Figure.of(numbers[first]))]
    for name in others:
        between = Sure.combined([-1], [pairs[first, name]])
        figure, behind = Figure.of(numbers[name]), Figure.of(between)
        places.append(Place(name=name, figure=figure, behind=behind, p=adjusted.get((first, name))))
    return places


def against_truth(rows: Sequence[Ranking], measure: Measure) -> Truth:
    """How the estimates of rows agree with the exact values in them.

    A sign counts where the exact R-EMID is further from 0 than `LEAST_LOSS` nats per response and
    than two standard errors of its estimate.
    """
    least = LEAST_LOSS / (RESPONSE_TOKENS if measure.unit == UNITS["per_token"] else 1)
    found: dict[str, list[tuple[float, float]]] = {}
    told: list[bool] = []
    for row in rows:
        known = [(x.figure, x.exact) for x in row.places if x.exact is not None]
        pairs = [(figure.value, true) for figure, true in known]
        if row.row == AVERAGE:
            found["remid"] = pairs
        elif row.measure == "remi":
            found["remi"] = pairs
        elif row.subset is not None:
            found.setdefault("remid_pairs", []).extend(pairs)
            told += [
                (figure.value > 0) == (true > 0)
                for figure, true in known
                if abs(true) > max(least, 2 * (figure.error or 0.0))
            ]
    count, pairs = len(found["remi"]), found.get("remid_pairs", [])
    return Truth(
        models=count,
        pairs=len(pairs),
        told=len(told),
        right=sum(told),
        **{name: _agreement(found.get(name, [])) for name in ("remi", "remid", "remid_pairs")},
    )


def _agreement(pairs: Sequence[tuple[float, float]]) -> dict[str, Correlation]:
    if len(pairs) < LEAST_RANKED:
        return {}
    estimated, true = zip(*pairs, strict=True)
    return Correlation.of(agreements(estimated, true))


def _rows(measured: MeasuredCorpus, known: Mapping[str, Exact], bounds: Bounds) -> list[Ranking]:
    rows = []

    def add(
        name: str,
        subset: str | None,
        measure: MeasureName,
        numbers: Mapping[str, Sure],
        of: Sequence[int],
    ) -> None:
        there = [measured.subsets[index].subset for index in of]
        places = []
        for place in ranked(numbers, higher=measure == "remi"):
            keys = [(place.name, one.row) for one in there]
            more: dict[str, float] = {}
            for field, of_rows in known.items():
                if all(key in of_rows for key in keys):
                    more[field] = sum(of_rows[key] for key in keys) / len(keys)
            if subset is not None and (place.name, subset) in bounds:
                more["bound"] = bounds[place.name, subset]
            places.append(place.model_copy(update=more))
        shifts = {one.shift for one in there}
        rows.append(
            Ranking(
                row=name,
                subset=subset,
                shift=shifts.pop() if len(shifts) == 1 else None,
                measure=measure,
                examples=sum(len(one.examples) for one in there),
                places=places,
            )
        )

    for index, one in enumerate(measured.subsets):
        numbers = {
            name: measured.remid[name][index - 1] if index else measured.remi[name][0]
            for name in measured.models
        }
        add(row_name(one.subset), one.subset.row, "remid" if index else "remi", numbers, [index])
    for shift, indices in _by_shift(measured).items():
        if len(indices) > 1:
            add(f"{SHIFTED[shift]}, mean", None, "remid", _losses(measured, indices), indices)
    every = range(1, len(measured.subsets))
    if every:
        add(AVERAGE, None, "remid", _losses(measured, every), every)
    return rows


def _by_shift(measured: MeasuredCorpus) -> dict[Shift, list[int]]:
    """Places among the subsets of each shift."""
    indices = defaultdict(list)
    for index, one in enumerate(measured.subsets):
        if one.subset.shift is not None:
            indices[one.subset.shift].append(index)
    return indices


def _losses(measured: MeasuredCorpus, indices: Sequence[int]) -> dict[str, Sure]:
    """Model -> mean R-EMID over subsets."""
    return {
        name: Sure.mean([of_model[index - 1] for index in indices])
        for name, of_model in measured.remid.items()
    }


def _shifts(measured: MeasuredCorpus) -> Ranking:
    """Means over all models, the worst shift first."""
    numbers = {
        SHIFTED[shift]: Sure.mean(list(_losses(measured, indices).values()))
        for shift, indices in _by_shift(measured).items()
    }
    examples = sum(len(one.subset.examples) for one in measured.subsets[1:])
    about: dict[str, Any] = {"row": "mean over models", "shift": None, "measure": "remid"}
    return Ranking(**about, examples=examples, places=ranked(numbers, higher=True))


def _remedies(measured: MeasuredCorpus, models: Sequence[Compared]) -> list[Remedy]:
    """Ways of training, that of the lowest mean R-EMID first."""
    of_way: dict[str, list[Compared]] = {}
    for model in models:
        if model.remedy is not None:
            of_way.setdefault(model.remedy, []).append(model)
    remi = {name: numbers[0] for name, numbers in measured.remi.items()}
    every = range(1, len(measured.subsets))
    remid = _losses(measured, every) if every else {}
    gains = {
        measure: _gains(of_way, numbers)
        for measure, numbers in (("remi", remi), ("remid", remid))
        if numbers
    }
    found = []
    for way, those in of_way.items():
        names = [model.name for model in those]
        parts: dict[str, Any] = {
            measure: Figure.of(Sure.mean([numbers[name] for name in names]))
            for measure, numbers in (("remi", remi), ("remid", remid))
            if numbers
        }
        parts |= {f"{measure}_gain": of_all.get(way) for measure, of_all in gains.items()}
        found.append(Remedy(name=way, models=names, **parts))
    return sorted(found, key=lambda x: x.remid.value if x.remid else -x.remi.value)


def _gains(
    of_way: Mapping[str, Sequence[Compared]], numbers: Mapping[str, Sure]
) -> dict[str, Gain]:
    means = {}
    for way, those in of_way.items():
        gained = [
            Sure.combined([1, -1], [numbers[model.name], numbers[model.start]])
            for model in those
            if model.start is not None
        ]
        if gained:
            means[way] = Sure.mean(gained)
    adjusted = holm_by_name({way: mean.p for way, mean in means.items() if mean.tells})
    return {way: Gain(figure=Figure.of(x), p=adjusted.get(way)) for way, x in means.items()}


def _readers(chosen: MeasuredCorpus) -> list[ReadBy]:
    """Each model as the estimator, its own weights and what was fitted to it read it, and by the
    chosen readers.
    """
    scored, kind = chosen.read.scored, chosen.read.kind

    def read_by(reader: ReaderKind) -> list[str]:
        of = [subset.readings for subset in scored.subsets]
        return [name for name in scored.models if all(reader in x.get(name, {}) for x in of)]

    others: dict[ReaderKind, list[str]] = {name: read_by(name) for name in ("own", "fitted")}
    if not any(others.values()):
        return []
    found = []
    by: dict[ReaderKind, list[str]] = {ESTIMATOR: list(scored.models), **others}
    if kind == "best":
        by[kind] = list(scored.models)
    for reader, names in by.items():
        measured = chosen
        if names and reader != kind:
            read = replace(scored, texts={name: scored.texts[name] for name in (None, *names)})
            measured = MeasuredCorpus(read, chosen.measure, Reading(read, reader))
        for name in names:
            losses = measured.remid[name]
            mean = Figure.of(Sure.mean(losses)) if losses else None
            remi = Figure.of(measured.remi[name][0])
            found.append(ReadBy(model=name, reader=reader, remi=remi, remid=mean))
    return sorted(found, key=lambda one: scored.models.index(one.model))
