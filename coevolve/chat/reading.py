"""A role-playing model's own weights as the reader of its responses: log p(y | x) under the chat by
which it was asked.

What the model gives its responses is exact, whatever an estimator makes of them, so long as these
are the weights and this is the prompt that wrote them. So that is looked at first: by the record
that `coevolve respond` left in the responses' file, and by whether the model finds the responses
nearly as likely as what it says by itself.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coevolve.chat.base import Poll, Question, key_of
from coevolve.chat.endpoint import Endpoint
from coevolve.chat.local import (
    ADAPTER_WEIGHTS,
    load_chat_model,
    load_renderer,
    prompt_ids,
    weight_fingerprints,
)
from coevolve.data.example import Example
from coevolve.errors import ChatError, TooLongError
from coevolve.prompts import Renderer, prompt_set
from coevolve.prompts.play import PlayPrompt, play_messages
from coevolve.scoring.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coevolve.scoring.cache import WorkCache

MOST_BELOW = 1.0
"""Nats per token that a model's responses may lie below what it says by itself, drawn at
temperature 1. Of SmolLM2-135M greedy responses lie 1.7 above that and golden ones 0.7, those of
other dialogues 0.5 below, golden ones in a code 5.9 (24 contexts).
"""
LOOKED_AT, OWN_TOKENS, OWN_SEED = 8, 32, 0


class AsAsked:
    """A chat model that scores responses as if it gave them, wherever it is.

    Args:
        renderer: with its tokenizer.
        prompt: by which it was asked; by default that of `coevolve respond`.
        cache: what it computed before, on disk.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        prompt: PlayPrompt | None = None,
        cache: "WorkCache | None" = None,
    ):
        self.renderer, self.prompt, self.cache = renderer, prompt, cache

    @property
    def address(self) -> str:
        """The folder, hub id or URL where it is found."""
        raise NotImplementedError

    def harmless(self, text: str) -> str:
        """`text` from data as it was asked about."""
        return self.renderer.harmless(text)

    def log_prob_pairs(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        pairs: np.ndarray,
    ) -> Scores:
        """log p(y_j | x_i) of `pairs`, (Q, 2), nats per response, its end of turn included; no
        reasoning is shown.
        """
        from coevolve.scoring.cache import cached_scores
        from coevolve.scoring.logprob import to_scores

        pairs, prompts = np.asarray(pairs, dtype=np.int64).reshape(-1, 2), self._prompts(examples)
        targets = [self.renderer.response_ids(text) for text in responses]
        for i, j in pairs:
            if len(prompts[i]) + len(targets[j]) > self._room:
                raise TooLongError(
                    f"sample_ID {examples[i].sample_id!r}: its prompt has {len(prompts[i])} tokens "
                    f"and a response {len(targets[j])}; the model {self.address!r} holds "
                    f"{self._room}. Leave the example out."
                )
        compute = partial(self._scored, [x.sample_id for x in examples], prompts, targets)
        if self.cache is None:
            return to_scores(compute(pairs))
        return to_scores(cached_scores(self.cache, prompts, targets, pairs, compute, None))

    def require_fit(self, name: str, examples: Sequence[Example], responses: Sequence[str]) -> None:
        """ChatError where the model finds responses far less likely than what it says by itself, in
        a few of the contexts: they are another model's, or asked for by another prompt.
        """
        places = np.linspace(0, len(examples) - 1, min(LOOKED_AT, len(examples))).astype(int)
        looked_at, given = [examples[place] for place in places], [responses[x] for x in places]
        own_pairs = np.stack([np.arange(len(places))] * 2, axis=1)
        scores = self.log_prob_pairs(looked_at, given, [None] * len(places), own_pairs)
        theirs, own = float(scores.sum.sum() / scores.tokens.sum()), self._own_mean(looked_at)
        if theirs < own - MOST_BELOW:
            raise ChatError(
                f"--own {name}: the responses have {theirs:.2f} nats per token under "
                f"{self.address!r}, whose own text has {own:.2f} in the same contexts: other "
                "weights, another tokenizer or another prompt wrote them. Give the model that did, "
                "or what it was asked (--prompt)."
            )

    _room: int | float
    """Positions that it has."""

    def _scored(
        self,
        ids: Sequence[str],
        prompts: Sequence[list[int]],
        targets: Sequence[list[int]],
        pairs: np.ndarray,
        **found: Any,
    ) -> list[np.ndarray]:
        """Token log-probabilities of pairs of prompt, of the sample with that id, and target."""
        raise NotImplementedError

    def _own_mean(self, examples: Sequence[Example]) -> float:
        """Log-probability of what it says by itself, nats per token."""
        raise NotImplementedError

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        asked = [
            Question(x.sample_id, play_messages(x, self.harmless, self.prompt)) for x in examples
        ]
        return [prompt_ids(self.renderer, question) for question in asked]


