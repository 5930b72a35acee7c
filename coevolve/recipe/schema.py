"""What a recipe may say. Every field is explained beside it, and checked when the recipe is read.

Budgets are counted in optimizer steps, so that two runs can be compared update for update. Names
that belong to a library keep that library's spelling (TRL, PEFT, transformers).
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from coevolve.recipe.model import Model
from coevolve.recipe.optimization import Sft
from coevolve.recipe.rl import ConnectorRl, EstimatorRl
from coevolve.recipe.rounds import Rounds
from coevolve.recipe.section import (
    EXTENDS,
    LARGEST,
    Count,
    Fraction,
    PathText,
    Positive,
    PositiveAmount,
    Section,
    Seed,
    one_of,
)
from coevolve.recipe.vllm import Share, Vllm


class WorldData(Section):
    """The synthetic world whose truth is known (`coevolve.worlds`)."""

    seed: Seed | None = None
    """Which tables, distribution P and shifted ones. By default the run's own seed."""
    train: Annotated[int, Field(gt=0, le=1_000_000)] = 4096
    """Examples in IDTrain, each with the teacher's trace."""
    test: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Examples in each test split."""
    strength: Fraction = 1.0
    """How far the shifted factors move away from P."""
    hops: Literal["several", "one"] = "several"
    """`one`: a response's words are looked up from the inputs themselves, and a model that does not
    reason can learn to answer.
    """
    draw: Seed = 0
    """Another one has other examples in IDTrain, and the same ones to test."""

    @property
    def kind(self) -> dict[str, Any]:
        """What its worlds depend on beside their seed."""
        return {"strength": self.strength, "hops": self.hops}


class Data(Section):
    """Where the dialogues come from: exactly one of `path`, `hub` and `world`."""

    path: PathText | None = None
    """A file or folder in the RPGBench layout (JSON, JSONL, or saved `datasets`)."""
    hub: str | None = None
    """YongqiLi/RPGBench, google/Synthetic-Persona-Chat, or one with splits named as ours."""
    world: WorldData | None = None
    validation: Annotated[int, Field(ge=2, le=LARGEST)] = 128
    """Examples taken from IDTrain, by seed, to gate the phases; nothing trains on them. Two at
    least: their reasonings are exchanged for a diagnosis, and one has no standard error.
    """
    limit: dict[str, Positive] = Field(default_factory=dict)
    """At most so many examples of a split, the first by seed. Counted in the log."""
    part: str | None = None
    """`1/2`, `2/2`, ...: this one of so many parts of IDTrain, which have no example in common (an
    estimator that judges should not know the rows of the one that rewards). By the sample_IDs.
    """
    over_long: Literal["error", "drop"] = "error"
    """For an example beyond `model.max_length`: stop and name it, or drop and count it."""

    @field_validator("part")
    @classmethod
    def _part_of_parts(cls, text: str | None) -> str | None:
        if text is not None:
            found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
            if found is None or int(found[1]) > int(found[2]):
                raise ValueError(f"found {text!r}; accepted are 1/2, 2/2, 1/3 and the like")
        return text

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
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of path, hub and world; found {found}")
        return self


class Traces(Section):
    """Where the reasonings r* of the cold start come from."""

    teacher: Annotated[str, one_of("dataset", "file", "rules", "local", "endpoint")] = "rules"
    """`dataset`: the `trace` of each row; `rules`: the built-in one, which needs no model; `file`:
    `path`; `local`: a chat model on this machine; `endpoint`: any OpenAI-compatible one; or
    `custom:` and the import path of one's own, as `coevolve.teachers.base.TEACHERS` has it.
    """
    path: PathText | None = None
    """For `file`: JSONL of {sample_ID, trace}."""
    model: PathText | None = None
    """For `local`, a folder or hub id; for `endpoint`, the name that the server knows."""
    base_url: str | None = None
    """For `endpoint`: for example http://localhost:8000/v1 for a vLLM server."""
    api_key_env: str | None = None
    """For `endpoint`: the environment variable of the key, which is never written down."""
    keywords: Literal["context", "telling"] = "telling"
    """For `rules`: keywords that also stand in the context, or the response's most telling ones."""
    max_keywords: Count = 3
    """For `rules`: how many keywords at most."""
    max_new_tokens: Positive = 1024
    """For `local` and `endpoint`."""
    use_vllm: bool = False
    """For `local`: run it with vLLM, which must be installed, whole on each GPU. A teacher that no
    GPU holds goes to a server, and is an `endpoint`.
    """
    vllm_max_model_length: Positive | None = None
    """For `use_vllm`: tokens of a prompt and its trace that it has room for; None is as many as the
    model was made for.
    """
    vllm_gpu_memory_utilization: Share = 0.9
    """For `use_vllm`: the share of each GPU's memory that vLLM may take, as long as it is asked."""
    on_failure: Literal["error", "drop"] = "error"
    """For an example of which the teacher gives no well-formed trace after several attempts."""

    @model_validator(mode="after")
    def _complete(self) -> "Traces":
        needed = {"file": ["path"], "local": ["model"], "endpoint": ["model", "base_url"]}
        missing = [x for x in needed.get(self.teacher, []) if getattr(self, x) is None]
        if missing:
            raise ValueError(f"teacher {self.teacher!r} needs {', '.join(missing)}")
        if self.use_vllm and self.teacher != "local":
            raise ValueError(f"use_vllm is for teacher 'local'; found {self.teacher!r}")
        return self


