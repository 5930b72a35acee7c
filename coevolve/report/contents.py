"""What a folder holds that can be reported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.errors import DataError
from coevolve.files import read_json, read_text
from coevolve.remid import blame, bound, evaluate
from coevolve.remid.table import Exact
from coevolve.training import outcome

EARLIER_REMID = "coevolve.remid/1"
"""Without intervals; otherwise the same."""
ACCEPTED = {
    "results.json": (outcome.SCHEMA, evaluate.SCHEMA, EARLIER_REMID),
    "bound.json": (bound.SCHEMA,),
    "blame.json": (blame.SCHEMA,),
}


@dataclass(frozen=True)
class Contents:
    """What was found; a part that the folder lacks is None or empty.

    Attributes:
        run: results of `coevolve train` (`coevolve.training.outcome.Outcome.results`).
        remid: results of `coevolve.remid.evaluate.summarise`, a run's own or those of `coevolve remid`.
        exact: true values in the unit of `remid`, where they are known.
        metrics: a run's log, in the order of its steps.
        bound, blame: results of `coevolve bound`.
    """

    run: Mapping[str, Any] | None
    remid: Mapping[str, Any] | None
    exact: Exact
    metrics: Sequence[Mapping[str, Any]]
    bound: Mapping[str, Any] | None
    blame: Mapping[str, Any] | None


def read_contents(folder: str | Path) -> Contents:
    """Everything in the folder that the report shows.

    Raises:
        DataError: nothing to report, a file that is not JSON, or one of a schema that is not read here.
    """
    folder = Path(folder)
    found = {name: _checked(folder / name, accepted) for name, accepted in ACCEPTED.items()}
    log = folder / "metrics.jsonl"
    metrics = _whole_lines(log) if log.is_file() else []
    if not any(found.values()) and not metrics:
        raise DataError(
            f"{folder}: found none of {', '.join(ACCEPTED)} and metrics.jsonl. Accepted is the --output-dir of "
            "`coevolve train`, or the --out directory of `coevolve remid` or `coevolve bound`."
        )
    results = found["results.json"]
    run = results if results and results["schema"] == outcome.SCHEMA else None
    remid = run["remid"] if run else results
    exact = {(row["model"], row["row"]): row["value"] for row in (run["exact_remid"] if run else None) or ()}
    return Contents(run, remid, exact, metrics, found["bound.json"], found["blame.json"])


def _whole_lines(log: Path) -> list[dict[str, Any]]:
    """The log's lines but for one that a running or killed run has written half of."""
    *whole, _ = read_text(log).split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{log}:{number}: not JSON ({error.msg}). Delete that line.") from None
    return rows


def _checked(path: Path, accepted: Sequence[str]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    results = read_json(path)
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema not in accepted:
        raise DataError(
            f"{path}: schema is {schema!r}; accepted is {' or '.join(accepted)}. Write the file with this version of "
            "coevolve."
        )
    return results
