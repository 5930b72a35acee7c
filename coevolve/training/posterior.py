"""Reasoning as a latent variable: a phase that draws reasonings from p(r | x, y).

For each training example K candidates r_k are written, and weighted by

    w_k = q1(r_k | x) q2(y | x, r_k) / pi(r_k),    pi being who wrote them

which with pi = q1 is a softmax of log q2(y | x, r_k). SFT of both roles on what is drawn by these
weights is reweighted wake-sleep (Bornschein & Bengio, ICLR 2015) and one EM step of BoLT (arXiv
2503.18866). One is drawn rather than all of them weighted, so that the SFT is an ordinary one; its
expected gradient is the weighted one's.

Candidates are sampled at temperature 1, so that their densities are the model's own, taken over the
very tokens that were sampled. One that was cut off is no candidate: the posterior is that of
reasonings which end within `model.max_reasoning_tokens`. An example without a candidate is left
out, and counted.

What the proposals are good for:

- `connector`: the weights need no density of q1, but where no candidate knows anything of y there
  is nothing to choose from.
- `connector_with_answer`: better candidates, whose weights hold a ratio of two densities of a whole
  text. It varies by many nats, so that few of them, often one, have all the weight: look at
  `posterior/effective_samples`.
- `mixture`: half of each, under the density of both together. No weight is above twice its q2,
  which the above cannot say.
- `teacher`: the trace on disk among K - 1 of q1's candidates. Nobody knows the density with which
  it was written, so it is taken to be q1's: the trace is weighed by q2 alone. That is the posterior
  under a prior that has the trace as an atom of weight 1/K, not the one under q1; a trace that q1
  would never write can win, and the bound is that prior's.
"""

import json
from functools import partial
from typing import Any

import numpy as np

from coevolve.errors import RecipeError
from coevolve.information.importance import (
    Floats,
    effective_samples,
    log_mean_exp,
    mixture_log_prob,
    resample,
    self_normalised,
)
from coevolve.recipe.schema import Posterior
from coevolve.scoring.estimator import Examples, Texts
from coevolve.scoring.generate import Sampling
from coevolve.scoring.logprob import score_rows, to_scores
from coevolve.scoring.roles import CONNECTOR
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.evaluation import golden_responses
from coevolve.training.saving import save_if_due
from coevolve.training.schedule import ScheduledPhase
from coevolve.training.state import RunState

WRITTEN_AT_ONCE = 256
"""Candidates between two moments at which the phase may be saved or left."""
FIGURES = ("effective_samples", "entropy", "bound", "mean_log_prob", "best_log_prob")
"""Of an example's candidates, nats per response but for the first: how many they are worth; the
entropy of their weights; log (1/K) sum_k w_k, those that were cut off being 0 in it; log q2(y | x,
r_k) on average, and the highest.
"""


