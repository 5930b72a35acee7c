"""From rows to a shifted subset: the kinds there are, drawing, naming and adding rows."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.errors import DataError, RecipeError
from coevolve.registry import Registry, users_code

Make = Callable[..., Sequence[Example]]
"""From (sources, corpus, seed, tag) and options of its own, by keyword, to the new rows."""


@dataclass(frozen=True)
class Shift:
    """A kind of shift, and the split that holds its rows."""

    make: Make
    split: str


SHIFTS: Registry[Any] = Registry(
    "shift",
    accepted="a function (sources, corpus, seed, tag) that returns a list of coevolve.Example",
    given=("sources", "corpus", "seed", "tag"),
    error=DataError,
)


def shift(name: str, split: str) -> Callable[[Make], Make]:
    """A decorator that makes a kind of shift of a function."""

    def add(make: Make) -> Make:
        SHIFTS.register(name)(Shift(make, split))
        return make

    return add


def users_shift(path: str, split: str) -> Shift:
    """The shift by a user's own function at an import path; each of its rows is looked at."""
    where = f"shift {path!r}"
    function = SHIFTS.custom(path, where)

    def make(**given: Any) -> list[Example]:
        with users_code(where, DataError):
            rows = list(function(**given))
        for row in rows:
            if not isinstance(row, Example):
                raise DataError(
                    f"{where} gave {row!r}; accepted is {SHIFTS.accepted} (see "
                    "coevolve.shifts.shifted)."
                )
            Example.from_row(row.to_row(), f"a row of {where}")
        return rows

    return Shift(make, split)


def draw_sources(corpus: Corpus, split: str, count: int | None, seed: int) -> tuple[Example, ...]:
    """`count` examples of `split` (None: all), drawn without replacement, in the corpus's order."""
    examples = corpus.require(split)
    if count is None:
        return examples
    if count < 1:
        raise RecipeError(f"count of samples: found {count}; accepted is a number from 1.")
    if count > len(examples):
        raise DataError(f"{corpus.source}: {split} has {len(examples)} examples, not {count}.")
    drawn = random.Random(seed).sample(range(len(examples)), count)
    return tuple(examples[index] for index in sorted(drawn))


def generator(seed: int, kind: str, example: Example) -> random.Random:
    """A generator of the example's own, so that a row does not depend on the rows before it."""
    return random.Random(f"{seed}:{kind}:{example.sample_id}")


def shifted(
    example: Example,
    tag: str,
    kind: str,
    *,
    record: Mapping[str, Any],
    golden: str = "kept",
    **changes: Any,
) -> Example:
    """The example with what the shift changed, as `TAG:SAMPLE_ID`, without the original's trace.

    Args:
        record: what was done, beside kind and source.
        golden: what the golden response is, where there is one.
        changes: fields of the Example.
    """
    made = replace(
        example, sample_id=f"{tag}:{example.sample_id}", subset=tag, trace=None, **changes
    )
    how = {"kind": kind, "source": example.sample_id, **record}
    how["golden"] = "none" if made.golden_response is None else golden
    if example.shift is not None:
        how["before"] = example.shift  # a second shift does not hide the first
    return replace(made, shift=how)


def with_golden(examples: Sequence[Example], golden: Sequence[str]) -> list[Example]:
    """The examples with these golden responses, noted in each row as given."""
    return [
        replace(
            example, golden_response=response, shift={**(example.shift or {}), "golden": "given"}
        )
        for example, response in zip(examples, golden, strict=True)
    ]


def add_subset(corpus: Corpus, split: str, examples: Sequence[Example]) -> Corpus:
    """The corpus with the examples as a further subset of `split`, of new names."""
    present = corpus.splits.get(split, ())
    subsets = {example.subset for example in present}
    ids = {example.sample_id for example in corpus.examples}
    for example in examples:
        if example.subset in subsets:
            raise DataError(
                f"{corpus.source}: {split} has a subset {example.subset!r}. Name the new one "
                "otherwise."
            )
        if example.sample_id in ids:
            raise DataError(
                f"{corpus.source}: has a sample_ID {example.sample_id!r}. Name the new subset "
                "otherwise."
            )
        ids.add(example.sample_id)
    return Corpus({**corpus.splits, split: (*present, *examples)}, corpus.source)
