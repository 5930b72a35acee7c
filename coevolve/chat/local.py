"""A transformers chat model on this machine, with or without a PEFT adapter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coevolve.chat.base import (
    RETRY_TEMPERATURE,
    Completion,
    Poll,
    Question,
    Read,
    Reply,
    Value,
    keep_going,
    key_of,
    require_not_negative,
    require_positive,
    temperature_of,
)
from coevolve.errors import ArtifactError, ChatError
from coevolve.files import sha256_file
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"

Asked = tuple[Question, list[int]]
"""A question and its prompt's ids."""


class ModelHere:
    """What chat models on this machine have in common.

    A sample depends on the seed and the question's id, and not on which questions share a batch. A
    question is asked up to `attempts` times, for completions that the asker cannot use, later ones
    at `retry_temperature` at least.

    Args:
        renderer: of the model's own tokenizer, because it makes that one's control tokens harmless.
        max_new_tokens: a completion that has not ended by then is cut off.
        batch_size: prompts in one pass; their replies arrive together.
        weights: the SHA-256 of what was loaded, under names.
        poll: called between any two tokens; what it raises ends the work.
    """

    kind = ""

    def __init__(
        self,
        renderer: Renderer,
        *,
        max_new_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
        seed: int = 0,
        weights: Mapping[str, str] = MappingProxyType({}),
        attempts: int = 1,
        retry_temperature: float = RETRY_TEMPERATURE,
        poll: Poll = keep_going,
    ):
        require_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
        require_positive(attempts=attempts, retry_temperature=retry_temperature)
        require_not_negative(temperature=temperature)
        self.renderer, self.max_tokens, self.batch_size = renderer, max_new_tokens, batch_size
        self.temperature, self.seed, self.weights = temperature, seed, dict(weights)
        self.attempts, self.retry_temperature, self.poll = attempts, retry_temperature, poll

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on besides the question."""
        return {
            "kind": self.kind,
            **self.weights,
            **self.renderer.shown_date,
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def harmless(self, text: str) -> str:
        return self.renderer.harmless(text)

    @property
    def address(self) -> str:
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        """Of the weights."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """Tokens of a prompt and its answer that there is room for."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds beside this process's own memory."""

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, batch by batch; prompts of about one length share a batch."""
        batches, too_long = self.batches(questions)
        yield from too_long
        for batch in batches:
            waiting = batch
            for attempt in range(1, self.attempts + 1):
                failed = []
                for pair, completion in zip(
                    waiting, self._complete(waiting, attempt) if waiting else (), strict=True
                ):
                    value, problem = read(pair[0], completion)
                    if value is not None or attempt == self.attempts:
                        yield Reply(pair[0].id, value, problem, attempt)
                    else:
                        failed.append(pair)
                waiting = failed

    def batches(self, questions: Sequence[Question]) -> tuple[list[list[Asked]], list[Reply[Any]]]:
        """The questions that are asked together, longest first; replies to those without room."""
        room = self.positions - self.max_tokens
        asked = [(question, prompt_ids(self.renderer, question)) for question in questions]
        problem = (
            "the prompt has {} tokens, and beside {} new ones the model has room for {}. Lower "
            "max_new_tokens, or use a model with more positions"
        )
        too_long: list[Reply[Any]] = [
            Reply(question.id, None, problem.format(len(ids), self.max_tokens, room), attempts=0)
            for question, ids in asked
            if len(ids) > room
        ]
        fitting = sorted((x for x in asked if len(x[1]) <= room), key=lambda pair: -len(pair[1]))
        size = self.batch_size
        return [fitting[start : start + size] for start in range(0, len(fitting), size)], too_long

    def _complete(self, asked: Sequence[Asked], attempt: int) -> list[Completion]:
        """What is written when asking for the `attempt`-th time (from 1)."""
        raise NotImplementedError


class LocalChat(ModelHere):
    """A transformers chat model on this machine, in evaluation mode, with `ModelHere`'s options."""

    kind = "local"

    def __init__(
        self,
        model: "PreTrainedModel",
        renderer: Renderer,
        *,
        batch_size: int = 8,
        **options: Any,
    ):
        super().__init__(renderer, batch_size=batch_size, **options)
        self.model = model

    @classmethod
    def load(
        cls,
        source: str,
        prompts: PromptSet,
        *,
        adapter: str | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        date: str | None = None,
        **options: Any,
    ) -> "LocalChat":
        """As `load_chat_model`; `options` are the constructor's keywords but `weights`."""
        model, renderer = load_chat_model(
            source, prompts, adapter=adapter, dtype=dtype, device=device, date=date
        )
        return cls(model, renderer, weights=weight_fingerprints(source, adapter), **options)

    @property
    def address(self) -> str:
        return str(self.model.name_or_path)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def positions(self) -> int:
        from coevolve.scoring.batching import max_positions

        return max_positions(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "dtype": self.dtype}

    def _complete(self, asked: Sequence[Asked], attempt: int) -> list[Completion]:
        from coevolve.scoring.generate import Sampling, generate

        pad_id = self.renderer.tokenizer.pad_token_id
        temperature = temperature_of(attempt, self.temperature, self.retry_temperature)
        generations = generate(
            self.model,
            [ids for _, ids in asked],
            max_new_tokens=self.max_tokens,
            stop_ids=self.renderer.stop_ids(self.model),
            pad_id=self.renderer.end_of_turn_id if pad_id is None else pad_id,
            sampling=Sampling(self.seed + attempt, temperature) if temperature else None,
            keys=[key_of(question.id) for question, _ in asked],
            poll=self.poll,
        )
        return [Completion(self.renderer.decode(x.ids), x.finished) for x in generations]


