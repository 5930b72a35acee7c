"""Teachers that are chat models: one on this machine, or one behind an OpenAI-compatible endpoint.

Both are shown the golden response and asked for a reasoning under the prompt set's headings. A
reply that lacks a section, or was cut off, is asked for again; only then is the example given up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from coevolve.chat import Endpoint, LocalChat, VllmChat
from coevolve.chat.base import Completion, Poll, Question
from coevolve.chat.local import load_chat_model
from coevolve.data.example import Example
from coevolve.errors import ChatError, RecipeError, TeacherError
from coevolve.libraries.vllm import REMEDY
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet
from coevolve.recipe.schema import Traces
from coevolve.teachers.base import TEACHERS, Answer, read_reply, require_response, unusable


class LocalTeacher:
    """A chat model on this machine, by transformers or vLLM. The first attempt is greedy, later
    ones are sampled.
    """

    def __init__(self, chat: LocalChat | VllmChat):
        require_teacher_prompt(chat.renderer.prompts)
        self.chat, self.renderer, self.prompts = chat, chat.renderer, chat.renderer.prompts

    @classmethod
    def load(
        cls,
        source: str,
        prompts: PromptSet,
        *,
        max_new_tokens: int = 1024,
        attempts: int = 3,
        dtype: str = "bfloat16",
        device: str = "auto",
        date: str | None = None,
        vllm: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "LocalTeacher":
        """By vLLM, if there are options for `VllmChat.load`, else as `load_chat_model`; the others
        are of what both have in common.
        """
        options |= {"max_new_tokens": max_new_tokens, "attempts": attempts}
        how: dict[str, Any] = {"dtype": dtype, "date": date}
        with _as_teacher():
            if vllm is not None:
                return cls(VllmChat.load(source, prompts, weights={}, **how, **vllm, **options))
            model, renderer = load_chat_model(source, prompts, device=device, **how)
            return cls(LocalChat(model, renderer, **options))

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example."""
        chat = self.chat
        return {
            "kind": chat.kind,
            "model": chat.address,
            "dtype": chat.dtype,
            "max_new_tokens": chat.max_tokens,
            "temperature": chat.retry_temperature,
            "seed": chat.seed,
        }

    def share(self, examples: Sequence[Example], rank: int, count: int) -> Sequence[Example]:
        """Whole batches, as one process would have made them: what shares one decides a bit. To
        vLLM, which makes its own, every so manieth example.
        """
        if isinstance(self.chat, VllmChat):
            return examples[rank::count]
        by_id = {example.sample_id: example for example in examples}
        batches, too_long = self.chat.batches(_questions(self.renderer, examples))
        own = [by_id[question.id] for batch in batches[rank::count] for question, _ in batch]
        return [*own, *(by_id[reply.id] for reply in too_long if rank == 0)]

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, batch by batch; prompts of about one length share a batch."""
        return _answers(self.chat, self.renderer, examples)

    def close(self) -> None:
        """Give back what an engine holds."""
        self.chat.close()


class EndpointTeacher:
    """A chat model behind an OpenAI-compatible endpoint, with `Endpoint`'s options.

    A server that is down must not look like bad replies: what is left of its trouble after
    `retries` stops the run.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        renderer: Renderer,
        *,
        temperature: float | None = 0.7,
        attempts: int = 3,
        **options: Any,
    ):
        require_teacher_prompt(renderer.prompts)
        self.renderer, self.prompts = renderer, renderer.prompts
        with _as_teacher():
            self.chat = Endpoint(
                base_url, model, temperature=temperature, attempts=attempts, **options
            )
        self.concurrency = self.chat.concurrency

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example. The key is not among it."""
        chat = self.chat
        return {
            "kind": "endpoint",
            "base_url": chat.address,
            "model": chat.model,
            "temperature": chat.temperature,
            "max_tokens": chat.max_tokens,
        }

    def share(self, examples: Sequence[Example], rank: int, count: int) -> Sequence[Example]:
        """Every so manieth example, to be asked with this process's part of `concurrency`, which
        all have together. Where there are fewer than processes, the last ones ask nothing.
        """
        asking = min(count, self.concurrency)
        if rank >= asking:
            return []
        self.chat.concurrency = len(range(rank, self.concurrency, asking))
        return examples[rank::asking]

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, as the server finishes them."""
        return _answers(self.chat, self.renderer, examples)


@TEACHERS.register("local")
def _local(
    settings: Traces, prompts: PromptSet, seed: int, device: str, date: str, poll: Poll, **_: Any
) -> LocalTeacher:
    assert settings.model is not None  # the recipe sees to it, as below
    vllm: dict[str, Any] = {"why": "traces.use_vllm", "remedy": REMEDY}
    vllm |= {"max_model_len": settings.vllm_max_model_length}
    vllm |= {"share": settings.vllm_gpu_memory_utilization}
    return LocalTeacher.load(
        settings.model,
        prompts,
        vllm=vllm if settings.use_vllm else None,
        device=device,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        date=date,
        poll=poll,
    )


@TEACHERS.register("endpoint")
def _endpoint(
    settings: Traces, renderer: Renderer, environ: Mapping[str, str], poll: Poll, **_: Any
) -> EndpointTeacher:
    assert settings.base_url is not None and settings.model is not None
    return EndpointTeacher(
        settings.base_url,
        settings.model,
        renderer,
        api_key_env=settings.api_key_env,
        environ=environ,
        max_tokens=settings.max_new_tokens,
        poll=poll,
    )


def _answers(
    chat: LocalChat | VllmChat | Endpoint, renderer: Renderer, examples: Sequence[Example]
) -> Iterator[Answer]:
    sections = renderer.prompts.sections

    def read(_: Question, completion: Completion) -> tuple[str | None, str]:
        trace, problem = read_reply(completion.text, sections)
        if completion.finished:
            return trace, problem
        return None, f"the reply was cut off after {chat.max_tokens} tokens; {problem}"

    by_id = {example.sample_id: example for example in examples}
    with _as_teacher():
        for reply in chat.replies(_questions(renderer, examples), read):
            if reply.value is None:
                yield unusable(by_id[reply.id], reply.problem, reply.attempts)
            else:
                yield Answer(reply.id, reply.value)


def _questions(renderer: Renderer, examples: Sequence[Example]) -> list[Question]:
    for example in examples:
        require_response(example)
    return [Question(example.sample_id, renderer.teacher(example)) for example in examples]


@contextmanager
def _as_teacher() -> Iterator[None]:
    """What goes wrong with the chat model is the teacher's failure."""
    try:
        yield
    except ChatError as error:
        raise TeacherError(f"The teacher: {error}") from None


def require_teacher_prompt(prompts: PromptSet) -> None:
    """Raise RecipeError for a prompt set without words for a teacher."""
    if not prompts.teacher_user:
        raise RecipeError(
            f"prompts: the set {prompts.name!r} has no teacher_user, so a chat model cannot be "
            "asked for a trace. Use another set, or traces from a file."
        )
