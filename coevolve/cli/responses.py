"""What the commands that judge models' responses have in common."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import add_input

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coevolve.data.corpus import Corpus


@dataclass(frozen=True)
class Judged:
    """The models' responses, and the examples that all of them are judged by.

    Attributes:
        corpus: without the test examples that were left out.
        responses: model -> sample_ID -> response.
        whole: the corpus as it was read.
        unanswered: what was left out (`coevolve.remid.unanswered.count_unanswered`), for the
            results.
    """

    corpus: "Corpus"
    responses: "Mapping[str, Mapping[str, str]]"
    whole: "Corpus"
    unanswered: dict[str, Any] | None


def add_missing_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--missing",
        default="error",
        choices=("error", "drop"),
        help="responses that are missing, empty or there twice: an error that names them (default), or their examples "
        "are left out, for all models, and counted",
    )


def add_responses_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(
        parser,
        "--responses",
        required=True,
        nargs="+",
        metavar="NAME=FILE",
        help="a model's responses to the test examples: JSONL of {sample_ID, response}",
    )
    add_missing_argument(parser)


def read_judged(options: argparse.Namespace) -> Judged:
    """Data and responses that the options of `add_responses_arguments` name."""
    from coevolve.data.corpus import read_corpus
    from coevolve.data.responses import answered_by_all, read_partial_responses, read_responses
    from coevolve.remid.score import evaluated_examples
    from coevolve.remid.unanswered import count_unanswered

    corpus = read_corpus(options.data)
    examples = evaluated_examples(corpus)
    files = _files(options.responses)
    if options.missing == "error":
        ids = [example.sample_id for example in examples]
        given = {
            name: dict(zip(ids, read_responses(path, examples), strict=True))
            for name, path in files.items()
        }
        return Judged(corpus, given, corpus, None)
    partial = {name: read_partial_responses(path, examples) for name, path in files.items()}
    answered = answered_by_all(corpus, partial)
    ids = [example.sample_id for example in evaluated_examples(answered)]
    common = {
        name: {sample_id: found.by_id[sample_id] for sample_id in ids}
        for name, found in partial.items()
    }
    return Judged(answered, common, corpus, count_unanswered(corpus, answered, partial))


def _files(arguments: "Sequence[str]") -> dict[str, str]:
    """Name -> path."""
    from coevolve.errors import DataError

    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise DataError(f"--responses {argument!r}: accepted is NAME=FILE.")
        if name in files:
            raise DataError(f"--responses: the name {name!r} is given more than once.")
        files[name] = path
    return files
