"""What a folder holds that can be reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.documents import read_document
from coevolve.errors import DataError
from coevolve.remid.results import BlameResults, BoundResults, RemidResults
from coevolve.remid.table import Exact
from coevolve.training.documents import Line, RunResults
from coevolve.training.record.lines import METRICS, read_lines

READ = {
    "results.json": (RunResults, RemidResults),
    "bound.json": (BoundResults,),
    "blame.json": (BlameResults,),
}
REMEDY = "Write the file with this version of coevolve."


@dataclass(frozen=True)
class Contents:
    """What was found; a part that the folder lacks is None or empty.

    Attributes:
        run: `coevolve.training.documents.RunResults`.
        remid: `coevolve.remid.results.RemidResults`, a run's own or those of `coevolve remid`.
        exact: true values in the unit of `remid`, where they are known.
        metrics: a run's log, in the order of its steps.
        bound, blame: `BoundResults` and `BlameResults` of the same file.
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
        DataError: nothing to report, a file that is not JSON, of a schema that is not read here, or
            with a field that is wrong.
    """
    folder = Path(folder)
    found = {
        name: read_document(folder / name, *models, remedy=REMEDY).values()
        for name, models in READ.items()
        if (folder / name).is_file()
    }
    metrics = [values for _, values in read_lines(folder / METRICS, Line)]
    if not found and not metrics:
        raise DataError(
            f"{folder}: found none of {', '.join(READ)} and {METRICS}. Accepted is the --output-dir of "
            "`coevolve train`, or the --out directory of `coevolve remid` or `coevolve bound`."
        )
    results = found.get("results.json")
    run = results if results and "perplexity" in results else None
    remid = run["remid"] if run else results
    exact = {
        (row["model"], row["row"]): row["value"]
        for row in (run["exact_remid"] if run else None) or ()
    }
    return Contents(run, remid, exact, metrics, found.get("bound.json"), found.get("blame.json"))
