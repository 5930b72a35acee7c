"""Make a corpus of dialogues that are kept in another format: ShareGPT, OpenAI messages, CSV,
Parquet, CharacterEval, RoleBench, character cards.

All problems are listed at once, and nothing is left out without a line that says so.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders
from coevolve.errors import DataError
from coevolve.outputs import CORPUS, write_output

if TYPE_CHECKING:
    from coevolve.data.convert import Division

SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    reads("dialogues", "a .json, .jsonl, .csv, .tsv or .parquet file", metavar="IN")
    what = "the .json file to write, or .jsonl with a field `split`"
    writes("--out", what, kind=CORPUS, required=True, metavar="FILE")
    what = "where the rows have a field, for example user_persona=profile.user"
    add("--map", what, nargs="+", default=[], metavar="FIELD=PATH")
    what = "what a speaker is: user, agent or system"
    add("--role", what, nargs="+", default=[], metavar="NAME=ROLE")
    add("--format", "read all rows as this one (default: as each is recognised)", metavar="NAME")
    reads("--characters", "JSON of characters by name, or a card for all rows", metavar="FILE")
    what = "which rows go where, for example 'OOD1Test: language != en', 'OOD3Test: turns > 12', "
    what += "or 'OOD2Test: agent_character.name ~ 0.1', that share of the names"
    add("--split", what, action="append", metavar="RULE")
    add("--test", "the share of the others for IDTest (default 0.1)", type=float, default=0.1)
    add("--seed", "of what is drawn (default 0)", type=int, default=0)
    add("--new-ids", "make ids also where the rows have some", action="store_true")
    what = "rows with problems: stop and write nothing (default), or drop them"
    add("--problems", what, choices=("stop", "drop"), default="stop")


def run(options: argparse.Namespace) -> None:
    from coevolve.data.convert import Conversion, Rule, read_characters
    from coevolve.data.formats import FORMATS, OWN_FIELDS

    if options.format not in (None, *FORMATS):
        raise DataError(f"--format {options.format!r}: accepted are {', '.join(FORMATS)}.")
    if not 0 <= options.test < 1:
        raise DataError(f"--test {options.test}: accepted is a share from 0 to below 1.")
    roles = _pairs("--role", options.role, None, ("user", "agent", "system"))
    with tempfile.TemporaryFile() as spool:
        conversion = Conversion(
            spool,
            paths=_pairs("--map", options.map, OWN_FIELDS, None),
            roles={name.casefold(): role for name, role in roles.items()},
            characters=read_characters(Path(options.characters)) if options.characters else {},
            form=options.format,
            rules=[Rule.parse(text) for text in options.split or ()],
            test=options.test,
            seed=options.seed,
            made_ids=options.new_ids,
        )
        conversion.read(Path(options.dialogues))
        kept = conversion.rows - conversion.refused
        found = ", ".join(f"{count:,} of {x}" for x, count in conversion.formats.most_common())
        head = f"{options.dialogues}: {conversion.rows:,} rows, {found or 'of no known format'}"
        problems = conversion.problems.lines()
        if not kept or (problems and options.problems == "stop"):
            advice = (
                "Mend the file, map fields with --map, or leave these out with --problems drop."
            )
            count = f"{conversion.refused:,} cannot be converted; nothing is written"
            raise DataError("\n".join((f"{head}; {count}.", *problems, advice)))
        division = conversion.divide()
        lines = options.out.suffix == ".jsonl"
        write_output(options.out, CORPUS, division.text(lines=lines))
        print(head)
        if problems:
            print(f"left out, {conversion.refused:,} rows:", *problems, sep="\n")
        if notes := conversion.notes.lines():
            print("of the rows that were read:", *notes, sep="\n")
        _show(division, options.out)


def _show(division: "Division", out: Path) -> None:
    """The first rows, and how many are where."""
    counts = division.counts
    filled = [name for name, size in counts.items() if size]
    shown = ((name, row) for name in filled for row in division.rows(name))
    for name, row in itertools.islice(shown, SHOWN):
        print(f"{name} {json.dumps(_short(row), ensure_ascii=False)}")
    print(f"{out}: rows: {', '.join(f'{size:,} {name}' for name, size in counts.items())}")


def _short(value: Any) -> Any:
    """A value to look at: long texts cut, and the middle of a long dialogue."""
    from coevolve.data.convert import clipped

    if isinstance(value, str):
        return clipped(value, 80)
    if isinstance(value, list):
        cut = [*value[:1], f"({len(value) - 2} more)", *value[-1:]] if len(value) > 3 else value
        return [_short(item) for item in cut]
    return {key: _short(item) for key, item in value.items()} if isinstance(value, dict) else value


def _pairs(
    option: str, texts: Sequence[str], names: Sequence[str] | None, values: Sequence[str] | None
) -> Mapping[str, str]:
    """The `NAME=VALUE`s of an option, each name once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip() if names is None else name
        if not equals or not name or not value or name in found:
            raise DataError(f"{option} {text!r}: accepted is NAME=VALUE, each name once.")
        for given, accepted in ((name, names), (value, values)):
            if accepted is not None and given not in accepted:
                known = ", ".join(accepted)
                raise DataError(f"{option} {text!r}: {given!r} is unknown; accepted: {known}.")
        found[name] = value
    return found
