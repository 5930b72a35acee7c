"""What a grid may say: which role-playing models are compared, by which estimator, on what."""

import re
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, JsonValue, model_validator

from coevolve.recipe.section import PathText, Positive, Section, Seed

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""A model's name is one of a folder and of a file."""
Overrides = Annotated[list[str], Field(default_factory=list)]
Options = Annotated[dict[str, JsonValue], Field(default_factory=dict)]


class GridEstimator(Section):
    """An exported estimator or, by a recipe, one that is trained for the comparison."""

    at: PathText | None = None
    """A folder, or a name on a hub; the text alone says the same."""
    train: PathText | None = None
    """A recipe, as for `coevolve train`."""
    set: Overrides
    """`key=value` over it."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = super().__get_pydantic_json_schema__(core, handler)
        return {"anyOf": [{"type": "string"}, described]}

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_place(cls, values: Any) -> Any:
        return {"at": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _one_of_both(self) -> "GridEstimator":
        if (self.at is None) == (self.train is None):
            raise ValueError("accepted is a folder, a name on a hub, or {train: RECIPE}")
        if self.at is not None and self.set:
            raise ValueError("set: goes over the recipe of train; there is none")
        return self


class GridModel(Section):
    """A role-playing model: trained here (`rpm`), asked (`model`), or known by its `responses`."""

    rpm: PathText | None = None
    """A recipe, as for `coevolve rpm`."""
    set: Overrides
    """`key=value` over it."""
    start: str | None = None
    """The model of this grid that it began as: an `rpm` goes on from its weights, and what a way of
    training gains is told against it.
    """
    remedy: str | None = None
    """The way in which it was trained, by which models are averaged; of an `rpm` by default its
    method, for `grpo` with the reward that weighs most.
    """
    model: PathText | None = None
    """A folder, a hub id or, with `ask: {endpoint: URL}`, the name that a server knows."""
    adapter: PathText | None = None
    """A PEFT adapter on it."""
    prompt: PathText | None = None
    """As `coevolve respond --prompt`; an `rpm` has its own."""
    responses: PathText | None = None
    """JSONL of {sample_ID, response}; `model` and `adapter` are then the weights that gave them."""
    ask: Options
    """Options of `coevolve respond`, over the grid's."""

    @model_validator(mode="after")
    def _is_known(self) -> "GridModel":
        if self.rpm is None and self.model is None and self.responses is None:
            raise ValueError("needs one of rpm, model and responses")
        if self.rpm is not None and (self.model or self.responses or self.adapter or self.prompt):
            raise ValueError(
                "rpm: a model that is trained here has no model, adapter, prompt or responses"
            )
        if self.set and self.rpm is None:
            raise ValueError("set: goes over the recipe of rpm; there is none")
        if self.adapter is not None and self.model is None:
            raise ValueError("adapter: needs model, its base")
        return self


class GridJudge(Section):
    """A language model that is asked for scores, or scores that are there."""

    scores: PathText | None = None
    """A file as for `coevolve remid --judge`."""
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest of these scores; one beyond is an error. What `coevolve judge` wrote says
    it.
    """
    ask: Options
    """Options of `coevolve judge`: {model: NAME, endpoint: URL, rubric: FILE, repeats: 3, ...}."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "GridJudge":
        if (self.scores is None) == (not self.ask):
            raise ValueError("accepted is either {scores: FILE} or {ask: {model: NAME, ...}}")
        if self.scale is not None and (self.scores is None or not self.scale[0] < self.scale[1]):
            raise ValueError(
                f"scale: found {self.scale}; accepted are the ends, lower first, of scores"
            )
        return self


class Grid(Section):
    """Models x subsets x measures. Paths are relative to the grid's file or, where nothing lies
    there, as anywhere.
    """

    name: str
    """What the results are called."""
    seed: Seed | None = None
    """Of all that is trained, asked and drawn; left out, recipes have their own, the rest 0."""
    data: PathText | None = None
    """Dialogues with IDTest and shifted test splits; left out, those that the estimator's run tests
    on.
    """
    rows: Positive | None = None
    """Of each test split and subset the first so many; left out, all. In the synthetic world so
    many are drawn.
    """
    estimator: GridEstimator
    """It reads all models' responses."""
    reward: GridEstimator | None = None
    """The estimator for which models are trained, given to their recipes as `rpm.estimator`; it
    must be another one. Left out, recipes name theirs.
    """
    set: Overrides
    """`key=value` over every recipe, before its own `set`."""
    models: Annotated[dict[str, GridModel], Field(min_length=1)]
    """By name."""
    ask: Options
    """Options of `coevolve respond` for all models: {temperature: 1.0, max_new_tokens: 64, ...}."""
    own: bool = True
    """Whether each model's own weights, where they are here, read its responses too."""
    measure: Options
    """Options of `coevolve remid`: {negatives: 1000, reader: estimator, missing: drop, ...}."""
    bound: dict[str, JsonValue] | None = Field(default_factory=dict)
    """Options of `coevolve bound`, beside those of `measure`: {embedder: minilm}; null leaves it
    out.
    """
    judge: GridJudge | None = None
    """By whom responses are scored as well."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "Grid":
        folded: dict[str, str] = {}
        for name, model in self.models.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(
                    f"models: found the name {name!r}; accepted are letters, digits, _.-"
                )
            if other := folded.get(name.lower()):
                raise ValueError(
                    f"models: {other!r} and {name!r} would be one file on some systems"
                )
            folded[name.lower()] = name
            line = [name]
            while (model := self.models[line[-1]]).start is not None:
                if model.start not in self.models:
                    raise ValueError(
                        f"models.{line[-1]}.start: found {model.start!r}; the models are "
                        f"{', '.join(self.models)}"
                    )
                if model.start in line:
                    raise ValueError(f"models.{line[-1]}.start: {model.start!r} leads in a circle")
                line.append(model.start)
        return self

    @property
    def in_order(self) -> list[str]:
        """Names, each model behind the one that it began as."""
        placed: dict[str, None] = {}

        def place(name: str) -> None:
            if (start := self.models[name].start) is not None:
                place(start)
            placed[name] = None

        for name in self.models:
            place(name)
        return list(placed)
