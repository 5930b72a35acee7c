"""An exported estimator behind the harness's interface.

What a context may be:
- a dialogue: a row of the RPGBench layout as JSON text. A response is scored by the form that the
  estimator's manifest names, with the connector's reasoning; what is written, or asked to be
  written greedily, is by the part of that form that has the most weight. This is what the
  estimator is for.
- any other text: taken as a prompt that is already rendered, and answered by the estimator as it
  stands.

What is scored is a whole response: the continuation's own tokens and the end of turn behind them,
as everywhere in coevolve, so that the numbers are those of `ProbabilityEstimator.log_prob`. Prompt
and response are tokenised apart.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.files import decode_json
from coevolve.scoring.batching import (
    TOKEN_BUDGET,
    Ids,
    batches_by_tokens,
    device_of,
    max_positions,
    pad,
    positions,
)
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.generate import generate
from coevolve.scoring.logprob import score_rows, to_scores
from coevolve.scoring.reasoning import combine
from coevolve.scoring.roles import ESTIMATOR

DIALOGUE = "dialogue_context"
"""A context that is a JSON object with this field is a dialogue."""

MAX_NEW_TOKENS = 256


@register_model("coevolve")
class EstimatorLM(LM):
    """`--model coevolve --model_args pretrained=DIR[,dtype=...][,base=...][,token_budget=...]
    [--device ...]`.

    The harness asks for a GPU unless told otherwise, so one where there is none means `auto`; the
    batch sizes that it passes are ignored, for batches are made by `token_budget`, which changes no
    score.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        base: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "auto"
        self.estimator = ProbabilityEstimator.from_pretrained(
            pretrained, device=device, dtype=dtype, base=base, token_budget=int(token_budget)
        )
        self.render = self.estimator.renderer
        self._reasoning: dict[str, tuple[str | None, ...]] = {}
        self._batching = {
            "pad_id": self.render.tokenizer.pad_token_id,
            "token_budget": self.estimator.token_budget,
        }

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log q2(response, end of turn | context) in nats, whether greedy decoding would write
        it).
        """
        for index, request in enumerate(requests):
            if not request.args[1].strip():
                raise DataError(
                    f"request {index}: the continuation is empty; a response needs a visible "
                    "character."
                )
        weights, parts = self._prompts([request.args[0] for request in requests])
        targets = [self.render.response_ids(request.args[1]) for request in requests]
        with self.estimator.roles.acting(ESTIMATOR) as model:
            scored = [score_rows(model, prompts, targets, **self._batching) for prompts in parts]
            heaviest = parts[int(np.argmax(weights))]
            greedy = greedy_rows(model, heaviest, targets, **self._batching)
        scores = combine(weights, [to_scores(values) for values in scored])
        results = list(zip(scores.sum.tolist(), greedy, strict=True))
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of whole texts under the estimator, in nats, without end of turn.

        As the harness defines it: each token is predicted once, in windows of the model's length,
        the first one after a beginning-of-text token (end of turn, where the tokenizer has none).
        """
        results = []
        with self.estimator.roles.acting(ESTIMATOR) as model:
            # A window holds its prefix beside the tokens it predicts.
            room = max_positions(model) - 1
            for request in requests:
                ids = self.render.tokenizer(request.args[0], add_special_tokens=False)["input_ids"]
                windows = get_rolling_token_windows(ids, self._first_id, room, 1)
                pairs = [make_disjoint_window(window) for window in windows]
                prompts, targets = [left for left, _ in pairs], [right for _, right in pairs]
                rows = score_rows(model, prompts, targets, **self._batching)
                results.append(math.fsum(float(row.sum()) for row in rows))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy responses, up to the end of turn or one of the `until` texts."""
        results: list[str] = [""] * len(requests)
        weights, parts = self._prompts([request.args[0] for request in requests])
        prompts = parts[int(np.argmax(weights))]
        by_length: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            options = request.args[1]
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise DataError(
                    f"request {index}: asks for sampling; accepted is greedy decoding "
                    "(do_sample=False)."
                )
            by_length.setdefault(int(options.get("max_gen_toks", MAX_NEW_TOKENS)), []).append(index)
        with self.estimator.roles.acting(ESTIMATOR) as model:
            for length, indices in by_length.items():
                generations = generate(
                    model,
                    [prompts[index] for index in indices],
                    max_new_tokens=length,
                    stop_ids=self.estimator.stop_ids(ESTIMATOR),
                    **self._batching,
                )
                for index, generation in zip(indices, generations, strict=True):
                    text, asked = self.render.decode(generation.ids), requests[index].args
                    results[index] = _cut(text, asked[1].get("until") or [])
                    self.cache_hook.add_partial("generate_until", asked, results[index])
        return results

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The rendered chat; a dialogue stays: it is rendered with its reasoning later."""
        if _dialogue(chat_history[-1]["content"], "chat") is not None:
            return chat_history[-1]["content"]
        if add_generation_prompt:
            return self.render.chat(chat_history)
        text = self.render.tokenizer.apply_chat_template(
            chat_history, tokenize=False, continue_final_message=True
        )
        return str(text)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The estimator's own; there is no other to choose."""
        return self.render.tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        return self.render.tokenizer.name_or_path.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        manifest = self.estimator.manifest
        return {
            "coevolve": manifest["coevolve"],
            "base": manifest["roles"][ESTIMATOR]["base"],
            "prompts": manifest["prompts"]["name"],
            "form": self.estimator.form.values(),
        }

    def _prompts(self, contexts: Sequence[str]) -> tuple[list[float], list[list[list[int]]]]:
        """(the weights of the form's parts, for each part the ids of each context); without a
        dialogue there is one part.
        """
        dialogues = {x: _dialogue(x, f"request {index}") for index, x in enumerate(contexts)}
        new = {x: found for x, found in dialogues.items() if found and x not in self._reasoning}
        form = self.estimator.form
        if new:
            written = form.write(self.estimator, list(new.values()))
            self._reasoning.update(zip(new, zip(*written, strict=True), strict=True))
        weights = form.weights if any(dialogues.values()) else [1.0]

        def ids(context: str, part: int) -> list[int]:
            example = dialogues[context]
            shown = example and self.render.estimator(example, self._reasoning[context][part])
            return self.render.prompt_ids(shown or context) or [self._first_id]

        return weights, [[ids(x, part) for x in contexts] for part in range(len(weights))]

    @property
    def _first_id(self) -> int:
        """What stands in for a context where there is none."""
        begin = self.render.tokenizer.bos_token_id
        return self.render.end_of_turn_id if begin is None else begin


