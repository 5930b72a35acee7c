"""Which examples and which tokens a model's R-EMI and R-EMID come from.

*Examples.* To first order an estimate of R-EMI is a mean over examples
(`coevolve.information.influence`):

    contribution_i = R-EMI + influence of example i,

the Hajek projection (van der Vaart, Asymptotic Statistics, chapter 11). The contributions' mean is
R-EMI, whatever the form and the pairs, and an example left out moves R-EMI by about
-(contribution_i - R-EMI) / (N - 1). It has three parts: `matched`, by the response in its own
context; `as_context`, by other examples' responses in this context; `as_response`, by the response
in other contexts: a general one, which says little about its own, is likely there too. For CLUB,
with d the model's minus the golden log-probability of a pair and D the mean of d over the P
mismatched pairs, they are d_ii - D, -N/P sum_{pairs (i, j)} (d_ij - D) and -N/P sum_{pairs (j, i)}
(d_ji - D).

*Loss.* In a shifted subset R-EMI in distribution minus the contribution: its mean is R-EMID. In
distribution minus the contribution: its mean is -R-EMI. The worst examples have the largest loss.

*Tokens.* A token's contribution is its log-probability in the response's own context minus its mean
in other contexts of the subset, the tokens before it being the same: pointwise mutual information,
nats. Over a response's tokens they add up to the response's own contrast. A token below 0 is
likelier elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from coevolve.errors import RecipeError
from coevolve.information.emi import emi
from coevolve.information.estimate import Estimate
from coevolve.remid.bound_results import (
    BlamedExample,
    BlameOfModel,
    BlameResults,
    BlameSubset,
    ShownExample,
    Token,
)
from coevolve.remid.grid import Block, Grid
from coevolve.remid.measures import Measure
from coevolve.remid.results import ChosenReasoning, form_name
from coevolve.remid.score import ScoredCorpus, ScoredSubset, default_measures
from coevolve.scoring.reasoning import Reasoning, combine_tokens

if TYPE_CHECKING:
    from coevolve.scoring.estimator import ProbabilityEstimator

SCHEMA: Literal["coevolve.blame/1"] = "coevolve.blame/1"
LEAST_TOKENS = 3


@dataclass(frozen=True)
class Contributions:
    """What each of a subset's N examples adds to R-EMI: by its own pair (mean R-EMI), and by the
    mismatched pairs of its context and of its response (mean 0). All (N,), in the estimate's unit.
    """

    matched: np.ndarray
    as_context: np.ndarray
    as_response: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The contribution; its mean is R-EMI."""
        return np.asarray(self.matched + self.as_context + self.as_response)


def contributions(remi: Estimate) -> Contributions:
    """The contribution of each example to an estimate of R-EMI."""
    values, count = remi.influence.mismatched, remi.influence.matched.size
    by_context, by_response = (
        np.bincount(remi.influence.pairs[:, end], weights=values, minlength=count)[:count]
        for end in (0, 1)
    )
    by_context -= by_context.mean()  # 0 but for what further contexts have of it
    return Contributions(remi.value + remi.influence.matched, by_context, by_response)


def losses(
    scored: Sequence[ScoredSubset], model: str, measure: Measure
) -> list[tuple[Contributions, np.ndarray]]:
    """Per subset, in distribution first as in `scored`, the contributions and the losses, (N,)."""
    home, *shifted = scored
    usual = contributions(remi_of(home, model, measure))
    listed = [(usual, -usual.total)]
    for subset in shifted:
        p, q = remis_of(home, subset, model, measure)
        part = contributions(q)
        listed.append((part, p.value - part.total))
    return listed


def remi_of(
    scored: ScoredSubset, model: str, measure: Measure, contexts: int | None = None
) -> Estimate:
    """R-EMI of a model's responses on a subset, each in so many other contexts, or in all."""
    own, golden = (scored.contrast(x, measure.normalisation, contexts) for x in (model, None))
    return emi(own, golden, measure.form)


