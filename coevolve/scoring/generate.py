"""Generating texts in batches, greedily or by seeded sampling whose result does not depend on the
batch.

What transformers' `generate` gives for one row at a time, up to rounding, and without what a group
of rows does not need: a prompt that several rows share is run once, a row that has ended leaves the
batch, a key or value is written once and not copied at every token, and only the last position's
logits are computed. A model whose self-check found that batches change its numbers writes each row
alone.

Shapes: B rows of a batch, D distinct prompts among them, P padded prompt length, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer

from coevolve.errors import TooLongError
from coevolve.libraries.transformers import DynamicSlidingWindowLayer
from coevolve.scoring.batching import (
    TOKEN_BUDGET,
    Ids,
    batches_by_tokens,
    device_of,
    max_positions,
    pad,
    positions,
)
from coevolve.scoring.ways import Ways, accepts, bare, cache_name, parameters_of, ways_of

DRAWN_AT_ONCE = 4096
"""Random numbers that a row draws in one call, where its vocabulary is smaller."""


@dataclass(frozen=True)
class Generation:
    """Generated ids, whether the end of turn (not in them) was reached, and by which token."""

    ids: list[int]
    finished: bool
    stopped_by: int | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling from softmax(logits / temperature). `seed` and the row's key decide the noise.

    Attributes:
        min_p, top_k, top_p: from those tokens only whose probability is at least so large a share
        of
            the likeliest one's; of these the `top_k` likeliest (0: all); of these the fewest that
            have `top_p` of the probability left.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def narrow(self, logits_BV: Tensor) -> Tensor:
        """Logits at the temperature, -inf where nothing is to be sampled."""
        logits_BV = logits_BV / self.temperature
        if self.min_p:
            least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(self.min_p)
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if 0 < self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
            share_BV = sorted_BV.softmax(-1)
            # Where those before a token have enough, it is left out; the likeliest never is.
            left_out_BV = share_BV.cumsum(-1) - share_BV >= self.top_p
            left_out_BV = torch.zeros_like(left_out_BV).scatter(-1, order_BV, left_out_BV)
            logits_BV = logits_BV.masked_fill(left_out_BV, -torch.inf)
        return logits_BV


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    sampling: Sampling | None = None,
    keys: Sequence[int] | None = None,
    no_repeat_ngram: int = 0,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
    found: Callable[[Sequence[int], Sequence[Generation]], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> list[Generation]:
    """One continuation of each of R prompts, by a model in evaluation mode.

    Args:
        max_new_tokens: a continuation that has not ended by then has `finished=False`.
        stop_ids: the tokens that end a turn, as `Renderer.stop_ids` has them.
        sampling: None for greedy decoding.
        keys: R integers that, with the seed, decide each row's noise; its index by default.
        no_repeat_ngram: so many tokens in a row come at most once in a continuation, so that no
            loop goes on; 0 leaves the model free. As transformers' `no_repeat_ngram_size`, but what
            stands in the prompt may be said again.
        found: called with the rows of each batch, as it is done, and their continuations.
        poll: called before each token; what it raises ends the generation.

    Raises:
        TooLongError: a prompt leaves no room for `max_new_tokens` in the model's positions.
    """
    limit = max_positions(model)
    for index, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > limit:
            raise TooLongError(
                f"Prompt {index} has {len(prompt)} tokens; and {max_new_tokens} new ones exceed "
                f"the model's {limit} positions. Shorten the dialogue."
            )
    keys = list(range(len(prompts))) if keys is None else list(keys)
    results: list[Any] = [None] * len(prompts)
    ways, lengths = ways_of(model), [len(prompt) + max_new_tokens for prompt in prompts]
    # A budget of nothing puts each row into a batch of its own.
    for rows in batches_by_tokens(lengths, token_budget if ways.generates == "in batches" else 0):
        noise = None
        if sampling is not None:
            noise = _GumbelNoise(sampling, [keys[row] for row in rows], max_new_tokens)
        batch = new_batch(model, [prompts[row] for row in rows], max_new_tokens, pad_id, ways)
        generations = batch.run(stop_ids, noise, poll, no_repeat_ngram)
        for row, generation in zip(rows, generations, strict=True):
            results[row] = generation
        if found is not None:
            found(rows, generations)
        if progress is not None:
            progress(len(rows))
    return results


def new_batch(
    model: torch.nn.Module, prompts: Sequence[Ids], max_new_tokens: int, pad_id: int, ways: Ways
) -> "_Batch":
    """Prompts that were run, to be continued together; a single one where they cannot be."""
    if ways.generates == "in batches":
        return _Batch(model, prompts, max_new_tokens, pad_id)
    (prompt,) = prompts
    return _Alone(model, prompt, max_new_tokens, remembers=ways.generates == "alone")


class _Batch:
    """`rows` (places among the prompts) that are generated together: after a forward pass,
    `logits_BV` are those of the next token of each.
    """

    @torch.no_grad()
    def __init__(
        self, model: torch.nn.Module, prompts: Sequence[Ids], max_new_tokens: int, pad_id: int
    ):
        self.model, self.device = model, device_of(model)
        self.max_new_tokens, self.pad_id = max_new_tokens, pad_id
        self.rows = list(range(len(prompts)))
        base = bare(model)
        self.cache = DynamicCache(config=base.config)
        self.cache_name = cache_name(base)
        # Rows of other layers (with a recurrent state, say) cannot be picked, and stay to the end.
        kinds = {type(layer) for layer in self.cache.layers}
        self.picks = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        distinct, of_row = prompts, self.rows
        if self.picks:
            distinct = list(dict.fromkeys(map(tuple, prompts)))
            place_of = {prompt: place for place, prompt in enumerate(distinct)}
            of_row = [place_of[tuple(prompt)] for prompt in prompts]
        which = torch.tensor(of_row)
        ids_DP, mask_DP = pad(distinct, pad_id, left=True)
        padded = not bool(mask_DP.all())
        logits_DV = self._forward(ids_DP, mask_DP if padded else None, positions(mask_DP))
        which = which.to(self.device)
        layer: Any
        for place, layer in enumerate(self.cache.layers):
            if type(layer) is DynamicLayer:
                self.cache.layers[place] = _RoomyLayer(layer, which, max_new_tokens)
            elif self.picks:
                layer.batch_select_indices(which)
        self.logits_BV = logits_DV[which]
        mask_DP = mask_DP.to(self.device)
        self.position_B = mask_DP.sum(dim=1)[which]
        # Without padding there is nothing to mask, and attention is cheaper for knowing it.
        new_DN = mask_DP.new_ones(len(distinct), max_new_tokens)
        self.mask_BT = torch.cat([mask_DP, new_DN], dim=1)[which] if padded else None
        self.length = ids_DP.shape[1]

    @torch.no_grad()
    def run(
        self,
        stop_ids: Collection[int],
        noise: "Noise | None",
        poll: Callable[[], None] | None,
        no_repeat_ngram: int = 0,
    ) -> list[Generation]:
        """The continuation of each prompt."""
        generations = [Generation([], finished=False) for _ in self.rows]
        followers = [_Followers(no_repeat_ngram) for _ in self.rows]
        for count in range(self.max_new_tokens):
            if poll is not None:
                poll()
            scores_BV = self.logits_BV if noise is None else noise.add(self.logits_BV)
            for place, row in enumerate(self.rows):
                if banned := followers[row].of(generations[row].ids):
                    scores_BV[place, banned] = -torch.inf
            next_B = scores_BV.argmax(dim=-1)
            for row, token in zip(self.rows, next_B.tolist(), strict=True):
                if generations[row].finished:
                    continue
                if token in stop_ids:
                    generations[row] = Generation(generations[row].ids, True, token)
                else:
                    generations[row].ids.append(token)
            ended = [generations[row].finished for row in self.rows]
            going_on = [place for place, over in enumerate(ended) if not over]
            if not going_on or count == self.max_new_tokens - 1:
                break
            # Leaving costs a copy of what stays, so it waits until a quarter of the rows has ended.
            if self.picks and len(going_on) <= 0.75 * len(self.rows):
                index = torch.tensor(going_on, device=self.device)
                next_B = next_B[index]
                self.keep(index)
                if noise is not None:
                    noise.keep(going_on)
            self.step(next_B)
        return generations

    @torch.no_grad()
    def step(self, next_B: Tensor) -> None:
        """Run the tokens that were chosen."""
        self.length += 1
        mask_BT = None if self.mask_BT is None else self.mask_BT[:, : self.length]
        self.logits_BV = self._forward(next_B[:, None], mask_BT, self.position_B[:, None])
        self.position_B = self.position_B + 1

    def _forward(self, ids: Tensor, mask: Tensor | None, position_ids: Tensor) -> Tensor:
        """(rows, V) float32 logits behind each row's last token; the cache grows by what is run."""
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=None if mask is None else mask.to(self.device),
            position_ids=position_ids.to(self.device),
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_name: self.cache},
        )
        return output.logits[:, -1].float()

    def keep(self, index: Tensor) -> None:
        """Go on with the rows at these places only, of which one may come several times."""
        self.rows = [self.rows[place] for place in index.tolist()]
        self.cache.batch_select_indices(index)
        self.position_B = self.position_B[index]
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[index]


