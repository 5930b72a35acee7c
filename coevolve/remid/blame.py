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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box

from coevolve.errors import RecipeError
from coevolve.information.emi import emi
from coevolve.information.estimate import Estimate
from coevolve.information.log_probs import UNITS, Normalisation
from coevolve.progress import PlainTable
from coevolve.remid.score import Responses, ScoredSubset, golden_by_id, responses_by_id
from coevolve.remid.unanswered import row_label

if TYPE_CHECKING:
    from coevolve.scoring.estimator import ProbabilityEstimator

SCHEMA = "coevolve.blame/1"
LEAST_TOKENS = 3


@dataclass(frozen=True)
class Contributions:
    """What each of a subset's N examples adds to R-EMI; all (N,), in the unit of the normalisation.

    Attributes:
        matched: by its own pair; mean R-EMI.
        as_context: by the mismatched pairs of its context; mean 0.
        as_response: by the mismatched pairs of its response; mean 0.
    """

    matched: np.ndarray
    as_context: np.ndarray
    as_response: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The contribution; its mean is R-EMI."""
        return self.matched + self.as_context + self.as_response


def contributions(remi: Estimate) -> Contributions:
    """The contribution of each example to an estimate of R-EMI."""
    influence = remi.influence
    by_context, by_response = (
        np.bincount(
            influence.pairs[:, end], weights=influence.mismatched, minlength=influence.matched.size
        )
        for end in (0, 1)
    )
    return Contributions(remi.value + influence.matched, by_context, by_response)


def losses(
    scored: Sequence[ScoredSubset],
    model: str,
    form: str = "club",
    normalisation: Normalisation = "per_token",
) -> list[tuple[Contributions, np.ndarray]]:
    """Per subset the contributions and the losses, (N,). `scored` has the in-distribution subset
    first.

    Raises:
        RecipeError: an unknown form or normalisation.
        DataError: the scores lack what the form needs.
    """
    found = [remi_of(subset, model, form, normalisation) for subset in scored]
    parts = [contributions(remi) for remi in found]
    return [
        (part, (found[0].value if index else 0.0) - part.total) for index, part in enumerate(parts)
    ]


def remi_of(scored: ScoredSubset, model: str, form: str, normalisation: Normalisation) -> Estimate:
    """R-EMI of a model's responses on a subset."""
    return emi(scored.contrast(model, normalisation), scored.contrast(None, normalisation), form)


