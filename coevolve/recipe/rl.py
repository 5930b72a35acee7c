"""Reinforcement learning: algorithms, their options, and the rewards."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from coevolve.recipe.optimization import Optimization
from coevolve.recipe.section import (
    LARGEST,
    Amount,
    Count,
    Fraction,
    LearningRate,
    Positive,
    PositiveAmount,
    Section,
    Temperature,
    one_of,
)
from coevolve.recipe.vllm import Vllm
from coevolve.registry import CUSTOM, IMPORT_PATH


class Ppo(Section):
    """PPO's own options. Values, returns and the KL are per token unless said otherwise."""

    value_backbone: Literal["policy", "head", "adapter"] = "policy"
    """What the value head sits on. `policy`: the policy's last hidden states, which the value loss
    trains too; `head`: the same, but the loss trains the head alone; `adapter`: a LoRA adapter of
    its own, which costs a second pass through the model.
    """
    gamma: Fraction = 1.0
    """Discount from one token to the next."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    vf_coef: Amount = 0.1
    """Weight of the value loss."""
    cliprange_value: PositiveAmount | None = 0.2
    """How far a value may move from that of when completions were sampled; None clips nothing."""
    value_learning_rate: LearningRate | None = None
    """The head's own, for it starts from zero; None is `learning_rate`."""
    kl_coef: Amount = 0.05
    """Weight of the KL to the model as the phase began, subtracted from each token's reward."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators of that KL."""
    kl_target: PositiveAmount | None = None
    """Nats per response, near which `kl_coef` is adapted after each batch; None keeps it fixed."""
    kl_gain: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How fast: the coefficient changes by at most 0.2 times this share."""
    whiten_rewards: bool = False
    """Scale the tokens' rewards to variance 1, before advantages are estimated."""

    @model_validator(mode="after")
    def _adapts_something(self) -> "Ppo":
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target adapts kl_coef by factors, and that is 0; try 0.05")
        return self


NOT_KNOWN_TO = {
    "grpo": ("normalize_advantages", "ppo"),
    "rloo": ("scale_rewards", "ppo"),
    "ppo": (
        *("beta", "delta", "importance_sampling_level", "loss_type", "normalize_advantages"),
        *("scale_rewards", "top_entropy_quantile"),
    ),
}
"""What an algorithm makes nothing of; with another value than the default, an error."""


