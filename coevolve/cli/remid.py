"""R-EMI per subset and R-EMID of every shifted subset, for one or more models' responses."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import coevolve.cli.scoring as door
from coevolve.cli.paths import adders
from coevolve.cli.readers import (
    add_reader_arguments,
    chosen_reader,
    chosen_readers,
    fit_readers,
    planned_fits,
)
from coevolve.outputs import REMID, write_parts

if TYPE_CHECKING:
    from coevolve.remid.judge import Pair
    from coevolve.remid.measures import Measure
    from coevolve.remid.results import RemidResults
    from coevolve.remid.score import ScoredCorpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    door.add_estimator_arguments(parser)
    door.add_data_argument(parser, door.CORPUS)
    door.add_responses_arguments(parser)
    what = (
        "the main measure, and others to stand beside it; the normalisation is per_response unless "
        "it is given (default: calibrated club:per_token; the second, the published one, alone "
        "with a number of --negatives)"
    )
    add("--measures", what, nargs="+", default=(), metavar="FORM[:NORMALISATION]")
    add_reader_arguments(parser)
    door.add_pairs_arguments(parser, default="all")
    door.add_reasoning_arguments(parser)
    what = "reference: window, pairs and numbers of the paper's public code, without intervals"
    add("--protocol", what, choices=("exact", "reference"), default="exact")
    reads("--judge", "scores by people or an LLM, to be correlated with R-EMI", metavar="FILE")
    what = "a renderer of your own, custom:FILE.py:FUNCTION: results to the text of results.txt"
    add("--renderer", what, metavar="PATH")
    what = "for results.json, .csv, .tex, .md, contributions.jsonl, judge.json"
    writes("--out", what, kind=REMID, required=True, metavar="DIR")


def run(options: argparse.Namespace) -> None:
    evaluated(options)


def evaluated(options: argparse.Namespace) -> "tuple[RemidResults, ScoredCorpus | None]":
    """What it wrote, and the scores of which it is made, unless they are the public code's."""
    from coevolve.files import json_text, jsonl_text
    from coevolve.progress import make_console
    from coevolve.reference.protocol import evaluate_reference
    from coevolve.remid.evaluate import shares_of_examples, summarise
    from coevolve.remid.grid import grid_table
    from coevolve.remid.judge import judge_correlations, judge_grid
    from coevolve.remid.measures import Measure
    from coevolve.remid.table import RENDERERS, remid_table
    from coevolve.scoring.reasoning import Reasoning

    answered = door.read_answered(options)
    measures = _chosen_measures(options)
    own = RENDERERS.get(options.renderer, "--renderer") if options.renderer else None
    if options.protocol == "reference":
        options.reasoning = options.reasoning or "greedy"  # whatever the estimator's own form is
    scoring = door.chosen_scoring(options, answered)
    readers, reader = chosen_readers(options, answered), chosen_reader(options)
    fits = planned_fits(options, answered, scoring)
    scoring = replace(scoring, halved=any(fit.halved for fit in fits))
    judged = _judged(options, answered) if options.judge else None  # before the estimator is loaded
    exact = options.protocol == "exact"
    if exact:  # the other one cuts what is too long
        door.look_at_corpus(options, answered, scoring)
    estimator = door.load_estimator(options)
    console, tables, folder = make_console(sys.stderr), make_console(sys.stdout), Path(options.out)
    plain, texts, scored = None, {}, None
    if exact:
        fitted, how = fit_readers(options, fits, answered, scoring, estimator, console)
        readers += fitted
        scored = door.score_answered(answered, scoring, estimator, console, measures, readers)
        results = summarise(scored, measures, reader)
        results = results.model_copy(update={"fitted": how} if how else {})
        main = Measure(results.form, results.normalisation)
        shares = shares_of_examples(scored, main, reader)
        texts["contributions.jsonl"] = jsonl_text(share.values() for share in shares)
        if judged is not None and scoring.reasoning.kind != "none":
            without = replace(scoring, reasoning=Reasoning("none"))
            plain = door.score_answered(answered, without, estimator, console, measures)
    else:
        corpus, responses = answered.corpus, answered.responses
        contexts = sum(len(corpus.splits[split]) for split in corpus.test_splits)
        title = f"R-EMID of {len(responses)} models by the reference protocol"
        with door.steps_of(console, title, contexts * (len(responses) + 1)) as progress:
            results = evaluate_reference(
                estimator, corpus, responses, reasoning=scoring.reasoning, progress=progress
            )
    results = results.model_copy(update=door.origin(options, answered, estimator))
    texts |= {f"results.{name}": RENDERERS[name](results) for name in RENDERERS}
    if own is not None:
        texts["results.txt"] = own(results)
    texts["results.json"] = json_text(results.values())
    tables.print(remid_table(results))
    if judged is not None:
        comparison = judge_correlations(
            results, judged, plain=summarise(plain, measures) if plain else None
        )
        texts["judge.json"] = json_text(comparison.values())
        tables.print(grid_table(judge_grid(comparison)))
    write_parts(folder, REMID, texts)
    door.report_cache(console, estimator)
    console.print(f"results: {', '.join(sorted(texts))} in {folder}")
    return results, scored


def _judged(options: argparse.Namespace, answered: door.Answered) -> "dict[Pair, float]":
    from coevolve.remid.judge import read_judge_scores
    from coevolve.remid.subsets import distributions

    subsets = distributions(answered.whole)
    row_of = {example.sample_id: subset.row for subset in subsets for example in subset.examples}
    left_out = set(row_of) - {example.sample_id for example in answered.corpus.examples}
    rows = [subset.row for subset in subsets]
    models = list(answered.responses)
    return read_judge_scores(options.judge, models, rows, row_of, left_out=left_out)


def _chosen_measures(options: argparse.Namespace) -> "list[Measure]":
    """The measures asked for; RecipeError for what the reference protocol has no use for."""
    from coevolve.errors import RecipeError
    from coevolve.remid.measures import Measure

    measures = [Measure.parse(text) for text in options.measures]
    given = {
        "--measures": bool(measures),
        "--negatives": options.negatives != "all",
        "--negatives-per-context": options.negatives_per_context is not None,
        "--reasoning": (options.reasoning or "").startswith(("sampled", "marginal:", "mixture")),
        "--without-reasoning": options.without_reasoning,
        "--show-small-subsets": options.show_small_subsets,
        "--contexts": bool(options.contexts),
        "--own": bool(options.own),
        "--fit-reader": options.fit_reader,
        "--reader": options.reader is not None,
    }
    odd = [name for name, is_given in given.items() if is_given]
    if options.protocol == "reference" and odd:
        raise RecipeError(
            f"--protocol reference fixes what {', '.join(odd)} chooses. Leave it out."
        )
    return measures
