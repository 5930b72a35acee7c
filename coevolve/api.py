"""The commands as Python functions, which return what they wrote as typed results.

Arguments are the commands' options under the same names with `_` for `-`, and go through the same
checks; what is printed stays on stderr. Where `out` is left out, nothing is kept.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from coevolve.cli.paths import claim_outputs
from coevolve.documents import check_document, read_document
from coevolve.errors import CoevolveError
from coevolve.files import read_jsonl
from coevolve.remid.results import RemidResults, ScoreLine
from coevolve.training.distributed.stopping import Stop
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


def call(command: str, **given: Any) -> int:
    """Run a command with these options; its exit status.

    Raises:
        TypeError: an option that the command does not have, or one that it needs is left out.
        CoevolveError: as the command would say it.
    """
    module = import_module(f"coevolve.cli.{command}")
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    options, actions = argparse.Namespace(), {x.dest: x for x in parser._actions}
    needed = [name for name, action in actions.items() if action.required and name not in given]
    for name in (*needed, *(name for name in given if name not in actions)):
        how = "is missing" if name in needed else "is none of its options"
        raise TypeError(f"{command}: {name} {how}; they are {', '.join(actions)}")
    for name, action in actions.items():
        value = _as_of_words(action, given[name]) if name in given else action.default
        if name in given and action.choices and value not in action.choices:
            accepted = ", ".join(map(str, action.choices))
            raise CoevolveError(f"{command}: {name}: found {value!r}; accepted are {accepted}.")
        setattr(options, name, value)
    options.stop = Stop()
    claim_outputs(parser, options)
    with contextlib.redirect_stdout(io.StringIO()):  # the tables, which the results are
        return module.run(options) or 0


def _as_of_words(action: argparse.Action, value: Any) -> Any:
    """A value as argparse would have made it of words."""
    if isinstance(value, Mapping):
        value = [f"{name}={item}" for name, item in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_of_words(action, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    kind: Any = action.type or str
    try:
        return kind(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise CoevolveError(f"{action.dest}: found {value!r}; {error}.") from None


@contextlib.contextmanager
def _kept(out: str | Path | None, name: str) -> Iterator[Path]:
    """`out`, or a place that is gone afterwards."""
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name
