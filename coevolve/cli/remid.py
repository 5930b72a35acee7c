"""R-EMI per subset and R-EMID of every shifted subset, for one or more models' responses."""

import argparse
import sys

from coevolve.cli.loading import add_estimator_arguments, load_estimator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_estimator_arguments(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="a corpus with IDTest and shifted test splits")
    parser.add_argument(
        "--responses",
        required=True,
        nargs="+",
        metavar="NAME=FILE",
        help="a model's responses to the test examples: JSONL of {sample_ID, response}",
    )
    parser.add_argument("--negatives", default="1000", help="mismatched pairs per subset, or all (default 1000)")
    parser.add_argument("--normalisation", default="per_token", choices=("per_token", "per_response"))
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mismatched pairs (default 0)")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for results.json")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from coevolve.data.corpus import read_corpus
    from coevolve.data.responses import read_responses
    from coevolve.files import write_json
    from coevolve.progress import from_totals, make_console, task
    from coevolve.remid.evaluate import evaluate_remid
    from coevolve.remid.score import evaluated_examples
    from coevolve.remid.table import remid_table

    corpus = read_corpus(options.data)
    examples = evaluated_examples(corpus)
    responses = {
        name: read_responses(path, examples) for name, path in map(_name_and_path, _without_repeats(options.responses))
    }
    negatives = _negatives(options.negatives)
    estimator = load_estimator(options)
    console = make_console(sys.stderr)
    with task(console, f"R-EMID of {len(responses)} models, {len(examples)} contexts", len(examples)) as advance:
        report = from_totals(advance)
        results = evaluate_remid(
            estimator,
            corpus,
            responses,
            negatives=negatives,
            seed=options.seed,
            normalisation=options.normalisation,
            progress=lambda what, done, total: report(done),
        )
    path = Path(options.out) / "results.json"
    write_json(path, {**results, "estimator": str(options.estimator), "data_fingerprint": corpus.fingerprint})
    make_console(sys.stdout).print(remid_table(results))
    console.print(f"results: {path}")


def _name_and_path(argument: str) -> tuple[str, str]:
    from coevolve.errors import DataError

    name, equals, path = argument.partition("=")
    if not (name and equals and path):
        raise DataError(f"--responses {argument!r}: accepted is NAME=FILE.")
    return name, path


def _without_repeats(arguments: list[str]) -> list[str]:
    from coevolve.errors import DataError

    names = [argument.partition("=")[0] for argument in arguments]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(f"--responses: the name {repeated[0]!r} is given {names.count(repeated[0])} times.")
    return arguments


def _negatives(text: str) -> int | str:
    from coevolve.errors import RecipeError

    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise RecipeError(f"--negatives {text!r}: accepted is a number from 1, or all.")
    return int(text)