class OwnWeights(AsAsked):
    """One in memory; `poll` is called between any two forward passes, and what it raises ends the
    work.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        renderer: Renderer,
        *,
        token_budget: int = 16384,
        poll: Poll | None = None,
        **options: Any,
    ):
        from coevolve.scoring.batching import max_positions

        super().__init__(renderer, **options)
        self.model, self._room = model, max_positions(model)
        pad_id = renderer.tokenizer.pad_token_id
        self._how: dict[str, Any] = {
            "pad_id": renderer.end_of_turn_id if pad_id is None else pad_id,
            "token_budget": token_budget,
            "poll": poll,
        }

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: str = "float32",
        device: str = "auto",
        date: str | None = None,
        cache: str | Path | None = None,
        **options: Any,
    ) -> "OwnWeights":
        """A model folder, hub id or PEFT adapter, which names its base; `options` are the
        constructor's. ChatError.
        """
        from coevolve.scoring.cache import WorkCache, fingerprint

        base, adapter = parts_of(source)
        how: dict[str, Any] = {"adapter": adapter, "dtype": dtype, "device": device, "date": date}
        model, renderer = load_chat_model(base, prompt_set("roleplay"), **how)
        kept = None
        if cache is not None:
            place = {"device": model.device.type, "dtype": str(model.dtype)}
            kept = WorkCache(cache, fingerprint({**weight_fingerprints(base, adapter), **place}))
        return cls(model, renderer, cache=kept, **options)

    @property
    def address(self) -> str:
        return str(self.model.name_or_path)

    def _scored(
        self,
        ids: Sequence[str],
        prompts: Sequence[list[int]],
        targets: Sequence[list[int]],
        pairs: np.ndarray,
        **found: Any,
    ) -> list[np.ndarray]:
        from coevolve.scoring.logprob import score_pairs

        return score_pairs(self.model, prompts, targets, pairs, **self._how, **found)

    def _own_mean(self, examples: Sequence[Example]) -> float:
        from coevolve.scoring.generate import Sampling, generate
        from coevolve.scoring.logprob import score_rows

        prompts = self._prompts(examples)
        said = generate(
            self.model,
            prompts,
            max_new_tokens=OWN_TOKENS,
            stop_ids=self.renderer.stop_ids(self.model),
            sampling=Sampling(OWN_SEED, 1.0),
            keys=[key_of(example.sample_id) for example in examples],
            **self._how,
        )
        own = [one.ids or [self.renderer.end_of_turn_id] for one in said]
        return float(np.concatenate(score_rows(self.model, prompts, own, **self._how)).mean())


class ServedWeights(AsAsked):
    """One behind an OpenAI-compatible endpoint that gives log-probabilities of prompts, as vLLM's
    does; the renderer is of its tokenizer.
    """

    _room = math.inf  # the server says what is too long

    def __init__(self, endpoint: Endpoint, renderer: Renderer, **options: Any):
        super().__init__(renderer, **options)
        self.endpoint = endpoint

    @classmethod
    def load(
        cls,
        source: str,
        *,
        date: str | None = None,
        cache: str | Path | None = None,
        prompt: PlayPrompt | None = None,
        **options: Any,
    ) -> "ServedWeights":
        """`URL#MODEL`, the model being known by that name to the server, and to the hub, or as a
        folder, where its tokenizer is; `options` are those of `Endpoint`. What is in the cache is
        taken for the same model's as long as URL and name are the same.
        """
        from coevolve.scoring.cache import WorkCache, fingerprint

        url, _, model = source.partition("#")
        if not model:
            raise ChatError(
                f"{source}: names no model. Accepted is URL#MODEL, by the name that the server "
                "knows; its tokenizer is taken from the folder, or from the hub, of that name."
            )
        endpoint, renderer = (
            Endpoint(url, model, **options),
            load_renderer(model, prompt_set("roleplay"), date),
        )
        kept = (
            None if cache is None else WorkCache(cache, fingerprint({"url": url, "model": model}))
        )
        return cls(endpoint, renderer, prompt=prompt, cache=kept)

    @property
    def address(self) -> str:
        return f"{self.endpoint.address}#{self.endpoint.model}"

    def harmless(self, text: str) -> str:
        return self.endpoint.harmless(text)

    def _scored(
        self,
        ids: Sequence[str],
        prompts: Sequence[list[int]],
        targets: Sequence[list[int]],
        pairs: np.ndarray,
        **found: Any,
    ) -> list[np.ndarray]:
        rows = [(ids[i], [*prompts[i], *targets[j]]) for i, j in pairs]
        values: list[np.ndarray] = [np.empty(0)] * len(rows)
        for place, echo in self.endpoint.echo(rows):
            values[place] = np.array(echo[-len(targets[pairs[place, 1]]) :])
            if "found" in found:
                found["found"]([(place, values[place])])
        return values

    def _own_mean(self, examples: Sequence[Example]) -> float:
        prompts = self._prompts(examples)
        rows = [(x.sample_id, ids) for x, ids in zip(examples, prompts, strict=True)]
        said = [x[len(prompts[place]) :] for place, x in self.endpoint.echo(rows, OWN_TOKENS)]
        return float(np.mean(np.concatenate(said)))


def parts_of(source: str) -> tuple[str, str | None]:
    """(base model, adapter or None) of what `--own` names; ChatError for an adapter without one."""
    from coevolve.scoring.origins import BASE_OF_ADAPTER, read_config

    folder = Path(source).expanduser()
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return source, None
    base = read_config(folder).get(BASE_OF_ADAPTER)
    if not isinstance(base, str) or not base:
        raise ChatError(
            f"{folder}: its adapter_config.json names no {BASE_OF_ADAPTER}. Write the base model "
            "there, a folder or the name of one on a hub."
        )
    beside = folder / base
    return (str(beside) if beside.is_dir() else base), str(folder)


def prompt_that_asked(
    name: str,
    path: str,
    source: str | None,
    header: Mapping[str, Any] | None,
    given: PlayPrompt | None,
) -> PlayPrompt | None:
    """The prompt by which a file's responses were asked for: that `given`, or that of its record.

    ChatError where the record says that other weights than those at `source` wrote them, or a
    prompt that is not known here; `source` is None where only a server knows the weights.
    """
    if header is None:
        return given
    wrote = header["model"] if isinstance(header["model"], Mapping) else {}
    if source is not None and "weights" in wrote:
        ours = weight_fingerprints(*parts_of(source))
        if ours != {key: wrote[key] for key in ("weights", "adapter") if key in wrote}:
            raise ChatError(
                f"--own {name}={source}: {path} says that other weights wrote these responses "
                f"({header['address']}). Give those."
            )
    if given is not None or header["prompt"] == PlayPrompt().recorded():
        return given
    try:
        return PlayPrompt.model_validate(header["prompt"])
    except ValueError:
        raise ChatError(
            f"--own {name}: {path} was asked for by a prompt that is not known here. Give it by "
            "--prompt, or ask again with coevolve respond."
        ) from None
