"""A chat model run by vLLM on this machine: asked as `LocalChat`, many questions at once.

A vLLM server is an `Endpoint`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coevolve.chat.base import Completion, Question, Read, Reply, Value, key_of, temperature_of
from coevolve.chat.local import Asked, ModelHere, load_renderer, weight_fingerprints
from coevolve.errors import ArtifactError, ChatError
from coevolve.libraries.vllm import Ask, Backend, Here, Options, missing, rank_for
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet
from coevolve.scoring.origins import read_config
from coevolve.seeds import derive_seed

_ADAPTER = "adapter"


class VllmChat(ModelHere):
    """A chat model in an engine, with `ModelHere`'s options and perhaps a LoRA adapter's folder.

    The engine starts with the first questions, if there are none, too: all processes of a run that
    have one must ask. It holds the GPU's memory until `close`.
    """

    kind = "vllm"

    def __init__(
        self,
        start: Callable[[], Backend],
        options: Options,
        renderer: Renderer,
        *,
        stop_ids: Sequence[int],
        adapter: str | None = None,
        batch_size: int = 256,
        **how: Any,
    ):
        super().__init__(renderer, batch_size=batch_size, **how)
        self._start, self.options, self.stop_ids, self.adapter = start, options, stop_ids, adapter
        self._engine: Backend | None = None

    @classmethod
    def load(
        cls,
        source: str,
        prompts: PromptSet,
        *,
        adapter: str | None = None,
        dtype: str = "bfloat16",
        date: str | None = None,
        tensor_parallel_size: int | None = None,
        max_model_len: int | None = None,
        share: float = 0.9,
        why: str = "--vllm",
        remedy: str = "Give a smaller --max-model-len, or leave --vllm out.",
        **how: Any,
    ) -> "VllmChat":
        """A model over so many GPUs, in a share of each one's memory, for prompts with their
        answers of up to `max_model_len` tokens (as many as it was made for).

        ChatError where there is no vLLM; where it cannot start, EngineError of `why` and what to
        do. Other arguments as for `load_chat_model` and the constructor.
        """
        if problem := missing():
            raise ChatError(f"{why}: {problem}")
        from transformers import AutoConfig, GenerationConfig

        from coevolve.scoring.batching import positions_of
        from coevolve.scoring.foreign import explained
        from coevolve.scoring.models import SAVED, choose_dtype, resolve_base

        choose_dtype(dtype)
        renderer, base = load_renderer(source, prompts, date), resolve_base(source)
        with explained(f"The model {source!r} cannot be loaded by vLLM", SAVED):
            config = AutoConfig.from_pretrained(base)
            try:
                generation = GenerationConfig.from_pretrained(base)
            except OSError:  # it has none of its own
                generation = GenerationConfig.from_model_config(config)
        options = Options(
            base=base,
            dtype=dtype,
            max_length=max_model_len or positions_of(config),
            rank=0 if adapter is None else rank_for([_rank(adapter)]),
            share=share,
            tensor_parallel=tensor_parallel_size or 1,
            launched=(tensor_parallel_size or 1) == 1,
        )
        how |= {"stop_ids": renderer.stop_ids(SimpleNamespace(generation_config=generation))}
        if "weights" not in how:
            how["weights"] = weight_fingerprints(source, adapter)
        return cls(lambda: Here(options, why, remedy), options, renderer, adapter=adapter, **how)

    @property
    def address(self) -> str:
        return self.renderer.tokenizer.name_or_path

    @property
    def dtype(self) -> str:
        return self.options.dtype

    @property
    def positions(self) -> int:
        return self.options.max_length

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, batch by batch."""
        if self._engine is None:
            self._engine = self._start()
            if self.adapter is not None:
                self._engine.load_adapter(_ADAPTER, Path(self.adapter), None)
        return super().replies(questions, read)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _complete(self, asked: Sequence[Asked], attempt: int) -> list[Completion]:
        assert self._engine is not None  # `replies` has started it
        temperature = temperature_of(attempt, self.temperature, self.retry_temperature)
        seed, adapter = self.seed + attempt, None if self.adapter is None else _ADAPTER
        told: dict[str, Any] = {"temperature": temperature, "max_tokens": self.max_tokens}
        told |= {"stop_ids": self.stop_ids}
        asks = [
            Ask(adapter, ids, derive_seed(seed, "completion", key_of(question.id)), **told)
            for question, ids in asked
        ]
        decode = self.renderer.decode
        return [
            Completion(decode(x.ids[:-1] if x.stopped else x.ids), x.stopped)
            for x in self._engine.complete(asks, self.poll)
        ]


def _rank(adapter: str) -> int:
    rank = read_config(Path(adapter)).get("r")
    if not isinstance(rank, int):
        raise ArtifactError(f"{adapter}: r is {rank!r}; accepted is the rank of a LoRA adapter.")
    return rank