def blame_examples(
    estimator: "ProbabilityEstimator",
    scored: Sequence[ScoredSubset],
    responses: Mapping[str, Responses],
    *,
    form: str = "club",
    normalisation: Normalisation = "per_token",
    shown: int = 3,
    other_contexts: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Every example's contribution, and the worst and best of each subset with their texts and
    tokens.

    Args:
        estimator: the one that gave the scores.
        scored: the in-distribution subset first, then the shifted ones.
        responses: per model, sample_ID -> response for the examples of all subsets, or a list in
            their order.
        form: the estimator of mutual information, a key of `coevolve.information.estimate.FORMS`.
        normalisation: of contributions and losses; tokens are in nats.
        shown: examples at either end of each subset whose tokens are scored; fewer where a subset
            is small.
        other_contexts: contexts of the subset in which each of their responses is scored for
            comparison; all there are, if fewer.
        seed: of the choice of these contexts.

    Returns:
        JSON values: `coevolve.remid.results.BlameResults` has every field.

    Raises:
        RecipeError: `shown` or `other_contexts` below 1, or an unknown form or normalisation.
        DataError: a response is missing or blank, or the scores lack what the form needs.
    """
    if shown < 1 or other_contexts < 1:
        raise RecipeError(
            f"shown is {shown}, other_contexts is {other_contexts}; accepted are integers from 1 up."
        )
    examples = [example for subset in scored for example in subset.subset.examples]
    golden = golden_by_id(examples, "blame")
    texts = {name: responses_by_id(name, given, examples) for name, given in responses.items()}
    rows = [
        {"row": subset.subset.row, "shift": subset.subset.shift, "models": {}} for subset in scored
    ]
    for name in texts:
        for row, subset, (parts, loss) in zip(
            rows, scored, losses(scored, name, form, normalisation), strict=True
        ):
            listed = [_numbers(subset, parts, loss, index) for index in range(len(loss))]
            order = np.argsort(-loss, kind="stable")
            ends = {"worst": order[:shown], "best": order[::-1][:shown]}
            chosen = sorted({int(index) for indices in ends.values() for index in indices})
            details = _details(estimator, subset, chosen, texts[name], golden, other_contexts, seed)
            row["models"][name] = {
                "loss": float(loss.mean()),
                "examples": listed,
                **{
                    end: [listed[i] | details[int(i)] for i in indices]
                    for end, indices in ends.items()
                },
            }
    return {
        "schema": SCHEMA,
        "form": form,
        "normalisation": normalisation,
        "unit": UNITS[normalisation],
        "other_contexts": other_contexts,
        "seed": seed,
        "models": list(texts),
        "subsets": rows,
    }


def blame_table(results: Mapping[str, Any], model: str) -> PlainTable:
    """The worst and best examples of a model, subset by subset, with the tokens that say least of
    their context.
    """
    table = PlainTable(
        box=box.SIMPLE_HEAD,
        title=f"{model}: the largest and smallest losses",
        caption=f"loss: {results['unit']}, by {results['form']}; its mean over a subset is R-EMID (in distribution: "
        "-R-EMI). Tokens: log-probability here minus elsewhere, nats, the lowest first.",
        caption_justify="left",
    )
    table.add_column("loss", justify="right")
    for heading in ("sample", "last turn", "golden", "response", "tokens that say least"):
        table.add_column(heading, overflow="fold")
    for subset in results["subsets"]:
        found = subset["models"][model]
        row = row_label(results, subset["row"])
        table.add_row(f"{found['loss']:+z.3f}", f"{row}, mean", style="bold")
        for end in ("worst", "best"):
            for example in found[end]:
                least = sorted(example["tokens"], key=lambda token: token["contribution"])[
                    :LEAST_TOKENS
                ]
                table.add_row(
                    f"{example['loss']:+z.3f}",
                    *(example[field] for field in ("sample_ID", "last_turn", "golden", "response")),
                    ", ".join(f"{token['text']!r} {token['contribution']:+.2f}" for token in least),
                )
            if end == "worst":
                table.add_row("...")
    return table


def token_contributions(
    estimator: "ProbabilityEstimator",
    own: Sequence[int],
    texts: Sequence[str],
    subset: ScoredSubset,
    *,
    other_contexts: int,
    seed: int,
) -> list[list[dict[str, Any]]]:
    """Each text's tokens with their log-probability in their own context and elsewhere.

    Args:
        own: for each text, the index of its context in the subset.
        texts: the responses.

    Returns:
        For each text a list of {text, log_prob, elsewhere, contribution}, its end of turn last;
        nats.
    """
    examples = subset.subset.examples
    rng = np.random.default_rng(seed)
    others = {
        index: _others(index, len(examples), other_contexts, rng) for index in sorted(set(own))
    }  # the same for every text of a context, so that golden and model compare
    used = sorted({context for index, found in others.items() for context in (index, *found)})
    reasoning = estimator.reason([examples[index] for index in used])
    place = {context: number for number, context in enumerate(used)}
    pairs = [
        (place[context], number)
        for number, index in enumerate(own)
        for context in (index, *others[index])
    ]  # a context is shared by the texts of several examples, and is computed once
    scores = estimator.token_log_prob_pairs(
        [examples[context] for context in used], texts, reasoning, np.array(pairs)
    )
    found, start = [], 0
    for index, text in zip(own, texts, strict=True):
        end = start + 1 + len(others[index])
        here, elsewhere = scores[start], np.mean(scores[start + 1 : end], axis=0)
        start = end
        ids = estimator.renderer.response_ids(text)
        found.append(
            [
                {
                    "text": estimator.renderer.tokenizer.decode([token]),
                    "log_prob": float(ours),
                    "elsewhere": float(theirs),
                    "contribution": float(ours - theirs),
                }
                for token, ours, theirs in zip(ids, here, elsewhere, strict=True)
            ]
        )
    return found


def _others(index: int, count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """Indices other than `index`, without repeats."""
    chosen = rng.choice(count - 1, size=min(wanted, count - 1), replace=False)
    return sorted(int(other + (other >= index)) for other in chosen)


def _details(
    estimator: "ProbabilityEstimator",
    subset: ScoredSubset,
    chosen: Sequence[int],
    responses: Mapping[str, str],
    golden: Mapping[str, str],
    other_contexts: int,
    seed: int,
) -> dict[int, dict[str, Any]]:
    """Index -> texts and tokens of the examples shown."""
    examples = [subset.subset.examples[index] for index in chosen]
    ours, reference = (
        [given[example.sample_id] for example in examples] for given in (responses, golden)
    )
    tokens = token_contributions(
        estimator,
        [*chosen, *chosen],
        [*ours, *reference],
        subset,
        other_contexts=other_contexts,
        seed=seed,
    )
    return {
        index: {
            "user_persona": example.user_persona,
            "agent_character": example.agent_character,
            "last_turn": example.dialogue[-1].text,
            "golden": golden_text,
            "response": text,
            "tokens": tokens[place],
            "golden_tokens": tokens[place + len(chosen)],
        }
        for place, (index, example, text, golden_text) in enumerate(
            zip(chosen, examples, ours, reference, strict=True)
        )
    }


def _numbers(
    subset: ScoredSubset, parts: Contributions, loss: np.ndarray, index: int
) -> dict[str, Any]:
    return {
        "sample_ID": subset.subset.examples[index].sample_id,
        "loss": float(loss[index]),
        "contribution": float(parts.total[index]),
        "matched": float(parts.matched[index]),
        "as_context": float(parts.as_context[index]),
        "as_response": float(parts.as_response[index]),
    }
