"""Collect a role-playing model's responses: from a local model, vLLM, or an OpenAI-compatible
endpoint.

Each response is on disk when it arrives; the same command again asks only for what the file lacks.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from coevolve.cli.chat_model import add_chat_arguments, load_chat
from coevolve.cli.paths import adders
from coevolve.cli.scoring import add_data_argument
from coevolve.outputs import RESPONSES

if TYPE_CHECKING:
    from coevolve.data.example import Example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    add_data_argument(parser)
    what = "JSONL to begin or to go on with"
    writes("--out", what, kind=RESPONSES, required=True, metavar="FILE")
    add_choice_arguments(parser)
    what = "stop at a sample without a usable response (default), or go on and count it"
    add("--on-failure", what, default="error", choices=("error", "drop"))
    add("--keep-cut-off", "keep and mark those that reach --max-new-tokens", action="store_true")
    what = "YAML: the prompt that the model was trained with, recorded in --out (default: ours)"
    reads("--prompt", what, metavar="FILE")
    add_chat_arguments(parser, required=True)


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Which samples of the data."""
    add, *_ = adders(parser)
    add("--splits", "of data with splits (default: all but IDTrain)", nargs="+", metavar="SPLIT")
    add("--subsets", "of these splits (default: all)", nargs="+", metavar="TAG")
    add("--limit", "the first N samples of each split and subset only", type=int, metavar="N")


def run(options: argparse.Namespace) -> None:
    from coevolve.progress import from_totals, make_console, task
    from coevolve.prompts.play import PlayPrompt
    from coevolve.recipe.load import read_section
    from coevolve.respond import collect_responses

    prompt = read_section(options.prompt, PlayPrompt) if options.prompt else None
    examples, _ = chosen_examples(options)
    patience = max(3, options.concurrency or 0) if options.on_failure == "drop" else 1
    model = load_chat(options, os.environ, ledger=options.out, patience=patience)
    console = make_console(sys.stderr)
    title = f"responses of {options.model}"
    with closing(model), task(console, title, len(examples)) as advance:
        report = from_totals(advance)
        collection = collect_responses(
            examples,
            model,
            options.out,
            on_failure=options.on_failure,
            keep_cut_off=options.keep_cut_off,
            progress=lambda done, total, note: report(done),
            prompt=prompt,
        )
    console.print(
        f"{options.out}: {collection.examples - len(collection.dropped)} of {collection.examples} "
        f"samples have a response ({collection.found} had one before)"
    )
    if collection.cut_off:
        console.print(f"{collection.cut_off} of them were cut off and are marked so")
    if collection.dropped:
        console.print(f"{len(collection.dropped)} dropped, asked for again next time. First:")
        console.print(f"  {collection.dropped[0]}")


def chosen_examples(options: argparse.Namespace) -> "tuple[Sequence[Example], Sequence[Example]]":
    """Those that the options choose, and all of the data."""
    from coevolve.data.corpus import Corpus, read_data
    from coevolve.errors import DataError, RecipeError

    if options.limit is not None and options.limit < 1:
        raise RecipeError(f"--limit: found {options.limit}; accepted is a number from 1.")
    data = read_data(options.data, require_golden=False)
    if not isinstance(data, Corpus):
        if options.splits or options.subsets:
            raise DataError(f"--splits, --subsets: {options.data} has no splits. Leave them out.")
        return data[: options.limit], data
    splits = options.splits or data.test_splits
    if not splits:
        raise DataError(f"{options.data}: has no test split. Name splits with --splits.")
    groups = [one for split in dict.fromkeys(splits) for one in data.subsets(split).items()]
    tags = list(dict.fromkeys(tag for tag, _ in groups))
    for tag in options.subsets or ():
        if tag not in tags:
            raise DataError(
                f"--subsets: found {tag!r}; {', '.join(splits)} of {options.data} have "
                f"{', '.join(tags)}."
            )
    chosen = [
        example
        for tag, group in groups
        if not options.subsets or tag in options.subsets
        for example in group[: options.limit]
    ]
    return chosen, [example for rows in data.splits.values() for example in rows]
