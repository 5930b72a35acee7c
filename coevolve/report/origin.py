"""What the numbers of a page are of, and whether its parts belong together."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from coevolve import __version__
from coevolve.information.log_probs import UNITS
from coevolve.remid.bound_results import BlameResults, BoundResults
from coevolve.remid.results import Evaluation, RemidResults, form_name
from coevolve.report.contents import Contents

SHORT = 12
"""Characters of a fingerprint: enough to tell two apart."""
ROUNDING = 5e-4


def measure_name(results: RemidResults | BoundResults | BlameResults) -> str:
    """Form and unit of a file's R-EMID: `calibrated, nats per response`."""
    return f"{form_name(results.form)}, {results.unit}"


def facts(contents: Contents) -> dict[str, str]:
    """All that is known of where the numbers come from, by what it is."""
    run, file = contents.run, contents.run_file
    parts = _parts(contents)
    recipe: Mapping[str, JsonValue] = {}
    bases, packages = [], None
    if file is not None:
        recipe, packages = file.recipe, (file.model_extra or {}).get("packages")
        origins = [file.base] if file.base else [x.base for x in file.origins.values()]
        bases = [base.source for base in origins]
    version = packages.get("coevolve") if isinstance(packages, dict) else None
    data = [*(x.data_fingerprint for x in parts), file and file.data_fingerprint]
    seeds = [("of the run", run and run.seed), ("of the run", recipe.get("seed"))]
    seeds += [("of the evaluation", one.seed) for one in parts]
    days: dict[str, list[str]] = {}
    for name, day in contents.dates.items():
        days.setdefault(day, []).append(name)
    listed = {
        "recipe": _once([run and run.recipe, recipe.get("name")]),
        "role-playing models": _once(name for one in parts for name in one.models),
        "estimator": _once(_estimator(one) for one in parts),
        "base model": _once(bases),
        "reasoning": _once(x.reasoning.form() for x in _measured(contents) if x.reasoning),
        "data": _once(text and text[:SHORT] for text in data),
        "seed": _once(f"{seed} {of}" for of, seed in seeds if seed is not None),
        "measured": _once(f"{day} ({', '.join(names)})" for day, names in days.items()),
        "version": _once(
            [version and f"coevolve {version} (run)", f"coevolve {__version__} (page)"]
        ),
    }
    return {name: text for name, text in listed.items() if text}


def odds(contents: Contents) -> list[str]:
    """What a reader must know before comparing one part's numbers with another's."""
    said = []
    for what, values in {
        "estimators": [one.estimator_identity for one in _parts(contents)],
        "data": [one.data_fingerprint for one in _parts(contents)],
    }.items():
        if len({value for value in values if value}) > 1:
            said.append(
                f"The parts of this page were measured with different {what}. Do not compare them."
            )
    remid = contents.remid
    if remid is None:
        return said
    for part, title in ((contents.bound, "upper bound"), (contents.blame, "examples")):
        if part is None:
            continue
        here, there = (part.form, part.unit), (remid.form, remid.unit)
        if here != there:
            said.append(
                f"R-EMID beside the {title} is by {measure_name(part)}; in the cards and the first "
                f"table it is by {measure_name(remid)}. The two do not compare."
            )
        elif apart := _apart(part, remid):
            said.append(
                f"R-EMID beside the {title} is over other pairs or examples than in the cards and "
                f"the first table: up to {apart:.3f} {remid.unit} apart."
            )
    return said


def same_measure(contents: Contents) -> bool:
    """Whether the examples' losses are the numbers of the first table."""
    blame, remid = contents.blame, contents.remid
    if blame is None or remid is None or UNITS[remid.normalisation] != blame.unit:
        return False
    return blame.form == remid.form and not _apart(blame, remid)


def _apart(part: BoundResults | BlameResults, remid: RemidResults) -> float:
    """The largest difference of an R-EMID from that of the first table, 0 where none shows."""
    table = {one.row: one.models for one in remid.shifted()}
    apart = [0.0]
    for subset in part.subsets:
        for name, of_model in subset.models.items():
            numbers = table.get(subset.row, {}).get(name)
            value = of_model.loss if not hasattr(of_model, "remid") else of_model.remid
            if numbers and numbers.remid is not None:
                apart.append(abs(numbers.remid - value))
    return max(apart) if max(apart) > ROUNDING else 0.0


def _measured(contents: Contents) -> list[RemidResults | BoundResults | BlameResults]:
    return [x for x in (contents.remid, contents.bound, contents.blame) if x is not None]


def _parts(contents: Contents) -> Sequence[Evaluation]:
    return _measured(contents)


def _estimator(one: Evaluation) -> str | None:
    identity = one.estimator_identity
    return one.estimator and one.estimator + (f" ({identity[:SHORT]})" if identity else "")


def _once(values: Iterable[object]) -> str:
    """What there is, each once."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))
