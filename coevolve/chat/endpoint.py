"""A chat model behind an OpenAI-compatible endpoint: OpenAI's own, a vLLM server, `transformers
serve`, ...

What goes wrong is one of three things, and each is treated in its own way:
- the server is in trouble (no connection, time-out, status 408, 409, 425, 429 or 5xx, a body that
  is not of the protocol, half a body): the request is sent again, waiting longer each time, or as
  long as the server asks to;
- the server refuses this request (400, 413, 422): the question gets no answer;
- the server refuses every request (401, 403, 404, ...): the work stops.

The client's own retries would not do: each thread waits by itself, for a minute at most, and half a
body or one without end is not sent for again.
"""

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from coevolve.chat.base import (
    Completion,
    Poll,
    Question,
    Read,
    Reply,
    Value,
    examined,
    keep_going,
    key_of,
    require_not_negative,
    require_positive,
    temperature_of,
)
from coevolve.chat.pace import Pace, in_threads
from coevolve.errors import ChatError, RecipeError

_NO_KEY = "none"  # a server without a lock takes any key, but the client insists on one
_ABOUT_ONE_REQUEST = (400, 413, 422)
_FOR_NOW = (408, 409, 425, 429)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before a request is sent again, doubled each time
_LONGEST_ASKED_WAIT = 600.0  # seconds; a server that asks for more is as good as down
_LONGEST_BODY = 1 << 24  # bytes; no answer is a hundredth of that
_SHOWN = 200  # characters of an unreadable body that an error quotes


Answer = TypeVar("Answer")
Ids = Sequence[int]
Echo = list[float]


