"""Teachers that are chat models: one on this machine, or one behind an OpenAI-compatible endpoint.

Both are shown the golden response and asked for a reasoning under the prompt set's headings. A
reply that lacks a section, or was cut off, is asked for again; only then is the example given up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coevolve.chat.base import RETRY_TEMPERATURE, ChatModel, Completion, Question, require_positive
from coevolve.chat.endpoint import Endpoint
from coevolve.chat.local import LocalChat, load_chat_model
from coevolve.data.example import Example
from coevolve.errors import ChatError, RecipeError, TeacherError
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet
from coevolve.teachers.base import Answer, read_reply, require_response, unusable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalTeacher:
    """A transformers chat model on this machine.

    The first attempt is greedy. Later ones are sampled, each with a seed of its own, and do not
    depend on which examples share a batch.

    Args:
        model: in evaluation mode.
        renderer: made with the teacher's own tokenizer, because it makes that tokenizer's control
            tokens harmless.
        max_new_tokens: a reply that has not ended by then counts as cut off.
        batch_size: prompts in one pass.
        attempts: how often an example is asked at most.
        temperature: of every attempt but the first.

    Raises:
        RecipeError: the prompt set has no words for a teacher, or a number is out of range.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        renderer: Renderer,
        *,
        max_new_tokens: int = 1024,
        batch_size: int = 8,
        attempts: int = 3,
        temperature: float = RETRY_TEMPERATURE,
        seed: int = 0,
    ):
        require_teacher_prompt(renderer.prompts)
        require_positive(temperature=temperature)
        self.renderer = renderer
        self.chat = LocalChat(
            model,
            renderer,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            attempts=attempts,
            retry_temperature=temperature,
            seed=seed,
        )

    @classmethod
    def load(
        cls,
        source: str,
        prompts: PromptSet,
        *,
        dtype: str = "bfloat16",
        device: str = "auto",
        date: str | None = None,
        **options: Any,
    ) -> "LocalTeacher":
        """Load a chat model and its tokenizer. Code that comes with a model is never run.

        Args:
            source: a folder or hub id.
            dtype: `float32`, `bfloat16` or `float16`.
            device: `auto`, or what torch understands.
            date: ISO; what a chat template that shows the date shows. Today by default.
            options: the constructor's keywords.

        Raises:
            TeacherError: the model cannot be loaded.
            ArtifactError: its tokenizer has no chat template.
        """
        with _as_teacher():
            model, renderer = load_chat_model(
                source, prompts, dtype=dtype, device=device, date=date
            )
        return cls(model, renderer, **options)

    @property
    def prompts(self) -> PromptSet:
        return self.renderer.prompts

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example."""
        chat = self.chat
        return {
            "kind": "local",
            "model": chat.address,
            "dtype": chat.settings["dtype"],
            "max_new_tokens": chat.max_tokens,
            "temperature": chat.retry_temperature,
            "seed": chat.seed,
        }

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, batch by batch; prompts of about the same length share a batch."""
        return _answers(self.chat, self.renderer, examples)


class EndpointTeacher:
    """A chat model behind an OpenAI-compatible endpoint (a vLLM server, for example).

    Requests that fail for the server's reasons (overload, time-out, status 429 or 5xx, an
    unreadable body) are sent again, waiting longer each time. What is left then stops the run: a
    server that is down must not look like bad replies.

    Args:
        base_url: for example `http://localhost:8000/v1`.
        model: the name by which the server knows the model.
        renderer: renders the messages.
        api_key_env: the name of the environment variable that holds the key; None for a server that
            needs none.
        environ: where that name is looked up; the command line passes the process's environment.
        concurrency: requests under way at a time.
        retries: times that a failed request is sent again.
        timeout: seconds for one request.
        temperature: None leaves it to the server.
        max_tokens: a longer reply counts as cut off.
        attempts: how often an example is asked at most, for replies that came but are not well
            formed.

    Raises:
        TeacherError: the package `openai` is not installed.
        RecipeError: an unusable address, key or number, or a prompt set without words for a
            teacher.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        renderer: Renderer,
        *,
        api_key_env: str | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        temperature: float | None = 0.7,
        max_tokens: int = 1024,
        attempts: int = 3,
    ):
        require_teacher_prompt(renderer.prompts)
        self.renderer = renderer
        with _as_teacher():
            self.chat = Endpoint(
                base_url,
                model,
                api_key_env=api_key_env,
                environ=environ,
                concurrency=concurrency,
                retries=retries,
                timeout=timeout,
                temperature=temperature,
                max_tokens=max_tokens,
                attempts=attempts,
            )

    @property
    def prompts(self) -> PromptSet:
        return self.renderer.prompts

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

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, in the order in which the server finishes them.

        Raises:
            TeacherError: the server cannot be reached, or refuses every request. Answers that were
                under way are handed out first.
        """
        return _answers(self.chat, self.renderer, examples)


def _answers(chat: ChatModel, renderer: Renderer, examples: Sequence[Example]) -> Iterator[Answer]:
    sections = renderer.prompts.sections

    def read(_: Question, completion: Completion) -> tuple[str | None, str]:
        trace, problem = read_reply(completion.text, sections)
        if completion.finished:
            return trace, problem
        return None, f"the reply was cut off after {chat.max_tokens} tokens; {problem}"

    for example in examples:
        require_response(example)
    by_id = {example.sample_id: example for example in examples}
    with _as_teacher():
        questions = [Question(example.sample_id, renderer.teacher(example)) for example in examples]
        for reply in chat.replies(questions, read):
            if reply.value is None:
                yield unusable(by_id[reply.id], reply.problem, reply.attempts)
            else:
                yield Answer(reply.id, reply.value)


@contextmanager
def _as_teacher() -> Iterator[None]:
    """What goes wrong with the chat model is the teacher's failure."""
    try:
        yield
    except ChatError as error:
        raise TeacherError(f"The teacher: {error}") from None


def require_teacher_prompt(prompts: PromptSet) -> None:
    if not prompts.teacher_user:
        raise RecipeError(
            f"prompts: the set {prompts.name!r} has no teacher_user, so a chat model cannot be asked for a trace. Use "
            "another set, or traces from a file."
        )
