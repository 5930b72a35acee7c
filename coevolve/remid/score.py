"""Scoring golden and model responses over the matched and mismatched pairs of each subset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus
from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError
from coevolve.information.estimate import Contrast
from coevolve.information.log_probs import Normalisation
from coevolve.scoring.scores import Scores

IN_DISTRIBUTION = "IDTest"

Responses = Mapping[str, str] | Sequence[str]
Progress = Callable[[str, int, int], None]  # what is happening, contexts done, contexts in all


class Estimator(Protocol):
    """The part of `coevolve.ProbabilityEstimator` that the evaluation needs."""

    def reason(self, examples: Sequence[Example]) -> list[str]:
        """One reasoning per example, written without a look at its response."""
        ...

    def log_prob_pairs(
        self, examples: Sequence[Example], responses: Sequence[str], reasoning: Sequence[str], pairs: np.ndarray
    ) -> Scores:
        """Scores, (P,), of `pairs`, (P, 2): index into `examples`, index into `responses`, of which there are more."""
        ...


@dataclass(frozen=True)
class Subset:
    """Examples of one distribution.

    Attributes:
        row: its name in results and tables: `IDTest`, or split and subset tag as in `OOD1Test/german`.
        split: for example `OOD1Test`.
        name: its subset tag; `IDTest` for the pooled in-distribution examples.
        shift: `user`, `character`, `dialogue`, `all`, or None in distribution.
        examples: N of them, in the corpus's order.
    """

    row: str
    split: str
    name: str
    shift: str | None
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ScoredSubset:
    """A subset's log-probabilities, from which every measure and, by resampling, its interval follow.

    Attributes:
        subset: whose N examples these are.
        pairs: (P, 2) mismatched (context, response), the same for golden and every model.
        positive: scores of the matched pairs, (N,), under each model's name; golden's under None.
        negative: scores of the mismatched pairs, (P,), likewise.
    """

    subset: Subset
    pairs: np.ndarray
    positive: Mapping[str | None, Scores]
    negative: Mapping[str | None, Scores]

    def contrast(self, model: str | None, normalisation: Normalisation) -> Contrast:
        """The contrast of a model's responses, or of the golden ones for None."""
        return Contrast.from_pairs(self.positive[model], self.negative[model], self.pairs, normalisation)


class Reporter:
    """Counts contexts over all subsets and passes each step on to a progress function, if there is one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def step(self, what: str, finished: int = 0) -> None:
        """Report what begins now, `finished` contexts after the last report."""
        self._done += finished
        if self._progress is not None:
            self._progress(what, self._done, self._total)


def distributions(corpus: Corpus) -> list[Subset]:
    """What a corpus is evaluated on: all of IDTest as one distribution, then each shifted subset.

    Raises:
        DataError: there is no IDTest.
    """
    pooled = corpus.require(IN_DISTRIBUTION)
    subsets = [Subset(IN_DISTRIBUTION, IN_DISTRIBUTION, IN_DISTRIBUTION, None, pooled)]
    for split in corpus.test_splits:
        if split != IN_DISTRIBUTION:
            for name, examples in corpus.subsets(split).items():
                subsets.append(Subset(f"{split}/{name}", split, name, SHIFT_OF_SPLIT[split], examples))
    return subsets


def evaluated_examples(corpus: Corpus) -> list[Example]:
    """The examples of all test splits in the corpus's order, which is the order of a list of responses."""
    return [example for split in corpus.test_splits for example in corpus.splits[split]]


def responses_by_id(model: str, given: Responses, examples: Sequence[Example]) -> dict[str, str]:
    """A model's responses as sample_ID -> text, checked to be one for each example.

    Args:
        model: its name, for errors.
        given: a mapping by sample_ID, or a list aligned with `examples`.

    Raises:
        DataError: a sample without response, a response without sample, or one that is not a text or is blank.
    """
    ids = [example.sample_id for example in examples]
    where = f"responses of {model!r}"
    if not isinstance(given, Mapping):
        if isinstance(given, str) or len(given) != len(ids):
            raise DataError(
                f"{where}: found {'a string' if isinstance(given, str) else f'a list of {len(given)}'}; accepted is "
                f"one response for each of the {len(ids)} test examples, in their order, or a mapping by sample_ID."
            )
        given = dict(zip(ids, given, strict=True))
    missing = [sample_id for sample_id in ids if sample_id not in given]
    unknown = sorted(set(given) - set(ids))
    for samples, fault in ((missing, "test examples lack a response"), (unknown, "responses are of no test example")):
        if samples:
            raise DataError(
                f"{where}: {len(samples)} {fault} ({', '.join(map(repr, samples[:3]))}{', ...' * (len(samples) > 3)}); "
                f"accepted is one response for each of the {len(ids)} test examples. Check the file and the data."
            )
    for sample_id in ids:
        if not isinstance(given[sample_id], str) or not given[sample_id].strip():
            raise DataError(
                f"{where}: sample {sample_id!r} has {given[sample_id]!r}; accepted is a string with at least one "
                "visible character. Generate this response again."
            )
    return {sample_id: given[sample_id] for sample_id in ids}


