"""Estimates beside exact values, for every measure, on fresh samples of the synthetic worlds of
quickstart runs.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coevolve.cli.paths import add_input, add_output
from coevolve.outputs import TRUTH, write_output

if TYPE_CHECKING:
    from coevolve.scoring.estimator import ProbabilityEstimator

SCHEMA = "coevolve.truth/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(
        parser,
        "runs",
        nargs="+",
        metavar="RUN",
        help="finished runs on a synthetic world, best of several seeds",
    )
    parser.add_argument(
        "--test",
        type=int,
        default=256,
        help="fresh examples per split, all pairs scored (default 256)",
    )
    parser.add_argument(
        "--policies", nargs="+", metavar="NAME", help="role-playing models judged (default: all)"
    )
    parser.add_argument(
        "--exact-only",
        action="store_true",
        help="leave the estimators out: what exact conditionals give, in little time",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--token-budget", type=int, default=16384, help="tokens of one forward pass (default 16384)"
    )
    add_output(
        parser,
        "--json",
        kind=TRUTH,
        metavar="FILE",
        help="write every estimate beside its exact value to this file",
    )


def run(options: argparse.Namespace) -> None:
    from coevolve.files import json_text
    from coevolve.progress import make_console, task
    from coevolve.training.known_truth import world_of_run
    from coevolve.worlds.audit import audit_world
    from coevolve.worlds.audit_tables import audit_tables
    from coevolve.worlds.corpus import worlds_by_split

    worlds = [world_of_run(folder) for folder in options.runs]
    console = make_console(sys.stderr)
    rows = []
    for folder, world in zip(options.runs, worlds, strict=True):
        estimator = None if options.exact_only else _estimator(options, world.estimator)
        contexts = options.test * (len(worlds_by_split(world.seed)) - 1)
        with task(
            console, f"{folder}: world {world.seed}, {contexts} contexts", contexts
        ) as advance:
            rows += audit_world(
                estimator,
                world.seed,
                strength=world.strength,
                test=options.test,
                names=options.policies,
                advance=advance,
            )
    if options.json:
        results = {
            "schema": SCHEMA,
            "unit": "nats per response",
            "test": options.test,
            "rows": rows,
        }
        write_output(Path(options.json), TRUTH, json_text(results))
        console.print(f"results: {options.json}")
    tables = make_console(sys.stdout)
    for table in audit_tables(rows):
        tables.print(table)


def _estimator(options: argparse.Namespace, folder: Path) -> "ProbabilityEstimator":
    from coevolve.cli.loading import load_estimator

    return load_estimator(
        argparse.Namespace(
            **vars(options), estimator=folder, dtype="float32", quantization="as trained"
        )
    )