class _Alone(_Batch):
    """One row, through the model as it stands: behind its memory, or whole for every token."""

    picks = False

    @torch.no_grad()
    def __init__(
        self, model: torch.nn.Module, prompt: Ids, max_new_tokens: int, *, remembers: bool
    ):
        self.model, self.device, self.max_new_tokens = bare(model), device_of(model), max_new_tokens
        self.rows, self.ids, self.remembers = [0], list(prompt), remembers
        self.memory: dict[str, Any] = {}
        self.logits_BV = self._run(self.ids)

    def step(self, next_B: Tensor) -> None:
        self.ids += next_B.tolist()
        self.logits_BV = self._run(self.ids[-1:] if self.remembers else self.ids)

    def _run(self, ids: Ids) -> Tensor:
        """(1, V) float32 logits behind the last token."""
        options = {"use_cache": self.remembers} if accepts(self.model, "use_cache") else {}
        ids_BT = torch.tensor([ids], device=self.device)
        output = self.model(input_ids=ids_BT, **options, **self.memory)
        if self.remembers:
            # Whatever else it gives back that it also takes: a cache, a recurrent state.
            takes = parameters_of(self.model)
            self.memory = {name: value for name, value in output.items() if name in takes}
        return output.logits[:, -1].float()


class _Followers:
    """What followed each n - 1 tokens of a growing text, not to do so again; n = 0: nothing."""

    def __init__(self, size: int):
        self.size = size
        self.seen: dict[tuple[int, ...], list[int]] = {}

    def of(self, ids: Ids) -> list[int]:
        """The tokens that would repeat an n-gram; to be called with each length in order."""
        if not self.size or len(ids) < self.size:
            return []
        *before, last = ids[-self.size :]
        self.seen.setdefault(tuple(before), []).append(last)
        return self.seen.get(tuple(ids[len(ids) - self.size + 1 :]), [])


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for what is to come; plain ones copy all they hold for each new
    token. `layer` is of the distinct prompts, of which each row has the one in `which`, (B,).
    """

    def __init__(self, layer: DynamicLayer, which: Tensor, room: int):
        super().__init__()
        self.device, self.is_initialized = layer.device, True
        held: Any = (layer.keys, layer.values)
        self._length = held[0].shape[-2]
        self._held = [self._with_room(part, which, room) for part in held]
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, self._length : end] = new
        self._length = end
        self._show()
        shown: Any = (self.keys, self.values)
        return shown

    def batch_select_indices(self, indices: Tensor) -> None:
        self._held = [held[indices] for held in self._held]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (held[:, :, : self._length] for held in self._held)

    @staticmethod
    def _with_room(held_DHPK: Tensor, which: Tensor, room: int) -> Tensor:
        shape = (len(which), held_DHPK.shape[1], held_DHPK.shape[2] + room, held_DHPK.shape[3])
        roomy = held_DHPK.new_empty(shape)
        roomy[:, :, : held_DHPK.shape[2]] = held_DHPK[which]
        return roomy


class Noise(Protocol):
    """Is added to the next token's logits before the likeliest is taken, of the rows still kept."""

    def add(self, logits_BV: Tensor) -> Tensor: ...

    def keep(self, places: Sequence[int]) -> None: ...


