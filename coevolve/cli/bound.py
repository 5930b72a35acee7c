"""The upper bound of R-EMID term by term, the shift to blame, and the worst and best examples."""

import argparse
import sys
from pathlib import Path

from coevolve.cli.loading import add_estimator_arguments, load_estimator, look_first, report_cache
from coevolve.cli.paths import add_input, add_output
from coevolve.cli.responses import add_responses_arguments, read_judged
from coevolve.outputs import BOUND, write_parts


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
        "--embedder", default="base", choices=("base", "minilm"), help="of the texts (default base)"
    )
    add_input(
        parser, "--base", metavar="DIR", help="the base model, if the estimator was trained in full"
    )
    parser.add_argument("--kernel", default="linear", choices=("linear", "gaussian"))
    parser.add_argument(
        "--form",
        default="club",
        help="of R-EMI and R-EMID: an estimator of information (default club)",
    )
    parser.add_argument(
        "--negatives", default="1000", help="mismatched pairs per subset, or all (default 1000)"
    )
    parser.add_argument(
        "--normalisation",
        default="per_token",
        choices=("per_token", "per_response"),
        help="of losses",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of pairs and samples (default 0)"
    )
    parser.add_argument(
        "--shown", type=int, default=3, help="worst and best examples per subset (default 3)"
    )
    add_output(
        parser,
        "--out",
        kind=BOUND,
        required=True,
        metavar="DIR",
        help="directory for bound.json and blame.json",
    )


def run(options: argparse.Namespace) -> None:
    from coevolve.cli.remid import _negatives
    from coevolve.files import json_text
    from coevolve.information.estimate import check_form
    from coevolve.preflight.judging import subsets_with_pairs
    from coevolve.progress import from_totals, make_console, task
    from coevolve.remid.blame import blame_examples, blame_table
    from coevolve.remid.bound import (
        Measuring,
        bound_table,
        evaluate_bound,
        score_corpus,
        shift_table,
    )
    from coevolve.remid.embeddings import make_embedder
    from coevolve.remid.score import evaluated_examples

    given = read_judged(options)
    corpus, responses = given.corpus, given.responses
    examples = evaluated_examples(corpus)
    negatives = _negatives(options.negatives)
    check_form(options.form)
    measuring = Measuring(kernel=options.kernel, seed=options.seed)
    golden = {example.sample_id: example.golden_response for example in examples}
    look_first(
        options,
        lambda: subsets_with_pairs(corpus, negatives, seed=options.seed),
        [golden, *responses.values()],
    )
    estimator = load_estimator(options)
    embedder = make_embedder(options.embedder, estimator, options.base)
    console = make_console(sys.stderr)
    with task(
        console, f"scoring {len(responses)} models, {len(examples)} contexts", len(examples)
    ) as advance:
        report = from_totals(advance)
        scored = score_corpus(
            estimator,
            corpus,
            responses,
            negatives=negatives,
            seed=options.seed,
            progress=lambda what, done, total: report(done),
        )
    texts = len(examples) * (len(responses) + 4)  # three inputs, golden and the models' responses
    with task(console, f"embedding with {embedder.name}", texts) as advance:
        report = from_totals(advance)
        bound = evaluate_bound(
            scored,
            responses,
            embedder,
            form=options.form,
            measuring=measuring,
            progress=lambda what, done, total: report(done),
        )
    blame = blame_examples(
        estimator,
        scored,
        responses,
        form=options.form,
        normalisation=options.normalisation,
        shown=options.shown,
        seed=options.seed,
    )
    report_cache(console, estimator)
    origin = {
        "estimator": str(options.estimator),
        "data_fingerprint": given.whole.fingerprint,
        "unanswered": given.unanswered,
    }
    bound, blame = bound | origin, blame | origin
    tables = make_console(sys.stdout)
    tables.print(shift_table(bound))
    for name in responses:
        tables.print(bound_table(bound, name))
    for name in responses:
        tables.print(blame_table(blame, name))
    write_parts(
        Path(options.out), BOUND, {"bound.json": json_text(bound), "blame.json": json_text(blame)}
    )
    console.print(f"results: bound.json and blame.json in {options.out}")
