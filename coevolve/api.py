"""The commands as Python functions, which return what they wrote as typed results.

Arguments are the commands' options under the same names with `_` for `-`, and go through the same
checks; what is printed stays on stderr. Where `out` is left out, nothing is kept.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coevolve.cli.calls import call
from coevolve.documents import check_document, read_document
from coevolve.files import read_jsonl
from coevolve.remid.results import RemidResults, ScoreLine
from coevolve.training.documents import RunResults

AGAIN = "Measure again with this version."


def train(
    recipe: str | Path, *overrides: str, output_dir: str | Path, **options: Any
) -> RunResults | None:
    """`coevolve train`: the run's results, or None where it was asked to stop and is saved."""
    words = {"recipe": recipe, "overrides": list(overrides), "output_dir": output_dir}
    if call("train", **words, **options):
        return None
    written = Path(output_dir).expanduser() / "results.json"
    return read_document(written, RunResults, remedy=AGAIN)


def score(
    estimator: str | Path,
    data: str | Path,
    responses: str | Path | None = None,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> list[ScoreLine]:
    """`coevolve score`: of each example, log-probability (nats per response) and tokens; by default
    of its golden response.
    """
    with _kept(out, "scores.jsonl") as path:
        call("score", estimator=estimator, data=data, responses=responses, out=path, **options)
        return [
            check_document(line, ScoreLine, where=f"{path}: line {number}", remedy=AGAIN)
            for number, line in read_jsonl(path)
        ]


def remid(
    estimator: str | Path,
    data: str | Path,
    responses: Mapping[str, str | Path],
    *,
    out: str | Path | None = None,
    **options: Any,
) -> RemidResults:
    """`coevolve remid`: R-EMI and R-EMID of each model (name -> file of its responses)."""
    with _kept(out, "remid") as path:
        call("remid", estimator=estimator, data=data, responses=responses, out=path, **options)
        return read_document(path / "results.json", RemidResults, remedy=AGAIN)


@contextlib.contextmanager
def _kept(out: str | Path | None, name: str) -> Iterator[Path]:
    """`out`, or a place that is gone afterwards."""
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name