class Grpo(Vllm, Optimization):
    """RL with TRL's GRPOTrainer, under its names. Batch sizes count completions."""

    algorithm: Annotated[str, one_of("grpo", "ppo", "rloo")] = "grpo"
    """How rewards become advantages. `grpo`: by comparison within a group; `rloo`: minus the mean
    of the others in the group; `ppo`: by a value function, see `ppo`; or `custom:` and the import
    path of a trainer of one's own, as `coevolve.training.rl.algorithms.ALGORITHMS` has it.
    """
    num_generations: Positive = 8
    """Completions to one prompt. PPO needs no groups: 1 will do."""
    updates_per_generation: Annotated[int, Field(gt=0, le=1000)] = 1
    """Optimizer steps that share one batch of completions, `train_batch_size` for each."""
    num_iterations: Annotated[int, Field(gt=0, le=1000)] = 1
    """How often each batch of completions is gone through."""
    max_completion_length: Positive = 256
    """Tokens of a completion at most."""
    temperature: Temperature = 1.0
    """At which completions are sampled, and ratios computed."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of each token's likeliest, sample from the fewest that together have so much probability."""
    top_k: Count = 0
    """Sample from so many likeliest; 0 from all. First comes `min_p`, then `top_k`,
    then `top_p`.
    """
    min_p: Fraction | None = None
    """Sample from those whose probability is at least this share of the likeliest one's."""
    beta: Amount = 0.0
    """Weight of the KL to the model as the phase began: in GRPO's loss, in RLOO's reward."""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo"] = "dapo"
    """How token losses are put together. Of `importance_sampling_level: sequence`, grpo is GSPO."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether ratios are of tokens, or one is of the whole completion."""
    epsilon: PositiveAmount = 0.2
    """The ratio of new to old policy is clipped at 1 - epsilon and at 1 + epsilon_high."""
    epsilon_high: PositiveAmount | None = None
    """None is `epsilon`. For cispo it is the greatest ratio itself, for example 5."""
    delta: Annotated[float, Field(gt=1, le=LARGEST)] | None = None
    """The greatest ratio where the advantage is negative; None leaves it open."""
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train on this share of the tokens only, those of highest entropy."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Over what the standard deviation is taken by which rewards are divided."""
    normalize_advantages: bool = False
    """For `rloo`: scale the batch's advantages to mean 0 and variance 1."""
    ppo: Ppo = Ppo()
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss."""
    async_generation: Literal[0, 1] = 0
    """For `server`: 1 has it write each batch of completions while the one before is trained on, by
    the policy of one batch ago; what differs is corrected as `vllm_importance_sampling_...` say.
    """
    vllm_importance_sampling_correction: bool = True
    """Weigh completions by the ratio of the trained model's probabilities to those that vLLM says
    it sampled by, which differ by rounding.
    """
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "sequence_mask"
    """Of tokens, or one of the completion; out of bounds, cut to the bound or left out."""
    vllm_importance_sampling_clip_max: PositiveAmount | None = 3.0
    """The greatest ratio; None leaves it open."""
    vllm_importance_sampling_clip_min: PositiveAmount | None = None
    """The smallest ratio; None leaves it open."""
    vllm_structured_outputs_regex: str | None = None
    """What all completions have to match, in the syntax of vLLM's grammars, for `use_vllm`."""

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps that share one batch of completions; a phase begins with a new one."""
        return self.updates_per_generation * self.num_iterations

    @property
    def kl_weight(self) -> float:
        """Of the KL, wherever the algorithm has it; with 0 no reference is needed."""
        return self.ppo.kl_coef if self.algorithm == "ppo" else self.beta

    @model_validator(mode="after")
    def _known_to_the_algorithm(self) -> "Grpo":
        for name in NOT_KNOWN_TO.get(self.algorithm, ()):
            found, default = getattr(self, name), type(self).model_fields[name].default
            if found != default:
                others = [other for other, unknown in NOT_KNOWN_TO.items() if name not in unknown]
                instead = ", or ppo.kl_coef" if name == "beta" else ""
                shown = "" if isinstance(found, Section) else f" (found {found!r})"
                raise ValueError(
                    f"{name}: not an option of algorithm {self.algorithm}{shown}; leave it out, or "
                    f"set algorithm to {' or '.join(others)}{instead}"
                )
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo needs epsilon_high, the greatest ratio, such as 5")
        own_adapter = self.algorithm == "ppo" and self.ppo.value_backbone == "adapter"
        if own_adapter and self.gradient_checkpointing:
            # The policy's adapter is active when the value's layers would be computed again.
            raise ValueError(
                "ppo.value_backbone: adapter cannot be had with gradient_checkpointing"
            )
        return self

    @model_validator(mode="after")
    def _can_be_ahead(self) -> "Grpo":
        if self.async_generation:
            if not self.use_vllm or self.vllm_mode != "server":
                found = f"vllm_mode {self.vllm_mode}" if self.use_vllm else "use_vllm false"
                raise ValueError(
                    "async_generation: 1 needs use_vllm: true and vllm_mode: server, found "
                    f"{found}; an engine in the training processes has no time that training does "
                    "not need"
                )
            if not self.vllm_importance_sampling_correction:
                raise ValueError(
                    "async_generation: 1 needs vllm_importance_sampling_correction: true, for it "
                    "trains on what an older policy wrote"
                )
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> "Grpo":
        if self.algorithm != "ppo" and self.num_generations < 2:
            compares = f"{self.algorithm} compares completions to one prompt"
            raise ValueError(
                f"num_generations is 1, but {compares}; give 2 or more, or algorithm ppo"
            )
        if self.algorithm == "ppo" and self.train_batch_size * self.updates_per_generation < 2:
            raise ValueError(
                "train_batch_size is 1, and a single completion has nothing to tell its advantage "
                "from; give 2 or more"
            )
        size, group = self.train_batch_size, self.num_generations
        if size % group:
            raise ValueError(f"num_generations ({group}) must divide train_batch_size ({size})")
        if problem := self._narrowed():
            raise ValueError(problem)
        return self

    def _narrowed(self) -> str | None:
        """What is wrong with how sampling is narrowed to some tokens, if it is."""
        regex, name = self.vllm_structured_outputs_regex, "vllm_structured_outputs_regex"
        if regex is not None and not self.use_vllm:
            return f"{name} needs use_vllm: true"
        try:
            re.compile(regex or "")
        except re.error as error:
            return f"{name}: found {regex!r}, which is no regular expression ({error})"
        narrow = {"top_p": self.top_p < 1, "top_k": self.top_k, "min_p": self.min_p, name: regex}
        found = [name for name, value in narrow.items() if value]
        if found and self.use_vllm and self.vllm_importance_sampling_correction:
            return (
                f"{found[0]} has vLLM sample from some tokens only, by whose probabilities ratios "
                "to the trained model's would be far below 1; set "
                "vllm_importance_sampling_correction: false, or leave it out"
            )
        return None


ImportPath = Annotated[str, Field(pattern=f"^({IMPORT_PATH})$")]
CustomRewards = dict[ImportPath, Amount]


class Rewards(Section):
    """Weights of a role's rewards; 0 leaves one out. What one gets that cannot be judged, and how
    to add one's own, stands in `coevolve.training.rewards.registry`.
    """

    if TYPE_CHECKING:  # stands last in each role's section
        custom: CustomRewards

    @classmethod
    def of_file(cls, schema: dict[str, Any]) -> dict[str, Any]:
        schema["patternProperties"] = {f"^{CUSTOM}": {"type": "number", "minimum": 0}}
        return super().of_file(schema)

    @property
    def asks_reference(self) -> bool:
        """Whether the role as the phase began is needed."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _beside_the_others(cls, values: Any) -> Any:
        # A user's own may stand among the built-in ones, as `custom:PATH`.
        if not isinstance(values, dict) or not isinstance(values.get("custom", {}), dict):
            return values
        own = {name: value for name, value in values.items() if str(name).startswith(CUSTOM)}
        rest = {name: value for name, value in values.items() if name not in own}
        named = {name.removeprefix(CUSTOM): value for name, value in own.items()}
        return {**rest, "custom": {**values.get("custom", {}), **named}} if own else values

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> "Rewards":
        columns = [path.rpartition(":")[2] for path in self.custom]
        for name in columns:
            if name in type(self).model_fields or columns.count(name) > 1:
                raise ValueError(f"custom: two rewards are called {name!r}; rename the function")
        weights = [value for _, value in self if isinstance(value, float)]
        if not any((*weights, *self.custom.values())):
            raise ValueError("all weights are 0; reinforcement learning needs a reward")
        return self


