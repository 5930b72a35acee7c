"""Make a shifted test set from in-distribution data: longer turns, word order, another language,
unseen characters.

The data is written again with the new rows as a further subset of the split that holds this kind of
shift.
"""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coevolve.cli.chat_model import add_chat_arguments, load_chat
from coevolve.cli.paths import add_input, add_option, adders
from coevolve.cli.scoring import add_data_argument
from coevolve.outputs import CORPUS, TRANSLATIONS, claim, write_output

if TYPE_CHECKING:
    from coevolve.data.example import Example
    from coevolve.shifts.build import Shift

ATTEMPTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    what = "dialogue: exchanges of other dialogues before the first turn"
    turns = _add_kind(kinds, "longer_turns", what)
    add_option(turns, "--turns", "exchanges to add (default 4)", type=int, default=4)
    words = _add_kind(kinds, "word_order", "dialogue: words of the user's turns in other places")
    add_option(words, "--strength", "of words that move (default 1)", type=float, default=1.0)
    what = "user: another language, from the data's own users or translated by a model"
    language = _add_kind(kinds, "language", what)
    what = "with --model, the language to translate into; without, a subset_tag whose users to take"
    add_option(language, "--language", what, required=True)
    add_chat_arguments(language, required=False)
    character = _add_kind(kinds, "unseen_character", "character: one that IDTrain does not have")
    pool = character.add_mutually_exclusive_group()
    add_input(pool, "--characters", "JSON list or JSONL of characters to draw from", metavar="FILE")
    splits: dict[str, Any] = {"nargs": "+", "default": ["OOD2Test"], "metavar": "SPLIT"}
    add_option(pool, "--characters-of", "draw from theirs (default OOD2Test)", **splits)

    own = _add_kind(kinds, "custom", "any: by a function of your own")
    what = "module or .py file, and a function (sources, corpus, seed, tag) that gives the rows"
    add_option(own, "make", what, metavar="PATH:FUNCTION")
    add_option(own, "--into", "the split that holds them", required=True, metavar="SPLIT")


def run(options: argparse.Namespace) -> None:
    from coevolve.data.corpus import read_corpus
    from coevolve.data.responses import read_responses
    from coevolve.files import json_text
    from coevolve.progress import make_console
    from coevolve.shifts import SHIFTS, add_subset, draw_sources, users_shift, with_golden

    shift = (
        users_shift(options.make.removeprefix("custom:"), options.into)
        if options.kind == "custom"
        else SHIFTS[options.kind]
    )
    if getattr(options, "model", None):
        path = f"{options.out}.translations.jsonl"
        options.translations = claim(path, TRANSLATIONS, option="--out")
    corpus = read_corpus(options.data, require_golden=False)
    sources = draw_sources(corpus, options.split, options.samples, options.seed or 0)
    tag = options.tag or _default_tag(options)
    given = {"sources": sources, "corpus": corpus, "seed": options.seed or 0, "tag": tag}
    given |= {name: getattr(options, name) for name in _OPTIONS.get(options.kind, ())}
    translates = getattr(options, "model", None)
    rows = _translated(options, shift, given) if translates else list(shift.make(**given))
    if options.golden:
        rows = with_golden(rows, read_responses(options.golden, rows))
    split = shift.split
    write_output(Path(options.out), CORPUS, json_text(add_subset(corpus, split, rows).to_splits()))
    console = make_console(sys.stderr)
    console.print(f"{options.out}: {len(rows)} rows in {split}, subset_tag {tag!r}")
    without = sum(row.golden_response is None for row in rows)
    if without:
        console.print(
            f"{without} of them have no golden response, as the original one no longer answers. "
            f"Evaluation needs one: collect or write responses to {split}/{tag}, and give them "
            "with --golden FILE in the same command."
        )


def _add_kind(
    kinds: "argparse._SubParsersAction", name: str, summary: str
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=summary, description=summary)
    add, reads, writes = adders(parser)
    add_data_argument(parser, "a corpus, in any layout that train reads")
    writes("--out", "the .json file to write", kind=CORPUS, required=True, metavar="FILE")
    add("--split", "the split to start from (default IDTest)", default="IDTest")
    add("--samples", "start from N samples, drawn at random (default: all)", type=int, metavar="N")
    add("--tag", "the new rows' subset_tag (default: the kind, or the language)")
    reads("--golden", "of the new rows: JSONL of {sample_ID, response}", metavar="FILE")
    if name != "language":  # add_chat_arguments has it there
        add("--seed", "of all that is drawn (default 0)", type=int, default=0)
    return parser


def _default_tag(options: argparse.Namespace) -> str:
    if options.kind == "custom":
        return options.make.rpartition(":")[2]
    if options.kind != "language":
        return options.kind
    return options.language if options.model else f"{options.language}_user"


def _translated(
    options: argparse.Namespace, shift: "Shift", given: dict[str, Any]
) -> "list[Example]":
    from coevolve.progress import from_totals, make_console, task

    translator = load_chat(options, os.environ, ledger=options.translations, attempts=ATTEMPTS)
    title = f"translation into {options.language}"
    console, total = make_console(sys.stderr), len(given["sources"])
    with closing(translator), task(console, title, total) as advance:
        report = from_totals(advance)
        return list(
            shift.make(
                **given,
                translator=translator,
                path=options.translations,
                progress=lambda done, total: report(done),
            )
        )


_OPTIONS = {
    "longer_turns": ("turns",),
    "word_order": ("strength",),
    "language": ("language",),
    "unseen_character": ("characters", "characters_of"),
}
"""What each kind is given beside what all are."""
