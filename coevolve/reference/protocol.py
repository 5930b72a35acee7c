"""R-EMI and R-EMID as the paper's public code computes them, faults included, so that its numbers
can be compared.

What differs from the exact protocol, which everything else in coevolve follows:
- Window. x is the prompt with an empty assistant message and the generation prompt, xy the prompt
  with the response as assistant message and the generation prompt; both are rendered and tokenised
  whole and cut at 4,096 tokens. Scored are the tokens of xy from position len(x) on. With T the
  length of the generation prompt, that leaves out the first T tokens of the response and scores T -
  1 tokens of the template behind it.
- A window without a token counts as log-probability 0, that of a certain event.
- Texts go into the template as they are; one that holds control tokens changes the prompt.
- A response's log-probability is the mean over its window, in nats per token.
- Mismatched pairs are drawn anew for each set of responses, all from one generator seeded with 42.

What stays ours: scores are computed in the estimator's own number format, where the public code has
8-bit weights, and the reasoning is decoded greedily, where that code samples it; `reasoning` takes
what it wrote.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError
from coevolve.information.estimate import FORMS
from coevolve.information.log_probs import UNITS
from coevolve.prompts import Renderer
from coevolve.remid.evaluate import SCHEMA
from coevolve.remid.results import (
    ChosenReasoning,
    Golden,
    Losses,
    OfModel,
    RemidResults,
    SubsetResults,
)
from coevolve.remid.score import OnStep, Reporter
from coevolve.remid.subsets import (
    Responses,
    Subset,
    distributions,
    evaluated_examples,
    responses_by_id,
    texts_by_model,
)
from coevolve.scoring.batching import TOKEN_BUDGET
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import ESTIMATOR
from coevolve.scoring.scores import Scores

MAX_LENGTH = 4096
NEGATIVES = 1000
SEED = 42

# The public evaluation goes through its subsets in this order, which decides the pairs that each
# one draws.
PUBLISHED_ORDER = (
    *("IDTest", "german", "spanish", "chinese", "japanese", "korean"),
    *("Literature", "Film & Television", "Theater", "Gaming"),
    *("TurnLevelComposition", "WordLevelComposition"),
)

NO_LOSS_ERRORS: dict[str, Any] = dict.fromkeys(
    ("remid_error", "remid_low", "remid_high", "chance_of_loss")
)
NO_ERRORS: dict[str, Any] = (
    dict.fromkeys(("remi_error", "remi_low", "remi_high", "holm_p")) | NO_LOSS_ERRORS
)

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Window:
    """A rendered context with its response: `ids` of the whole, at most 4,096; `start` of the
    scored positions, none if it is behind the last one; `cut` if the text was longer.
    """

    ids: list[int]
    start: int
    cut: bool


class VerbatimRenderer(Renderer):
    """Renders texts as they are, control tokens and all."""

    def harmless(self, text: str) -> str:
        return text


def reference_window(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    target: str,
    max_length: int = MAX_LENGTH,
) -> Window:
    """The ids and the scored positions of a target behind chat messages."""
    x, _ = _rendered_ids(tokenizer, [*messages, {"role": "assistant", "content": ""}], max_length)
    xy, cut = _rendered_ids(
        tokenizer, [*messages, {"role": "assistant", "content": target}], max_length
    )
    return Window(xy, len(x), cut)


def reference_scores(
    model: torch.nn.Module,
    windows: Sequence[Window],
    *,
    pad_id: int,
    token_budget: int = TOKEN_BUDGET,
) -> Scores:
    """Of the scored positions, which may be none: sums in nats per response, and their numbers;
    (R,).
    """
    total, tokens = np.zeros(len(windows)), np.zeros(len(windows), dtype=np.int64)
    filled = [index for index, window in enumerate(windows) if window.start < len(window.ids)]
    prompts = [windows[index].ids[: windows[index].start] for index in filled]
    targets = [windows[index].ids[windows[index].start :] for index in filled]
    values = score_rows(model, prompts, targets, pad_id=pad_id, token_budget=token_budget)
    for index, row in zip(filled, values, strict=True):
        total[index], tokens[index] = row.sum(), len(row)
    return Scores(total, tokens)


def reference_means(scores: Scores) -> np.ndarray:
    """Log-probabilities in nats per token, (R,); 0 where no token was scored."""
    return scores.sum / np.maximum(scores.tokens, 1)


def reference_pairs(count: int, generator: random.Random) -> np.ndarray:
    """(P, 2) mismatched (context, response): 1,000 drawn from the N (N - 1) listed row by row, or
    all, shuffled. `generator` is moved on, as the public code moves on Python's global one.
    """
    total = count * (count - 1)
    context, response = np.divmod(generator.sample(range(total), min(total, NEGATIVES)), count - 1)
    return np.stack([context, response + (response >= context)], axis=1)


def evaluate_reference(
    estimator: ProbabilityEstimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    *,
    reasoning: Reasoning | None = None,
    progress: OnStep | None = None,
) -> RemidResults:
    """R-EMI and R-EMID by the public code's protocol.

    Args:
        estimator: writes the reasonings and scores; an imported one has the public prompts too.
        responses: as for `score_corpus`. Their order is part of the protocol, since all draw pairs
            from one generator.
        reasoning: greedy, which is the default, or given for all test examples.
        progress: each context counts once for golden and once for every model.

    Null is what this protocol does not give (errors, intervals, chances, contexts). In addition
    there is `protocol`: {name, max_length, windows, cut (longer than max_length), empty (no token
    left to score, counted as 0)}. Golden's perplexity is over the scored positions, null without
    any.
    """
    reasoning = reasoning or Reasoning()
    subsets = distributions(corpus)
    texts = texts_by_model(corpus, responses)
    for subset in subsets:
        if len(subset.examples) < 2:
            raise DataError(
                f"{corpus.source}: {subset.row}: found a single example "
                f"({subset.examples[0].sample_id!r}), for which there is no mismatched pair. Add "
                "examples or leave the subset out."
            )
    examples = evaluated_examples(corpus)
    if reasoning.kind == "given":
        responses_by_id("reasoning", reasoning.texts, examples)
    scorer = _Scorer(estimator, reasoning, Reporter(progress, len(examples) * len(texts)))
    generator = random.Random(SEED)
    scored: dict[tuple[str | None, str], _Club] = {}
    in_order = sorted(subsets, key=_published_place)
    for model in responses:
        for subset in in_order:
            scored[model, subset.row] = scorer.club(subset, model, texts[model], generator)
            if (None, subset.row) not in scored:
                scored[None, subset.row] = scorer.club(subset, None, texts[None], generator)
    return _results(subsets, list(responses), scored, reasoning)


@dataclass(frozen=True)
class _Club:
    """Scores of one model's responses to one subset: of matched pairs, (N,), and mismatched ones,
    (P,); how many windows were longer than the limit (`cut`), or have no token left (`empty`).
    """

    positive: Scores
    negative: Scores
    cut: int
    empty: int

    @property
    def means(self) -> tuple[float, float]:
        """Of matched and of mismatched pairs, nats per token."""
        return float(reference_means(self.positive).mean()), float(
            reference_means(self.negative).mean()
        )

    @property
    def mutual_information(self) -> float:
        positive, negative = self.means
        return positive - negative


class _Scorer:
    """Scores subsets; a subset's contexts, with their reasonings, are made once for all models."""

    def __init__(self, estimator: ProbabilityEstimator, reasoning: Reasoning, reporter: Reporter):
        plain = estimator.renderer
        renderer = VerbatimRenderer(plain.prompts, plain.tokenizer, date=plain.date)
        self._estimator = ProbabilityEstimator(
            estimator.roles,
            renderer,
            max_new_tokens=estimator.max_new_tokens,
            no_repeat_ngram=estimator.no_repeat_ngram,
            token_budget=estimator.token_budget,
        )
        self._estimator.caches = estimator.caches
        self._reasoning = reasoning
        self._reporter = reporter
        self._contexts: dict[str, list[list[dict[str, str]]]] = {}

    def club(
        self, subset: Subset, model: str | None, texts: Mapping[str, str], generator: random.Random
    ) -> _Club:
        count, contexts = len(subset.examples), self._contexts_of(subset)
        self._reporter.step(f"{subset.row}: scoring {'golden' if model is None else model}")
        matched = np.stack([np.arange(count)] * 2, axis=1)
        pairs = np.concatenate([matched, reference_pairs(count, generator)])
        renderer = self._estimator.renderer
        start = renderer.prompts.response_start
        targets = [start + texts[example.sample_id] for example in subset.examples]
        windows = [reference_window(renderer.tokenizer, contexts[i], targets[j]) for i, j in pairs]
        with self._estimator.roles.acting(ESTIMATOR) as module:
            scores = reference_scores(
                module,
                windows,
                pad_id=renderer.tokenizer.pad_token_id,
                token_budget=self._estimator.token_budget,
            )
        self._reporter.step(f"{subset.row}: scored", finished=count)
        return _Club(
            positive=Scores(scores.sum[:count], scores.tokens[:count]),
            negative=Scores(scores.sum[count:], scores.tokens[count:]),
            cut=sum(window.cut for window in windows),
            empty=int(np.sum(scores.tokens == 0)),
        )

    def _contexts_of(self, subset: Subset) -> list[list[dict[str, str]]]:
        """The estimator's chat messages for each example."""
        if subset.row not in self._contexts:
            self._reporter.step(f"{subset.row}: writing reasoning")
            (reasoning,) = self._reasoning.write(self._estimator, subset.examples)
            render = self._estimator.renderer.estimator_messages
            self._contexts[subset.row] = [
                render(example, text)
                for example, text in zip(subset.examples, reasoning, strict=True)
            ]
        return self._contexts[subset.row]


