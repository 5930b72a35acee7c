"""What a corpus is evaluated on: its subsets, and every model's responses to their examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus, Shift
from coevolve.data.example import Example, listed
from coevolve.errors import DataError

IN_DISTRIBUTION = "IDTest"

Responses = Mapping[str, str] | Sequence[str]
"""By sample_ID, or in `evaluated_examples` order."""
Texts = Mapping[str | None, Mapping[str, str]]
"""sample_ID -> text, golden under None, then each model's under its name."""


@dataclass(frozen=True)
class Subset:
    """Examples of one distribution, in the corpus's order.

    `row` is its name in results, `IDTest` or split and subset tag as in `OOD1Test/german`; `name`
    is the tag, or `IDTest`; `shift` is None in distribution.
    """

    row: str
    split: str
    name: str
    shift: Shift | None
    examples: tuple[Example, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """For results: which one it is."""
        of_row = {"row": self.row, "split": self.split, "subset": self.name, "shift": self.shift}
        return {**of_row, "examples": len(self.examples)}

    @property
    def ids(self) -> list[str]:
        """The examples' sample_IDs."""
        return [example.sample_id for example in self.examples]


def distributions(corpus: Corpus) -> list[Subset]:
    """All of IDTest as one distribution, then each shifted subset."""
    pooled = corpus.require(IN_DISTRIBUTION)
    subsets = [Subset(IN_DISTRIBUTION, IN_DISTRIBUTION, IN_DISTRIBUTION, None, pooled)]
    for split in corpus.test_splits:
        if split != IN_DISTRIBUTION:
            shift = SHIFT_OF_SPLIT[split]
            for name, examples in corpus.subsets(split).items():
                subsets.append(Subset(f"{split}/{name}", split, name, shift, examples))
    return subsets


def with_golden(corpus: Corpus) -> Corpus:
    """The corpus without the test rows that have no golden response; those of a subset without any
    stay, for they are at fault.
    """
    splits = dict(corpus.splits)
    for split in corpus.test_splits:
        rows = splits[split]
        known = {x.subset for x in rows if x.golden_response is not None}
        splits[split] = tuple(
            x for x in rows if x.golden_response is not None or x.subset not in known
        )
    return replace(corpus, splits=splits)


def further_contexts(
    whole: Corpus, evaluated: Corpus, most: int, seed: int
) -> dict[str, tuple[Example, ...]]:
    """Row -> at most so many examples of the whole corpus that are not evaluated, drawn at random.

    IDTrain has none: the estimator has seen its responses, and so finds others less likely there.
    """
    kept = {x.sample_id for x in evaluated_examples(evaluated)}
    found, by_id = {}, attrgetter("sample_id")
    for subset in distributions(whole):
        free = sorted((x for x in subset.examples if x.sample_id not in kept), key=by_id)
        drawn = np.random.default_rng(seed).permutation(len(free))[:most]
        found[subset.row] = tuple(free[index] for index in drawn)
    if not any(found.values()):
        raise DataError(
            f"{whole.source}: has no contexts beside those that are evaluated; accepted are rows "
            "of the test splits without agent_golden_response, or left out by --missing drop. Add "
            "some, or leave --contexts out."
        )
    return found


def evaluated_examples(corpus: Corpus) -> list[Example]:
    """The examples of all test splits, in the corpus's order."""
    return [example for split in corpus.test_splits for example in corpus.splits[split]]


def texts_by_model(corpus: Corpus, responses: Mapping[str, Responses]) -> Texts:
    """Golden under None, then each model's, all checked to be one for each test example."""
    if not responses:
        raise DataError("no model's responses were given; accepted are those of 1 or more.")
    examples = evaluated_examples(corpus)
    texts: dict[str | None, dict[str, str]] = {None: golden_by_id(examples, corpus.source)}
    return texts | {name: responses_by_id(name, x, examples) for name, x in responses.items()}


def responses_by_id(model: str, given: Responses, examples: Sequence[Example]) -> dict[str, str]:
    """A model's responses as sample_ID -> text, one for each example and none blank."""
    ids = [example.sample_id for example in examples]
    where = f"responses of {model!r}"
    if not isinstance(given, Mapping):
        if isinstance(given, str) or len(given) != len(ids):
            kind = "a string" if isinstance(given, str) else f"a list of {len(given)}"
            raise DataError(
                f"{where}: found {kind}; accepted is one response for each of the {len(ids)} test "
                "examples, in their order, or a mapping by sample_ID."
            )
        given = dict(zip(ids, given, strict=True))
    odd = {
        "test examples lack a response": [name for name in ids if name not in given],
        "responses are of no test example": sorted(set(given) - set(ids)),
    }
    for fault, samples in odd.items():
        if samples:
            raise DataError(
                f"{where}: {len(samples)} {fault} ({listed(samples, 3)}); accepted is one response "
                f"for each of the {len(ids)} test examples. Check the file and the data."
            )
    for sample_id in ids:
        if not isinstance(given[sample_id], str) or not given[sample_id].strip():
            raise DataError(
                f"{where}: sample {sample_id!r} has {given[sample_id]!r}; accepted is a string "
                "with at least one visible character. Generate this response again."
            )
    return {sample_id: given[sample_id] for sample_id in ids}


def golden_by_id(examples: Sequence[Example], source: str) -> dict[str, str]:
    """sample_ID -> golden response; DataError names the first example without one."""
    golden = {}
    for example in examples:
        if example.golden_response is None:
            raise DataError(
                f"{source}: sample {example.sample_id!r} has no agent_golden_response; every test "
                "example needs one."
            )
        golden[example.sample_id] = example.golden_response
    return golden
