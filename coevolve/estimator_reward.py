"""The estimator as a reward function for TRL, to train a role-playing model on it.

    from trl import GRPOTrainer
    from coevolve.estimator_reward import EstimatorReward

    trainer = GRPOTrainer(model, reward_funcs=EstimatorReward("runs/mine/estimator"),
    train_dataset=dataset, ...)

The data set needs, beside `prompt`, the dialogue that each prompt was made from: a column `example`
with a row of the RPGBench layout as JSON text (the safest form, since a column of objects gives all
of them the same keys), or the columns `user_persona`, `agent_character` and `dialogue_context`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from coevolve.data.arrow import json_rows
from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError, RecipeError, RewardError
from coevolve.files import parse_json
from coevolve.scoring.artifact import form_of, read_manifest
from coevolve.scoring.by_form import INPUTS, ByForm
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.reasoning import Reasoning

Scale = Literal["likelihood", "log_likelihood"]


class EstimatorReward:
    """How probable the estimator finds a response of the role-playing model that is being trained.

    `likelihood` is exp(mean token log p(y | x)), in (0, 1]; `log_likelihood` is the mean itself, in
    nats per token. A completion without a visible character gets 0, or -log of the vocabulary's
    size: what a uniform guess gets. Probabilities are by the estimator's own form, or `reasoning`,
    whose reasonings are written once for each dialogue and kept. A completion is scored as it
    stands with an end of turn behind it; one that was cut off is for the trainer to leave out
    (`mask_truncated_completions`).

    Args:
        path: an exported estimator. Its manifest and files are checked at once; its models are
            loaded by the first call, on the device that is the process's own by then.
        reasoning: another form than the estimator's own.
        options: of `ProbabilityEstimator.from_pretrained`: `device`, `dtype`, `base`,
            `token_budget`, ...
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scale: Scale = "likelihood",
        reasoning: Reasoning | None = None,
        **options: Any,
    ):
        if scale not in get_args(Scale):
            raise RecipeError(f"scale is {scale!r}; accepted are {', '.join(get_args(Scale))}.")
        self.form = reasoning or form_of(read_manifest(path, verify=options.get("verify", True)))
        self.path = Path(path)
        self.scale = scale
        self._options = {**options, "verify": False}

    @cached_property
    def estimator(self) -> ProbabilityEstimator:
        """The estimator, loaded when first asked for."""
        from transformers.integrations import is_deepspeed_zero3_enabled

        if is_deepspeed_zero3_enabled():
            raise ArtifactError(
                f"{self.path}: under DeepSpeed ZeRO-3 a model loaded now would be sharded. Read "
                "`reward.estimator` before the training arguments are made, or use ZeRO-2."
            )
        return ProbabilityEstimator.from_pretrained(self.path, **self._options)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward for each completion (a text, or chat messages whose last one is scored), as
        TRL asks for it; `columns` are the data set's, one value for each completion, and what else
        TRL passes.
        """
        examples = _examples(columns, len(completions))
        # Of a conversation the last message is scored.
        texts = [x if isinstance(x, str) else x[-1]["content"] or "" for x in completions]
        likelihood = self.scale == "likelihood"
        nothing = 0.0 if likelihood else -math.log(len(self.estimator.renderer.tokenizer))
        rewards = [nothing] * len(texts)
        spoken = [index for index, text in enumerate(texts) if text.strip()]
        asked = [examples[index] for index in spoken]
        said = [texts[index] for index in spoken]
        scores = self._judge.log_prob(asked, said)
        for index, mean in zip(spoken, scores.mean.tolist(), strict=True):
            if not math.isfinite(mean):
                raise RewardError(
                    f"{self.path}: gave completion {index} the log-probability {mean}; is it "
                    "damaged?"
                )
            rewards[index] = math.exp(mean) if likelihood else mean
        return rewards

    @cached_property
    def _judge(self) -> ByForm:
        return ByForm(self.estimator, self.form)


def _examples(columns: Mapping[str, Any], count: int) -> list[Example]:
    if "example" in columns:
        rows = [_parsed(row, index) for index, row in enumerate(columns["example"])]
    elif all(name in columns for name in INPUTS):
        values = zip(*(columns[name] for name in INPUTS), strict=True)
        rows = [dict(zip(INPUTS, of_one, strict=True)) for of_one in values]
    else:
        missing = next(name for name in INPUTS if name not in columns)
        raise DataError(
            f"the data set has neither a column 'example' nor {missing!r}; accepted are 'example' "
            f"(each row as JSON text), or all of {', '.join(INPUTS)}."
        )
    if len(rows) != count:
        raise DataError(f"{len(rows)} dialogues for {count} completions; TRL passes one for each.")
    # A reward has no use for the two names, so a data set need not have them.
    names = [f"completion {index}" for index in range(count)]
    named = [
        {"sample_ID": name, "subset_tag": "training", **row}
        for name, row in zip(names, json_rows(rows), strict=True)
    ]
    return [Example.from_row(row, name) for row, name in zip(named, names, strict=True)]


def _parsed(row: Any, index: int) -> Mapping[str, Any]:
    try:
        parsed = parse_json(row, f"example of completion {index}") if isinstance(row, str) else row
    except DataError as error:
        raise DataError(f"{error} Accepted is a row as JSON text.") from None
    if not isinstance(parsed, Mapping):
        raise DataError(
            f"example of completion {index}: found {parsed!r}; accepted is a JSON object."
        )
    return parsed