def remis_of(
    home: ScoredSubset, subset: ScoredSubset, model: str, measure: Measure
) -> tuple[Estimate, Estimate]:
    """R-EMI in distribution and in a shifted subset, whose difference is R-EMID: over as many other
    contexts of each response, where the form depends on their number.
    """
    limit = measure.limit(min(home.contexts, subset.contexts))
    return remi_of(home, model, measure, limit), remi_of(subset, model, measure, limit)


@dataclass(frozen=True)
class TokenScoring:
    """How the tokens of the examples shown are scored: by the estimator and the reasoning that gave
    the scores, and for comparison in `other_contexts` of the subset, drawn by `seed`, or all there
    are.
    """

    estimator: "ProbabilityEstimator"
    reasoning: Reasoning
    other_contexts: int = 8
    seed: int = 0

    def tokens_of(
        self, own: Sequence[int], texts: Sequence[str], subset: ScoredSubset
    ) -> list[list[Token]]:
        """Each text's tokens, the end of turn last, in their own context and elsewhere; `own` is
        the index of each text's context in the subset.
        """
        examples = subset.subset.examples
        rng = np.random.default_rng(self.seed)
        others = {
            index: _others(index, len(examples), self.other_contexts, rng)
            for index in sorted(set(own))
        }  # the same for every text of a context, so that golden and model compare
        used = sorted({context for index, of in others.items() for context in (index, *of)})
        number_of = {context: number for number, context in enumerate(used)}
        pairs = [
            (number_of[context], number)
            for number, index in enumerate(own)
            for context in (index, *others[index])
        ]  # a context is shared by the texts of several examples, and is computed once
        contexts = [examples[context] for context in used]
        form, estimator = self.reasoning, self.estimator
        scores = combine_tokens(
            form.weights,
            [
                estimator.token_log_prob_pairs(contexts, texts, written, np.array(pairs))
                for written in form.write(estimator, contexts)
            ],
        )
        renderer = estimator.renderer
        listed: list[list[Token]] = []
        start = 0
        for index, text in zip(own, texts, strict=True):
            end = start + 1 + len(others[index])
            here, elsewhere = scores[start], np.mean(scores[start + 1 : end], axis=0)
            start, tokens = end, []
            for token, a, b in zip(renderer.response_ids(text), here, elsewhere, strict=True):
                numbers = {
                    "log_prob": float(a),
                    "elsewhere": float(b),
                    "contribution": float(a - b),
                }
                tokens.append(Token(text=str(renderer.tokenizer.decode([token])), **numbers))
            listed.append(tokens)
        return listed


def blame_examples(
    estimator: "ProbabilityEstimator",
    scored: ScoredCorpus,
    *,
    measure: Measure | None = None,
    shown: int = 3,
    other_contexts: int = 8,
    seed: int = 0,
) -> BlameResults:
    """Every example's contribution, and the worst and best of each subset with their texts and
    tokens.

    Args:
        estimator: the one that gave the scores.
        measure: of contributions and losses, by default that of `coevolve remid`; tokens are in
            nats.
        shown: examples at either end of each subset; fewer where a subset is small.
    """
    if shown < 1 or other_contexts < 1:
        found = f"shown is {shown}, other_contexts is {other_contexts}"
        raise RecipeError(f"{found}; accepted are integers from 1 up.")
    measure = measure or default_measures(scored)[0]
    tokens = TokenScoring(estimator, scored.scoring.reasoning, other_contexts, seed)
    of_models: list[dict[str, BlameOfModel]] = [{} for _ in scored.subsets]
    for name in scored.models:
        parts = losses(scored.subsets, name, measure)
        for blamed, subset, of_subset in zip(of_models, scored.subsets, parts, strict=True):
            blamed[name] = _of_model(tokens, subset, scored, name, shown, *of_subset)
    return BlameResults(
        schema=SCHEMA,
        form=measure.form,
        normalisation=measure.normalisation,
        unit=measure.unit,
        other_contexts=other_contexts,
        seed=seed,
        reasoning=ChosenReasoning.of(scored.scoring.reasoning),
        models=scored.models,
        subsets=[
            BlameSubset(row=subset.subset.row, shift=subset.subset.shift, models=blamed)
            for subset, blamed in zip(scored.subsets, of_models, strict=True)
        ],
    )


