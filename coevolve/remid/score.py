"""The door to scoring: golden and model responses over matched and mismatched pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError, RecipeError
from coevolve.information.contrast import Contrast
from coevolve.information.estimate import FORMS
from coevolve.information.log_probs import Normalisation
from coevolve.information.marginal import bigram_log_probs
from coevolve.information.readers import halves
from coevolve.remid.measures import PUBLISHED, RECOMMENDED, Measure
from coevolve.remid.pairs import (
    PUBLISHED_NEGATIVES,
    Negatives,
    check_negatives,
    contexts_per_response,
    negative_pairs,
    pairs_within,
    with_contexts,
)
from coevolve.remid.subsets import Responses, Subset, Texts, distributions, texts_by_model
from coevolve.scoring.reasoning import Advance, Connector, Reasoning, combine
from coevolve.scoring.scores import Scores

OnStep = Callable[[str, int, int], None]
"""Told what is happening, how much is done, and how much there is in all."""
SmallSubsets = Literal["error", "show"]


class Tokeniser(Protocol):
    """The tokeniser's part of an estimator."""

    def response_ids(self, response: str) -> list[int]:
        """The ids that are scored, the end of turn among them."""
        ...


class PairScorer(Protocol):
    """Whatever gives responses log-probabilities."""

    def log_prob_pairs(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        pairs: np.ndarray,
    ) -> Scores:
        """Scores, (P,), of `pairs`, (P, 2): index into `examples`, index into `responses`."""
        ...


class Estimator(Connector, PairScorer, Protocol):
    """The part of `coevolve.ProbabilityEstimator` that scoring needs."""

    @property
    def renderer(self) -> Tokeniser:
        """For measures that need a model of the responses alone."""
        ...

    def log_prob(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        *,
        progress: Advance | None = None,
    ) -> Scores:
        """Scores, (N,), of each response to its own example."""
        ...


Readings = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Reader:
    """What else reads responses: what `open` gives, when its turn comes, for as long as that lasts.

    `name` is what results call it, for each model whose responses it reads (None: golden). It is
    shown no reasoning unless `reasoned`.
    """

    open: Callable[[], PairScorer]
    name: Mapping[str | None, str]
    reasoned: bool = False


