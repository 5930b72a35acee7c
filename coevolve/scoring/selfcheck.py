"""What a model is asked when it is loaded: whether the fast ways to run it give a plain pass's
numbers.

The probe is two contexts that begin alike and three responses of different lengths, of random
tokens. A plain pass over a pair, `model(input_ids=row)`, is the measure. Against it stand, one
after another and each with what was found good so far:

    scoring    rows padded into one pass, decoder and head apart
               responses side by side in a row, on prefixes that stand on prefixes; or else one to a
               row, on prefixes that do, or on single ones
    writing    prompts of different lengths and one that is shared, padded into a batch; or else
               alone

What differs is not done with this model, which is then slower and as right. A model is refused
whose plain passes are no log-probabilities of a causal language model: they fail, are not finite,
or change with what follows.

A window longer than the probe does not show in it. Those that transformers' own masks and caches
keep are right for any length (tests/scoring/test_architectures.py crosses them); a model that keeps
one by itself is run in plain passes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coevolve.errors import ArtifactError, OutOfMemoryError
from coevolve.libraries.torch import check as check_modules
from coevolve.libraries.transformers import check_models
from coevolve.scoring.backbone import Backbone
from coevolve.scoring.batching import TOKEN_BUDGET, device_of, max_positions
from coevolve.scoring.cost import Cost
from coevolve.scoring.foreign import is_out_of_memory
from coevolve.scoring.generate import new_batch
from coevolve.scoring.scorer import Scorer
from coevolve.scoring.ways import VERDICT, Ways, accepts, bare, guess

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.1, torch.bfloat16: 0.4}
"""Nats by which a token may differ from its plain pass.

Rounding alone is at most 2.5e-5, 0.06 and 0.28 in ten probes of SmolLM2-135M; a wrong mask or
position is 0.01 to 10. Where plain passes over one row and over a batch of it twice differ, four
times that is allowed, up to `MOST` times what stands here.
"""

MOST = 5

CONTEXT_ON_CPU, CONTEXT_ELSEWHERE = 16, 600
"""Of the longer context: few where they cost time, else enough to cross a short window."""

RESPONSES = (2, 4, 7)
PAIRS = ((0, 0), (0, 1), (1, 1), (1, 2))
WRITTEN = ((0, 1), (0, 1), (1, 2))
"""Tokens of each response; (context, response) to score; those whose first tokens are written."""

SEED = 20


class Probe(NamedTuple):
    """What is scored and written, nats per token in a `plain` pass, and the tolerance."""

    contexts: list[list[int]]
    responses: list[list[int]]
    plain: dict[tuple[int, int], np.ndarray]
    tolerance: float


def checked(model: Any) -> Any:
    """The model, its ways found and kept on it; ArtifactError where plain passes make no sense."""
    base = bare(model)
    if VERDICT not in base.__dict__:
        check_modules()
        check_models()
        training = base.training
        setattr(base, VERDICT, _find(base.eval()))
        base.train(training)
    return model


@torch.no_grad()
def _find(base: Any) -> Ways:
    expected = guess(base)
    search = _Search(base, _probe(base))
    split, together = {"split": expected.split}, {"together": expected.together}
    search.adopt(_scored, split | together, split, together)
    if search.found.split and search.found.together:
        depth, single = {"depth": expected.depth}, {"depth": min(expected.depth, 1)}
        search.adopt(_scored, depth | {"packs": expected.packs}, depth, single)
    batches = [{"generates": "in batches"}] if expected.generates == "in batches" else []
    search.adopt(_written, *batches, {"generates": "alone"})
    found = search.found
    if search.reasons or found.scores == "plain" or found.generates != "in batches":
        why = f" ({'; '.join(dict.fromkeys(search.reasons))})" if search.reasons else ""
        logger.warning(
            "%s is scored %s and writes %s, which is slower than usual and as right%s.",
            *(_name(base), found.scores, found.generates, why),
        )
    return found


class _Search:
    """The ways found so far, beginning with plain passes, and why others were not taken."""

    def __init__(self, base: Any, probe: Probe):
        self.base, self.probe = base, probe
        self.found = Ways()
        self.reasons: list[str] = []

    def adopt(
        self, distance: Callable[[Any, Ways, Probe], float], *options: Mapping[str, Any]
    ) -> None:
        """Take the first of the options that is within the tolerance; nothing where none is."""
        for ways in (replace(self.found, **changes) for changes in options):
            if ways == self.found:
                return
            try:
                far = distance(self.base, ways, self.probe)
                reason = f"{far:.2g} nats from plain"
            except Exception as error:  # any, of any model's code
                if is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                    raise
                far, reason = np.inf, f"fails with {_brief(error)}"
            if far <= self.probe.tolerance:
                self.found = ways
                return
            what = f"writing {ways.generates}" if distance is _written else ways.scores
            self.reasons.append(f"{what}: {reason}")


def _scored(base: Any, ways: Ways, probe: Probe) -> float:
    """The largest difference of a token's score, in nats."""
    backbone = Backbone(base, ways)
    # All that the ways allow is done, however little it saves here.
    backbone.cost = Cost(token=1.0, attention=0.0, copied=0.1, run=(len(probe.contexts[0]) + 8) / 8)
    scorer = Scorer(backbone, probe.contexts, probe.responses, PAIRS, 0, TOKEN_BUDGET)
    scores = scorer.score()
    return _largest([scores[pair] - probe.plain[pair] for pair in PAIRS])


