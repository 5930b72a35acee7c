"""Train, ask, judge and score a grid of role-playing models: which generalises best, and what
helps.

What is missing is collected, everything is scored once, and the same command goes on where it was
left.
"""

import argparse
import sys
from pathlib import Path

import coevolve.cli.scoring as door
from coevolve.cli.paths import adders
from coevolve.outputs import COMPARED
from coevolve.shipped import grid_path

EXAMPLE = """\
example, grid.yaml:
  name: mine
  data: dialogues.json
  estimator: runs/mine/estimator
  reward: {train: quickstart, set: [seed=1]}
  models:
    start: {rpm: start.yaml, remedy: none}
    dpo:   {rpm: dpo.yaml, start: start}
    other: {responses: other.jsonl}
  coevolve compare grid.yaml --out results"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    add, reads, writes = adders(parser)
    what = "YAML: estimator, models, data, judge; or a folder with grid.yaml in it"
    reads("grid", what, metavar="GRID", means=grid_path)
    add("overrides", "dotted keys, for example seed=1", nargs="*", metavar="key=value")
    what = "for what is trained and collected, and results.json, .csv, .tex, .md, report.html"
    writes("--out", what, kind=COMPARED, required=True, metavar="DIR")
    add("--dry-run", "look at everything, and run nothing", action="store_true")
    door.add_estimator_arguments(parser, named=False)


def run(options: argparse.Namespace) -> int:
    from coevolve.cli.comparing import Comparison
    from coevolve.compare.plan import make_plan
    from coevolve.compare.tables import compare_grids
    from coevolve.progress import make_console
    from coevolve.remid.grid import grid_table

    console, tables = make_console(sys.stderr), make_console(sys.stdout)
    comparison = Comparison(make_plan(options.grid, options.overrides, Path(options.out)), options)
    for flag in comparison.look():
        console.print(f"MIND: {flag}")
    if options.dry_run:
        console.print("Nothing stands in the way.")
        return 0
    for what, step in comparison.steps():
        console.print(what)
        if code := step():
            console.print(f"{options.stop.reason}: saved. The same command goes on from here.")
            return code
    results = comparison.write()
    for grid in compare_grids(results):
        tables.print(grid_table(grid))
    console.print(f"results.json, .md, .csv, .tex and report.html are in {options.out}")
    return 0
