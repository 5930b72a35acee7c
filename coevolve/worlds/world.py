"""The synthetic role-play world: how contexts are drawn, how responses follow, what a teacher knows
of it.

P(x) is a product of a user, a character and a dialogue factor; a shifted world redraws some of them
and keeps the tables and the words. Responses follow p(y | x) by tables of several hops
(`language.CONNECTIONS`, `language.FEATURES`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coevolve.data.example import Example
from coevolve.errors import DataError, RecipeError
from coevolve.worlds.language import (
    CONNECTIONS,
    FACTORS,
    FEATURES,
    INPUT_WORDS,
    LANGUAGES,
    RESPONSE_VOCABULARY,
    SLOTS,
    VALUES,
    Values,
    parse,
    write_example,
    write_responses,
    write_trace,
)
from coevolve.worlds.policies import Policy, Tables, look_up

Hops = Literal["several", "one"]
HANDED_ON = {"subject": 0, "thread": 0, "focus": 0, "tone": 1, "stance": 1}
"""In a world of one hop, which of its two inputs each connection is: so the subject is the
interest, the thread the first topic, the focus the subject, the tone the style and the stance the
intent.
"""
CONSTANT = ("culture", "occupation", "topic_2")
"""Inputs that nothing depends on there."""
SHIFTS: Mapping[str, tuple[str, ...]] = {x: (x,) for x in FACTORS} | {"all": tuple(FACTORS)}


@dataclass(frozen=True)
class WorldSpec:
    """What kind of world to draw.

    Attributes:
        seed: draws the tables, the factors and the teacher's errors.
        sharpness: mean probability that a slot's word expresses its feature; the rest goes to other
            words.
        sharpness_spread: half the range of that probability over the features, in log-odds.
        skew: standard deviation of the log-weights that the factors are drawn with; 0 is uniform.
        code_switching: probability that a slot's word comes from any language rather than the
            user's.
        wrong_cells: share of the cells of each feature table that the teacher has wrong.
        teacher_error_rate: how often the teacher writes its wrong value there; otherwise the right
            one.
        hops: `one` where a connection hands on one of its inputs (`HANDED_ON`) instead of looking
            both up, and the inputs that none hands on are constant. A model without reasoning
            learns that within minutes, and all of what it says can be enumerated.
    """

    seed: int = 0
    sharpness: float = 0.95
    sharpness_spread: float = 0.75
    skew: float = 0.8
    code_switching: float = 0.03
    wrong_cells: float = 0.2
    teacher_error_rate: float = 0.7
    hops: Hops = "several"

    def __post_init__(self) -> None:
        if not (isinstance(self.seed, int) and self.seed >= 0):
            raise RecipeError(f"world.seed is {self.seed!r}; accepted is an integer from 0.")
        # At 0 or 1 of the last two some log-probability would be infinite.
        probability, inside = ("wrong_cells", "teacher_error_rate"), ("sharpness", "code_switching")
        if self.hops not in ("several", "one"):
            raise RecipeError(f"world.hops is {self.hops!r}; accepted are several, one.")
        for name in (x.name for x in fields(self) if x.name not in ("seed", "hops")):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise RecipeError(f"world.{name} is {value!r}; accepted is a finite number from 0.")
            if name in probability and value > 1:
                raise RecipeError(f"world.{name} is {value}; accepted is a probability, 0 to 1.")
            if name in inside and not 0 < value < 1:
                raise RecipeError(f"world.{name} is {value}; accepted is above 0 and below 1.")


@dataclass(frozen=True, eq=False)
class World:
    """A world P with known p(x) and p(y | x).

    Attributes:
        factors: factor name -> joint distribution of its inputs, one axis each
            (`language.FACTORS`).
        tables, teacher_tables: latent name -> Latin square; the same with the teacher's errors.
        emission: (slot, language, feature, word) probability of a slot's word, all positive.
    """

    spec: WorldSpec
    factors: Mapping[str, NDArray[np.float64]]
    tables: Tables
    teacher_tables: Tables
    emission: NDArray[np.float64]

    @classmethod
    def draw(cls, spec: WorldSpec) -> "World":
        """The world of a spec; the same spec gives the same world."""
        table_rng, factor_rng, teacher_rng, emission_rng = np.random.default_rng(spec.seed).spawn(4)
        tables = {name: _latin_square(table_rng) for name in (*CONNECTIONS, *FEATURES)}
        if spec.hops == "one":
            tables |= {name: np.indices((VALUES, VALUES))[x] for name, x in HANDED_ON.items()}
        return cls(
            spec=spec,
            factors=_draw_factors(spec, factor_rng),
            tables=tables,
            teacher_tables=_with_errors(tables, spec.wrong_cells, teacher_rng),
            emission=_emission(spec, emission_rng),
        )

    def shifted(self, what: str, seed: int, strength: float = 1.0) -> "World":
        """The world Q that redraws one factor, or `all`, and keeps the tables, the words and the
        teacher.

        At `strength` 1 it redraws outright; below, the new factor is the geometric mean
        P^(1-strength) R^strength.
        """
        if what not in SHIFTS:
            raise DataError(f"shift is {what!r}; accepted are {', '.join(SHIFTS)}.")
        if not 0 < strength <= 1:
            raise DataError(f"strength is {strength}; accepted is above 0, up to 1.")
        redrawn = _draw_factors(self.spec, np.random.default_rng([self.spec.seed, seed, 1]))
        factors = dict(self.factors)
        for name in SHIFTS[what]:
            mixed = self.factors[name] ** (1 - strength) * redrawn[name] ** strength
            factors[name] = mixed / mixed.sum()
        return replace(self, factors=factors)

    @cached_property
    def golden(self) -> Policy:
        """The world's own p(y | x), as a policy."""
        return Policy("golden", self.tables, self.emission)

    @cached_property
    def commonest(self) -> Mapping[str, int]:
        """Each input's most probable value, its own marginal taken."""
        values = {}
        for factor, names in FACTORS.items():
            for axis, name in enumerate(names):
                others = tuple(other for other in range(len(names)) if other != axis)
                values[name] = int(self.factors[factor].sum(axis=others).argmax())
        return values

    def sample_inputs(self, count: int, rng: np.random.Generator) -> Values:
        """Inputs of `count` contexts drawn from p(x): input name -> indices of shape (count,)."""
        inputs: Values = {}
        for factor, names in FACTORS.items():
            joint = self.factors[factor]
            cells = rng.choice(joint.size, size=count, p=joint.ravel())
            inputs.update(zip(names, np.unravel_index(cells, joint.shape), strict=True))
        return inputs

    def contexts(self, at_most: int = 20_000) -> tuple[list[Example], NDArray[np.float64]]:
        """Every context that there is, without a golden response, and its probability. DataError
        where there are more than so many.
        """
        joint = np.ones(())
        for name in FACTORS:
            joint = np.multiply.outer(joint, self.factors[name])
        places = np.argwhere(joint > 0)
        if len(places) > at_most:
            raise DataError(
                f"the world has {len(places)} contexts; accepted are up to {at_most}, as in one of "
                "one hop (data.world.hops=one)."
            )
        names = [name for of_factor in FACTORS.values() for name in of_factor]
        rows = [dict(zip(names, place, strict=True)) for place in places.tolist()]
        examples = [write_example(row, f"context-{i:06d}", "", "") for i, row in enumerate(rows)]
        return examples, joint[tuple(places.T)]

    def sample(
        self, count: int, rng: np.random.Generator, *, subset: str, prefix: str
    ) -> list[Example]:
        """`count` examples from p(x) p(y | x), with sample_IDs `prefix-000000` and so on."""
        inputs = self.sample_inputs(count, rng)
        responses = write_responses(self.golden.sample_words(inputs, rng))
        examples = []
        for row, text in enumerate(responses):
            values = {name: int(inputs[name][row]) for name in INPUT_WORDS}
            examples.append(write_example(values, f"{prefix}-{row:06d}", subset, text))
        return examples

    def trace(self, example: Example, *, teacher: bool, rng: np.random.Generator) -> str:
        """The reasoning for an example: the right one, or the teacher's, with its errors."""
        written = look_up(self.tables, parse(example))
        if teacher:
            believed = look_up(self.teacher_tables, parse(example))
            errs = rng.random(SLOTS) < self.spec.teacher_error_rate
            written |= {x: believed[x] for x, err in zip(FEATURES, errs, strict=True) if err}
        return write_trace({name: int(value) for name, value in written.items()})


