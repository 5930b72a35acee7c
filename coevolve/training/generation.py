"""vLLM for a run whose recipe says `use_vllm`: one engine for each base model, from the first phase
that asks for it to the run's end.

The engine holds the base as it is, and the roles as adapters on it; after each update an adapter
comes anew, under a new name. Nothing is merged, so the base that training and the engine have stays
the same to the bit. The weights of a role that is tuned whole are replaced in place.
"""

import hashlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from coevolve.errors import TooLongError
from coevolve.libraries.vllm import Ask, Backend, Here, Options, Poll, There, Written, rank_for
from coevolve.recipe import Recipe
from coevolve.recipe.rl import Grpo
from coevolve.recipe.vllm import Vllm
from coevolve.scoring.batching import positions_of
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.generate import Generation, Sampling, generate
from coevolve.scoring.origins import Origin
from coevolve.scoring.roles import CONNECTOR, ROLES, Role, Roles, Weights
from coevolve.seeds import derive_seed
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import StopRequested
from coevolve.training.memory import bytes_per_token
from coevolve.training.setup import Origins


@dataclass
class Engines:
    """A run's engines by what they are built for. They start when they are first asked for."""

    recipe: Recipe
    origins: Origins
    roles: Roles
    processes: Processes
    folder: Path

    def __post_init__(self) -> None:
        self._started: dict[tuple[Any, ...], Engine] = {}
        for server in (False, True) if self.processes.main else (False,):
            place, prefix = self.scratch(server=server)
            for left in place.glob(f"{prefix}*"):  # by a sitting that was killed
                shutil.rmtree(left, ignore_errors=True)

    def of(self, role: Role, settings: Vllm) -> "Engine":
        """The engine for a role, as the settings have it. A collective call."""
        own, server = self.origins[role], settings.vllm_mode == "server"
        where = settings.vllm_server_base_url if server else settings.vllm_tensor_parallel_size
        key = own.base.path, self.roles.tuning[role], where
        if key not in self._started:
            # Roles that are tuned whole take turns in one copy; adapters never share it with them.
            sharing = [x for x in ROLES if self.origins[x].base == own.base]
            sharing = [x for x in sharing if self.roles.tuning[x] == self.roles.tuning[role]]
            options = self._options(sharing, own, settings)
            why = f"{self.recipe.rl_field(role)}.use_vllm"
            names = [own.base.path, own.base.source]

            def start() -> Backend:
                return There(str(where), options, why, names) if server else Here(options, why)

            backend = self.processes.together(start)
            self._started[key] = Engine(self, backend, options, server=server)
        return self._started[key]

    def scratch(self, *, server: bool) -> tuple[Path, str]:
        """Where what an engine is given lies, and how its name begins: a server sees what is in the
        run's folder, and each process what is on its own machine.
        """
        if server:
            return self.folder, ".vllm-"
        run = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()), f".vllm-{run}-{self.processes.rank}-"

    def reach(self) -> None:
        """Find the servers now, which will be asked for only after hours. A collective call."""
        phases = {phase.name for phase in self.recipe.rounds.phases if self.recipe.rounds.count}
        for role in ROLES:
            settings = self.recipe.vllm_of(role)
            asked = settings is not None and settings.use_vllm and f"{role}_rl" in phases
            if settings is not None and asked and settings.vllm_mode == "server":
                self.of(role, settings)

    @contextmanager
    def writing(self, estimator: ProbabilityEstimator) -> Iterator[None]:
        """Inside, the estimator's connector as it is now writes by the engine, if the recipe has it
        use one. To be entered by all; inside another, the weights are those of then.
        """
        settings = self.recipe.vllm_of(CONNECTOR)
        if settings is None or not settings.use_vllm or estimator.writer is not generate:
            yield
            return
        engine = self.of(CONNECTOR, settings)
        engine.update(CONNECTOR, self.roles.weights(CONNECTOR))
        estimator.writer = engine.generate
        try:
            yield
        finally:
            estimator.writer = generate

    def close(self) -> None:
        """Give back what the engines hold."""
        for engine in self._started.values():
            engine.close()
        self._started.clear()

    def _options(self, sharing: Sequence[Role], origin: Origin, settings: Vllm) -> Options:
        model = self.recipe.model
        sections = [self.recipe.vllm_of(role) or settings for role in sharing]
        rl = [section for section in sections if isinstance(section, Grpo)]
        configs = [self.config(role) for role in sharing if self.roles.tuning[role] == "lora"]
        body = getattr(self.roles.module(sharing[0]), "config", None)
        room = max([model.max_reasoning_tokens, *(x.max_completion_length for x in rl)])
        length = settings.vllm_max_model_length
        length = length or min(positions_of(body), model.max_length + room)
        tokens = max(2 * length, self.recipe.evaluation.token_budget)
        return Options(
            base=origin.base.path,
            dtype=model.dtype,
            max_length=length,
            rank=rank_for([config.r for config in configs]),
            adapters=max(len(configs), 1),
            share=max(section.vllm_gpu_memory_utilization for section in sections),
            tensor_parallel=settings.vllm_tensor_parallel_size,
            sleeps=settings.vllm_enable_sleep_mode,
            quantization="bitsandbytes" if origin.quantization else None,
            trust_remote_code=model.trust_remote_code,
            cache_bytes=bytes_per_token(body, model.dtype) * tokens,
            tokenizer=any(section.vllm_structured_outputs_regex for section in rl),
        )

    def config(self, role: Role) -> Any:
        """PEFT's, of a role with an adapter."""
        module: Any = self.roles.module(role)
        return module.peft_config[role]


