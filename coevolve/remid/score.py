"""Scoring golden and model responses over the matched and mismatched pairs of each subset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, Corpus
from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError, RecipeError
from coevolve.information.estimate import Contrast
from coevolve.information.log_probs import Normalisation
from coevolve.information.marginal import bigram_log_probs
from coevolve.remid.pairs import contexts_per_response
from coevolve.scoring.scores import Scores

IN_DISTRIBUTION = "IDTest"

Responses = Mapping[str, str] | Sequence[str]
Progress = Callable[[str, int, int], None]  # what is happening, contexts done, contexts in all


class Renderer(Protocol):
    """The tokeniser's part of an estimator."""

    def response_ids(self, response: str) -> list[int]:
        """The ids that are scored, the end of turn among them."""
        ...


class Estimator(Protocol):
    """The part of `coevolve.ProbabilityEstimator` that the evaluation needs."""

    renderer: Renderer  # for `difference_of_entropies` only

    def reason(self, examples: Sequence[Example], *, seed: int | None = None) -> list[str]:
        """One reasoning per example, written without a look at its response; sampled if a seed is
        given.
        """
        ...

    def log_prob_pairs(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        pairs: np.ndarray,
    ) -> Scores:
        """Scores, (P,), of `pairs`, (P, 2): index into `examples`, index into `responses`, of which
        there are more.
        """
        ...


ReasoningKind = Literal["greedy", "sampled", "marginal", "none", "given"]


@dataclass(frozen=True)
class Reasoning:
    """The protocol by which the condition r is chosen; it moves perplexities by 6 to 8 %, so
    results state it.

    Attributes:
        kind: `greedy`, one decoded without chance; `sampled`, one drawn from q1(r | x); `marginal`,
            log mean over `samples` drawn ones of q2(y | x, r), for every pair; `none`, q2(y | x):
            EMI instead of R-EMI; `given`, one that was written elsewhere.
        samples: K of `marginal`; a mixture of K is to be compared with mixtures of K only.
        seed: of what is drawn.
        texts: of `given`, sample_ID -> reasoning.
        sha256: of `given`, of the file that they came from, for results.
    """

    kind: ReasoningKind = "greedy"
    samples: int = 1
    seed: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ReasoningKind):
            raise RecipeError(
                f"reasoning is {self.kind!r}; accepted are {', '.join(map(repr, get_args(ReasoningKind)))}."
            )
        if (
            type(self.samples) is not int
            or self.samples < 1
            or (self.samples > 1 and self.kind != "marginal")
        ):
            raise RecipeError(
                f"reasoning {self.kind!r} with {self.samples!r} samples; accepted are integers from 1 up, and more "
                "than one for 'marginal' only."
            )

    def write(self, estimator: Estimator, examples: Sequence[Example]) -> list[list[str | None]]:
        """K lists of one reasoning per example."""
        if self.kind == "none":
            return [[None] * len(examples)]
        if self.kind == "given":
            return [[self.texts[example.sample_id] for example in examples]]
        if self.kind == "greedy":
            return [list(estimator.reason(examples))]
        return [list(estimator.reason(examples, seed=self.seed + k)) for k in range(self.samples)]

    def describe(self) -> dict[str, Any]:
        """For results: what makes the protocol repeatable."""
        if self.kind == "given":
            return {"kind": self.kind, "sha256": self.sha256}
        drawn = (
            {} if self.kind in ("greedy", "none") else {"samples": self.samples, "seed": self.seed}
        )
        return {"kind": self.kind, **drawn}


@dataclass(frozen=True)
class Subset:
    """Examples of one distribution.

    Attributes:
        row: its name in results and tables: `IDTest`, or split and subset tag as in
            `OOD1Test/german`.
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
    """A subset's log-probabilities, from which every measure and, by resampling, its interval
    follow.

    Attributes:
        subset: whose N examples these are.
        pairs: (P, 2) mismatched (context, response), the same for golden and every model.
        positive: scores of the matched pairs, (N,), under each model's name; golden's under None.
        negative: scores of the mismatched pairs, (P,), likewise.
        marginal: log m(y), (N,), of the responses by a model of them alone, likewise; empty if none
            was asked for.
    """

    subset: Subset
    pairs: np.ndarray
    positive: Mapping[str | None, Scores]
    negative: Mapping[str | None, Scores]
    marginal: Mapping[str | None, np.ndarray] = field(default_factory=dict)

    @property
    def contexts(self) -> int:
        """In how many other contexts each response was scored, the least of them."""
        return contexts_per_response(self.pairs, len(self.subset.examples))

    def contrast(self, model: str | None, normalisation: Normalisation) -> Contrast:
        """The contrast of a model's responses, or of the golden ones for None."""
        return Contrast.from_pairs(
            self.positive[model],
            self.negative[model],
            self.pairs,
            normalisation,
            self.marginal.get(model),
        )


class Reporter:
    """Counts contexts over all subsets and passes each step on to a progress function, if there is
    one.
    """

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
                subsets.append(
                    Subset(f"{split}/{name}", split, name, SHIFT_OF_SPLIT[split], examples)
                )
    return subsets


def evaluated_examples(corpus: Corpus) -> list[Example]:
    """The examples of all test splits in the corpus's order, which is the order of a list of
    responses.
    """
    return [example for split in corpus.test_splits for example in corpus.splits[split]]


