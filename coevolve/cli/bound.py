"""The upper bound of R-EMID term by term, the shift to blame, and the worst and best examples."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import coevolve.cli.scoring as door
from coevolve.cli.paths import adders
from coevolve.outputs import BOUND, write_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    door.add_estimator_arguments(parser)
    door.add_data_argument(parser, door.CORPUS)
    door.add_responses_arguments(parser)
    door.add_pairs_arguments(parser, default="all")
    door.add_reasoning_arguments(parser)
    add("--embedder", "of the texts (default base)", default="base", choices=("base", "minilm"))
    reads("--base", "the base model, if the estimator was trained in full", metavar="DIR")
    add("--kernel", None, default="linear", choices=("linear", "gaussian"))
    add("--form", "of R-EMI and R-EMID (default: the main one of coevolve remid)")
    what = "of the examples' losses (default: that of coevolve remid, per_response with --form)"
    add("--normalisation", what, choices=("per_token", "per_response"))
    add("--shown", "worst and best examples per subset (default 3)", type=int, default=3)
    what = "directory for bound.json, blame.json and bound.md"
    writes("--out", what, kind=BOUND, required=True, metavar="DIR")


def run(options: argparse.Namespace) -> None:
    from coevolve.files import json_text
    from coevolve.information.log_probs import Normalisation
    from coevolve.progress import make_console
    from coevolve.remid.blame import blame_examples, blame_grid, worst_lines
    from coevolve.remid.bound import (
        MOST_SHOWN,
        Measuring,
        bound_grid,
        evaluate_bound,
        shift_grid,
        summary_grid,
    )
    from coevolve.remid.embeddings import make_embedder
    from coevolve.remid.grid import grid_markdown, grid_table
    from coevolve.remid.measures import Measure
    from coevolve.remid.score import default_measures

    answered = door.read_answered(options)
    scoring = door.chosen_scoring(options, answered)
    divided: Normalisation = options.normalisation or "per_response"
    asked = [Measure(options.form, divided)] if options.form else []
    measuring = Measuring(kernel=options.kernel, seed=options.seed)
    door.look_at_corpus(options, answered, scoring)
    estimator = door.load_estimator(options)
    embedder = make_embedder(options.embedder, estimator, options.base)
    console = make_console(sys.stderr)
    scored = door.score_answered(answered, scoring, estimator, console, asked)
    measure = (asked or default_measures(scored))[0]
    if options.normalisation:
        measure = replace(measure, normalisation=options.normalisation)
    # Three inputs, golden and the models' responses.
    texts = sum(len(one.subset.examples) for one in scored.subsets) * (len(scored.models) + 4)
    with door.steps_of(console, f"embedding with {embedder.name}", texts) as progress:
        bound = evaluate_bound(
            scored, embedder, form=measure.form, measuring=measuring, progress=progress
        )
    how = {"shown": options.shown, "seed": options.seed}
    blame = blame_examples(estimator, scored, measure=measure, **how)
    door.report_cache(console, estimator)
    origin = door.origin(options, answered, estimator)
    bound, blame = bound.model_copy(update=origin), blame.model_copy(update=origin)
    grids = [shift_grid(bound), *(bound_grid(bound, name) for name in bound.models)]
    grids += [blame_grid(blame, name) for name in blame.models]
    parts = {"bound.md": "\n".join(map(grid_markdown, grids))}
    parts |= {"bound.json": json_text(bound.values()), "blame.json": json_text(blame.values())}
    write_parts(Path(options.out), BOUND, parts)
    tables = make_console(sys.stdout)
    for grid in (shift_grid(bound, MOST_SHOWN), summary_grid(bound)):
        tables.print(grid_table(grid))
    for line in worst_lines(blame)[:MOST_SHOWN]:
        tables.print(line)
    console.print(f"results: all of it in bound.md, bound.json and blame.json in {options.out}")