class ConnectorRewards(Rewards):
    """The connector's rewards, and what the length counts towards."""

    likelihood: Amount = 1.0
    """exp(mean token log q2(golden response | x, features of r)), the tokens' geometric mean."""
    log_likelihood: Amount = 0.0
    """The mean token log-probability itself, in nats per token."""
    mean_probability: Amount = 0.0
    """The arithmetic mean of the token probabilities, as in RLPR."""
    gain: Amount = 0.0
    """log q2(y | x, r) - log q2(y | x), nats per token; in GRPO, `log_likelihood` less a constant.
    """
    bound: Amount = 0.0
    """What a reasoning adds to log mean_k q2(y | x, r_k) over its group, the bound that evaluation
    over several samples is about; nats per response. It wants one good reasoning among several.
    """
    token_weighting: Literal["none", "change"] = "none"
    """In all of the above but `bound`. `change`: a token counts in proportion to how much its
    log-probability varies over the reasonings of a group, 1 on average.
    """
    format: Amount = 1.0
    """0.5 for features beyond the instruction's words, and 0.5 more for all expected sections."""
    length: Amount = 1.0
    """min(distinct words in the features, without the instruction's / target_words, 1)."""
    target_words: Positive = 250
    """With so many, `length` is at its greatest."""
    custom: CustomRewards = Field(default_factory=dict)
    """A user's own, which runs: {package.module:function: weight} or {file.py:function: weight}."""


class ConnectorRl(Grpo):
    """Phase a: the connector learns to write what makes the golden response likely."""

    rewards: ConnectorRewards = ConnectorRewards()
    least_content: Fraction = 0.0
    """The run stops before this phase if a smaller share of the connector's reasonings on held-out
    examples says anything: features that are not empty, and not the instruction's own words.
    """

    @model_validator(mode="after")
    def _compares_in_groups(self) -> "ConnectorRl":
        weighted = self.rewards.token_weighting == "change" and "rewards.token_weighting: change"
        name = (self.rewards.bound and "rewards.bound") or weighted
        if name and self.num_generations < 2:
            raise ValueError(f"{name} compares reasonings; set num_generations to 2 or more")
        return self


class EstimatorRewards(Rewards):
    """The estimator's rewards, and who judges."""

    judge: Literal["base", "overlap", "likelihood"] = "base"
    """`base`: the frozen base model says how much of the core features a candidate matches (the
    published form). `overlap`: the share of the golden response's words that the candidate has,
    which needs no model. `likelihood`: the candidate's probability under the estimator as the phase
    began, against the golden's.
    """
    match: Amount = 1.0
    """min(1, judged candidate / judged golden response)."""
    format: Amount = 1.0
    """1 for a response that ends by itself and is not empty, else 0."""
    reference_likelihood: Amount = 0.0
    """exp(mean token log-probability) of the candidate under the estimator as the phase began."""
    kernel_score: Amount = 0.0
    """The candidate's part in its group's kernel score: its likeness to the golden response, less
    its likeness to the other candidates. A proper score, so it does not sharpen the estimator as
    the others do.
    """
    custom: CustomRewards = Field(default_factory=dict)
    """A user's own, which runs: {package.module:function: weight} or {file.py:function: weight}."""

    @property
    def asks_base(self) -> bool:
        """Whether the untouched base model is needed."""
        return bool(self.match) and self.judge == "base"

    @property
    def asks_reference(self) -> bool:
        return bool(self.reference_likelihood) or (bool(self.match) and self.judge == "likelihood")


class EstimatorRl(Grpo):
    """Phase d: the estimator learns from its own responses."""

    rewards: EstimatorRewards = EstimatorRewards()
    golden_nll_weight: Amount = 0.0
    """Weight of the golden response's negative log-likelihood per token, added to each step's loss.
    Without it this phase sharpens the estimator; more than a little worsens held-out perplexity.
    """

    @model_validator(mode="after")
    def _stays_proper(self) -> "EstimatorRl":
        if self.rewards.kernel_score and self.scale_rewards == "group":
            raise ValueError(
                "rewards.kernel_score is proper only where groups are not scaled; set "
                "scale_rewards: none or batch"
            )
        if self.rewards.kernel_score and self.num_generations < 3:
            raise ValueError(
                "rewards.kernel_score compares candidates; set num_generations to 3 or more"
            )
        return self