def golden_by_id(examples: Sequence[Example], source: str) -> dict[str, str]:
    """The golden responses as sample_ID -> text; DataError names the first example without one."""
    golden = {}
    for example in examples:
        if example.golden_response is None:
            raise DataError(
                f"{source}: sample {example.sample_id!r} has no agent_golden_response; every test example needs one."
            )
        golden[example.sample_id] = example.golden_response
    return golden


def score_subset(
    estimator: Estimator,
    subset: Subset,
    responses: Mapping[str | None, Mapping[str, str]],
    pairs: np.ndarray,
    contexts_at_once: int,
    reporter: Reporter,
) -> ScoredSubset:
    """Score all responses of one subset; a context, with its reasoning, is given to the estimator once for all.

    Args:
        responses: sample_ID -> text under each model's name; golden under None.
        pairs: (P, 2) mismatched pairs.
        contexts_at_once: contexts per call of the estimator.

    Raises:
        ArtifactError: the estimator gave scores of another shape, or one that is not a finite number.
    """
    count = len(subset.examples)
    texts = [given[example.sample_id] for given in responses.values() for example in subset.examples]
    of_one = np.concatenate([np.stack([np.arange(count)] * 2, axis=1), pairs])  # matched pairs first
    wanted = np.concatenate([np.add(of_one, [0, count * index]) for index in range(len(responses))])
    total, tokens = np.empty(len(wanted)), np.empty(len(wanted), dtype=np.int64)
    for start in range(0, count, contexts_at_once):
        block = subset.examples[start : start + contexts_at_once]
        rows = np.flatnonzero((wanted[:, 0] >= start) & (wanted[:, 0] < start + len(block)))
        used, response = np.unique(wanted[rows, 1], return_inverse=True)
        reporter.step(f"{subset.row}: writing reasoning")
        reasoning = estimator.reason(block)
        reporter.step(f"{subset.row}: scoring responses")
        block_pairs = np.stack([wanted[rows, 0] - start, response], axis=1)
        scores = estimator.log_prob_pairs(block, [texts[index] for index in used], reasoning, block_pairs)
        _check(scores, len(rows), subset.row)
        total[rows], tokens[rows] = scores.sum, scores.tokens
        reporter.step(f"{subset.row}: scored", finished=len(block))
    return _by_model(subset, pairs, list(responses), total, tokens)


def _by_model(
    subset: Subset, pairs: np.ndarray, models: Sequence[str | None], total: np.ndarray, tokens: np.ndarray
) -> ScoredSubset:
    """Take apart scores that lie model after model, each with its matched pairs first."""
    count = len(subset.examples)
    positive, negative = {}, {}
    shape = (len(models), count + len(pairs))
    for model, sums, counts in zip(models, total.reshape(shape), tokens.reshape(shape), strict=True):
        positive[model] = Scores(sums[:count], counts[:count])
        negative[model] = Scores(sums[count:], counts[count:])
    return ScoredSubset(subset, pairs, positive, negative)


def _check(scores: Scores, count: int, where: str) -> None:
    if np.shape(scores.sum) != (count,):
        raise ArtifactError(f"{where}: the estimator gave scores of shape {np.shape(scores.sum)} for {count} pairs.")
    bad = int(np.sum(~np.isfinite(scores.sum)))
    if bad:
        raise ArtifactError(
            f"{where}: the estimator gave {bad} of {count} pairs a log-probability that is not a finite number; "
            "its weights may be damaged or diverged. Evaluate another checkpoint."
        )