def _latin_square(rng: np.random.Generator) -> NDArray[np.int64]:
    """A (VALUES, VALUES) Latin square: a cyclic one with its rows, columns and symbols shuffled."""
    rows, columns, symbols = (rng.permutation(VALUES) for _ in range(3))
    return symbols[(rows[:, None] + columns[None, :]) % VALUES]


def _with_errors(tables: Tables, share: float, rng: np.random.Generator) -> Tables:
    """The tables with `share` of each feature table's cells moved; connections stay right."""
    changed = dict(tables)
    for name in FEATURES:
        cells = rng.choice(VALUES**2, size=round(share * VALUES**2), replace=False)
        table = tables[name].copy()
        table.flat[cells] = (table.flat[cells] + rng.integers(1, VALUES, size=len(cells))) % VALUES
        changed[name] = table
    return changed


def _draw_factors(spec: WorldSpec, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Joint distributions of the three factors' inputs, log-normal weights throughout."""

    def weights(*shape: int) -> NDArray[np.float64]:
        weight = np.exp(spec.skew * rng.standard_normal(shape))
        return weight / weight.sum(axis=-1, keepdims=True)

    count = len(LANGUAGES)
    joints = {
        "user": np.einsum("l,lc,i->lci", weights(count), weights(count, VALUES), weights(VALUES)),
        "character": np.einsum("s,so->so", weights(VALUES), weights(VALUES, VALUES)),
        "dialogue": np.einsum(
            "a,ab,i->abi", weights(VALUES), weights(VALUES, VALUES), weights(VALUES)
        ),
    }
    for factor, names in FACTORS.items():
        for axis, name in enumerate(names):
            if spec.hops == "one" and name in CONSTANT:
                at_first = np.zeros_like(joints[factor])
                place = tuple(slice(1) if x == axis else slice(None) for x in range(len(names)))
                at_first[place] = joints[factor].sum(axis=axis, keepdims=True)
                joints[factor] = at_first
    return {name: joint / joint.sum() for name, joint in joints.items()}


def _emission(spec: WorldSpec, rng: np.random.Generator) -> NDArray[np.float64]:
    """(slot, language, feature, word) probabilities.

    How surely a slot says its feature depends on the feature. Half of the rest goes to the two
    neighbouring features' words, half to all of them; code-switching spreads the same over the
    languages evenly.
    """
    levels = np.linspace(-spec.sharpness_spread, spec.sharpness_spread, VALUES)
    odds = np.stack([rng.permutation(levels) for _ in range(SLOTS)])
    log_odds = np.log(spec.sharpness / (1 - spec.sharpness)) + odds
    sure = 1 / (1 + np.exp(-log_odds))[..., None]  # (slot, feature, 1)
    itself = np.eye(VALUES)
    near = (np.roll(itself, 1, axis=1) + np.roll(itself, -1, axis=1)) / 2
    says = sure * itself + (1 - sure) * (near / 2 + 1 / (2 * VALUES))  # (slot, feature, says)
    count, switching = len(LANGUAGES), spec.code_switching
    spoken = (1 - switching) * np.eye(count) + switching / count  # (language, spoken)
    emission = np.einsum("ls,ifv->ilfsv", spoken, says)
    return emission.reshape(SLOTS, count, VALUES, len(RESPONSE_VOCABULARY))
