"""A chat model run by vLLM in this process: the same prompts as `LocalChat`, many at once.

A vLLM server is an `Endpoint`.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coevolve.chat.base import (
    Completion,
    Question,
    Read,
    Reply,
    Value,
    examined,
    key_of,
    require_not_negative,
    require_positive,
)
from coevolve.chat.local import load_renderer, prompt_ids, weight_fingerprints
from coevolve.errors import ArtifactError, ChatError
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet
from coevolve.scoring.origins import read_config

if TYPE_CHECKING:
    from vllm import LLM


class VllmChat:
    """A chat model in vLLM's engine. Each question is asked once.

    Args:
        engine: a `vllm.LLM`.
        renderer: made with the model's own tokenizer.
        max_new_tokens: a completion that has not ended by then is cut off.
        batch_size: prompts given to the engine in one call; their replies arrive together.
        temperature: 0 is greedy.
        adapter: the folder of a LoRA adapter to use.
        weights: the SHA-256 of what was loaded, under names.

    Raises:
        RecipeError: a number is out of range.
    """

    def __init__(
        self,
        engine: "LLM",
        renderer: Renderer,
        *,
        max_new_tokens: int,
        batch_size: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        adapter: str | None = None,
        weights: Mapping[str, str] = MappingProxyType({}),
    ):
        require_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
        require_not_negative(temperature=temperature)
        self.engine = engine
        self.renderer = renderer
        self.max_tokens = max_new_tokens
        self.batch_size = batch_size
        self.temperature = temperature
        self.seed = seed
        self.adapter = adapter
        self.weights = dict(weights)

    @classmethod
    def load(
        cls,
        source: str,
        prompts: PromptSet,
        *,
        adapter: str | None = None,
        dtype: str = "bfloat16",
        date: str | None = None,
        **options: Any,
    ) -> "VllmChat":
        """Start vLLM's engine with a model. Code that comes with a model is never run.

        Args:
            source: a folder or hub id.
            prompts: whose headings are made harmless in what comes from data.
            adapter: a PEFT folder with a LoRA adapter.
            dtype: `float32`, `bfloat16` or `float16`.
            date: ISO; what a chat template that shows the date shows. Today by default.
            options: the constructor's keywords but `adapter` and `weights`.

        Raises:
            ChatError: vLLM is not installed, or the model or the adapter cannot be found.
            ArtifactError: its tokenizer has no chat template, or its weights are not in
                safetensors.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ChatError(
                "vLLM is not installed. Install it on a machine with a GPU with: pip install vllm"
            )
        from vllm import LLM

        from coevolve.scoring.foreign import explained
        from coevolve.scoring.models import SAVED, resolve_base

        renderer = load_renderer(source, prompts, date)
        weights = weight_fingerprints(source, adapter)
        lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": _rank(adapter)}
        with explained(f"The model {source!r} cannot be loaded by vLLM", SAVED):
            engine = LLM(model=resolve_base(source), dtype=dtype, **lora)
        return cls(engine, renderer, adapter=adapter, weights=weights, **options)

    @property
    def address(self) -> str:
        return self.renderer.tokenizer.name_or_path

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on besides the question."""
        return {
            "kind": "vllm",
            **self.weights,
            **self.renderer.shown_date,
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def harmless(self, text: str) -> str:
        return self.renderer.harmless(text)

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, in order, batch by batch."""
        limit = self.engine.model_config.max_model_len
        for start in range(0, len(questions), self.batch_size):
            asked = []
            for question in questions[start : start + self.batch_size]:
                ids = prompt_ids(self.renderer, question)
                if len(ids) + self.max_tokens <= limit:
                    asked.append((question, ids))
                    continue
                problem = f"the prompt has {len(ids)} tokens; with {self.max_tokens} new ones it exceeds {limit}"
                yield Reply(question.id, None, problem, attempts=0)
            for (question, _), completion in zip(asked, self._complete(asked), strict=True):
                value, problem = examined(read, question, completion)
                yield Reply(question.id, value, problem)

    def _complete(self, asked: Sequence[tuple[Question, list[int]]]) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        sampling = [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=(self.seed + key_of(question.id)) & 0x7FFFFFFF,
                stop_token_ids=[
                    self.renderer.end_of_turn_id
                ],  # and those of the generation config, by itself
            )
            for question, _ in asked
        ]
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for _, ids in asked],
            sampling,
            use_tqdm=False,
            lora_request=None if self.adapter is None else LoRARequest("adapter", 1, self.adapter),
        )
        completions = (output.outputs[0] for output in outputs)
        return [
            Completion.ended(self.renderer.decode(done.token_ids), done.finish_reason)
            for done in completions
        ]


def _rank(adapter: str) -> int:
    """What vLLM has to reserve for the adapter: it takes certain ranks only, and refuses an adapter
    above.
    """
    rank = read_config(Path(adapter)).get("r")
    if not isinstance(rank, int):
        raise ArtifactError(f"{adapter}: r is {rank!r}; accepted is the rank of a LoRA adapter.")
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