class Posterior(Section):
    """Reasonings drawn from p(r | x, y), in proportion to q1(r | x) q2(y | x, r), to train on."""

    proposal: Literal["connector", "connector_with_answer", "mixture", "teacher"] = "connector"
    """Who writes the candidates. `connector`: q1(r | x); `connector_with_answer`: the connector
    under the teacher's prompt, which shows y; `mixture`: half of them each; `teacher`: the
    teacher's trace, as if the connector had written it, among q1's own.
    """
    samples: Annotated[int, Field(ge=2, le=10_000)] = 8
    """K, candidates for each example."""
    resampled: Annotated[int, Field(gt=0, le=1000)] = 1
    """Reasonings drawn for each example, with replacement."""
    examples: Positive | None = None
    """So many training examples, drawn by seed; None is all of them."""


class Writing(Section):
    """How the connector writes reasonings that the estimator will be trained with."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 is greedy; otherwise sampled, seeded by run and round."""
    samples: Annotated[int, Field(gt=0, le=10_000)] = 1
    """So many reasonings of each example, which are met in turn, pass after pass."""
    trace_share: Fraction = 0.0
    """Share of the examples that keep the teacher's r* instead."""

    @model_validator(mode="after")
    def _can_be_written(self) -> "Writing":
        if 0 < self.temperature < 0.01:
            found = f"temperature is {self.temperature!r}"
            raise ValueError(f"{found}; accepted are 0 (greedy) and 0.01 to 100")
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"samples is {self.samples} and temperature 0; set one, such as 0.7, or samples: 1"
            )
        return self


class CrossFit(Writing):
    """Connectors write, before the estimator's cold start, for examples not trained on."""

    cross_fit: Annotated[int, Field(ge=2, le=100)] = 2
    """Parts of the examples, by seed; for each writes a connector trained on all others."""
    connector: Literal["all", "last"] = "all"
    """Which connector goes on: one trained on all examples, or the last that wrote, at no cost."""

    def too_few(self, examples: int) -> str | None:
        """What is wrong with so many examples to be divided."""
        if examples >= self.cross_fit:
            return None
        found = f"cold_start.refresh.cross_fit: found {self.cross_fit}"
        return f"{found}; {examples} training examples cannot be divided into so many. Lower it."


class ColdStart(Section):
    """SFT before the first round: the connector on traces, the estimator on them or `refresh`."""

    connector: Sft
    refresh: CrossFit | None = None
    """For example {samples: 2, temperature: 0.7}. None is the traces themselves."""
    direct: Sft | None = None
    """The estimator as q(y | x) first, as the baseline without reasoning begins too."""
    estimator: Sft


