"""A role-playing model's own weights as the reader of its responses: log p(y | x) under the chat by
which it was asked.

What the model gives its responses is exact, whatever an estimator makes of them, so long as these
are the weights and this is the prompt that wrote them. So that is looked at first: by the record
that `coevolve respond` left in the responses' file, and by whether the model finds the responses
nearly as likely as what it says by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coevolve.chat.base import Message, Poll, Question, key_of
from coevolve.chat.local import ADAPTER_WEIGHTS, load_chat_model, prompt_ids, weight_fingerprints
from coevolve.data.example import Example
from coevolve.errors import ChatError, TooLongError
from coevolve.prompts import Renderer, prompt_set
from coevolve.prompts.play import play_messages
from coevolve.scoring.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coevolve.scoring.cache import WorkCache

MOST_BELOW = 2.0
"""Nats per token that a model's responses may lie below what it says by itself. Of SmolLM2-135M:
its own greedy responses lie above, golden ones 1 to 1.5 below, words in a code 4 below.
"""
LOOKED_AT, OWN_TOKENS, OWN_SEED = 8, 32, 0
Asked = Callable[[Example], Sequence[Message]]


class OwnWeights:
    """A chat model in memory that scores responses as if it gave them.

    Args:
        asked: the messages by which it was asked; by default those of `coevolve respond`.
        cache: what it computed before, on disk.
        poll: called between any two forward passes; what it raises ends the work.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        renderer: Renderer,
        *,
        asked: Asked | None = None,
        token_budget: int = 16384,
        cache: "WorkCache | None" = None,
        poll: Poll | None = None,
    ):
        self.model, self.renderer, self.token_budget = model, renderer, token_budget
        self.asked, self.cache, self.poll = asked or self._as_respond_does, cache, poll

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
        from coevolve.scoring.batching import max_positions
        from coevolve.scoring.cache import cached_scores
        from coevolve.scoring.logprob import score_pairs, to_scores

        prompts = [self._prompt(example) for example in examples]
        targets = [self.renderer.response_ids(text) for text in responses]
        room = max_positions(self.model)
        for i, j in pairs:
            if len(prompts[i]) + len(targets[j]) > room:
                raise TooLongError(
                    f"sample_ID {examples[i].sample_id!r}: its prompt has {len(prompts[i])} tokens "
                    f"and a response {len(targets[j])}; the model {self.model.name_or_path!r} holds "
                    f"{room}. Leave the example out."
                )
        pad_id = self.renderer.tokenizer.pad_token_id
        pad_id = self.renderer.end_of_turn_id if pad_id is None else pad_id
        how: dict[str, Any] = {"pad_id": pad_id, "token_budget": self.token_budget}

        def compute(some: np.ndarray, **more: Any) -> list[np.ndarray]:
            found = score_pairs(self.model, prompts, targets, some, poll=self.poll, **how, **more)
            return found

        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if self.cache is None:
            return to_scores(compute(pairs))
        return to_scores(cached_scores(self.cache, prompts, targets, pairs, compute, None))

    def require_fit(self, name: str, examples: Sequence[Example], responses: Sequence[str]) -> None:
        """ChatError where the model finds responses far less likely than what it says by itself, in
        a few of the contexts: they are another model's, or asked for by another prompt.
        """
        from coevolve.scoring.generate import Sampling, generate
        from coevolve.scoring.logprob import score_rows

        places = np.linspace(0, len(examples) - 1, min(LOOKED_AT, len(examples))).astype(int)
        looked_at = [examples[place] for place in places]
        prompts = [self._prompt(example) for example in looked_at]
        pad_id = self.renderer.tokenizer.pad_token_id
        pad_id = self.renderer.end_of_turn_id if pad_id is None else pad_id
        said = generate(
            self.model,
            prompts,
            max_new_tokens=OWN_TOKENS,
            stop_ids=self.renderer.stop_ids(self.model),
            pad_id=pad_id,
            sampling=Sampling(OWN_SEED, 1.0),
            keys=[key_of(example.sample_id) for example in looked_at],
            poll=self.poll,
        )
        given = [self.renderer.response_ids(responses[place]) for place in places]
        own = [one.ids or [self.renderer.end_of_turn_id] for one in said]
        means = [
            float(np.concatenate(score_rows(self.model, prompts, ids, pad_id=pad_id)).mean())
            for ids in (given, own)
        ]
        if means[0] < means[1] - MOST_BELOW:
            raise ChatError(
                f"--own {name}: the responses have {means[0]:.2f} nats per token under "
                f"{self.model.name_or_path!r}, whose own text has {means[1]:.2f} in the same "
                "contexts: other weights, another tokenizer or another prompt wrote them. Give the "
                "model that did, or what it was asked (--prompt)."
            )

    def _prompt(self, example: Example) -> list[int]:
        return prompt_ids(self.renderer, Question(example.sample_id, self.asked(example)))

    def _as_respond_does(self, example: Example) -> Sequence[Message]:
        return play_messages(example, self.renderer.harmless)


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


def require_written_by(
    name: str, path: str, source: str, header: Mapping[str, Any] | None, *, own_prompt: bool
) -> None:
    """ChatError where the record of a responses' file says that other weights or another prompt
    wrote them; `own_prompt` if the user gives what they were asked.
    """
    from coevolve.data.ledger import digest
    from coevolve.prompts.play import PARTS

    if header is None:
        return
    wrote = header["model"] if isinstance(header["model"], Mapping) else {}
    if "weights" in wrote:
        base, adapter = parts_of(source)
        ours = weight_fingerprints(base, adapter)
        if ours != {key: wrote[key] for key in ("weights", "adapter") if key in wrote}:
            raise ChatError(
                f"--own {name}={source}: {path} says that other weights wrote these responses "
                f"({header['address']}). Give those."
            )
    if not own_prompt and header["prompt"] != digest(PARTS):
        raise ChatError(
            f"--own {name}: {path} was asked for by another version's prompt. Give what was asked "
            "by --prompt, or ask again with coevolve respond."
        )
