"""What has to be seen of co-evolution, as figures, and what they mean when one goes wrong, in
words.

The two models can agree on something that is worth nothing: features that spell the response out,
features that fit any example, an estimator that ignores them, a policy that says one thing only.
Rewards look fine in each case.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coevolve.prompts import NO_REASONING, content_share, core_features
from coevolve.scoring.estimator import Examples, ProbabilityEstimator, Texts
from coevolve.scoring.roles import ROLES
from coevolve.scoring.scores import Scores
from coevolve.training.rewards.functions import word_overlap

# Groups whose rewards are all alike have advantage 0: above this most sampling is for nothing.
ZERO_VARIANCE_SHARE = 0.5
# A completion that is cut off gets the lowest reward, so length decides instead of content.
TRUNCATED_SHARE = 0.3
# The likelihood reward is the lowest where there are no core features to show to the estimator.
UNPARSABLE_SHARE = 0.3
# Features that hold nearly every word of the response do not describe it: q2 only has to copy.
LEAK_SHARE = 0.9
# What has no content tells q2 nothing, and RL has nothing to choose from.
CONTENT_SHARE = 0.5
# Per token. Below it the samples of a group are nearly the same text, with nothing to choose from.
ENTROPY_NATS = 0.05
# Per token: the probability of the same words changed by a factor of e, too much for one round.
DRIFT_NATS = 1.0
# Per token, by absolute value: an engine in bfloat16 is 0.01 to 0.03 away from the trainer.
SAMPLING_NATS = 0.1


def diagnose(
    estimator: ProbabilityEstimator,
    examples: Examples,
    responses: Texts,
    reasoning: Texts,
    *,
    seed: int,
) -> dict[str, float]:
    """How much the reasoning is worth to q2, and whether it just gives the response away.

    q2(y | x) is asked with a reasoning that has no core features, so that the two prompts differ in
    the features and in nothing else. q2 was hardly ever trained on such a prompt and answers it
    worse than a model that was (by 0.1 to 0.3 nats per token in the quickstart), which makes both
    gains look better than they are. They are to be read by their signs, and from round to round;
    how much reasoning is worth is what the baseline `without_reasoning` tells.

    Returns means over the N >= 2 examples, and their standard errors as `_error`:
    - coevolve/reasoning_gain: log q2(y | x, r) - log q2(y | x), nats per token; 0 for an r
      without core features;
    - coevolve/reasoning_gain_control: the same with another example's reasoning, drawn by `seed`,
      which should hurt;
    - coevolve/content_share: of the reasonings (`content_share`);
    - coevolve/leak: the share of y's words, counted with repeats, in r's core features.
    """
    if len(examples) < 2:
        needs = "needs two examples or more, to exchange their reasonings"
        raise ValueError(f"diagnose {needs}; found {len(examples)}.")

    def mean_log_prob(texts: Sequence[str]) -> np.ndarray:
        return estimator.log_prob(examples, responses, texts).mean

    with_reasoning = mean_log_prob(reasoning)
    others = derangement(len(examples), seed)
    of_another = mean_log_prob([reasoning[index] for index in others])
    without = mean_log_prob([NO_REASONING] * len(examples))
    prompts = estimator.renderer.prompts
    leaks = [
        word_overlap(core_features(text, prompts.sections) or "", response)
        for text, response in zip(reasoning, responses, strict=True)
    ]
    return {
        **_mean("coevolve/reasoning_gain", with_reasoning - without),
        **_mean("coevolve/reasoning_gain_control", of_another - without),
        "coevolve/content_share": content_share(reasoning, prompts),
        **_mean("coevolve/leak", np.array(leaks)),
    }


def derangement(count: int, seed: int) -> list[int]:
    """A permutation of `count` indices, at least two, without a fixed point: one cycle, by seed."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, dtype=int)
    others[order] = np.roll(order, 1)
    return others.tolist()


def drift(before: Scores, after: Scores) -> dict[str, float]:
    """How far q2 moved on a probe set, scored twice; nats per token, over the responses.

    `drift` is the mean of |difference of the mean log-probabilities|, `drift_signed` of the
    difference. Raises ValueError where the scores are not of the same responses.
    """
    if before.sum.shape != after.sum.shape or not np.array_equal(before.tokens, after.tokens):
        raise ValueError(
            f"drift compares scores of the same responses; found {np.sum(before.tokens)} and "
            f"{np.sum(after.tokens)} tokens of them."
        )
    moved = after.mean - before.mean
    size, signed = float(np.abs(moved).mean()), float(moved.mean())
    return {"coevolve/drift": size, "coevolve/drift_signed": signed}