def prompt_ids(renderer: Renderer, question: Question) -> list[int]:
    """The question as the model's chat template renders it."""
    try:
        return renderer.prompt_ids(renderer.chat(question.messages))
    except ArtifactError as error:
        raise ChatError(f"sample_ID {question.id!r}: {error}") from error


def load_chat_model(
    source: str,
    prompts: PromptSet,
    *,
    adapter: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    date: str | None = None,
) -> tuple["PreTrainedModel", Renderer]:
    """A chat model in evaluation mode, perhaps with a PEFT adapter, and a renderer with its
    tokenizer and `prompts`, whose headings are made harmless. Code that comes with a model is never
    run.
    """
    from coevolve.scoring.models import choose_device, choose_dtype, load_model, resolve_base
    from coevolve.scoring.roles import put_on

    place = choose_device(device)
    choose_dtype(dtype)
    renderer = load_renderer(source, prompts, date)
    with _of_the_chat_model():
        model: Any = load_model(resolve_base(source), dtype=dtype, device=place)
        if adapter is not None:
            model = put_on(model, _adapter_weights(adapter).parent).eval()
    return model, renderer


def load_renderer(source: str, prompts: PromptSet, date: str | None = None) -> Renderer:
    """A renderer with the tokenizer of the model at `source`."""
    from coevolve.scoring.models import load_tokenizer, resolve_base

    with _of_the_chat_model():
        tokenizer = load_tokenizer(resolve_base(source))
    return Renderer(prompts, tokenizer, date=date)


def weight_fingerprints(source: str, adapter: str | None) -> dict[str, str]:
    """The SHA-256 of a model's weights, as `weights`, and of its adapter's, as `adapter`."""
    from coevolve.scoring.models import base_fingerprint, resolve_base

    with _of_the_chat_model():
        weights = {"weights": base_fingerprint(resolve_base(source))}
    if adapter is not None:
        weights["adapter"] = sha256_file(_adapter_weights(adapter))
    return weights


def _adapter_weights(folder: str) -> Path:
    weights = Path(folder).expanduser() / ADAPTER_WEIGHTS
    if not (weights.is_file() and (weights.parent / "adapter_config.json").is_file()):
        raise ChatError(
            f"The adapter {folder!r} lacks adapter_config.json or {ADAPTER_WEIGHTS}. Accepted is a "
            "folder that PEFT's save_pretrained wrote."
        )
    return weights


@contextmanager
def _of_the_chat_model() -> Iterator[None]:
    """What is wrong with the files of a chat model is what is wrong with the chat model."""
    try:
        yield
    except ArtifactError as error:
        raise ChatError(str(error)) from error
