"""Role-playing models of the world whose probabilities are known in closed form.

A policy reads x, looks up a plan (its manner and one feature per slot) and says each slot's word
independently:

    p_theta(y | x) = prod_i emission[i, manner, feature_i, y_i]

The manner is the language, or the language spoken unsurely. The plan is a function of x, so
I(X; Y_theta) = I(plan; Y_theta), which can be enumerated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.worlds.language import (
    CONNECTIONS,
    FACTORS,
    FEATURES,
    INPUT_WORDS,
    LANGUAGES,
    SLOTS,
    Values,
    parse_all,
    parse_responses,
    write_responses,
)

Tables = Mapping[str, NDArray[np.int64]]
"""Latent name -> (VALUES, VALUES) table of the latent's value, by its left and right input."""


def look_up(tables: Tables, inputs: Mapping[str, Any]) -> Values:
    """The inputs and every latent, hop by hop; the arrays broadcast as the inputs do."""
    values = dict(inputs)
    for name, (left, right) in {**CONNECTIONS, **FEATURES}.items():
        values[name] = tables[name][values[left], values[right]]
    return values


@dataclass(frozen=True, eq=False)
class Policy:
    """A role-playing model p_theta(y | x).

    Attributes:
        name: what tables of results call it.
        tables: how it reasons.
        emission: (slot, manner, feature, word) probability of each word; the manners are the
            languages, and the languages once more where the policy is unsure of something.
        assumed: inputs that it does not read -> the value index that it takes for granted instead.
        unsure: inputs -> for each value, whether it makes the policy unsure.
        expresses: the value (a feature, another latent or an input of five values) behind each
            slot.
        order: slot i of its response says what slot order[i] would.
    """

    name: str
    tables: Tables
    emission: NDArray[np.float64]
    assumed: Mapping[str, int] = field(default_factory=dict)
    unsure: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    expresses: tuple[str, ...] = tuple(FEATURES)
    order: tuple[int, ...] = tuple(range(SLOTS))

    def __post_init__(self) -> None:
        accepted = [name for name in (*INPUT_WORDS, *CONNECTIONS, *FEATURES) if name != "language"]
        unknown = [name for name in (*self.assumed, *self.unsure) if name not in INPUT_WORDS]
        manners = len(LANGUAGES) * (2 if self.unsure else 1)
        problem = ""
        if len(self.expresses) != SLOTS or not set(self.expresses) <= set(accepted):
            problem = f"expresses is {self.expresses}; accepted: {SLOTS} of {', '.join(accepted)}"
        elif unknown:
            problem = f"unknown input {unknown[0]!r}; accepted are {', '.join(INPUT_WORDS)}"
        elif sorted(self.order) != list(range(SLOTS)):
            problem = f"order is {self.order}; accepted is a permutation of 0..{SLOTS - 1}"
        elif self.emission.shape[:2] != (SLOTS, manners):
            problem = f"emission is {self.emission.shape}; accepted is ({SLOTS}, {manners}, ...)"
        if problem:
            raise DataError(f"policy {self.name!r}: {problem}.")

    def plan(self, inputs: Values) -> Iterator[NDArray[np.int64]]:
        """The manner, then the feature of each slot; the arrays broadcast as the inputs do."""
        seen = {
            name: np.full_like(values, self.assumed[name]) if name in self.assumed else values
            for name, values in inputs.items()
        }
        values = look_up(self.tables, seen)
        manner = values["language"]
        if self.unsure:
            doubts = [doubtful[inputs[name]] for name, doubtful in self.unsure.items()]
            manner = manner + len(LANGUAGES) * reduce(np.logical_or, doubts)
        yield manner
        yield from (values[self.expresses[slot]] for slot in self.order)

    def slot_emissions(self) -> NDArray[np.float64]:
        """(slot of the response, manner, feature, word): `emission` in the policy's order."""
        return self.emission[list(self.order)]

    def log_prob(
        self, examples: Sequence[Example], responses: Sequence[str]
    ) -> NDArray[np.float64]:
        """log p_theta(y | x), (N,) nats per response; the end of turn is certain."""
        manner, *features = self.plan(parse_all(examples))
        words, emissions = parse_responses(examples, responses), self.slot_emissions()
        return sum(np.log(emissions[i, manner, features[i], words[:, i]]) for i in range(SLOTS))

    def respond(self, examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
        """One sampled response to each example."""
        return write_responses(self.sample_words(parse_all(examples), rng))

    def sample_words(self, inputs: Values, rng: np.random.Generator) -> NDArray[np.int64]:
        """Word indices (N, SLOTS) sampled for inputs of shape (N,)."""
        manner, *features = self.plan(inputs)
        emissions = self.slot_emissions()
        rows = [emissions[slot, manner, features[slot]] for slot in range(SLOTS)]
        return np.stack([sample_rows(row, rng) for row in rows], axis=1)

    def noisy(self, noise: float) -> "Policy":
        """This policy, saying each word uniformly at random with probability `noise`, in [0, 1]."""
        return replace(self, name=f"noise_{noise:g}", emission=_with_noise(self.emission, noise))

    def unsure_of(self, doubtful: Mapping[str, NDArray[np.bool_]], noise: float) -> "Policy":
        """This policy, noisy where any input has a doubtful value: a model that did not learn some
        contexts.
        """
        if self.unsure:
            raise DataError(f"policy {self.name!r} is unsure of {', '.join(self.unsure)} already.")
        emission = np.concatenate([self.emission, _with_noise(self.emission, noise)], axis=1)
        name = f"unsure_of_{'_'.join(doubtful)}"
        return replace(self, name=name, emission=emission, unsure=dict(doubtful))

    def tempered(self, temperature: float) -> "Policy":
        """Each word's probability raised to 1 / `temperature`, above 0: below 1 it is surer."""
        if not temperature > 0:
            raise DataError(f"temperature is {temperature}; accepted is a number above 0.")
        powers = self.emission ** (1 / temperature)
        emission = powers / powers.sum(axis=-1, keepdims=True)
        return replace(self, name=f"temperature_{temperature:g}", emission=emission)


def _with_noise(emission: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    if not 0 <= noise <= 1:
        raise DataError(f"noise is {noise}; accepted is a probability, 0 to 1.")
    return (1 - noise) * emission + noise / emission.shape[-1]


def sample_rows(rows: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One index per row of probabilities (N, K), by inverting the cumulative distribution."""
    cumulative = np.cumsum(rows, axis=-1)
    draws = rng.random(len(rows))[:, None] * cumulative[:, -1:]
    return np.argmax(cumulative > draws, axis=-1)


def assumed_values(commonest: Mapping[str, int], *factors: str) -> dict[str, int]:
    """What a policy that ignores these factors assumes: the commonest value of each input."""
    return {name: commonest[name] for factor in factors for name in FACTORS[factor]}