def warnings_in(values: Mapping[str, float | None], rl: str | None = None) -> list[str]:
    """A sentence for each figure that went wrong: what it means, and what in the recipe may help.

    Values go by their names in the record (`connector/entropy`, ...); absent ones are not judged.
    `rl` is where the settings of RL stand, which is the role's section of that name unless given.
    """
    said = []
    for name, value in values.items():
        if not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            if name.endswith(("/loss", "/grad_norm")):
                diverged = "the training has diverged. Try a lower learning_rate."
                said.append(f"{name} is {value}: {diverged}")
        elif name in RULES and RULES[name].wrong(value):
            role = name.partition("/")[0]
            said.append(RULES[name].words.format(value=value, role=role, rl=rl or f"{role}_rl"))
    return said


@dataclass(frozen=True)
class Rule:
    """When a figure is wrong, and what to say then, with {value}, {role} (`connector`) and {rl}."""

    wrong: Callable[[float], bool]
    words: str


_OF_A_ROLE = {
    "frac_reward_zero_std": Rule(
        lambda share: share > ZERO_VARIANCE_SHARE,
        "{value:.0%} of the {role}'s groups have rewards that are all alike, so nothing is learned "
        "from them. Try a higher {rl}.temperature, more {rl}.num_generations, or other "
        "weights in {rl}.rewards.",
    ),
    "completions/clipped_ratio": Rule(
        lambda share: share > TRUNCATED_SHARE,
        "{value:.0%} of the {role}'s completions are cut off, and get the lowest reward for it. "
        "Try a higher {rl}.max_completion_length, more cold_start.{role} steps, or "
        "{rl}.mask_truncated_completions: true.",
    ),
    "unparsable_completions": Rule(
        lambda share: share > UNPARSABLE_SHARE,
        "{value:.0%} of the {role}'s completions have no core features that can be read, so their "
        "likelihood reward is the lowest. Try more cold_start.{role} steps, or a higher "
        "{rl}.rewards.format.",
    ),
    "entropy": Rule(
        lambda nats: nats < ENTROPY_NATS,
        "The {role}'s entropy is {value:.3f} nats per token: it writes nearly the same text each "
        "time, so a group has nothing to choose from. Try a higher {rl}.temperature, a lower "
        "{rl}.learning_rate, or a {rl}.beta above 0.",
    ),
    "sampling/sampling_logp_difference/mean": Rule(
        lambda nats: nats > SAMPLING_NATS,
        "What vLLM says it sampled the {role}'s completions by is {value:.3f} nats per token from "
        "what the trained model gives: they are not of the same weights or precision. Try "
        "model.dtype: float32, or {rl}.use_vllm: false.",
    ),
}

RULES: Mapping[str, Rule] = {
    **{f"{role}/{name}": rule for role in ROLES for name, rule in _OF_A_ROLE.items()},
    "coevolve/reasoning_gain": Rule(
        lambda nats: nats <= 0,
        "The reasoning makes the golden responses no more likely ({value:+.3f} nats per token): q2 "
        "does not use it, or it says nothing that q2 does not know. Try more estimator_sft steps, "
        "or a traces.teacher that knows more.",
    ),
    "coevolve/reasoning_gain_control": Rule(
        lambda nats: nats >= 0,
        "The reasoning of another example does not hurt ({value:+.3f} nats per token): the "
        "reasonings do not depend on their example, or q2 does not read them. Look at "
        "samples.jsonl. Try a higher connector_rl.rewards.likelihood, a lower "
        "connector_rl.rewards.length, or more estimator_sft steps.",
    ),
    "coevolve/content_share": Rule(
        lambda share: share < CONTENT_SHARE,
        "Only {value:.0%} of the connector's held-out reasonings say anything; the others are "
        "empty or repeat the instruction. Try more cold_start.connector steps, another "
        "traces.teacher, or a larger model.max_reasoning_tokens.",
    ),
    "coevolve/leak": Rule(
        lambda share: share > LEAK_SHARE,
        "{value:.0%} of the responses' words stand in the core features: they spell the response "
        "out instead of describing it. Try another traces.teacher, a smaller traces.max_keywords, "
        "or a smaller connector_rl.rewards.target_words.",
    ),
    "coevolve/drift": Rule(
        lambda nats: nats > DRIFT_NATS,
        "q2 moved by {value:.2f} nats per token on the probe set within a round, so what the "
        "connector was rewarded for is no longer so. Try a lower estimator_sft.learning_rate or "
        "estimator_rl.learning_rate, or fewer steps.",
    ),
}


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    error = values.std(ddof=1) / math.sqrt(len(values))
    return {name: float(values.mean()), f"{name}_error": float(error)}
