"""The alternation of the two roles, as data."""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from coevolve.recipe.optimization import MOST_ROWS
from coevolve.recipe.section import Amount, Count, Positive, Section
from coevolve.registry import CUSTOM, HOW_TO_NAME_ONES_OWN, IMPORT_PATH

MOST_TURNS = 10_000
"""Phases of a run, counted in every round, and parts of phases that end when nothing improves."""

Kind = Literal["rl", "sft", "posterior", "refresh", "evaluate", "custom"]
Source = Literal["traces", "posterior", "refreshed"]
"""Whose reasonings SFT trains on: the teacher's, those drawn by weight, those written anew."""


class Until(Section):
    """Train until the held-out measure stops improving."""

    steps: Positive = 10
    """Optimizer steps between two evaluations."""
    patience: Positive = 1
    """So many evaluations in a row without a new best perplexity end the phase."""
    at_most: Positive
    """Optimizer steps after which it ends in any case; the learning rate's schedule is for them."""


class Phase(Section):
    """One entry of `rounds.phases`: who does what, for how long. `connector_rl` alone stands for
    `{role: connector, kind: rl}`, `refresh` and `evaluate` for themselves, and `custom:PATH` for a
    phase of one's own (`coevolve.training.phases.PHASES`).

    How a role is trained stands in the section of the phase's name, `connector_rl`,
    `estimator_sft`, ..., and so does the budget, unless one is given here.
    """

    role: Literal["connector", "estimator"] | None = None
    """Who is trained; a refresh is the connector's, an evaluation is of both."""
    kind: Kind
    """`rl` and `sft` train; `posterior` draws reasonings in proportion to what they are worth (see
    `posterior`); `refresh` has the connector write the reasonings anew; `evaluate` keeps the pair
    or goes back to the best one; `custom` does what the function at `path` does.
    """
    on: Source | None = None
    """For `sft`: the reasonings to train on. By default the connector trains on a posterior sample
    where one is drawn before it in the list and on the teacher's traces otherwise, the estimator on
    whichever of `posterior` and `refresh` stands before it last.
    """
    path: Annotated[str, Field(pattern=f"^({IMPORT_PATH})$")] | None = None
    """package.module:function or file.py:function. Nothing is judged after it but by `evaluate`."""
    steps: Positive | None = None
    """A budget in optimizer steps."""
    tokens: Annotated[int, Field(gt=0, le=2 * MOST_ROWS)] | None = None
    """A budget in tokens trained on, prompts included; the step that reaches it is the last."""
    until: Until | None = None
    """No fixed budget: train until the held-out measure stops improving."""
    every: Positive = 1
    """Only in every so manieth round."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        if isinstance(values, str) and values.startswith(CUSTOM):
            return {"kind": "custom", "path": values.removeprefix(CUSTOM)}
        if isinstance(values, str):
            role, _, kind = values.rpartition("_")
            known = kind in get_args(Kind) and kind != "custom"
            if not known or role not in ("connector", "estimator", ""):
                accepted = (
                    f"{', '.join(PHASES)}, {HOW_TO_NAME_ONES_OWN}, or a mapping with role and kind"
                )
                raise ValueError(f"found {values!r}; accepted are {accepted}")
            return {"role": role or None, "kind": kind}
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> "Phase":
        if self.trains and self.role is None:
            raise ValueError(f"kind {self.kind!r} needs a role: connector or estimator")
        if (self.kind == "custom") != (self.path is not None):
            raise ValueError(f"kind custom and path go together; found kind {self.kind!r}")
        if self.path is not None and self.name in PHASES:
            raise ValueError(f"path: a phase is called {self.name!r} already; rename the function")
        if self.kind == "evaluate" and self.role is not None:
            raise ValueError("an evaluation is of both roles; leave role out")
        if self.on is not None and self.kind != "sft":
            raise ValueError(f"on is for kind sft; found kind {self.kind!r}")
        if self.kind in ("posterior", "refresh") and self.role == "estimator":
            raise ValueError("the connector writes the reasonings; leave role out")
        budgets = [name for name in ("steps", "tokens", "until") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"give one budget; found {' and '.join(budgets)}")
        if budgets and not self.trains:
            none = f"no budget of {budgets[0]}"
            raise ValueError(f"kind {self.kind!r} trains nothing, so it has {none}")
        return self

    @property
    def trains(self) -> bool:
        """Whether it changes weights."""
        return self.kind in ("rl", "sft")

    @property
    def parts(self) -> int:
        """How many it is evaluated in: one, or with `until` one for each evaluation."""
        return math.ceil(self.until.at_most / self.until.steps) if self.until else 1

    @property
    def name(self) -> str:
        """As recipes call it: `connector_rl`, ..., `refresh`; one's own by its function's name."""
        if self.path is not None:
            return self.path.rpartition(":")[2]
        return f"{self.role}_{self.kind}" if self.trains else self.kind

    @property
    def entry(self) -> str:
        """What the registry of phases finds it by."""
        return self.name if self.path is None else f"{CUSTOM}{self.path}"


PHASES = (
    *("connector_rl", "connector_sft", "refresh", "estimator_sft", "estimator_rl", "posterior"),
    "evaluate",
)
"""The names that a phase can have."""


class Rounds(Section):
    """The alternation: phases run in the order given, `count` times. Few rounds of long phases and
    many rounds of single updates are the same thing with other numbers: a role's optimizer,
    learning rate and place in the data go on from phase to phase.
    """

    count: Count = 1
    """How many; 0 ends with the cold start."""
    phases: list[Phase] = Field(
        default=["connector_rl", "refresh", "estimator_sft", "estimator_rl"], validate_default=True
    )
    """Without an `evaluate` among them, an evaluation follows every phase that trains."""
    gate_tolerance: Amount = 0.0
    """A phase is kept if held-out perplexity rose by no more than this share, or rolled back."""
    carry_optimizer: bool = True
    """A phase goes on with the optimizer state of the round before, instead of a new one."""
    lr_schedule: Literal["phase", "run"] = "phase"
    """What warm-up and decay go over: each phase by itself, or all of its name in the run."""

    @classmethod
    def of_file(cls, schema: dict[str, Any]) -> dict[str, Any]:
        properties = super().of_file(schema)
        pattern = f"^({'|'.join(PHASES)}|{CUSTOM}.+)$"
        own = [{"type": "string", "pattern": pattern}, properties["phases"]["items"]]
        properties["phases"]["items"] = {"anyOf": own}
        properties["phases"]["default"] = list(cls.model_fields["phases"].default)
        return properties

    @model_validator(mode="after")
    def _is_a_schedule(self) -> "Rounds":
        for number, phase in enumerate(self.phases):
            if phase.kind == "sft":
                self._has_reasonings(number)
        turns = sum(self.count // phase.every * phase.parts for phase in self.phases)
        if turns > MOST_TURNS:
            raise ValueError(
                f"count ({self.count:,}) makes {turns:,} phases and parts of phases; accepted are "
                f"{MOST_TURNS:,}. Lower count or until.at_most, or raise `every` or until.steps"
            )
        if self.count and any(phase.every > self.count for phase in self.phases):
            raise ValueError(f"phases: `every` is above count ({self.count}), so one never comes")
        if self.lr_schedule == "run" and any(phase.tokens for phase in self.phases):
            raise ValueError("lr_schedule: run needs a number of steps, not a budget of tokens")
        return self

    def _has_reasonings(self, number: int) -> None:
        phase, source = self.phases[number], self.source_of(number)
        if source == "refreshed" and not any(other.kind == "refresh" for other in self.phases):
            raise ValueError(f"phases: {phase.name} needs reasonings; put refresh before it")
        if source == "posterior" and not any(
            other.kind == "posterior" and (other.every, place) < (phase.every, number)
            for place, other in enumerate(self.phases)
        ):
            raise ValueError(
                f"phases: {phase.name} trains on a posterior sample; put posterior before it"
            )

    def source_of(self, number: int) -> Source:
        """What the SFT at this place of the list trains on."""
        phase = self.phases[number]
        drawn = [p.kind for p in self.phases[:number] if p.kind in ("posterior", "refresh")]
        if phase.on is not None:
            return phase.on
        if phase.role == "connector":
            return "posterior" if "posterior" in drawn else "traces"
        return "posterior" if drawn[-1:] == ["posterior"] else "refreshed"

    @property
    def explicit_gates(self) -> bool:
        """Whether the phases say themselves when to evaluate."""
        return any(phase.kind == "evaluate" for phase in self.phases)

    def of_round(self, index: int) -> list[Phase]:
        """The phases of round `index`, which counts from 1."""
        return [phase for phase in self.phases if index % phase.every == 0]