def _written(base: Any, ways: Ways, probe: Probe) -> float:
    """The same of what the model thinks of given tokens, one after another as in generation."""
    steps = min(len(probe.responses[response]) for _, response in WRITTEN)
    together = ways.generates == "in batches"
    differences = []
    for pairs in [WRITTEN] if together else [[pair] for pair in WRITTEN]:
        dictation = _Dictation([probe.responses[response][:steps] for _, response in pairs])
        prompts = [probe.contexts[context] for context, _ in pairs]
        new_batch(base, prompts, steps, pad_id=0, ways=ways).run((), dictation, None)
        found = np.transpose(dictation.log_probs)
        plain = [probe.plain[pair][:steps] for pair in pairs]
        differences += [row - of for row, of in zip(found, plain, strict=True)]
    return _largest(differences)


class _Dictation:
    """In place of noise: decides what is written, and notes how probable the model found it."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.rows = rows
        self.log_probs: list[np.ndarray] = []

    def add(self, logits_BV: Tensor) -> Tensor:
        ids_B = torch.tensor([row[len(self.log_probs)] for row in self.rows])
        self.log_probs.append(_log_probs(logits_BV, ids_B))
        return torch.nn.functional.one_hot(ids_B, logits_BV.shape[-1]).to(logits_BV.device)

    def keep(self, places: Sequence[int]) -> None:
        raise AssertionError("no row ends before the others")


def _probe(base: Any) -> Probe:
    """The probe with its plain passes. Raises as `checked`."""
    contexts, responses = _texts(base)
    plain, before, noise = {}, {}, 0.0
    try:
        for pair in PAIRS:
            row = contexts[pair[0]] + responses[pair[1]]
            values, start = _plain(base, [row]), len(contexts[pair[0]]) - 1
            before[pair], plain[pair] = values[:start], values[start:]
            if pair == PAIRS[0]:
                noise = _largest([_plain(base, [row, row]) - values])
    except Exception as error:  # any, of any model's code
        if is_out_of_memory(error):
            raise
        raise ArtifactError(
            f"{_name(base)} cannot be scored: a plain pass over a row of tokens fails with "
            f"{_brief(error)}. Accepted is a causal language model that needs nothing but tokens."
        ) from error
    if not np.isfinite(np.concatenate([*plain.values(), *before.values()])).all():
        why = f"in {str(base.dtype).removeprefix('torch.')} its log-probabilities are not finite"
        raise ArtifactError(f"{_name(base)} cannot be scored: {why}. Take another dtype, or model.")
    # Layers of 8 bits round what goes into them about as coarsely as bfloat16 does.
    rounding = torch.bfloat16 if getattr(base, "is_loaded_in_8bit", False) else base.dtype
    least = TOLERANCE.get(rounding, TOLERANCE[torch.float32])
    tolerance = min(max(least, 4 * noise), MOST * least)
    far = _largest([before[0, 0] - before[0, 1], before[1, 1] - before[1, 2]])
    if far > tolerance:
        raise ArtifactError(
            f"{_name(base)} is no causal language model as it is configured: what it predicts "
            f"changes by {far:.2g} nats with the tokens that follow. If it was trained as a "
            "decoder, set is_decoder in its config.json."
        )
    return Probe(contexts, responses, plain, tolerance)


def _texts(base: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Random contexts and responses, without tokens to which the configuration gives a meaning."""
    settings = base.config.to_dict().items()
    special = {
        value
        for name, value in settings
        if name.endswith(("token_id", "token_index"))
        if type(value) is int
    }
    vocabulary = range(base.config.get_text_config().vocab_size)
    ordinary = [token for token in vocabulary if token not in special]
    generator = torch.Generator().manual_seed(SEED)

    def draw(count: int) -> list[int]:
        places = torch.randint(len(ordinary), (count,), generator=generator)
        return [ordinary[i] for i in places.tolist()]

    longest = CONTEXT_ON_CPU if device_of(base).type == "cpu" else CONTEXT_ELSEWHERE
    plain_from = Backbone(base, Ways()).plain_from()
    room = max_positions(base) if plain_from is None else min(max_positions(base), plain_from - 1)
    longer = max(min(longest, room - max(RESPONSES)), 4)
    start = draw(3 * longer // 8)
    contexts = [start + draw(length - len(start)) for length in (longer, 13 * longer // 16)]
    return contexts, [draw(length) for length in RESPONSES]


def _plain(base: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """(tokens - 1,) log-probabilities of a row's tokens but the first, by a plain pass."""
    options = {"use_cache": False} if accepts(base, "use_cache") else {}
    logits = base(input_ids=torch.tensor(rows, device=device_of(base)), **options).logits[0]
    return _log_probs(logits[:-1], torch.tensor(rows[0][1:]))


def _log_probs(logits_KV: Tensor, ids_K: Tensor) -> np.ndarray:
    chosen = zip(logits_KV, ids_K.tolist(), strict=True)  # one by one: the vocabulary is large
    values = [x.cpu().double().log_softmax(dim=-1)[token].item() for x, token in chosen]
    return np.array(values)


def _largest(differences: Sequence[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(differences)).max())


def _name(base: Any) -> str:
    return f"{base.name_or_path or 'The model'} ({type(base).__name__})"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