class Refresh(Writing):
    """Phase b: the connector writes anew the reasonings that the estimator will be trained on."""

    examples: Positive | None = None
    """So many training examples, drawn by seed; None is all of them."""


class Baselines(Section):
    """What the full run is compared with. Each is one flag. A baseline too is left where it was
    best on the held-out examples, judged after its cold start and after as many updates as each
    round's.
    """

    without_corl: bool = True
    """Cold start only, with the rounds' estimator updates, on the cold start's reasonings."""
    without_reasoning: bool = True
    """q2(y | x) trained alone, with as many updates and the same learning rates."""
    ensemble: Annotated[int, Field(ge=0, le=100)] = 0
    """Of so many baselines without reasoning, 2 or more: the first is the one above, each further
    one is trained in the same way from another seed (new adapter, other order of the rows). Their
    log-mean is what a mixture or marginal of as many parts is fairly compared with.
    """
    oracle: bool = False
    """The cold-started estimator shown the teacher's features of the test responses: a ceiling."""

    @model_validator(mode="after")
    def _ensemble_has_a_first(self) -> "Baselines":
        if self.ensemble == 1 or (self.ensemble and not self.without_reasoning):
            accepted = "0, and 2 or more with without_reasoning, which is the first of them"
            raise ValueError(f"ensemble is {self.ensemble}; accepted are {accepted}")
        return self


class Evaluation(Section):
    """Held-out perplexity of the golden responses."""

    token_budget: Positive = 16384
    """Tokens of one forward pass in scoring and generation."""
    marginal_samples: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Also the marginal over so many sampled reasonings, and the baseline's equal ensemble."""


class Remid(Section):
    """The R-EMID table at the end of the run."""

    responses: dict[str, PathText] = Field(default_factory=dict)
    """Name -> JSONL of {sample_ID, response} of a role-playing model; the world needs none."""
    negatives_per_context: Positive = 32
    """Mismatched pairs of each context, the same ones for golden and every model. Information is
    measured up to the log of their number.
    """
    negatives: Positive | Literal["all"] | None = None
    """Instead so many per subset, or all. A number (published: 1000) allows CLUB only."""


class Export(Section):
    """What the exported estimator holds."""

    include_base: Literal["auto", "always", "never"] = "auto"
    """`auto` copies the base model in unless it can be had from a hub by its id."""
    form: Literal["best", "greedy", "none", "marginal", "mixture"] = "best"
    """How the exported estimator makes one probability of its two models: with one greedy
    reasoning, without, by the log-mean over K sampled ones, by a mixture of the first two (or,
    where `samples` is given, of the last and none) whose weight is fitted on the held-out rows. The
    best is the one with the lowest held-out perplexity.
    """
    license: str | None = None
    """Of the exported estimator, for its card: an identifier that hubs know, such as apache-2.0."""
    samples: Annotated[int, Field(ge=0, le=10_000)] = 0
    """K. 0 is `evaluation.marginal_samples`; where that is 0 too, forms of several reasonings are
    left aside as they take K times as long, or K is 4 if `form` is `marginal`.
    """


class Checkpoints(Section):
    """What a killed run goes on from; written after every phase, and inside long ones."""

    every_minutes: PositiveAmount = 5.0
    """Inside a phase, at most so long after the last one. A run told to stop also writes one."""
    every_steps: Positive | None = None
    """Inside a phase, also every so many optimizer steps."""
    keep: Positive = 3
    """So many of the newest are kept, and the newest one that holds the best pair."""