def blame_grid(results: BlameResults, model: str) -> Grid:
    """A model's worst and best examples by subset, with the tokens that say least."""
    blocks = []
    for subset in results.subsets:
        of_model, rows = subset.models[model], []
        for one in (*of_model.worst, *of_model.best):
            least = sorted(one.tokens, key=lambda token: token.contribution)[:LEAST_TOKENS]
            listed = ", ".join(f"{token.text!r} {token.contribution:+.2f}" for token in least)
            texts = one.last_turn, one.golden, one.response
            rows.append([one.sample_ID, f"{one.loss:+z.3f}", *texts, listed])
        blocks.append(Block(f"{results.label(subset.row)}, mean {of_model.loss:+z.3f}", rows))
    columns = ["sample", "loss", "last turn", "golden", "response", "tokens that say least"]
    caption = (
        f"loss: {results.unit}, by {form_name(results.form)}; its mean over a subset is R-EMID (in "
        "distribution: -R-EMI). Tokens: log-probability here minus elsewhere, nats, the lowest "
        "first."
    )
    return Grid(columns, blocks, [caption], f"{model}: the largest and smallest losses")


def worst_lines(results: BlameResults) -> list[str]:
    """Of each model the example with the largest loss in a subset that is shifted."""
    lines = []
    for model in results.models:
        found = [
            (one.loss, one.sample_ID, subset.row)
            for subset in results.subsets[1:] or results.subsets
            for one in subset.models[model].worst[:1]
        ]
        if found:
            loss, sample, row = max(found)
            lines.append(
                f"{model}: the largest loss is {loss:+.3f} {results.unit}, {sample} in {row}."
            )
    return lines


def _others(index: int, count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """Indices other than `index`, without repeats."""
    chosen = rng.choice(count - 1, size=min(wanted, count - 1), replace=False)
    return sorted(int(other + (other >= index)) for other in chosen)


def _of_model(
    tokens: TokenScoring,
    subset: ScoredSubset,
    scored: ScoredCorpus,
    model: str,
    shown: int,
    parts: Contributions,
    loss: np.ndarray,
) -> BlameOfModel:
    """Every example's numbers, and those at either end with their texts and tokens."""
    examples = subset.subset.examples
    listed = [
        BlamedExample(
            sample_ID=example.sample_id,
            loss=float(loss[index]),
            contribution=float(parts.total[index]),
            matched=float(parts.matched[index]),
            as_context=float(parts.as_context[index]),
            as_response=float(parts.as_response[index]),
        )
        for index, example in enumerate(examples)
    ]
    order = [int(index) for index in np.argsort(-loss, kind="stable")]
    worst, best = order[:shown], order[::-1][:shown]
    chosen = sorted({*worst, *best})
    ids = [examples[index].sample_id for index in chosen]
    ours, golden = ([scored.texts[name][sample_id] for sample_id in ids] for name in (model, None))
    scored_tokens = tokens.tokens_of([*chosen, *chosen], [*ours, *golden], subset)
    details = {
        index: ShownExample(
            **listed[index].values(),
            user_persona=examples[index].user_persona,
            agent_character=examples[index].agent_character,
            last_turn=examples[index].dialogue[-1].text,
            golden=golden[number],
            response=ours[number],
            tokens=scored_tokens[number],
            golden_tokens=scored_tokens[number + len(chosen)],
        )
        for number, index in enumerate(chosen)
    }
    first, last = ([details[index] for index in end] for end in (worst, best))
    return BlameOfModel(loss=float(loss.mean()), examples=listed, worst=first, best=last)
