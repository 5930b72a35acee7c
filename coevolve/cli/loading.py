"""What the commands that use an exported estimator have in common."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coevolve.cli.paths import add_input, add_output
from coevolve.outputs import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.console import Console

    from coevolve.preflight.judging import Group
    from coevolve.scoring.estimator import ProbabilityEstimator


def add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(parser, "--estimator", required=True, metavar="DIR", help="an exported estimator")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--quantization",
        default="as trained",
        choices=("as trained", "none", "4bit", "8bit"),
        help="how the base under adapters is held (default: as trained); 8bit halves its memory, 4bit quarters it, and "
        "other than as trained changes scores a little",
    )
    parser.add_argument(
        "--token-budget", type=int, default=16384, help="tokens of one forward pass (default 16384)"
    )
    cache = parser.add_mutually_exclusive_group()
    add_output(
        cache,
        "--cache",
        kind=CACHE,
        metavar="DIR",
        help="where reasonings and scores are kept, so that none is computed twice; any number of commands may share "
        "it, and it may be deleted at any time (default $XDG_CACHE_HOME/coevolve/work, or ~/.cache/coevolve/work)",
    )
    cache.add_argument(
        "--no-cache", action="store_true", help="compute everything anew and keep nothing"
    )


def load_estimator(options: argparse.Namespace) -> "ProbabilityEstimator":
    from coevolve.progress import quieten_libraries
    from coevolve.scoring.estimator import ProbabilityEstimator

    quieten_libraries()
    estimator = ProbabilityEstimator.from_pretrained(
        options.estimator,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        token_budget=options.token_budget,
    )
    if not getattr(options, "no_cache", True):
        estimator.use_cache(options.cache or cache_folder())
    return estimator


def look_first(
    options: argparse.Namespace,
    find_groups: "Callable[[], Iterable[Group]]",
    responses: "Iterable[Mapping[str, str]]",
    *,
    writes_reasoning: bool = True,
) -> None:
    """Raise CoevolveError for whatever stands in the way of scoring, before the estimator is
    loaded.

    Args:
        find_groups: as in `coevolve.preflight.judging.Judging`.
        responses: sample_ID -> response, of every model.
    """
    from coevolve.preflight.checks import preflight
    from coevolve.preflight.judging import JUDGING, Judging
    from coevolve.progress import quieten_libraries

    quieten_libraries()
    by_id: dict[str, list[str]] = {}
    for given in responses:
        for sample_id, text in given.items():
            by_id.setdefault(sample_id, []).append(text)
    draft = Judging(Path(options.estimator), options.device, find_groups, by_id, writes_reasoning)
    preflight(draft, JUDGING)


def cache_folder() -> Path:
    """Where the work of all commands is kept unless they are told otherwise."""
    import os

    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "coevolve" / "work"


def report_cache(console: "Console", estimator: "ProbabilityEstimator") -> None:
    """Say how much of the work was there already."""
    from coevolve.scoring.cache import taken

    if estimator.caches:
        console.print(f"cache: {taken(list(estimator.caches.values()))}")