class _GumbelNoise:
    """Makes greedy decoding a sample: argmax(logits + Gumbel noise) is distributed as
    softmax(logits). Each row draws from its own generator, so alike in any batch.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[int], max_new_tokens: int):
        self.narrow = sampling.narrow
        self.generators = [torch.Generator().manual_seed(_mix(sampling.seed, key)) for key in keys]
        self.steps_left = max_new_tokens
        self.drawn: list[Tensor] = []

    def add(self, logits_BV: Tensor) -> Tensor:
        if not self.drawn:
            self._draw(logits_BV.shape[-1], logits_BV.device)
        return self.narrow(logits_BV) + self.drawn.pop()

    def keep(self, places: Sequence[int]) -> None:
        self.generators = [self.generators[place] for place in places]
        self.drawn = [noise_BV[places] for noise_BV in self.drawn]

    def _draw(self, vocabulary: int, device: torch.device) -> None:
        """The noise of a few tokens at once, the same numbers as one by one: a call costs more. The
        generators are a CPU's, so that a seed means the same everywhere; logarithms are `device`'s.
        """
        steps = max(1, min(self.steps_left, DRAWN_AT_ONCE // vocabulary))
        self.steps_left -= steps
        count = steps * vocabulary
        drawn = [torch.rand(count, generator=g, dtype=torch.float32) for g in self.generators]
        uniform_BN = torch.stack(drawn).to(device)
        tiny = torch.finfo(torch.float32).tiny
        gumbel_BN = -torch.log((-torch.log(uniform_BN.clamp(min=tiny))).clamp(min=tiny))
        self.drawn = list(reversed(gumbel_BN.split(vocabulary, dim=1)))


def _mix(seed: int, key: int) -> int:
    """A 63-bit seed from two numbers; neighbours give unrelated streams (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + key + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