LEAST_CONTEXTS = 32
"""Other contexts in which each response must be scored for `calibrated` to be the default."""


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how.

    `negatives` are the mismatched pairs per subset: a number (published: 1,000, or all where there
    are fewer), "all", or `PerContext(K)`. Forms that average over contexts want all, or K in the
    hundreds. `seed` is of the choice of pairs. `small_subsets`: a shifted subset of one example is
    an error, or shown without numbers. `contexts_at_once` go to the estimator in one call, between
    two reports of progress. `further` are contexts by row, of the same distribution, to which there
    are no responses: every response is scored in them as well. If `halved`, responses only meet
    contexts of their own half (`halves`), so that a reader of one may be fitted to the other.
    """

    negatives: Negatives = PUBLISHED_NEGATIVES
    seed: int = 0
    reasoning: Reasoning = field(default_factory=Reasoning)
    small_subsets: SmallSubsets = "error"
    contexts_at_once: int = 32
    further: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    halved: bool = False

    def __post_init__(self) -> None:
        check_negatives(self.negatives)
        count, small = self.contexts_at_once, self.small_subsets
        if count < 1:
            raise RecipeError(f"contexts_at_once is {count}; accepted are integers from 1 up.")
        if small not in ("error", "show"):
            raise RecipeError(f"small_subsets is {small!r}; accepted are 'error' and 'show'.")

    def subsets_with_pairs(
        self, corpus: Corpus
    ) -> tuple[list[tuple[Subset, np.ndarray]], list[Subset]]:
        """(subsets with mismatched pairs, in distribution first; those that are too small)."""
        subsets = distributions(corpus)
        small = [s for s in subsets[1:] if self.small_subsets == "show" and len(s.examples) < 2]
        chosen = []
        for subset in subsets:
            if subset not in small:
                where = f"{corpus.source}: {subset.row}"
                half = halves(subset.ids, self.seed) if self.halved else None
                make = negative_pairs if half is None else partial(pairs_within, half)
                pairs = make(subset.ids, self.negatives, seed=self.seed, where=where)
                further = len(self.contexts(subset)) - len(subset.examples)
                chosen.append((subset, with_contexts(pairs, len(subset.examples), further, half)))
        return chosen, small

    def contexts(self, subset: Subset) -> tuple[Example, ...]:
        """All in which its responses are scored, their own first."""
        further = self.further.get(subset.row, ())
        even = len(further) - len(further) % 2
        return (*subset.examples, *(further[:even] if self.halved else further))

    def half_of(self, corpus: Corpus) -> dict[str, int]:
        """sample_ID -> 0 or 1, of every context."""
        found: dict[str, int] = {}
        for subset in distributions(corpus):
            of_own = halves(subset.ids, self.seed).tolist()
            ids = [example.sample_id for example in self.contexts(subset)]
            found |= dict(zip(ids, [*of_own, *([0, 1] * len(ids))], strict=False))
        return found


@dataclass(frozen=True)
class ScoredSubset:
    """A subset's log-probabilities, which every measure and, by resampling, its interval follow
    from.

    `pairs`, (P, 2), are mismatched (context, response), the same for golden and every model. Under
    each model's name, golden's under None: scores of the matched pairs `positive`, (N,), of the
    mismatched ones `negative`, (P,), and log m(y) by a model of the responses alone `marginal`,
    (N,), empty if none was asked for. `readings` are the sums of the same pairs, (N,) and (P,), by
    further readers of its responses, by their names.
    """

    subset: Subset
    pairs: np.ndarray
    positive: Mapping[str | None, Scores]
    negative: Mapping[str | None, Scores]
    marginal: Mapping[str | None, np.ndarray] = field(default_factory=dict)
    readings: Mapping[str | None, "Readings"] = field(default_factory=dict)

    @property
    def contexts(self) -> int:
        """In how many other contexts each response was scored, the least of them."""
        return contexts_per_response(self.pairs, len(self.subset.examples))

    def contrast(
        self,
        model: str | None,
        normalisation: Normalisation,
        contexts: int | None = None,
        reader: str | None = None,
    ) -> Contrast:
        """The contrast of a model's responses, or of the golden ones for None; of each response in
        the first `contexts` other contexts only, if that is given; as the named `reader` reads
        them, if that is given. Tokens are the estimator's, whoever reads.
        """
        matched, mismatched = self.positive[model], self.negative[model]
        if reader is not None:
            own, other = self.readings[model][reader]
            matched, mismatched = replace(matched, sum=own), replace(mismatched, sum=other)
        marginal = self.marginal.get(model)
        whole = Contrast.from_pairs(matched, mismatched, self.pairs, normalisation, marginal)
        return whole if contexts is None else whole.first_pairs(contexts * whole.examples)


@dataclass(frozen=True)
class ScoredCorpus:
    """The scores of a corpus, `subsets` in distribution first, `left_out` those too small to be
    scored.
    """

    scoring: Scoring
    subsets: Sequence[ScoredSubset]
    left_out: Sequence[Subset]
    texts: Texts

    @property
    def models(self) -> list[str]:
        """Names, in the order given."""
        return [name for name in self.texts if name is not None]


class Reporter:
    """Counts contexts over all subsets and passes each step on, if anybody listens."""

    def __init__(self, progress: OnStep | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def step(self, what: str, finished: int = 0) -> None:
        """Report what begins now, `finished` contexts after the last report."""
        self._done += finished
        if self._progress is not None:
            self._progress(what, self._done, self._total)


def score_corpus(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    scoring: Scoring | None = None,
    *,
    measures: Sequence[Measure] = (),
    readers: Sequence[Reader] = (),
    progress: OnStep | None = None,
) -> ScoredCorpus:
    """The log-probabilities that every measure, the bound and the blame are made of.

    What is wrong with the corpus, the responses or the pairs is raised before anything is scored.

    Args:
        estimator: writes the reasonings, shared by golden and all models, and scores responses.
        scoring: by default with the estimator's own form.
        responses: per model, sample_ID -> response for all test examples, or a list in
            `evaluated_examples` order.
        measures: what will be asked of the scores, so that what they lack is an error at once.
        readers: of some of the responses, beside the estimator.
        progress: told of the contexts.
    """
    scoring = scoring or Scoring(reasoning=getattr(estimator, "form", Reasoning()))
    distributions(corpus)
    texts = texts_by_model(corpus, responses)
    chosen, left_out = scoring.subsets_with_pairs(corpus)
    for subset, pairs in chosen:
        # A reader is chosen by its bound.
        _check_pairs(subset, pairs, [*measures, RECOMMENDED] if readers else measures)
    contexts = sum(len(scoring.contexts(subset)) for subset, _ in chosen)
    reporter = Reporter(progress, contexts * (1 + len(readers)))
    marginal = any(FORMS[measure.form].needs == "marginal" for measure in measures)
    more = scoring, reporter, marginal
    scored = [
        _score_subset(estimator, estimator, subset, texts, pairs, *more) for subset, pairs in chosen
    ]
    for reader in readers:
        scored = _read_too(reader, estimator, scored, texts, scoring, reporter)
    return ScoredCorpus(scoring, scored, left_out, texts)


def score_examples(
    estimator: Estimator,
    examples: Sequence[Example],
    responses: Sequence[str],
    reasoning: Reasoning,
    advance: Advance | None = None,
) -> tuple[Scores, list[list[str | None]]]:
    """(scores, (N,), of each response to its own example; K lists of the reasonings shown).

    `advance` is told of each reasoning that is written and of each response that is scored.
    """
    written = reasoning.write(estimator, examples, advance)
    scores = [estimator.log_prob(examples, responses, r, progress=advance) for r in written]
    return combine(reasoning.weights, scores), written


def score_pairs(
    scorer: PairScorer,
    examples: Sequence[Example],
    texts: Sequence[str],
    form: Reasoning,
    written: Sequence[Sequence[str | None]],
    pairs: np.ndarray,
    where: str,
) -> Scores:
    """Scores, (P,), of pairs (index of an example, of a text) by a form that wrote `written`."""
    scores = [scorer.log_prob_pairs(examples, texts, r, pairs) for r in written]
    for given in scores:
        if np.shape(given.sum) != (len(pairs),):
            found = f"scores of shape {np.shape(given.sum)} for {len(pairs)} pairs"
            raise ArtifactError(f"{where}: the estimator gave {found}.")
        bad = int(np.sum(~np.isfinite(given.sum)))
        if bad:
            raise ArtifactError(
                f"{where}: the estimator gave {bad} of {len(pairs)} pairs a log-probability that "
                "is not a finite number; its weights may be damaged or diverged. Evaluate another "
                "checkpoint."
            )
    return combine(form.weights, scores)


def _score_subset(
    estimator: Estimator,
    scorer: PairScorer,
    subset: Subset,
    responses: Texts,
    pairs: np.ndarray,
    scoring: Scoring,
    reporter: Reporter,
    marginal: bool,
) -> ScoredSubset:
    """Score a subset's responses: a context and its reasoning are given to the estimator once for
    all, and a text that several models or examples have is scored once per context.
    """
    count = len(subset.examples)
    texts = [given[sample_id] for given in responses.values() for sample_id in subset.ids]
    different = list(dict.fromkeys(texts))
    number = {text: index for index, text in enumerate(different)}
    text_of = np.array([number[text] for text in texts])
    # Of one model: matched pairs first.
    of_one = np.concatenate([np.stack([np.arange(count)] * 2, axis=1), pairs])
    wanted = np.concatenate([np.add(of_one, [0, count * index]) for index in range(len(responses))])
    wanted = np.stack([wanted[:, 0], text_of[wanted[:, 1]]], axis=1)
    total, tokens = np.empty(len(wanted)), np.empty(len(wanted), dtype=np.int64)
    contexts = scoring.contexts(subset)
    for start in range(0, len(contexts), scoring.contexts_at_once):
        block = contexts[start : start + scoring.contexts_at_once]
        rows = np.flatnonzero((wanted[:, 0] >= start) & (wanted[:, 0] < start + len(block)))
        asked, asked_of_row = np.unique(wanted[rows], axis=0, return_inverse=True)
        used, response = np.unique(asked[:, 1], return_inverse=True)
        reporter.step(f"{subset.row}: writing reasoning")
        form = scoring.reasoning
        written = form.write(estimator, block)
        reporter.step(f"{subset.row}: scoring responses")
        block_texts = [different[index] for index in used]
        block_pairs = np.stack([asked[:, 0] - start, response], axis=1)
        scores = score_pairs(scorer, block, block_texts, form, written, block_pairs, subset.row)
        total[rows], tokens[rows] = scores.sum[asked_of_row], scores.tokens[asked_of_row]
        reporter.step(f"{subset.row}: scored", finished=len(block))
    sums = dict(zip(responses, total.reshape(len(responses), -1), strict=True))
    lengths = dict(zip(responses, tokens.reshape(len(responses), -1), strict=True))
    matched, mismatched = (
        {model: Scores(sums[model][part], lengths[model][part]) for model in responses}
        for part in (slice(count), slice(count, None))
    )
    of_responses = {}
    for model, given in responses.items() if marginal else ():
        ids = [estimator.renderer.response_ids(given[name]) for name in subset.ids]
        of_responses[model] = bigram_log_probs(ids)  # fitted to the responses that it scores
    return ScoredSubset(subset, pairs, matched, mismatched, of_responses)


def _read_too(
    reader: Reader,
    estimator: Estimator,
    scored: Sequence[ScoredSubset],
    responses: Texts,
    scoring: Scoring,
    reporter: Reporter,
) -> list[ScoredSubset]:
    """What a further reader makes of the same pairs, beside what is known of them."""
    texts, scorer = {model: responses[model] for model in reader.name}, reader.open()
    form = scoring.reasoning if reader.reasoned else Reasoning("none")
    how, found = (replace(scoring, reasoning=form), reporter, False), []
    for one in scored:
        read = _score_subset(estimator, scorer, one.subset, texts, one.pairs, *how)
        readings = dict(one.readings)
        for model, name in reader.name.items():
            sums = read.positive[model].sum, read.negative[model].sum
            readings[model] = {**readings.get(model, {}), name: sums}
        found.append(replace(one, readings=readings))
    return found


def _check_pairs(subset: Subset, pairs: np.ndarray, measures: Sequence[Measure]) -> None:
    """DataError if a measure wants each response in equally many contexts and it is not."""
    used = np.bincount(pairs[:, 1], minlength=len(subset.examples))
    for measure in measures:
        if measure.of_each_response and used.min() != used.max():
            raise DataError(
                f"{subset.row}: {measure.form} needs each response in equally many other contexts; "
                f"a sample of {len(pairs)} pairs has them in {used.min()} to {used.max()}. Give "
                "negatives 'all' or so many per context."
            )


def default_measures(scored: ScoredCorpus) -> tuple[Measure, ...]:
    """What is measured unless something else is asked for, the main one first: `calibrated` per
    response with the published CLUB per token beside it, where each response was scored in 32 other
    contexts or in all there are; else the published one alone, which is all that a sample of pairs
    allows.
    """
    parts = 2 if scored.scoring.halved else 1
    enough = all(
        x.contexts >= min(LEAST_CONTEXTS, len(x.subset.examples) // parts - 1)
        for x in scored.subsets
    )
    return (RECOMMENDED, PUBLISHED) if enough else (PUBLISHED,)