@torch.no_grad()
def greedy_rows(
    model: torch.nn.Module,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    pad_id: int,
    token_budget: int,
) -> list[bool]:
    """Whether each response is what greedy decoding writes: every token is the likeliest one."""
    device = device_of(model)
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    results = np.zeros(len(rows), dtype=bool)
    for batch in batches_by_tokens([len(row) for row in rows], token_budget):
        ids_BT, mask_BT = pad([rows[r] for r in batch], pad_id, left=True)
        width = max(len(responses[r]) for r in batch)
        logits_BNV = model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            position_ids=positions(mask_BT).to(device),
            use_cache=False,
            logits_to_keep=width + 1,
        ).logits[:, :-1]
        likeliest_BN = logits_BNV.argmax(dim=-1).cpu()
        for row, r in enumerate(batch):
            count = len(responses[r])
            results[r] = torch.equal(likeliest_BN[row, -count:], ids_BT[row, -count:])
    return results.tolist()


def _dialogue(context: str, where: str) -> Example | None:
    """The example that a context holds as JSON, or None for other text."""
    if not context.lstrip().startswith("{"):
        return None
    try:
        row = decode_json(context, where)
    except json.JSONDecodeError:
        return None
    return Example.from_row(row, where) if isinstance(row, dict) and DIALOGUE in row else None


def _cut(text: str, until: str | Iterable[str]) -> str:
    """The text up to the first of the stop texts."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text