class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint.

    Args:
        base_url: for example `http://localhost:8000/v1`.
        model: the name by which the server knows the model.
        api_key_env: the name of the environment variable that holds the key; None for a server that
            needs none.
        environ: where that name is looked up; the command line passes the process's environment.
        concurrency: requests under way at a time.
        retries: times that a request is sent again when the server is in trouble.
        timeout: seconds without a sign of life after which a request counts as failed.
        rate_limit: requests per minute at most, those sent again included; None for no limit.
        temperature: of the first attempt; None leaves it to the server.
        seed: sent with the requests, mixed with each question's id; None sends none.
        max_tokens: a longer completion is cut off.
        extra: fields that are added to each request (`top_p`, `chat_template_kwargs`, ...); null
            takes a field out.
        attempts: how often a question is asked at most, for completions that came but that the
            asker cannot use.
        patience: questions in a row that fail for the server's reasons before the work stops.
        poll: called again and again while answers are waited for; what it raises ends the work.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        rate_limit: float | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int = 1024,
        extra: Mapping[str, Any] = MappingProxyType({}),
        attempts: int = 1,
        patience: int = 1,
        poll: Poll = keep_going,
    ):
        require_positive(
            concurrency=concurrency, timeout=timeout, max_tokens=max_tokens, attempts=attempts
        )
        require_positive(
            patience=patience, rate_limit=math.inf if rate_limit is None else rate_limit
        )
        require_not_negative(retries=retries, temperature=temperature or 0)
        _require_plain_url(base_url)
        _require_plain_extra(extra)
        try:
            import openai
        except ImportError:
            raise ChatError(
                "An endpoint needs the package openai. Install it with: "
                'pip install "coevolve[teacher]"'
            ) from None
        key = _key(api_key_env, environ)
        self.address, self.model, self.extra = base_url, model, dict(extra)
        self.temperature, self.seed, self.max_tokens = temperature, seed, max_tokens
        self.concurrency, self.retries, self.attempts = concurrency, retries, attempts
        self.patience, self._pace, self.poll = patience, Pace(rate_limit), poll
        # The key is always passed: the client would otherwise send whatever OPENAI_API_KEY holds to
        # this address.
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key or _NO_KEY, max_retries=0, timeout=timeout
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on besides the question. Neither key nor address is among it."""
        return {
            "kind": "endpoint",
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "extra": self.extra,
        }

    def close(self) -> None:
        """Nobody asks any more."""
        self._client.close()

    def harmless(self, text: str) -> str:
        """`text` as it is: which control tokens the model has, only the server knows."""
        return text

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, as the server finishes them; those under way at a ChatError come
        first.
        """
        work = _Work(self.patience)
        try:
            for reply in in_threads(
                lambda question: self._reply(question, read, work),
                questions,
                self.concurrency,
                self.poll,
            ):
                if reply is not None:
                    yield reply
        finally:
            work.stopped.set()
        if work.failure is not None:
            reply, in_a_row = work.failure
            others = f" ({in_a_row} questions in a row)" if in_a_row > 1 else ""
            raise ChatError(
                f"The endpoint {self.address} failed at sample_ID {reply.id!r}{others}: "
                f"{reply.problem}. Answers that came before are kept. Check the address, the "
                "model's name and the key, then start again."
            )

    def _reply(self, question: Question, read: Read[Value], work: "_Work") -> Reply[Value] | None:
        """The reply to a question; None where the work stopped before, or because of it."""
        problem = ""
        for attempt in range(1, self.attempts + 1):
            try:
                completion = self._complete(question, attempt, work)
            except _StoppedError:
                return None
            except _NoAnswerError as fault:
                reply: Reply[Value] = Reply(question.id, None, str(fault), attempt)
                return None if work.stops_at(reply, fault) else reply
            value, problem = examined(read, question, completion)
            if value is not None:
                break
        work.goes_on()
        return Reply(question.id, value, problem, attempt)

    def _complete(self, question: Question, attempt: int, work: "_Work") -> Completion:
        """The server's completion."""
        request, asks = self._request(question, attempt), self._client.chat.completions
        return self._persist(lambda: self._send(request, asks, _read_completion), work)

    def echo(self, rows: Sequence[tuple[str, Ids]], new: int = 0) -> Iterator[tuple[int, Echo]]:
        """(place, log p of each id after those before it, nats; of the first one nan) of each row,
        a sample_ID and ids, and of `new` ids at most that the model draws behind them, in the order
        in which answers come. ChatError.
        """
        work = _Work(self.patience)

        def ask(place: int) -> tuple[int, Echo] | _NoAnswerError | None:
            ids = list(rows[place][1])
            request = {"model": self.model, "prompt": ids, "echo": True, "logprobs": 1}
            request |= {"max_tokens": max(new, 1), "temperature": 1.0, "seed": self.seed or 0}
            asks, read = self._client.completions, partial(_read_echo, len(ids), new)
            try:
                return place, self._persist(lambda: self._send(request, asks, read), work)
            except _StoppedError:
                return None
            except _NoAnswerError as fault:
                work.stopped.set()
                return fault

        try:
            for found in in_threads(ask, range(len(rows)), self.concurrency, self.poll):
                if isinstance(found, _NoAnswerError):
                    raise ChatError(
                        f"The endpoint {self.address} gives no log-probabilities of prompts ("
                        f"/completions with echo and logprobs): {found}. Serve {self.model!r} by "
                        "vLLM, or give its weights, a folder or hub id."
                    )
                if found is not None:
                    yield found
        finally:
            work.stopped.set()

    def _persist(self, send: Callable[[], Answer], work: "_Work") -> Answer:
        """What `send` gives, asked for again while the server is in trouble."""
        for sent in range(1, self.retries + 2):
            self._pace.wait(work.stopped)
            if work.stopped.is_set():
                break
            try:
                return send()
            except _NoAnswerError as fault:
                if not fault.for_now or fault.wait > _LONGEST_ASKED_WAIT or sent > self.retries:
                    raise
                self._pace.hold(fault.wait)
                work.stopped.wait(0 if fault.wait else _wait(sent))
        raise _StoppedError

    def _send(self, request: Mapping[str, Any], asks: Any, read: Callable[[Any], Answer]) -> Answer:
        import openai

        try:
            return read(_body_of(asks, request))
        except openai.APIStatusError as error:
            status, told = error.status_code, self._told(error)
            about_it = status in _ABOUT_ONE_REQUEST
            raise _NoAnswerError(
                f"the server refused the request: {told}" if about_it else told,
                about_it=about_it,
                for_now=status >= 500 or status in _FOR_NOW,
                wait=_asked_wait(error.response.headers),
            ) from None
        except openai.APIConnectionError as error:
            raise _NoAnswerError(self._told(error)) from None
        except MemoryError:
            raise
        except Exception as error:  # a body can be anything, and so what the client makes of it
            told = str(error) if isinstance(error, _UnreadableError) else self._told(error)
            raise _NoAnswerError(f"the server's answer cannot be read: {told}") from None

    def _request(self, question: Question, attempt: int) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(question.messages),
            "max_tokens": self.max_tokens,
        }
        if self.temperature is not None:
            request["temperature"] = temperature_of(attempt, self.temperature)
        if self.seed is not None:
            # The question's own, in the 31 bits that servers take.
            request["seed"] = key_of(f"{self.seed + attempt - 1}:{question.id}") & 0x7FFFFFFF
        kept = {name: value for name, value in request.items() if name not in self.extra}
        # The client refuses names that are not OpenAI's; what is in extra_body it sends as it is.
        added = {name: value for name, value in self.extra.items() if value is not None}
        return {**kept, "extra_body": added} if added else kept

    def _told(self, error: Exception) -> str:
        """The error's kind and words, without the key, which some servers send back."""
        key = self._client.api_key
        words = str(error) if key == _NO_KEY else str(error).replace(key, "***")
        return f"{type(error).__name__}: {words.rstrip('.')}"


