"""What a folder holds that can be reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coevolve.compare.results import CompareResults
from coevolve.documents import read_document
from coevolve.errors import DataError
from coevolve.outputs import has_json
from coevolve.remid.bound_results import BlameResults, BoundResults
from coevolve.remid.results import Exact, RemidResults
from coevolve.training.documents import Line, RunFile, RunResults
from coevolve.training.record.lines import METRICS, read_lines

FILES = ("results.json", "bound.json", "blame.json")
RUN = "run.json"
REMEDY = "Write the file with this version of coevolve."


@dataclass(frozen=True)
class Contents:
    """What was found; a part that the folder lacks is None or empty. `exact` are true values in the
    unit of `remid`; `dates` are the days, UTC, on which the files were written.
    """

    compare: CompareResults | None = None
    run: RunResults | None = None
    remid: RemidResults | None = None
    exact: Exact = field(default_factory=dict)
    metrics: Sequence[dict[str, Any]] = ()
    bound: BoundResults | None = None
    blame: BlameResults | None = None
    run_file: RunFile | None = None
    dates: Mapping[str, str] = field(default_factory=dict)


def read_contents(folder: str | Path) -> Contents:
    """Everything in the folder that the report shows."""
    folder = Path(folder)
    compare = None
    if has_json(folder / "results.json", "schema", "coevolve.compare/"):
        compare = read_document(folder / "results.json", CompareResults, remedy=REMEDY)
        folder = folder / "measured"
    results, bound, blame = (folder / name if (folder / name).is_file() else None for name in FILES)
    metrics = [values for _, values in read_lines(folder / METRICS, Line)]
    if not (results or bound or blame or metrics):
        raise DataError(
            f"{folder}: found none of {', '.join(FILES)} and {METRICS}. Accepted is the "
            "--output-dir of `coevolve train`, or the --out directory of `coevolve remid`, "
            "`coevolve bound` or `coevolve compare`."
        )
    there = {path.name: path for path in (results, bound, blame) if path}
    days = {x: datetime.fromtimestamp(path.stat().st_mtime, UTC) for x, path in there.items()}
    file = folder / RUN
    read = results and read_document(results, RunResults, RemidResults, remedy=REMEDY)
    run = read if isinstance(read, RunResults) else None
    remid = read if isinstance(read, RemidResults) else None
    return Contents(
        compare=compare,
        run=run,
        remid=remid or (run.remid if run else None),
        exact=compare.exact()
        if compare
        else {(one.model, one.row): one.value for one in (run and run.exact_remid) or ()},
        metrics=metrics,
        bound=read_document(bound, BoundResults, remedy=REMEDY) if bound else None,
        blame=read_document(blame, BlameResults, remedy=REMEDY) if blame else None,
        run_file=read_document(file, RunFile, remedy=REMEDY) if file.is_file() else None,
        dates={name: f"{day:%Y-%m-%d}" for name, day in days.items()},
    )