class Engine:
    """One base in vLLM, with what its roles are by now."""

    def __init__(self, engines: Engines, backend: Backend, options: Options, *, server: bool):
        self._engines, self._backend, self._options = engines, backend, options
        self._server, self._processes = server, engines.processes
        # A server may still know the adapters of an earlier start.
        self._token = self._processes.gather(secrets.token_hex(4))[0]
        self._version, self._names = 0, dict[Role, str]()
        parent, prefix = engines.scratch(server=server)
        self._scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).absolute()

    def update(self, role: Role, weights: Weights) -> None:
        """From now on, the role is what these weights say. A collective call."""
        self._version += 1
        name, before = f"{role}-{self._token}-{self._version}", self._names.get(role)
        folder = self._scratch / name

        def put() -> None:
            folder.mkdir()
            if not self._options.rank:
                save_file(dict(weights), folder / "model.safetensors")
                self._backend.load_weights(folder)
                shutil.rmtree(folder)
                return
            save_file(dict(weights), folder / "adapter_model.safetensors")
            self._engines.config(role).save_pretrained(str(folder))
            self._backend.load_adapter(name, folder, before)
            if before is not None:
                shutil.rmtree(self._scratch / before)

        if self._server:
            self._processes.on_main(put)
        else:
            self._processes.together(put)
        if self._options.rank:
            self._names[role] = name

    def write(
        self,
        role: Role,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        keys: Sequence[int],
        poll: Poll,
        regex: str | None = None,
    ) -> list[Written]:
        """One completion of each prompt, which matches the regular expression; other arguments as
        for `generate`. A collective call.
        """
        asked = self._processes.together(
            lambda: self._asked(role, prompts, max_new_tokens, stop_ids, sampling, keys, regex)
        )
        size = self.parts
        if size == 1:
            return self._processes.together(lambda: self._backend.complete(asked, poll))
        # Those who hold a part of the model each have to ask the same; none may leave alone.
        rank, everyone = self._processes.rank, self._processes.gather(asked)
        group = range(rank // size * size, rank // size * size + size)
        together = [ask for member in group for ask in everyone[member]]
        written = self._processes.together(lambda: self._backend.complete(together, lambda: None))
        first = sum(len(everyone[member]) for member in group if member < rank)
        return written[first : first + len(asked)]

    def begin(self, role: Role, prompts: Sequence[Sequence[int]], **how: Any) -> "UnderWay":
        """Have a server write, as by `write`, while this process goes on. A collective call."""
        asked = self._processes.together(lambda: self._asked(role, prompts, **how))
        return UnderWay(partial(self._backend.complete, asked))

    def generate(
        self,
        model: torch.nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        keys: Sequence[int],
        sampling: Sampling | None = None,
        no_repeat_ngram: int = 0,
        progress: Callable[[int], None] | None = None,
        poll: Poll | None = None,
        **options: Any,
    ) -> list[Generation]:
        """The connector's texts, as `scoring.generate.generate`, which does what vLLM cannot. A
        collective call of the processes that each hold a part of the model.
        """
        if no_repeat_ngram:
            options |= {"no_repeat_ngram": no_repeat_ngram, "progress": progress, "poll": poll}
            options |= {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids, "keys": keys}
            return generate(model, prompts, sampling=sampling, **options)
        drawn = sampling or Sampling(0, temperature=0.0)
        room, stops, poll = max_new_tokens, [*stop_ids], poll or (lambda: None)
        if self.parts > 1:
            how: dict[str, Any] = {"max_new_tokens": room, "stop_ids": stops, "poll": poll}
            written = self.write(CONNECTOR, prompts, sampling=drawn, keys=keys, **how)
        else:
            asked = self._asked(CONNECTOR, prompts, room, stops, drawn, keys)
            written = self._backend.complete(asked, poll)
        if progress is not None:
            progress(len(written))
        return [
            Generation(x.ids[:-1], True, x.ids[-1]) if x.stopped else Generation(x.ids, False)
            for x in written
        ]

    @property
    def parts(self) -> int:
        """How many processes have to ask together."""
        return 1 if self._server else self._options.tensor_parallel

    def close(self) -> None:
        """Stop it, and take away what it was given."""
        self._backend.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _asked(
        self,
        role: Role,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        keys: Sequence[int],
        regex: str | None = None,
    ) -> list[Ask]:
        longest, limit = max(map(len, prompts), default=0), self._options.max_length
        needed = longest + max_new_tokens
        if needed > limit:
            field = self._engines.recipe.rl_field(role)
            raise TooLongError(
                f"{field}: a prompt of {longest} tokens and {max_new_tokens} new ones do not fit "
                f"into vLLM's {limit}. Set {field}.vllm_max_model_length={needed}."
            )
        said = {"max_tokens": max_new_tokens, "stop_ids": stop_ids, "regex": regex}
        how = {**said, **vars(sampling)}
        adapter, seed = self._names.get(role), how.pop("seed")
        seeds = [derive_seed(seed, "completion", key) for key in keys]
        return [
            Ask(adapter, prompt, own, **how) for prompt, own in zip(prompts, seeds, strict=True)
        ]


class UnderWay:
    """Completions that are being written while their process does something else."""

    def __init__(self, complete: Callable[[Poll], list[Written]]):
        self._left = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coevolve-ahead")
        self._written = self._thread.submit(complete, self._stay)

    def result(self, poll: Poll = lambda: None) -> list[Written]:
        """Wait for them; what `poll` raises ends the waiting, not the writing. What went wrong
        there is raised here.
        """
        while not self._written.done():
            poll()
            wait([self._written], timeout=0.1)
        return self._written.result()

    def leave(self) -> None:
        """Nobody needs them any more."""
        self._left.set()
        self._thread.shutdown(cancel_futures=True)

    def _stay(self) -> None:
        if self._left.is_set():
            raise StopRequested
