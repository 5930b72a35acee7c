"""R-EMI per subset and R-EMID of every shifted subset, for one or more models' responses."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coevolve.cli.loading import add_estimator_arguments, load_estimator, look_first, report_cache
from coevolve.cli.paths import add_input, add_output
from coevolve.cli.responses import add_responses_arguments, read_judged
from coevolve.outputs import REMID, write_parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import Console

    from coevolve.cli.responses import Judged
    from coevolve.data.corpus import Corpus
    from coevolve.remid.evaluate import Measure
    from coevolve.remid.pairs import Negatives
    from coevolve.remid.score import Reasoning, ScoredSubset
    from coevolve.scoring.estimator import ProbabilityEstimator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_estimator_arguments(parser)
    add_input(
        parser,
        "--data",
        required=True,
        metavar="FILE",
        help="a corpus with IDTest and shifted test splits",
    )
    add_responses_arguments(parser)
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="FORM[:NORMALISATION]",
        help="the main measure, and others to stand beside it; the normalisation is per_response unless it is given "
        "(default: calibrated club:per_token; the second, the published one, alone with a number of --negatives)",
    )
    pairs = parser.add_mutually_exclusive_group()
    pairs.add_argument(
        "--negatives",
        default="all",
        help="mismatched pairs per subset, a number (published: 1000) or all (default)",
    )
    pairs.add_argument(
        "--negatives-per-context", type=int, metavar="K", help="so many for each context instead"
    )
    reasoning = parser.add_mutually_exclusive_group()
    add_input(
        reasoning,
        "--reasoning",
        default="greedy",
        metavar="greedy|sampled|marginal:K|FILE",
        help="how the reasoning is chosen; marginal:K is the log mean over K sampled ones (default greedy); FILE holds "
        "written ones, JSONL of {sample_ID, reasoning} or a JSON object of them (the public code's SThought_dict.json)",
    )
    reasoning.add_argument(
        "--without-reasoning",
        action="store_true",
        help="EMI and EMID of q2(y | x) instead of R-EMI and R-EMID",
    )
    parser.add_argument(
        "--protocol",
        choices=("exact", "reference"),
        default="exact",
        help="reference: the window, the pairs and the numbers of the paper's public code, without intervals",
    )
    add_input(
        parser,
        "--judge",
        metavar="FILE",
        help="scores by people or an LLM, to be correlated with R-EMI and with plain EMI",
    )
    parser.add_argument(
        "--show-small-subsets",
        action="store_true",
        help="list subsets of one example without numbers, as no error",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of pairs, sampled reasonings and bootstrap (default 0)"
    )
    add_output(
        parser,
        "--out",
        kind=REMID,
        required=True,
        metavar="DIR",
        help="for results.json, .csv, .tex, contributions.jsonl, judge.json",
    )


def run(options: argparse.Namespace) -> None:
    from coevolve.files import json_text, jsonl_text
    from coevolve.preflight.judging import subsets_with_pairs
    from coevolve.progress import make_console
    from coevolve.remid.evaluate import Measure, contributions
    from coevolve.remid.judge import judge_correlations, judge_table, read_judge_scores
    from coevolve.remid.score import Reasoning, distributions, evaluated_examples
    from coevolve.remid.table import remid_csv, remid_latex, remid_table

    given = read_judged(options)
    corpus, responses = given.corpus, given.responses
    _check_choices(options)
    reasoning = _reasoning(options, given)
    if options.judge:  # before the estimator is loaded
        subsets = distributions(given.whole)
        row_of = {
            example.sample_id: subset.row for subset in subsets for example in subset.examples
        }
        left_out = set(row_of) - {example.sample_id for example in corpus.examples}
        rows = [subset.row for subset in subsets]
        judged = read_judge_scores(options.judge, list(responses), rows, row_of, left_out=left_out)
    if options.protocol == "exact":  # the other one cuts what is too long
        golden = {
            example.sample_id: example.golden_response for example in evaluated_examples(corpus)
        }
        small = {"seed": options.seed, "show_small": options.show_small_subsets}
        look_first(
            options,
            lambda: subsets_with_pairs(corpus, _chosen_negatives(options), **small),
            [golden, *responses.values()],
            writes_reasoning=reasoning.kind in ("greedy", "sampled", "marginal"),
        )
    estimator = load_estimator(options)
    console, tables, folder = make_console(sys.stderr), make_console(sys.stdout), Path(options.out)
    if options.protocol == "reference":
        results, scored = _reference(reasoning, corpus, responses, estimator, console), None
    else:
        results, scored = _exact(options, reasoning, corpus, responses, estimator, console)
    results |= {
        "estimator": str(options.estimator),
        "estimator_identity": estimator.manifest["identity"],
        "data_fingerprint": given.whole.fingerprint,
        "unanswered": given.unanswered,
    }
    texts = {
        "results.csv": remid_csv(results),
        "results.tex": remid_latex(results),
        "results.json": json_text(results),
    }
    tables.print(remid_table(results))
    if scored is not None:
        main = Measure(results["form"], results["normalisation"])
        texts["contributions.jsonl"] = jsonl_text(contributions(scored, main))
    if options.judge:
        plain = None
        if scored is not None and reasoning.kind != "none":
            plain, _ = _exact(options, Reasoning("none"), corpus, responses, estimator, console)
        comparison = judge_correlations(results, judged, plain=plain)
        texts["judge.json"] = json_text(comparison.to_dict())
        tables.print(judge_table(comparison))
    write_parts(folder, REMID, texts)
    report_cache(console, estimator)
    console.print(f"results: {', '.join(sorted(texts))} in {folder}")


def _exact(
    options: argparse.Namespace,
    reasoning: "Reasoning",
    corpus: "Corpus",
    responses: "Mapping[str, Mapping[str, str]]",
    estimator: "ProbabilityEstimator",
    console: "Console",
) -> "tuple[dict[str, Any], list[ScoredSubset]]":
    """Results by exact scoring, and the scores that they are made of."""
    from coevolve.progress import from_totals, task
    from coevolve.remid.evaluate import score_corpus, summarise

    measures = [_measure(text) for text in options.measures] if options.measures else None
    settings = {
        "negatives": _chosen_negatives(options),
        "seed": options.seed,
        "reasoning": reasoning,
    }
    total = sum(
        len(examples) for split, examples in corpus.splits.items() if split in corpus.test_splits
    )
    kind = "EMID" if reasoning.kind == "none" else "R-EMID"
    with task(console, f"{kind} of {len(responses)} models, {total} contexts", total) as advance:
        report = from_totals(advance)
        scored, left_out = score_corpus(
            estimator,
            corpus,
            responses,
            measures=measures,
            small_subsets="show" if options.show_small_subsets else "error",
            progress=lambda what, done, total: report(done),
            **settings,
        )
    return summarise(scored, left_out=left_out, measures=measures, **settings), scored


def _reference(
    reasoning: "Reasoning",
    corpus: "Corpus",
    responses: "Mapping[str, Mapping[str, str]]",
    estimator: "ProbabilityEstimator",
    console: "Console",
) -> "dict[str, Any]":
    """Results by the public code's window, pairs and numbers."""
    from coevolve.progress import from_totals, task
    from coevolve.reference.protocol import evaluate_reference

    contexts = sum(
        len(examples) for split, examples in corpus.splits.items() if split in corpus.test_splits
    )
    total = contexts * (len(responses) + 1)
    with task(
        console, f"R-EMID of {len(responses)} models by the reference protocol", total
    ) as advance:
        report = from_totals(advance)
        results = evaluate_reference(
            estimator,
            corpus,
            responses,
            reasoning=reasoning.texts if reasoning.kind == "given" else None,
            progress=lambda what, done, total: report(done),
        )
    return results | {"reasoning": reasoning.describe()}


