"""Role-playing models of the world whose probabilities are known in closed form.

A policy reads x, looks up a plan (the language and one feature per slot) and says each slot's word independently:

    p_theta(y | x) = prod_i emission[i, language, feature_i, y_i]

Its plan is a function of x, so I(X; Y_theta) = I(plan; Y_theta), which can be enumerated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.worlds.language import (
    CONNECTIONS,
    FACTORS,
    FEATURES,
    INPUT_WORDS,
    SLOTS,
    Values,
    parse_all,
    parse_responses,
    write_responses,
)

Tables = Mapping[str, NDArray[np.int64]]
"""Latent name -> (VALUES, VALUES) table of the latent's value, by its left and right input."""


def look_up(tables: Tables, inputs: Values) -> Values:
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
        emission: (slot, language, feature, word) probability of each word.
        assumed: inputs that it does not read -> the value index that it takes for granted instead.
        order: slot i of its response expresses the feature of slot order[i].
    """

    name: str
    tables: Tables
    emission: NDArray[np.float64]
    assumed: Mapping[str, int] = field(default_factory=dict)
    order: tuple[int, ...] = tuple(range(SLOTS))

    def __post_init__(self) -> None:
        unknown = set(self.assumed) - set(INPUT_WORDS)
        if unknown:
            raise DataError(f"policy {self.name!r}: unknown input {min(unknown)!r}; accepted are {', '.join(INPUT_WORDS)}.")
        if sorted(self.order) != list(range(SLOTS)):
            raise DataError(f"policy {self.name!r}: order is {self.order}; accepted is a permutation of 0..{SLOTS - 1}.")

    def plan(self, inputs: Values) -> Iterator[NDArray[np.int64]]:
        """The language, then the feature of each slot of the response: arrays that broadcast as the inputs do."""
        seen = {name: np.full_like(values, self.assumed.get(name, 0)) for name, values in inputs.items()}
        values = look_up(self.tables, {name: seen[name] if name in self.assumed else inputs[name] for name in inputs})
        yield values["language"]
        names = tuple(FEATURES)
        yield from (values[names[slot]] for slot in self.order)

    def slot_emissions(self) -> NDArray[np.float64]:
        """(slot of the response, language, feature, word): `emission` in the policy's order."""
        return self.emission[list(self.order)]

    def log_prob(self, examples: Sequence[Example], responses: Sequence[str]) -> NDArray[np.float64]:
        """log p_theta(y | x) of each response: shape (N,), nats per response (its end of turn is certain).

        Raises:
            DataError: an example or response that is not of this world.
        """
        language, *features = self.plan(parse_all(examples))
        words, emissions = parse_responses(examples, responses), self.slot_emissions()
        return sum(np.log(emissions[slot, language, features[slot], words[:, slot]]) for slot in range(SLOTS))

    def respond(self, examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
        """One sampled response to each example."""
        return write_responses(self.sample_words(parse_all(examples), rng))

    def sample_words(self, inputs: Values, rng: np.random.Generator) -> NDArray[np.int64]:
        """Word indices (N, SLOTS) sampled for inputs of shape (N,)."""
        language, *features = self.plan(inputs)
        emissions = self.slot_emissions()
        rows = [emissions[slot, language, features[slot]] for slot in range(SLOTS)]
        return np.stack([sample_rows(row, rng) for row in rows], axis=1)

    def noisy(self, noise: float) -> "Policy":
        """This policy, saying each word uniformly at random with probability `noise`.

        Raises:
            DataError: `noise` is not in [0, 1].
        """
        if not 0 <= noise <= 1:
            raise DataError(f"noise is {noise}; accepted is a probability, 0 to 1.")
        uniform = 1 / self.emission.shape[-1]
        return replace(self, name=f"noise_{noise:g}", emission=(1 - noise) * self.emission + noise * uniform)

    def tempered(self, temperature: float) -> "Policy":
        """This policy with each word's probability raised to 1 / `temperature`: below 1 it is surer of itself.

        Raises:
            DataError: `temperature` is not above 0.
        """
        if not temperature > 0:
            raise DataError(f"temperature is {temperature}; accepted is a number above 0.")
        powers = self.emission ** (1 / temperature)
        return replace(
            self, name=f"temperature_{temperature:g}", emission=powers / powers.sum(axis=-1, keepdims=True)
        )


def sample_rows(rows: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One index per row of probabilities (N, K), by inverting the cumulative distribution."""
    cumulative = np.cumsum(rows, axis=-1)
    draws = rng.random(len(rows))[:, None] * cumulative[:, -1:]
    return np.argmax(cumulative > draws, axis=-1)


def assumed_values(commonest: Mapping[str, int], *factors: str) -> dict[str, int]:
    """What a policy that ignores these factors takes for granted: the commonest value of each of their inputs."""
    return {name: commonest[name] for factor in factors for name in FACTORS[factor]}