class _UnreadableError(ValueError):
    """A body that is not of the protocol."""


class _StoppedError(Exception):
    """The work stopped before the question was answered."""


class _NoAnswerError(Exception):
    """A request without an answer: whether it is the request's own fault, whether it may be
    answered later, and for how many seconds the server asks to be left alone.
    """

    def __init__(
        self, told: str, *, about_it: bool = False, for_now: bool = True, wait: float = 0.0
    ):
        super().__init__(told)
        self.about_it, self.for_now, self.wait = about_it, for_now, wait


class _Work:
    """Whether requests are still sent: the threads that send them see at once that the server has
    failed.

    `stopped` is set when nothing more is to be asked; `failure` is the reply that the work stopped
    at, and how many in a row had failed.
    """

    def __init__(self, patience: int):
        self.stopped = threading.Event()
        self.failure: tuple[Reply[Any], int] | None = None
        self._patience = patience
        self._in_a_row = 0
        self._lock = threading.Lock()

    def goes_on(self) -> None:
        """Note that the server answered."""
        with self._lock:
            self._in_a_row = 0

    def stops_at(self, reply: Reply[Any], fault: _NoAnswerError) -> bool:
        """Count a fault; whether it is, or comes behind, the failure that stops the work."""
        if fault.about_it:
            self.goes_on()
            return False
        with self._lock:
            self._in_a_row += 1
            too_many = self._in_a_row >= self._patience
            if self.failure is None and (too_many or not fault.for_now):
                self.failure = (reply, self._in_a_row)
                self.stopped.set()
            return self.failure is not None


def _body_of(asks: Any, request: Mapping[str, Any]) -> Any:
    """The body that the server sends, which can be anything, as JSON gives it."""
    body = bytearray()
    with asks.with_streaming_response.create(**request) as response:
        for part in response.iter_bytes():
            body += part
            if len(body) > _LONGEST_BODY:
                raise _UnreadableError(f"it has over {_LONGEST_BODY} bytes: {_quoted(body)}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"it is not JSON ({error}): {_quoted(body)}") from None


def _read_echo(count: int, new: int, answer: Any) -> Echo:
    """Of `count` ids, and up to `new` behind them."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    told = choice.get("logprobs") if isinstance(choice, dict) else None
    values = told.get("token_logprobs") if isinstance(told, dict) else None
    values = values[: count + new] if isinstance(values, list) else []
    if len(values) < count or not all(type(x) in (int, float) for x in values[1:]):
        raise _UnreadableError(f"it has not those of all {count} ids: {_quoted(answer)}")
    return [math.nan, *map(float, values[1:])]


def _read_completion(answer: Any) -> Completion:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not (isinstance(choice, dict) and isinstance(message, dict)):
        raise _UnreadableError(f"it has no choices[0].message: {_quoted(answer)}")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise _UnreadableError(f"choices[0].message.content is no text: {_quoted(text)}")
    return Completion.ended(text or "", choice.get("finish_reason"))


def _quoted(value: Any) -> str:
    if isinstance(value, bytearray):
        return repr(bytes(value[:_SHOWN]).decode("utf-8", "replace"))
    return repr(json.dumps(value, ensure_ascii=False)[:_SHOWN])


def _wait(sent: int) -> float:
    """Seconds after the `sent`-th failure: doubled each time, and scattered."""
    return min(_FIRST_WAIT * 2 ** (sent - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.0)


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds of rest that a server asks for (Retry-After: seconds or a date); 0 if none."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after", "0")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif value.replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _key(name: str | None, environ: Mapping[str, str]) -> str | None:
    """The key in the environment variable `name`. No message shows any of it."""
    if name is None:
        return None
    key = environ.get(name, "")
    if not key:
        raise RecipeError(
            f"api_key_env: the environment variable {name!r} is not set, or empty. Set it to the "
            "endpoint's key, or leave api_key_env out for a server that needs none."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"api_key_env: the environment variable {name!r} holds a space, a line break or a "
            "character beyond ASCII, which no HTTP header can carry. Set it again, without them."
        )
    return key


def _require_plain_extra(extra: Mapping[str, Any]) -> None:
    for name in ("model", "messages", "stream", "n"):
        if name in extra:
            raise RecipeError(f"extra: found {name!r}, which is not for it to set. Leave it out.")


def _require_plain_url(base_url: str) -> None:
    """The address is written into files: nothing secret may be in it, and none is shown."""
    accepted = "accepted is http(s)://, a host, and a path, for example http://localhost:8000/v1"
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            f"base_url: found a user name, password or query in it; {accepted}. Use api_key_env "
            "for a key."
        )
    if not usable:
        raise RecipeError(f"base_url: found {base_url!r}; {accepted}.")