def _published_place(subset: Subset) -> int:
    """Its place in the published order; what is not in it comes last, in the corpus's order."""
    return (
        PUBLISHED_ORDER.index(subset.name)
        if subset.name in PUBLISHED_ORDER
        else len(PUBLISHED_ORDER)
    )


def _rendered_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, max_length: int
) -> tuple[list[int], bool]:
    """Ids of the messages and the generation prompt, and whether they were cut."""
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    ids = tokenizer(text)["input_ids"]
    if len(ids) <= max_length:
        return ids, False
    return tokenizer(text, truncation=True, max_length=max_length)["input_ids"], True


def _results(
    subsets: Sequence[Subset],
    models: Sequence[str],
    scored: Mapping[tuple[str | None, str], _Club],
    reasoning: Reasoning,
) -> RemidResults:
    remi = {
        (name, subset.row): scored[name, subset.row].mutual_information
        - scored[None, subset.row].mutual_information
        for name in models
        for subset in subsets
    }
    home, *shifted = (subset.row for subset in subsets)
    remid = {(name, row): remi[name, home] - remi[name, row] for name in models for row in shifted}

    def average(rows: Sequence[str]) -> dict[str, Losses]:
        return {
            name: Losses(
                remi=float(np.mean([remi[name, row] for row in rows])),
                remid=float(np.mean([remid[name, row] for row in rows])),
                **NO_LOSS_ERRORS,
            )
            for name in models
        }

    shifts = dict.fromkeys(subset.shift for subset in subsets if subset.shift)
    clubs = scored.values()
    return RemidResults(
        schema=SCHEMA,
        form="club",
        normalisation="per_token",
        unit=UNITS["per_token"],
        bias=FORMS["club"].bias,
        negatives=NEGATIVES,
        seed=SEED,
        reasoning=ChosenReasoning.of(reasoning),
        protocol={
            "name": "reference",
            "max_length": MAX_LENGTH,
            "windows": sum(len(club.positive.sum) + len(club.negative.sum) for club in clubs),
            "cut": sum(club.cut for club in clubs),
            "empty": sum(club.empty for club in clubs),
        },
        models=list(models),
        subsets=[_row(subset, models, scored, remi, remid) for subset in subsets],
        by_shift={
            shift: average([subset.row for subset in subsets if subset.shift == shift])
            for shift in shifts
        },
        average=average(shifted) if shifted else {},
        comparisons=[],
        beside=[],
    )


def _row(
    subset: Subset,
    models: Sequence[str],
    scored: Mapping[tuple[str | None, str], _Club],
    remi: Mapping[tuple[str, str], float],
    remid: Mapping[tuple[str, str], float],
) -> SubsetResults:
    golden = scored[None, subset.row]
    tokens = int(golden.positive.tokens.sum())
    perplexity = float(np.exp(-golden.positive.sum.sum() / tokens)) if tokens else None
    return SubsetResults(
        **subset.identity,
        negatives=len(golden.negative.sum),
        contexts=None,
        reason=None,
        golden=Golden(**_numbers(golden), perplexity=perplexity, tokens=tokens),
        models={
            name: OfModel(
                **_numbers(scored[name, subset.row]),
                remi=remi[name, subset.row],
                remid=remid.get((name, subset.row)),
                **NO_ERRORS,
            )
            for name in models
        },
    )


def _numbers(club: _Club) -> dict[str, Any]:
    positive, negative = club.means
    return {
        "mutual_information": club.mutual_information,
        "mutual_information_error": None,
        "positive": positive,
        "negative": negative,
    }
