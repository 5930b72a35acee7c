"""A chat model run by vLLM in this process: the same prompts as `LocalChat`, many at once.

A vLLM server is an `Endpoint`.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coevolve.chat.base import Completion, Question, Read, Reply, Value, examined, key_of
from coevolve.chat.local import Asked, ModelHere, load_renderer, weight_fingerprints
from coevolve.errors import ArtifactError, ChatError
from coevolve.libraries.vllm import rank_for
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet
from coevolve.scoring.origins import read_config

if TYPE_CHECKING:
    from vllm import LLM


class VllmChat(ModelHere):
    """A chat model in a `vllm.LLM`, with `ModelHere`'s options and perhaps a LoRA adapter's folder.
    Each question is asked once.
    """

    kind = "vllm"

    def __init__(
        self,
        engine: "LLM",
        renderer: Renderer,
        *,
        batch_size: int = 256,
        adapter: str | None = None,
        **options: Any,
    ):
        super().__init__(renderer, batch_size=batch_size, **options)
        self.engine, self.adapter = engine, adapter

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
        **options: Any,
    ) -> "VllmChat":
        """Start vLLM's engine with a model over so many GPUs, for prompts with their answers of up
        to `max_model_len` tokens (its own length); other arguments as for `load_chat_model` and the
        constructor.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ChatError(
                "vLLM is not installed. On a GPU's machine: pip install 'coevolve[vllm]'"
            )
        from vllm import LLM

        from coevolve.scoring.foreign import explained
        from coevolve.scoring.models import SAVED, resolve_base

        renderer = load_renderer(source, prompts, date)
        weights = weight_fingerprints(source, adapter)
        how = {"tensor_parallel_size": tensor_parallel_size, "max_model_len": max_model_len}
        how = {name: value for name, value in how.items() if value is not None}
        if adapter is not None:
            how |= {"enable_lora": True, "max_lora_rank": rank_for([_rank(adapter)])}
        with explained(f"The model {source!r} cannot be loaded by vLLM", SAVED):
            engine = LLM(model=resolve_base(source), dtype=dtype, **how)
        return cls(engine, renderer, adapter=adapter, weights=weights, **options)

    @property
    def address(self) -> str:
        return self.renderer.tokenizer.name_or_path

    def replies(self, questions: Sequence[Question], read: Read[Value]) -> Iterator[Reply[Value]]:
        """One reply per question, in order, batch by batch."""
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            asked, too_long = self.fitting(batch, self.engine.model_config.max_model_len)
            yield from too_long
            for (question, _), completion in zip(asked, self._complete(asked), strict=True):
                value, problem = examined(read, question, completion)
                yield Reply(question.id, value, problem)

    def _complete(self, asked: Sequence[Asked]) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        sampling = [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=(self.seed + key_of(question.id)) & 0x7FFFFFFF,
                # And those of the generation config, by itself.
                stop_token_ids=[self.renderer.end_of_turn_id],
            )
            for question, _ in asked
        ]
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for _, ids in asked],
            sampling,
            use_tqdm=False,
            lora_request=None if self.adapter is None else LoRARequest("adapter", 1, self.adapter),
        )
        answers = (output.outputs[0] for output in outputs)
        decode = self.renderer.decode
        return [Completion.ended(decode(x.token_ids), x.finish_reason) for x in answers]


def _rank(adapter: str) -> int:
    rank = read_config(Path(adapter)).get("r")
    if not isinstance(rank, int):
        raise ArtifactError(f"{adapter}: r is {rank!r}; accepted is the rank of a LoRA adapter.")
    return rank
