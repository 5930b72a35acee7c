"""Exact log-probabilities of responses under a causal language model.

                 prompt (p tokens)                 response (n tokens, the last one ends the turn)
    ids     [ x0  x1  ...              x_{p-1} ][ y0  y1  ...                y_{n-1} ]
    logits          ...            at p-1 -> y0      at p -> y1   ...   at p+n-2 -> y_{n-1}

Scored are the n response tokens and nothing else; y_{n-1} itself predicts nothing and is not run.
What several rows begin with is computed once, and its KV cache serves all of them: a whole prompt,

    [ x0  x1  ...  x_{p-1} ]-+-[ y0 ... y_{n-2} ]
       y0's logits are here  +-[ y'0 ... y'_{n'-2} ]
                             +- ...

or a part of several, here a dialogue with its reasonings and a response:

    [ x0  ...  x_{s-1} ]-+-[ x_s ... x_{p-1} y0 ... y_{n-2} ]
                         +-[ x's ... x'_{p'-1} y0 ... y_{n-2} ]
                         +- ...

What stands behind a prefix is a segment. A row of a pass holds one segment, or several of the same
prefix side by side under a mask that keeps them apart:

                 prefix        a0 a1 a2 b0 b1
            a1 [ 1 1 1 ... 1 |  1  1  0  0  0 ]     position_ids count on from the prefix for a
            b1 [ 1 1 1 ... 1 |  0  0  0  1  1 ]     and for b alike

Prefixes are found in the ids (`sharing`), rows are laid out by what they cost (`cost`). Shapes: R
prefixes of P padded tokens, B rows of W padded tokens, K scored positions, H hidden size, V
vocabulary. Prefixes are padded on the left and rows on the right. Logits are computed at scored
positions only. Log-softmax is the chosen logit minus the largest one, minus the logarithm of the
sum of exponentials: float32 up to that sum, float64 from there, which on CPU is more than 50 times
closer to float64 throughout than `log_softmax`. Sums are float64.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from coevolve.errors import OutOfMemoryError
from coevolve.scoring.backbone import Backbone, Frame
from coevolve.scoring.batching import Ids, pad, positions
from coevolve.scoring.cost import arrange
from coevolve.scoring.foreign import is_out_of_memory
from coevolve.scoring.sharing import Prefix, shared_prefixes
from coevolve.scoring.ways import Ways

logger = logging.getLogger(__name__)

LOGITS_ON_CPU, LOGITS_ON_GPU = 1 << 23, 1 << 28
"""Logits that are held at a time."""


class _Segment(NamedTuple):
    """Tokens behind a prefix (`row` of its frame), for a `pair` of (prompt, response). From `start`
    on, `scored` positions predict the response: all of it, or all but what the prefix predicts.
    """

    pair: tuple[int, int]
    row: int
    ids: list[int]
    start: int
    scored: int


class Scorer:
    """Scores different pairs of different prompts and responses."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        pairs: Sequence[tuple[int, int]],
        pad_id: int,
        token_budget: int,
    ):
        self.backbone, self.prompts, self.responses = backbone, prompts, responses
        self.pad_id, self.budget = pad_id, token_budget
        self.logits = LOGITS_ON_CPU if backbone.device.type == "cpu" else LOGITS_ON_GPU
        self.poll: Callable[[], None] = lambda: None
        self.report: Callable[[Sequence[tuple[int, int]]], None] = lambda done: None
        self.values: dict[tuple[int, int], np.ndarray] = {}
        self.warned = self.whole = False
        self.answers: dict[int, list[int]] = {}
        for prompt, response in pairs:
            self.answers.setdefault(prompt, []).append(response)

    @torch.no_grad()
    def score(self) -> dict[tuple[int, int], np.ndarray]:
        """Token log-probabilities, float64, of each pair."""
        backbone, cost = self.backbone, self.backbone.cost
        shortest = backbone.plain_from()
        pairs = [(i, j) for i, row in self.answers.items() for j in row]
        longest = max(len(self.prompts[i]) + len(self.responses[j]) for i, j in pairs)
        if shortest is not None and longest >= shortest:
            backbone.ways = Ways(split=backbone.ways.split)
            self.whole = True
        used = sorted(self.answers)
        root = shared_prefixes(
            [self.prompts[i] for i in used],
            [len(self.answers[i]) for i in used],
            token=cost.token - cost.copied,
            run=cost.run,
            pair=cost.attention,
            depth=backbone.ways.depth,
        )
        self._visit(None, [root])
        return self.values

    def _visit(self, frame: Frame | None, prefixes: Sequence[Prefix]) -> None:
        """Score what stands on the prefixes, which are the frame's rows."""
        segments = [
            self._segment(row, prefix.end, prompt, response)
            for row, prefix in enumerate(prefixes)
            for prompt in prefix.prompts
            for response in self.answers[prompt]
        ]
        self._score_segments(frame, segments)
        below = [(row, longer) for row, prefix in enumerate(prefixes) for longer in prefix.below]
        while below := [(row, longer) for row, longer in below if not self._done(longer)]:
            cached = 0 if frame is None else frame.mask_RP.shape[1]
            lengths = [longer.end - longer.start for _, longer in below]
            first = self.backbone.cost.batches(lengths, cached, self.budget)[0]
            chosen = [below[index] for index in first]
            self.poll()
            try:
                self._visit(self._computed(frame, chosen), [prefix for _, prefix in chosen])
            except RuntimeError as error:
                if not (is_out_of_memory(error) or isinstance(error, OutOfMemoryError)):
                    raise
                if len(chosen) == 1:
                    raise self._too_large(chosen[0][1].end, 0) from error
            else:
                continue
            self._halve(len(chosen) * (cached + max(lengths[index] for index in first)))

    def _segment(self, row: int, end: int, prompt: int, response: int) -> _Segment:
        before, answer = self.prompts[prompt][end:], self.responses[response]
        # The last token predicts nothing scored; only a model that looks at row lengths needs it.
        ids = [*before, *(answer if self.whole else answer[:-1])]
        start, scored = max(len(before) - 1, 0), len(answer) - (not before)
        return _Segment((prompt, response), row, ids, start, scored)

    def _done(self, prefix: Prefix) -> bool:
        own = all(
            (prompt, response) in self.values
            for prompt in prefix.prompts
            for response in self.answers[prompt]
        )
        return own and all(self._done(longer) for longer in prefix.below)

    def _score_segments(self, frame: Frame | None, segments: Sequence[_Segment]) -> None:
        """Score them in passes of rows laid out by cost; those without tokens, by the frame."""
        cached = 0 if frame is None else frame.mask_RP.shape[1]
        while segments := [segment for segment in segments if segment.pair not in self.values]:
            part = [segment for segment in segments if not segment.ids] or segments
            rows = arrange(
                [len(segment.ids) for segment in part],
                [segment.row for segment in part],
                cached,
                self.backbone.cost,
                self.budget,
                pack=self.backbone.ways.packs and bool(part[0].ids),
            )
            widths = [max(sum(len(part[index].ids) for index in row), 1) for row in rows]
            batches = [[index] for index in range(len(widths))]
            if self.backbone.ways.together:
                batches = self.backbone.cost.batches(widths, cached, self.budget)
            for batch in batches:
                chosen = [[part[index] for index in rows[place]] for place in batch]
                if not self._try_segments(frame, chosen, cached):
                    break

    def _try_segments(
        self, frame: Frame | None, rows: Sequence[Sequence[_Segment]], cached: int
    ) -> bool:
        """Score the rows in one pass; False if memory did not hold it, and less is to be tried."""
        self.poll()
        try:
            self._score_pass(frame, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if sum(map(len, rows)) == 1:
                i, j = rows[0][0].pair
                raise self._too_large(len(self.prompts[i]), len(self.responses[j])) from error
        else:
            self.report([segment.pair for row in rows for segment in row])
            return True
        widest = max(sum(len(segment.ids) for segment in row) for row in rows)
        self._halve(len(rows) * (cached + widest))
        return False

    def _too_large(self, prompt: int, response: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"A prompt of {prompt} tokens{f' and a response of {response}' * bool(response)} alone "
            f"do not fit the memory of {self.backbone.device}. Use a larger device or a smaller "
            "dtype, or leave the example out."
        )

    def _halve(self, tokens: int) -> None:
        """Go on with half of what did not fit."""
        before, self.budget = self.budget, max(min(self.budget, tokens) // 2, 1)
        self.logits = max(self.logits // 2, 1)
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.warned:
            self.warned = True
            logger.warning(
                "A pass of %d tokens did not fit the memory of %s; going on with a token budget of "
                "%d instead of %d, and less where that does not fit.",
                *(tokens, self.backbone.device, self.budget, before),
            )

    def _computed(self, frame: Frame | None, chosen: Sequence[tuple[int, Prefix]]) -> Frame:
        """The frame of longer prefixes, each on a row of the shorter ones' frame."""
        device = self.backbone.device
        tails = [self.prompts[prefix.prompt][prefix.start : prefix.end] for _, prefix in chosen]
        ids_RW, mask_RW = pad(tails, self.pad_id, left=True)
        positions_RW = positions(mask_RW)
        if frame is None:
            cache: Cache = DynamicCache(config=self.backbone.config)
            mask_RP = mask_RW
        else:
            rows = torch.tensor([row for row, _ in chosen])
            cache = frame.copied(rows.to(device))
            mask_RP = torch.cat([frame.mask_RP[rows], mask_RW], dim=1)
            positions_RW = positions_RW + frame.lengths_R[rows][:, None]
        hidden_RWH = self.backbone.run(
            ids_RW.to(device), _padding(mask_RP, device), positions_RW.to(device), cache
        )
        lengths = torch.tensor([prefix.end for _, prefix in chosen])
        return Frame(cache, mask_RP, lengths, hidden_RWH[:, -1].clone())

    def _score_pass(self, frame: Frame | None, rows: Sequence[Sequence[_Segment]]) -> None:
        """Score the segments of B rows in one pass."""
        segments = [segment for row in rows for segment in row]
        width = max(sum(len(segment.ids) for segment in row) for row in rows)
        hidden_KH, counts = [], []
        hidden_BWH: Any = self._run_rows(frame, rows, width) if width else None
        for place, row in enumerate(rows):
            column = 0
            for segment in row:
                first, count = column + segment.start, len(self.responses[segment.pair[1]])
                if segment.scored < count:
                    assert frame is not None  # a response stands on a prefix
                    hidden_KH.append(frame.last_RH[segment.row][None])
                if segment.scored:
                    hidden_KH.append(hidden_BWH[place, first : first + segment.scored])
                counts.append(count)
                column += len(segment.ids)
        hidden = torch.cat(hidden_KH)
        del hidden_BWH, hidden_KH
        ids_K = torch.tensor([token for x in segments for token in self.responses[x.pair[1]]])
        values = self._log_prob(hidden, ids_K.to(hidden.device))
        ends = np.cumsum(counts)[:-1]
        for segment, found in zip(segments, np.split(values, ends), strict=True):
            self.values[segment.pair] = found

    def _run_rows(
        self, frame: Frame | None, rows: Sequence[Sequence[_Segment]], width: int
    ) -> Tensor:
        device = self.backbone.device
        joined = [[token for segment in row for token in segment.ids] for row in rows]
        ids_BW, mask_BW = pad(joined, self.pad_id, left=False)
        positions_BW, cache, own = torch.zeros_like(ids_BW), None, [row[0].row for row in rows]
        for place, row in enumerate(rows):
            column = 0
            for segment in row:
                begin = 0 if frame is None else int(frame.lengths_R[segment.row])
                end = column + len(segment.ids)
                positions_BW[place, column:end] = torch.arange(begin, begin + len(segment.ids))
                column = end
        mask_BP = mask_BW[:, :0]
        if frame is not None:
            chosen = torch.tensor(own)
            cache, mask_BP = frame.read(chosen.to(device)), frame.mask_RP[chosen]
        if all(len(row) == 1 for row in rows):
            mask = _padding(torch.cat([mask_BP, mask_BW], dim=1), device)
        else:
            mask = _apart(rows, mask_BP, width, self.backbone.dtype).to(device)
        return self.backbone.run(ids_BW.to(device), mask, positions_BW.to(device), cache)

    def _log_prob(self, hidden_KH: Tensor, ids_K: Tensor) -> np.ndarray:
        """log softmax of each position's logits at the id, float64."""
        config = self.backbone.config
        count = max(self.logits // config.vocab_size, 1)
        values = []
        for hidden, ids in zip(hidden_KH.split(count), ids_K.split(count), strict=True):
            logits_KV = self.backbone.logits(hidden).float()
            chosen_K = logits_KV.gather(-1, ids[:, None]).squeeze(-1)
            largest_K1 = logits_KV.amax(dim=-1, keepdim=True)
            # In place: the vocabulary is large.
            total_K = logits_KV.sub_(largest_K1).exp_().sum(dim=-1)
            values_K = chosen_K.double() - largest_K1[:, 0].double() - total_K.double().log()
            values.append(values_K.cpu().numpy())
        return np.concatenate(values)


def _padding(mask_BT: Tensor, device: torch.device) -> Tensor | None:
    """The mask of padded positions; None, for which attention is faster, without any."""
    return None if bool(mask_BT.all()) else mask_BT.to(device)


def _apart(
    rows: Sequence[Sequence[_Segment]], mask_BP: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    """What each token may attend to, (B, 1, W, P + W), its prefix and its own segment up to itself;
    allowed is 0, the rest the lowest number elsewhere. Padding attends to itself.
    """
    owner_BW = torch.full((len(rows), width), -1)
    for place, row in enumerate(rows):
        column = 0
        for number, segment in enumerate(row):
            owner_BW[place, column : column + len(segment.ids)] = number
            column += len(segment.ids)
    causal_WW = torch.ones(width, width, dtype=torch.bool).tril()
    own_BWW = (owner_BW[:, :, None] == owner_BW[:, None, :]) & causal_WW
    prefix_BWP = mask_BP.bool()[:, None, :].expand(-1, width, -1)
    allowed_BWT = torch.cat([prefix_BWP, own_BWW], dim=2)
    added_BWT, lowest = torch.zeros(allowed_BWT.shape, dtype=dtype), torch.finfo(dtype).min
    return added_BWT.masked_fill_(~allowed_BWT, lowest)[:, None]
