"""Training a role-playing model theta(y | x): what such a recipe may say."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from coevolve.recipe.optimization import Optimization, Sft
from coevolve.recipe.rl import CustomRewards, Grpo, Rewards
from coevolve.recipe.rounds import Rounds
from coevolve.recipe.schema import ColdStart, Recipe
from coevolve.recipe.section import (
    Amount,
    PathText,
    Positive,
    PositiveAmount,
    Temperature,
)
from coevolve.recipe.vllm import Vllm

OWN = ("name", "seed", "data", "model", "rpm", "evaluation", "checkpoints", "logging")
"""The sections of a recipe that are about a role-playing model as well."""


class RpmRewards(Rewards):
    """What a response is worth under the estimator, by the form that it was exported with."""

    likelihood: Amount = 1.0
    """exp(mean token log q2(response | x, r)), in (0, 1]."""
    information: Amount = 0.0
    """log q2(y | x, r) less its log-mean over `contexts` others of the same subset, nats per
    response: rewarded is what fits this context and no other.
    """
    custom: CustomRewards = Field(default_factory=dict)
    """A user's own, which runs: {package.module:function: weight} or {file.py:function: weight}."""


class RpmGrpo(Grpo):
    """RL for the estimator's rewards."""

    rewards: RpmRewards = RpmRewards()


class Dpo(Optimization):
    """TRL's DPOTrainer against the model as it began, under its names. Batch sizes count pairs."""

    beta: PositiveAmount = 0.1
    """How far the model is held to what it was."""
    chosen: Literal["golden", "best"] = "golden"
    """The golden response or the best of its own samples, against the worst of these."""


class Rpm(Vllm):
    """How the model is trained. A file may have the settings of several methods."""

    method: Literal["sft", "rejection_sft", "dpo", "grpo"]
    """`sft` on golden responses; `rejection_sft` on the best of `samples` of its own by the
    estimator; `dpo` on pairs of which the worst of these is rejected; `grpo` for rewards.
    """
    estimator: PathText | None = None
    """The exported estimator that judges its responses; all but `sft` need one."""
    prompt: PathText | None = None
    """What it is shown: a file as for `respond --prompt`. None is what `respond` shows by itself
    or, in the synthetic world, its few words.
    """
    thinking: bool = False
    """For `grpo`: a thought before the response, up to `</think>`, which is not judged."""
    max_response_tokens: Positive = 256
    """Room for a response of its own."""
    adapter: PathText | None = None
    """A PEFT directory to go on from."""
    samples: Annotated[int, Field(ge=2, le=10_000)] = 4
    """K, for `rejection_sft` and `dpo`."""
    temperature: Temperature = 1.0
    """Of these samples."""
    use_vllm: bool = False
    """Have vLLM, which must be installed, write these samples. (`grpo` says it in its own section.)
    """
    contexts: Annotated[int, Field(gt=0, le=1000)] = 4
    """For the reward `information`: other training examples of the subset, drawn by seed."""
    sft: Sft | None = None
    """For `sft` and `rejection_sft`."""
    dpo: Dpo | None = None
    grpo: RpmGrpo | None = None

    @property
    def settings(self) -> Optimization:
        """Those of the method."""
        settings: Optimization = getattr(self, self.section)
        return settings

    @property
    def writes_samples(self) -> bool:
        """Whether it is trained on samples of its own, which are written before."""
        return self.method in ("rejection_sft", "dpo")

    @property
    def section(self) -> str:
        """Where they stand."""
        return "sft" if self.method == "rejection_sft" else self.method

    @model_validator(mode="after")
    def _complete(self) -> "Rpm":
        if getattr(self, self.section) is None:
            raise ValueError(f"method {self.method} needs the section rpm.{self.section}")
        if self.method != "sft" and self.estimator is None:
            raise ValueError(
                f"method {self.method} needs rpm.estimator, which judges the responses"
            )
        if self.thinking and self.method != "grpo":
            accepted = "true goes with method grpo, since golden responses have no thought"
            raise ValueError(f"thinking: {accepted}; found method {self.method}")
        return self


class RpmRecipe(Recipe):
    """One role-playing model, from data to weights. It is trained in the connector's place: both
    answer x with a text; the estimator's place holds an idle adapter.
    """

    sections: ClassVar[tuple[str, ...] | None] = OWN
    cold_start: ColdStart = ColdStart.model_construct(refresh=None, direct=None)
    rounds: Rounds = Rounds(count=0)
    rpm: Rpm

    @property
    def prompt(self) -> str:
        """A file's path, or the name of a built-in prompt."""
        return self.rpm.prompt or self.prompts

    def rl_field(self, role: str) -> str:
        return "rpm.grpo" if self.rpm.method == "grpo" else "rpm"

    def vllm_of(self, role: str) -> Vllm | None:
        if role != "connector":
            return None
        return self.rpm.grpo if self.rpm.method == "grpo" else self.rpm

    @model_validator(mode="before")
    @classmethod
    def _of_one_model(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        odd = [name for name in values if name not in OWN]
        if odd:
            raise ValueError(f"{odd[0]}: unknown key; a role-playing model's are {', '.join(OWN)}")
        model, rpm = values.get("model"), values.get("rpm")
        if not (isinstance(model, dict) and isinstance(rpm, dict)):
            return values
        room = rpm.get("max_response_tokens", Rpm.model_fields["max_response_tokens"].default)
        own: dict[str, Any] = {"max_reasoning_tokens": room, "connector": {}}
        if rpm.get("adapter") is not None:
            own["connector"] = {"adapter": rpm["adapter"]}
        idle = {"tuning": "lora", "lora": {"r": 1}}
        data = values.get("data")
        world = isinstance(data, dict) and data.get("world") is not None
        prompts = "world" if world else "roleplay"
        return {**values, "prompts": prompts, "model": {**model, **own, "estimator": idle}}


class RecipeFile(RpmRecipe):
    """What a file for `coevolve train` or `coevolve rpm` may say, for editors."""

    rpm: Rpm | None = None  # type: ignore[assignment]
