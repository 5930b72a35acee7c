"""What a model itself says in a world, exactly: its theta(y | x) of every context x, token by
token.

From each prompt every continuation is followed whose probability is `least` or more, until the turn
ends, and its response read as `coevolve respond` reads it. Each response is an outcome, whether its
words are the world's or not, as readers read both; two more outcomes are that it is cut off, and
that it was not followed. How far the latter can have moved I(X; Y) is told (`Exact.within`).

The same theta(y | x) serves a world and all its shifts, in which contexts are more or less
probable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coevolve.chat.base import Question, without_thinking
from coevolve.chat.local import LocalChat, prompt_ids
from coevolve.errors import ArtifactError
from coevolve.information.discrete import entropy
from coevolve.prompts.play import PlayPrompt, play_messages
from coevolve.scoring.generate import new_batch
from coevolve.scoring.ways import ways_of
from coevolve.worlds.language import RESPONSE_VOCABULARY, SLOTS
from coevolve.worlds.truth import information
from coevolve.worlds.world import World

LEAST = 1e-4
ROWS = 16_384
"""Continuations that are followed at once; of more, the likeliest are."""
CONTEXTS = 16
"""Contexts among them."""
CUT_OFF, MISSED = range(2)
"""Outcomes that are no response."""
_WORDS = frozenset(RESPONSE_VOCABULARY)


@dataclass(frozen=True)
class Exact:
    """What a model's responses say of the contexts of a world, nats per response.

    Attributes:
        information, golden: I(X; Y) of the model's responses, and of golden ones.
        outside: probability of other words than the world's, or of no response.
        missed: probability of what was not followed.
        within: no more than this is `information` off. With M for whether a response Y was missed,
            I(X; Y) is at least I(X; Y, M) - h(M) and at most that, and of I(X; Y, M) all is known
            but P(M) I(X; Y | M), which is at most P(M) H(X | M).
    """

    information: float
    golden: float
    outside: float
    missed: float
    within: float

    @property
    def emi(self) -> float:
        """EMI, and R-EMI, as x gives r. EMID is the difference of two."""
        return self.information - self.golden


@dataclass(frozen=True, eq=False)
class Conditional:
    """theta(y | x) of N contexts, those that `World.contexts` lists: E outcomes that have a
    probability above 0.

    Attributes:
        context, outcome, probability: (E,) place among the contexts, which response, and theta.
        of_world: (outcomes,) whether a response has the words of the world.
    """

    context: NDArray[np.int64]
    outcome: NDArray[np.int64]
    probability: NDArray[np.float64]
    of_world: NDArray[np.bool_]

    def exact(self, world: World) -> Exact:
        """EMI in this world: the one whose contexts these are, or a shift of it."""
        _, weight_N = world.contexts()
        count = len(self.of_world)
        cells, place = np.unique(self.context * count + self.outcome, return_inverse=True)
        joint = np.bincount(place, weight_N[self.context] * self.probability)
        marginal = np.bincount(cells % count, joint, count)
        missed = self.outcome == MISSED
        of_x = weight_N[self.context[missed]] * self.probability[missed]
        share = min(float(of_x.sum()), 1.0)  # rounding alone can leave the range
        told = entropy(np.array([share, 1 - share]))
        left = share * entropy(of_x / share) if share else 0.0
        return Exact(
            information=entropy(marginal) + entropy(weight_N) - entropy(joint),
            golden=information(world).mutual_information,
            outside=float(marginal[~self.of_world].sum()),
            missed=share,
            within=max(told, left),
        )


def conditional(
    chat: LocalChat,
    prompt: PlayPrompt | None,
    world: World,
    *,
    least: float = LEAST,
    advance: Callable[[int], None] | None = None,
) -> Conditional:
    """theta(y | x) of a model that is asked with `prompt`, at the temperature of `chat` and with
    room for as many tokens, for every context of `world`; `advance` is told how many are done.

    Raises:
        ArtifactError: the model cannot run several continuations together.
        DataError: the world has too many contexts.
    """
    examples, _ = world.contexts()
    parts: list[NDArray[np.float64]] = []
    outcomes = {"cut\noff": CUT_OFF, "not\nfollowed": MISSED}  # as no response is written
    for first in range(0, len(examples), CONTEXTS):
        block = examples[first : first + CONTEXTS]
        asked = [Question(x.sample_id, play_messages(x, chat.harmless, prompt)) for x in block]
        prompts = [prompt_ids(chat.renderer, x) for x in asked]
        ends = _follow(chat, prompts, least, outcomes)
        parts.append(ends + np.array([[first], [0], [0]]))
        if advance is not None:
            advance(len(block))
    context, outcome, probability = np.concatenate(parts, axis=1)
    of_world = np.array([_is_of_world(text) for text in outcomes])
    return Conditional(context.astype(int), outcome.astype(int), probability, of_world)


def _follow(
    chat: LocalChat, prompts: Sequence[Sequence[int]], least: float, outcomes: dict[str, int]
) -> NDArray[np.float64]:
    """(prompt, outcome, probability) of every end of B prompts, (3, ends). New texts get a place in
    `outcomes`.
    """
    model, render, count = chat.model, chat.renderer, len(prompts)
    ways, pad_id = ways_of(model), render.tokenizer.pad_token_id
    if ways.generates != "in batches":
        raise ArtifactError(f"{chat.address}: runs rows one by one, and cannot be enumerated.")
    stops = sorted(set(render.stop_ids(model)))
    pad_id = render.end_of_turn_id if pad_id is None else pad_id
    batch = new_batch(model, prompts, chat.max_tokens, pad_id, ways)
    prompt, mass = np.arange(count), np.ones(count)
    said: list[tuple[int, ...]] = [()] * count
    reached: list[tuple[float, float, float]] = []
    missed_B = np.zeros(count)
    for step in range(chat.max_tokens):
        chat.poll()
        next_RV = mass[:, None] * _probabilities(batch.logits_BV, chat.temperature)
        ends_R = next_RV[:, stops].sum(axis=1)
        for row in np.flatnonzero(ends_R >= least):
            text = " ".join(without_thinking(render.decode(said[row])).split())
            outcome = outcomes.setdefault(text, len(outcomes))
            reached.append((prompt[row], outcome, ends_R[row]))
        next_RV[:, stops] = 0
        rows, tokens = np.nonzero(next_RV >= least)
        likeliest = np.sort(np.argsort(-next_RV[rows, tokens], kind="stable")[:ROWS])
        rows, tokens = rows[likeliest], tokens[likeliest]
        kept = next_RV[rows, tokens]
        lost_R = next_RV.sum(axis=1) - np.bincount(rows, kept, len(next_RV))
        lost_R += np.where(ends_R < least, ends_R, 0)
        missed_B += np.bincount(prompt, lost_R, count)
        if not len(rows) or step == chat.max_tokens - 1:
            break
        prompt, mass = prompt[rows], kept
        said = [(*said[row], token) for row, token in zip(rows, tokens.tolist(), strict=True)]
        batch.keep(torch.from_numpy(rows).to(batch.device))
        batch.step(torch.from_numpy(tokens).to(batch.device))
    ends = np.array(reached, dtype=np.float64).reshape(-1, 3).T
    cut_B = 1 - np.bincount(ends[0].astype(np.int64), ends[2], count) - missed_B
    for outcome, of_B in ((CUT_OFF, cut_B), (MISSED, missed_B)):
        more = np.stack([np.arange(count), np.full(count, outcome), of_B.clip(min=0)])
        ends = np.concatenate([ends, more], axis=1)
    return ends


def _probabilities(logits_RV: torch.Tensor, temperature: float) -> NDArray[np.float64]:
    """Of the next token; the likeliest has all of it where decoding is greedy."""
    if temperature:
        found: NDArray[np.float64] = (logits_RV.double() / temperature).softmax(-1).cpu().numpy()
        return found
    return np.eye(logits_RV.shape[-1])[logits_RV.argmax(dim=-1).cpu().numpy()]


def _is_of_world(text: str) -> bool:
    words = text.split()
    return len(words) == SLOTS and _WORDS.issuperset(words)