def responses_by_id(model: str, given: Responses, examples: Sequence[Example]) -> dict[str, str]:
    """A model's responses as sample_ID -> text, checked to be one for each example.

    Args:
        model: its name, for errors.
        given: a mapping by sample_ID, or a list aligned with `examples`.

    Raises:
        DataError: a sample without response, a response without sample, or one that is not a text
            or is blank.
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
    for samples, fault in (
        (missing, "test examples lack a response"),
        (unknown, "responses are of no test example"),
    ):
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
    *,
    reasoning: Reasoning | None = None,
    marginal: bool = False,
) -> ScoredSubset:
    """Score all responses of one subset; a context, with its reasoning, is given to the estimator
    once for all.

    A text that several models, or several examples, have as response is scored once per context.

    Args:
        responses: sample_ID -> text under each model's name; golden under None.
        pairs: (P, 2) mismatched pairs.
        contexts_at_once: contexts per call of the estimator.
        reasoning: the protocol; greedy by default.
        marginal: whether `difference_of_entropies` will be asked for.

    Raises:
        ArtifactError: the estimator gave scores of another shape, or one that is not a finite
            number.
    """
    reasoning = reasoning or Reasoning()
    count = len(subset.examples)
    texts = [
        given[example.sample_id] for given in responses.values() for example in subset.examples
    ]
    different = list(dict.fromkeys(texts))
    number = {text: index for index, text in enumerate(different)}
    places = np.array([number[text] for text in texts])
    of_one = np.concatenate(
        [np.stack([np.arange(count)] * 2, axis=1), pairs]
    )  # matched pairs first
    wanted = np.concatenate([np.add(of_one, [0, count * index]) for index in range(len(responses))])
    wanted = np.stack([wanted[:, 0], places[wanted[:, 1]]], axis=1)
    total, tokens = np.empty(len(wanted)), np.empty(len(wanted), dtype=np.int64)
    for start in range(0, count, contexts_at_once):
        block = subset.examples[start : start + contexts_at_once]
        rows = np.flatnonzero((wanted[:, 0] >= start) & (wanted[:, 0] < start + len(block)))
        asked, place = np.unique(wanted[rows], axis=0, return_inverse=True)
        used, response = np.unique(asked[:, 1], return_inverse=True)
        reporter.step(f"{subset.row}: writing reasoning")
        written = reasoning.write(estimator, block)
        reporter.step(f"{subset.row}: scoring responses")
        block_pairs = np.stack([asked[:, 0] - start, response], axis=1)
        scores = _score_block(
            estimator, block, [different[index] for index in used], written, block_pairs, subset.row
        )
        total[rows], tokens[rows] = scores.sum[place], scores.tokens[place]
        reporter.step(f"{subset.row}: scored", finished=len(block))
    marginals = _marginals(estimator, subset, responses) if marginal else {}
    return _by_model(subset, pairs, list(responses), total, tokens, marginals)


def _score_block(
    estimator: Estimator,
    examples: Sequence[Example],
    texts: Sequence[str],
    written: Sequence[Sequence[str | None]],
    pairs: np.ndarray,
    where: str,
) -> Scores:
    """log mean over the reasonings of q2(y | x, r), for each pair."""
    sums = []
    for reasoning in written:
        scores = estimator.log_prob_pairs(examples, texts, reasoning, pairs)
        _check(scores, len(pairs), where)
        sums.append(scores.sum)
    return Scores(np.logaddexp.reduce(sums, axis=0) - np.log(len(sums)), scores.tokens)


def _marginals(
    estimator: Estimator, subset: Subset, responses: Mapping[str | None, Mapping[str, str]]
) -> dict[str | None, np.ndarray]:
    """log m(y) of each model's responses, m being fitted to that model's responses to this subset."""
    return {
        model: bigram_log_probs(
            [estimator.renderer.response_ids(given[x.sample_id]) for x in subset.examples]
        )
        for model, given in responses.items()
    }


def _by_model(
    subset: Subset,
    pairs: np.ndarray,
    models: Sequence[str | None],
    total: np.ndarray,
    tokens: np.ndarray,
    marginals: Mapping[str | None, np.ndarray],
) -> ScoredSubset:
    """Take apart scores that lie model after model, each with its matched pairs first."""
    count = len(subset.examples)
    positive, negative = {}, {}
    shape = (len(models), count + len(pairs))
    for model, sums, counts in zip(
        models, total.reshape(shape), tokens.reshape(shape), strict=True
    ):
        positive[model] = Scores(sums[:count], counts[:count])
        negative[model] = Scores(sums[count:], counts[count:])
    return ScoredSubset(subset, pairs, positive, negative, marginals)


def _check(scores: Scores, count: int, where: str) -> None:
    if np.shape(scores.sum) != (count,):
        raise ArtifactError(
            f"{where}: the estimator gave scores of shape {np.shape(scores.sum)} for {count} pairs."
        )
    bad = int(np.sum(~np.isfinite(scores.sum)))
    if bad:
        raise ArtifactError(
            f"{where}: the estimator gave {bad} of {count} pairs a log-probability that is not a finite number; "
            "its weights may be damaged or diverged. Evaluate another checkpoint."
        )
