"""Estimates beside exact values, on fresh samples of the synthetic worlds of quickstart runs."""

import argparse
import sys
from pathlib import Path

import coevolve.cli.scoring as door
from coevolve.cli.paths import adders
from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT
from coevolve.outputs import TRUTH, write_output

SPLITS = [split for split in SHIFT_OF_SPLIT if split != TRAIN_SPLIT]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    what = "finished runs on a synthetic world, best of several seeds"
    reads("runs", what, nargs="+", metavar="RUN")
    add("--test", "fresh examples per split, all pairs scored (default 256)", type=int, default=256)
    add("--policies", "role-playing models judged (default: all)", nargs="+", metavar="NAME")
    what = "test splits beside IDTest (default: all); IDTest alone gives EMI only"
    add("--splits", what, nargs="+", choices=SPLITS, metavar="SPLIT")
    what = "leave the estimators out: what exact conditionals give, in little time"
    add("--exact-only", what, action="store_true")
    what = (
        "let the best of the estimator and another reader read each policy, too: its exact "
        "conditional (own), or one that is fitted to its responses (fitted)"
    )
    add("--readers", what, choices=("own", "fitted"))
    door.add_estimator_arguments(parser, named=False)
    door.add_reasoning_arguments(parser, from_file=False)
    add("--seed", "of sampled reasonings (default 0)", type=int, default=0)
    writes("--json", "a file for every estimate and its exact value", kind=TRUTH, metavar="FILE")


def run(options: argparse.Namespace) -> None:
    from coevolve.errors import RecipeError
    from coevolve.files import json_text
    from coevolve.progress import make_console, task
    from coevolve.remid.results import ChosenReasoning
    from coevolve.training.known_truth import world_of_run
    from coevolve.worlds.audit import audit_world
    from coevolve.worlds.audit_tables import audit_tables
    from coevolve.worlds.results import TruthResults, TruthRow

    if options.readers and options.exact_only:
        raise RecipeError("--readers: one of them is the estimator; leave --exact-only out.")
    worlds = [world_of_run(folder) for folder in options.runs]
    forms = []
    for world in worlds:
        options.estimator = world.estimator
        forms.append(door.chosen_reasoning(options))
    console = make_console(sys.stderr)
    rows = []
    for folder, world, form in zip(options.runs, worlds, forms, strict=True):
        estimator = None if options.exact_only else door.load_estimator(options, world.estimator)
        contexts = options.test * len({"IDTest", *(options.splits or SPLITS)})
        title = f"{folder}: world {world.seed}, {contexts} contexts"
        fit = None
        if options.readers == "fitted" and estimator is not None:
            from coevolve.training.reader import Fitting

            how = door.cache_folder(options), options.stop.poll
            fit = Fitting(estimator, form, options.seed, *how).reader
            title, contexts = f"{title}, by two readers each", 2 * contexts
        with task(console, title, contexts) as advance:
            rows += audit_world(
                estimator,
                world.seed,
                **world.kind,
                test=options.test,
                names=options.policies,
                splits=options.splits,
                reasoning=form,
                own_readers=options.readers == "own",
                fit=fit,
                advance=advance,
            )
        if estimator is not None:
            door.report_cache(console, estimator)
    if options.json:
        results = TruthResults(
            schema="coevolve.truth/1",
            unit="nats per response",
            test=options.test,
            reasoning=ChosenReasoning.of(forms[0]) if len(set(forms)) == 1 else None,
            rows=[TruthRow(**row) for row in rows],
        )
        write_output(Path(options.json), TRUTH, json_text(results.values()))
        console.print(f"results: {options.json}")
    tables = make_console(sys.stdout)
    for table in audit_tables(rows):
        tables.print(table)