class Logging(Section):
    """The record of the run. `metrics.jsonl` and `samples.jsonl` are always written."""

    report_to: list[str] = Field(default_factory=list)
    """Trackers, by the names of TRL's `report_to`: wandb, tensorboard, trackio, mlflow, ..."""
    project: str | None = None
    """Where the trackers put the run. None is `coevolve`, or wandb's WANDB_PROJECT. (The run has
    the recipe's name, or WANDB_NAME; WANDB_ENTITY is heeded too.)
    """
    every: Positive = 10
    """Tell a person how a phase goes every so many steps. The record and the trackers have all."""
    samples: Count = 4
    """So many samples of each RL phase and evaluation go into the table of samples."""


class Recipe(Section):
    """One experiment, from data to table."""

    sections: ClassVar[tuple[str, ...] | None] = None
    """Those that a file may have, where that is not all."""

    name: str
    """What the run is called, in trackers too."""
    seed: Seed = 0
    """Of all that is random."""
    prompts: Literal["roleplay", "brief", "world", "roleplay-0.3", "brief-0.3"] = "roleplay"
    """Which words models are shown (`coevolve.prompts.sets`); 0.3's are for runs begun with it."""
    data: Data
    model: Model
    traces: Traces = Traces()
    cold_start: ColdStart
    p_none: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Reasoning dropout: the probability that the estimator's SFT, or the golden term of its RL,
    asks for a response without reasoning, in the baseline's prompt; drawn anew at each visit of a
    row. So one estimator is trained as q2(y | x, r) and as q2(y | x).
    """
    rounds: Rounds = Rounds()
    posterior: Posterior = Posterior()
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

    @classmethod
    def of_file(cls, schema: dict[str, Any]) -> dict[str, Any]:
        properties = super().of_file(schema)
        extends = {"type": "string", "description": "Another YAML file, which this one goes over."}
        # Not a field: it is gone when the recipe is put together.
        schema["properties"] = {EXTENDS: extends, **properties}
        return properties

    def rl_field(self, role: str) -> str:
        """Where a role's settings of reinforcement learning stand."""
        return f"{role}_rl"

    def vllm_of(self, role: str) -> Vllm | None:
        """What says whether vLLM writes a role's texts."""
        settings: Vllm | None = getattr(self, self.rl_field(role))
        return settings

    @model_validator(mode="after")
    def _phases_are_described(self) -> "Recipe":
        if self.rounds.count:
            for phase in self.rounds.phases:
                settings = getattr(self, phase.name) if phase.trains else None
                if phase.trains and settings is None:
                    raise ValueError(f"rounds.phases: the section {phase.name} is missing")
                steps = phase.steps or (phase.until.at_most if phase.until else None)
                if problem := settings and settings.too_many_rows(steps):
                    raise ValueError(f"rounds.phases: {phase.name}: {problem}")
                if phase.tokens and settings and settings.lr_scheduler_type != "constant":
                    found = (
                        f"{phase.name}.lr_scheduler_type must be constant, found "
                        f"{settings.lr_scheduler_type}"
                    )
                    raise ValueError(f"rounds.phases: {phase.name} has a budget of tokens; {found}")
        for role in ("connector", "estimator"):
            settings, tuning = getattr(self, f"{role}_rl"), getattr(self.model, role).tuning
            ppo = settings.ppo if settings and settings.algorithm == "ppo" else None
            if ppo and ppo.value_backbone == "adapter" and tuning != "lora":
                needs = f"adapter needs a model.tuning of lora for the {role} (found {tuning})"
                raise ValueError(
                    f"{role}_rl.ppo.value_backbone: {needs}; policy and head go with both"
                )
        if (self.prompts == "world") != (self.data.world is not None):
            raise ValueError("prompts: world and data.world go together")
        bases = {self.model.connector.base, self.model.estimator.base}
        if "tiny" in bases and self.data.world is None:
            raise ValueError("model.base: tiny knows the synthetic world only; it needs data.world")
        judged = self.estimator_rl is not None and self.estimator_rl.rewards.asks_base
        if judged and self.model.estimator.base == "tiny":
            raise ValueError(
                "estimator_rl.rewards.judge: base: tiny was never trained to judge; accepted are "
                "overlap and likelihood"
            )
        return self