def _check_choices(options: argparse.Namespace) -> None:
    """Raise RecipeError for options that the reference protocol has no use for, and for unusable
    values.
    """
    from coevolve.errors import RecipeError

    for text in options.measures or ():
        _measure(text)
    _chosen_negatives(options)
    given = {
        "--measures": options.measures is not None,
        "--negatives": options.negatives != "all",
        "--negatives-per-context": options.negatives_per_context is not None,
        "--reasoning": options.reasoning.startswith(("sampled", "marginal:")),
        "--without-reasoning": options.without_reasoning,
        "--show-small-subsets": options.show_small_subsets,
    }
    odd = [name for name, is_given in given.items() if is_given]
    if options.protocol == "reference" and odd:
        raise RecipeError(
            f"--protocol reference fixes what {', '.join(odd)} would choose. Leave that out."
        )


def _measure(text: str) -> "Measure":
    from coevolve.remid.evaluate import Measure

    if text.startswith("custom:"):  # custom:FILE:NAME, and perhaps :NORMALISATION
        parts = text.split(":")
        return Measure(":".join(parts[:3]), ":".join(parts[3:]) or "per_response")
    form, _, normalisation = text.partition(":")
    return Measure(form, normalisation or "per_response")


def _chosen_negatives(options: argparse.Namespace) -> "Negatives":
    from coevolve.remid.pairs import PerContext

    if options.negatives_per_context is not None:
        return PerContext(options.negatives_per_context)
    return _negatives(options.negatives)


def _negatives(text: str) -> int | str:
    from coevolve.errors import RecipeError

    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise RecipeError(f"--negatives {text!r}: accepted is a number from 1, or all.")
    return int(text)


def _reasoning(options: argparse.Namespace, judged: "Judged") -> "Reasoning":
    """The protocol by which reasonings are chosen, those of a file being read."""
    from coevolve.data.reasonings import read_reasonings
    from coevolve.errors import RecipeError
    from coevolve.files import sha256_file
    from coevolve.remid.score import Reasoning, evaluated_examples

    text = options.reasoning
    if options.without_reasoning:
        return Reasoning("none")
    kind, _, samples = text.partition(":")
    if kind in ("greedy", "sampled") and kind == text:
        return Reasoning(kind, seed=options.seed)
    if kind == "marginal" and samples.isdigit():
        return Reasoning(kind, samples=int(samples), seed=options.seed)
    if not Path(text).is_file():
        raise RecipeError(
            f"--reasoning {text!r}: accepted are greedy, sampled, marginal:K, and a file that is there."
        )
    texts = read_reasonings(text, evaluated_examples(judged.corpus), judged.whole.examples)
    return Reasoning("given", texts=texts, sha256=sha256_file(text))