def posterior(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Draw reasonings for training examples, and leave them in the state."""
    settings, train, record = context.recipe.posterior, context.train, context.record
    seed = partial(derive_seed, context.recipe.seed, scheduled.name)
    count = min(settings.examples or len(train), len(train))
    chosen = np.sort(np.random.default_rng(seed()).permutation(len(train))[:count]).tolist()
    at_once = max(WRITTEN_AT_ONCE // settings.samples, 1)
    # For each example [place, what was drawn, its figures], as JSON.
    texts, title = state.texts, f"posterior, {settings.samples} reasonings for each of {count}"
    task = record.task(title, count, key="posterior", where=state.where)
    with task as advance, context.distributed.writing():
        advance(len(texts))
        while len(texts) < count:
            part = chosen[len(texts) : len(texts) + at_once]
            traces = [context.traces[i] for i in part]
            drawn = _draw(context, settings, [train[i] for i in part], traces, seed())
            texts += [json.dumps([i, *row]) for i, row in zip(part, drawn, strict=True)]
            advance(len(part))
            save_if_due(context, state)
    rows = [json.loads(text) for text in texts]
    found = [row for row in rows if row[1]]
    state.posterior = [(i, text) for i, several, _ in found for text in several]
    state.texts = []
    if not found:
        raise RecipeError(
            f"posterior: none of {count} examples has a candidate that ended within "
            f"{context.estimator.max_new_tokens} tokens. Raise model.max_reasoning_tokens, or give "
            "the connector a longer cold start."
        )
    means = np.mean([figures for *_, figures in found], axis=0)
    figures = dict(zip(FIGURES, map(float, means), strict=True))
    figures["without_candidate"] = len(rows) - len(found)
    record.log({**state.where, **{f"posterior/{name}": x for name, x in figures.items()}})
    record.say(
        f"posterior: {settings.samples} candidates are worth {figures['effective_samples']:.1f}; "
        f"the best is {figures['best_log_prob'] - figures['mean_log_prob']:.2f} nats per response "
        "above their mean"
    )


def _draw(
    context: Context, settings: Posterior, examples: Examples, traces: Texts, seed: int
) -> list[tuple[list[str], list[float]]]:
    """For each example what was drawn, nothing where it has no candidate, and its FIGURES."""
    render, golden = context.estimator.connector_renderer, golden_responses(examples)
    costs = [len(render.connector(x)) + len(y) for x, y in zip(examples, golden, strict=True)]

    def work(share: list[int]) -> list[tuple[list[str], list[float]]]:
        written = _candidates(context, settings, [examples[i] for i in share], seed)
        if settings.proposal == "teacher":
            for candidates, place in zip(written, share, strict=True):
                candidates.append((traces[place], 0.0))
        # One call for all of them, since they share prompts.
        flat = [(i, text) for i, of in zip(share, written, strict=True) for text, _ in of]
        scored = context.estimator.token_log_probs(
            [examples[i] for i, _ in flat], [golden[i] for i, _ in flat], [r for _, r in flat]
        )
        log_probs, results = iter(to_scores(scored).sum.tolist()), []
        for place, candidates in zip(share, written, strict=True):
            of_y = np.array([next(log_probs) for _ in candidates])
            ratio = np.array([log_ratio for _, log_ratio in candidates])
            own_seed = derive_seed(seed, "uniform", examples[place].sample_id)
            uniform = np.random.default_rng(own_seed).random()
            chosen, figures = _chosen(of_y, ratio, settings, uniform)
            results.append(([candidates[k][0] for k in chosen], figures))
        return results

    return context.processes.distribute(costs, work)


def _chosen(
    of_y: Floats, ratio: Floats, settings: Posterior, uniform: float
) -> tuple[list[int], list[float]]:
    """Which candidates are drawn, and FIGURES, by log q2(y | x, r_k), log q1(r_k | x) / pi(r_k)."""
    if not len(of_y):
        return [], []
    log_weights = np.full(settings.samples, -np.inf)
    log_weights[: len(of_y)] = of_y + ratio
    weights = self_normalised(log_weights)
    used = weights[weights > 0]
    entropy = -(used * np.log(used)).sum()
    of_weights = [effective_samples(weights), entropy, log_mean_exp(log_weights)]
    figures = [float(x) for x in (*of_weights, of_y.mean(), of_y.max())]
    return resample(weights, settings.resampled, uniform).tolist(), figures


def _candidates(
    context: Context, settings: Posterior, examples: Examples, seed: int
) -> list[list[tuple[str, float]]]:
    """For each example the texts that its proposal ended, and log q1(r | x) - log pi(r) of each."""
    samples, estimator = settings.samples, context.estimator
    own_and_shown = {
        "connector": (samples, 0),
        "connector_with_answer": (0, samples),
        "mixture": (samples - samples // 2, samples // 2),
        "teacher": (samples - 1, 0),
    }
    counts = np.array(own_and_shown[settings.proposal])
    render, stops = estimator.connector_renderer, estimator.stop_ids(CONNECTOR)
    shown = own = [render.prompt_ids(render.connector(x)) for x in examples]
    if counts[1]:
        shown = [render.prompt_ids(render.chat(render.teacher(x))) for x in examples]
    asked = [(i, k) for i in range(len(examples)) for k in range(counts.sum())]
    prompts = [own[i] if k < counts[0] else shown[i] for i, k in asked]
    keys = [derive_seed(seed, examples[i].sample_id, k) for i, k in asked]
    options = {"pad_id": render.tokenizer.pad_token_id, "token_budget": estimator.token_budget}
    with context.roles.acting(CONNECTOR) as model:
        written = context.distributed.writer(
            model,
            prompts,
            max_new_tokens=estimator.max_new_tokens,
            stop_ids=stops,
            sampling=Sampling(seed),
            keys=keys,
            poll=estimator.poll,
            **options,
        )
        ended = [(i, x) for (i, _), x in zip(asked, written, strict=True) if x.finished]
        ratio = np.zeros(len(ended))
        if counts[1]:
            ids: Any = [[*x.ids, x.stopped_by] for _, x in ended]
            scored = [
                score_rows(model, [by[i] for i, _ in ended], ids, poll=estimator.poll, **options)
                for by in (own, shown)
            ]
            log_probs = np.stack([to_scores(rows).sum for rows in scored], axis=-1)
            ratio = log_probs[:, 0] - mixture_log_prob(log_probs, counts)
    found: list[list[tuple[str, float]]] = [[] for _ in examples]
    for (i, generation), log_ratio in zip(ended, ratio.tolist(), strict=True):
        found[i].append((render.decode(generation.ids), log_ratio))
    return found
