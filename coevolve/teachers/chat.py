"""Teachers that are chat models: one on this machine, or one behind an OpenAI-compatible endpoint.

Both are shown the golden response and asked for a reasoning under the prompt set's headings. A reply that lacks a
section, or was cut off, is asked for again; only then is the example given up.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coevolve.data.example import Example
from coevolve.errors import RecipeError, TeacherError
from coevolve.prompts.render import Renderer, render_chat
from coevolve.prompts.sets import PromptSet
from coevolve.teachers.base import Answer, read_reply, require_response, unusable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RETRY_TEMPERATURE = 0.7  # at least this when asking again: the same question at 0 gets the same faulty reply
_NO_KEY = "none"  # a server without a lock takes any key, but the client insists on one
_ABOUT_ONE_REQUEST = (400, 413, 422)  # HTTP statuses that blame the request and not the server or the account


class LocalTeacher:
    """A transformers chat model on this machine.

    The first attempt is greedy. Later ones are sampled, each with a seed of its own, and do not depend on which
    examples share a batch.

    Args:
        model: in evaluation mode.
        renderer: made with the teacher's own tokenizer, because it makes that tokenizer's control tokens harmless.
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
        temperature: float = _RETRY_TEMPERATURE,
        seed: int = 0,
    ):
        _require_teacher_prompt(renderer.prompts)
        _require_positive(max_new_tokens=max_new_tokens, batch_size=batch_size, attempts=attempts)
        _require_positive(temperature=temperature)
        self.model = model
        self.renderer = renderer
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.attempts = attempts
        self.temperature = temperature
        self.seed = seed

    @classmethod
    def load(
        cls, source: str, prompts: PromptSet, *, dtype: str = "bfloat16", device: str = "auto", **options: Any
    ) -> "LocalTeacher":
        """Load a chat model and its tokenizer. Code that comes with a model is never run.

        Args:
            source: a folder or hub id.
            dtype: `float32`, `bfloat16` or `float16`.
            device: `auto`, or what torch understands.
            options: the constructor's keywords.

        Raises:
            TeacherError: the model cannot be loaded.
            ArtifactError: its tokenizer has no chat template.
        """
        from coevolve.scoring.models import DTYPES, choose_device, load_model, load_tokenizer, resolve_base

        if dtype not in DTYPES:
            raise RecipeError(f"dtype: found {dtype!r}; accepted are {', '.join(DTYPES)}.")
        folder = resolve_base(source)
        try:
            tokenizer = load_tokenizer(folder)
            model = load_model(folder, dtype=dtype, device=choose_device(device))
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"The teacher model {source!r} cannot be loaded: {error}. Accepted is a folder that save_pretrained "
                "wrote, with its tokenizer, or a hub id."
            ) from error
        return cls(model, Renderer(prompts, tokenizer), **options)

    @property
    def prompts(self) -> PromptSet:
        return self.renderer.prompts

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example."""
        return {
            "kind": "local",
            "model": self.model.name_or_path,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, batch by batch; prompts of about the same length share a batch."""
        from coevolve.scoring.batching import max_positions

        room = max_positions(self.model) - self.max_new_tokens
        prompts = [(example, self._prompt_ids(example)) for example in examples]
        for example, ids in prompts:
            if len(ids) > room:
                yield unusable(
                    example,
                    f"the prompt has {len(ids)} tokens, and beside {self.max_new_tokens} new ones the model has room "
                    f"for {room}. Lower max_new_tokens, or use a model with more positions",
                    attempts=0,
                )
        fitting = sorted((pair for pair in prompts if len(pair[1]) <= room), key=lambda pair: -len(pair[1]))
        for start in range(0, len(fitting), self.batch_size):
            yield from self._batch(fitting[start : start + self.batch_size])

    def _prompt_ids(self, example: Example) -> list[int]:
        require_response(example)
        return self.renderer.prompt_ids(render_chat(self.renderer.tokenizer, self.renderer.teacher(example)))

    def _batch(self, waiting: list[tuple[Example, list[int]]]) -> Iterator[Answer]:
        for attempt in range(1, self.attempts + 1):
            failed = []
            replies = self._replies(waiting, attempt)
            for (example, ids), (reply, finished) in zip(waiting, replies, strict=True):
                trace, problem = read_reply(reply, self.prompts.sections)
                if not finished:
                    trace, problem = None, f"the reply was cut off after {self.max_new_tokens} tokens; {problem}"
                if trace is not None:
                    yield Answer(example.sample_id, trace)
                elif attempt == self.attempts:
                    yield unusable(example, problem, self.attempts)
                else:
                    failed.append((example, ids))
            waiting = failed
            if not waiting:
                return

    def _replies(self, asked: Sequence[tuple[Example, list[int]]], attempt: int) -> list[tuple[str, bool]]:
        """(text, whether it ended by itself) for each."""
        from coevolve.scoring.generate import Sampling, generate

        tokenizer, end = self.renderer.tokenizer, self.renderer.end_of_turn_id
        generations = generate(
            self.model,
            [ids for _, ids in asked],
            max_new_tokens=self.max_new_tokens,
            stop_id=end,
            pad_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            sampling=None if attempt == 1 else Sampling(self.seed + attempt, self.temperature),
            keys=[zlib.crc32(example.sample_id.encode("utf-8", "surrogatepass")) for example, _ in asked],
        )
        return [(self.renderer.decode(generation.ids), generation.finished) for generation in generations]


class EndpointTeacher:
    """A chat model behind an OpenAI-compatible endpoint (a vLLM server, for example).

    Requests that fail for the server's reasons (overload, time-out, status 429 or 5xx) are sent again by the client,
    waiting longer each time. What is left then stops the run: a server that is down must not look like bad replies.

    Args:
        base_url: for example `http://localhost:8000/v1`.
        model: the name by which the server knows the model.
        renderer: renders the messages.
        api_key_env: the name of the environment variable that holds the key; None for a server that needs none.
        environ: where that name is looked up; the command line passes the process's environment.
        concurrency: requests under way at a time.
        retries: times that a failed request is sent again.
        timeout: seconds for one request.
        temperature: None leaves it to the server.
        max_tokens: a longer reply counts as cut off.
        attempts: how often an example is asked at most, for replies that came but are not well formed.

    Raises:
        TeacherError: the package `openai` is not installed.
        RecipeError: an unusable address, key or number, or a prompt set without words for a teacher.
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
        _require_teacher_prompt(renderer.prompts)
        _require_positive(concurrency=concurrency, timeout=timeout, max_tokens=max_tokens, attempts=attempts)
        _require_plain_url(base_url)
        try:
            import openai
        except ImportError:
            raise TeacherError(
                'An endpoint as teacher needs the package openai. Install it with: pip install "coevolve[teacher]"'
            ) from None
        key = _key(api_key_env, environ)
        self.base_url = base_url
        self.model = model
        self.renderer = renderer
        self.concurrency = concurrency
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.attempts = attempts
        # The key is always passed: the client would otherwise send whatever OPENAI_API_KEY holds to this address.
        self._client = openai.OpenAI(base_url=base_url, api_key=key or _NO_KEY, max_retries=retries, timeout=timeout)

    @property
    def prompts(self) -> PromptSet:
        return self.renderer.prompts

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example. The key is not among it."""
        return {
            "kind": "endpoint",
            "base_url": self.base_url,
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One answer per example, in the order in which the server finishes them.

        Raises:
            TeacherError: the server cannot be reached, or refuses every request. Answers that were under way are
                handed out first.
        """
        messages = [_messages(self.renderer, example) for example in examples]
        failure: TeacherError | None = None
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="teacher") as pool:
            futures: list[Future[Answer]] = [
                pool.submit(self._answer, *pair) for pair in zip(examples, messages, strict=True)
            ]
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if isinstance(error, TeacherError):
                        failure = failure or error
                        _cancel(futures)
                    else:
                        yield future.result()
            finally:
                _cancel(futures)
        if failure is not None:
            raise failure

    def _answer(self, example: Example, messages: list[dict[str, str]]) -> Answer:
        import openai

        problem = ""
        for attempt in range(1, self.attempts + 1):
            try:
                reply = self._client.chat.completions.create(**self._request(messages, attempt))
            except openai.APIStatusError as error:
                if error.status_code in _ABOUT_ONE_REQUEST:
                    return unusable(example, f"the server refused the request: {self._told(error)}", attempt)
                raise self._failure(example, error) from None
            except openai.APIConnectionError as error:
                raise self._failure(example, error) from None
            except (openai.APIError, ValueError) as error:  # a body that is not JSON, or not of the protocol
                problem = f"the server's answer cannot be read: {self._told(error)}"
                continue
            trace, problem = _read_completion(reply, self.prompts.sections, self.max_tokens)
            if trace is not None:
                return Answer(example.sample_id, trace)
        return unusable(example, problem, self.attempts)

    def _request(self, messages: list[dict[str, str]], attempt: int) -> dict[str, Any]:
        request = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        if self.temperature is None:
            return request
        temperature = self.temperature if attempt == 1 else max(self.temperature, _RETRY_TEMPERATURE)
        return {**request, "temperature": temperature}

    def _failure(self, example: Example, error: Exception) -> TeacherError:
        return TeacherError(
            f"The teacher at {self.base_url} failed at sample_ID {example.sample_id!r}: {self._told(error)}. Traces "
            "that came before are kept. Check the address, the model's name and the key, then start again."
        )

    def _told(self, error: Exception) -> str:
        """The error's kind and words, without the key, which some servers send back."""
        key = self._client.api_key
        words = str(error) if key == _NO_KEY else str(error).replace(key, "***")
        return f"{type(error).__name__}: {words}"


def _read_completion(reply: Any, sections: Sequence[str], max_tokens: int) -> tuple[str | None, str]:
    """(trace, "") or (None, problem) from what the client made of the server's body, which can be anything."""
    choices = getattr(reply, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        return None, f"the server's answer has no choices[0].message.content: {str(reply)[:200]!r}"
    trace, problem = read_reply(text, sections)
    if getattr(choices[0], "finish_reason", None) == "length":
        return None, f"the reply was cut off after {max_tokens} tokens; {problem}"
    return trace, problem


def _messages(renderer: Renderer, example: Example) -> list[dict[str, str]]:
    require_response(example)
    return renderer.teacher(example)


def _key(name: str | None, environ: Mapping[str, str]) -> str | None:
    """The key under that name. No message shows any of it."""
    if name is None:
        return None
    key = environ.get(name, "")
    if not key:
        raise RecipeError(
            f"api_key_env: the environment variable {name!r} is not set, or empty. Set it to the endpoint's key, or "
            "leave api_key_env out for a server that needs none."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"api_key_env: the environment variable {name!r} holds a space, a line break or a character beyond ASCII, "
            "which no HTTP header can carry. Set it again, without them."
        )
    return key


def _require_plain_url(base_url: str) -> None:
    """The address is written into the traces file, so nothing secret may be in it; hence it is not shown, either."""
    accepted = "accepted is http:// or https://, a host, and a path, for example http://localhost:8000/v1"
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, usable = None, False
    if parts is not None and (parts.username or parts.password or parts.query or parts.fragment):
        raise RecipeError(
            f"base_url: found a user name, password or query in it; {accepted}. Use api_key_env for a key."
        )
    if not usable:
        raise RecipeError(f"base_url: found {base_url!r}; {accepted}.")


def _require_teacher_prompt(prompts: PromptSet) -> None:
    if not prompts.teacher_user:
        raise RecipeError(
            f"prompts: the set {prompts.name!r} has no teacher_user, so a chat model cannot be asked for a trace. Use "
            "another set, or traces from a file."
        )


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise RecipeError(f"{name}: found {number}; accepted is a number above 0.")


def _cancel(futures: Sequence[Future[Answer]]) -> None:
    for future in futures:
        future.cancel()
