"""Upper bounds of EMID, term by term: what each input's shift and each output mismatch may cost.
Nats per response.

With x = (user, character, dialogue), P the distribution in distribution and Q the shifted one, p(y
| x) the same in both, and theta the model, EMID = EMI(P) - EMI(Q) splits without remainder into

    [H(P_theta) - H(P_Y)] - [H(Q_theta) - H(Q_Y)] + E_P g - E_Q g,    g(x) = H(Y | x) - H(theta(. |
    x)),

P_theta and P_Y being the marginals of the model's and of the golden responses. The first two
brackets are the output terms, the rest is the input term. r adds nothing to this: it is a function
of x.

**Published** (arXiv 2512.17270; with two inputs and the factor 1 arXiv 2502.00577):

    sqrt(2/3) H sum_z JSD(P_z || Q_z)^(1/2) + 4 [JSD(P_theta || P_Y)^(1/4) + JSD(Q_theta ||
    Q_Y)^(1/4)],

H = max_x [H(Y | x) + H(theta(. | x))], which is at most the 8 Delta^(1/4) form. **Scale-adjusted**:
all factors 1.

*Logarithms.* The constants are those of nats: Pinsker's inequality gives TV <= sqrt(2 JSD) with JSD
in nats, and sqrt(2 ln 2 JSD) in bits. All entropies and divergences here are in nats.

*What it presumes.* That p(y | x) does not shift; and that the inputs' shifts add up, which is so
where user, character and dialogue are independent in P and in Q, for then JSD(P_x || Q_x) <= sum_z
JSD(P_z || Q_z). A shift of how they go together, with the same marginals, is invisible to it.

*Where it does not hold.* sqrt(2/3) = sqrt(2 x 1/3) is Pinsker's 2 with the 1/3 by which a marginal
term enters the chain rule averaged over the orders of three inputs. The conditional terms, dropped
with that, are as large as the marginal ones if the inputs are independent. And no power of a JSD
alone bounds a difference of entropies, which also grows with the number of responses. Two
counterexamples (`tests/information/test_bound.py`):
- User z = 0 in P, z = 1 in Q; y = f(c) is uniform over K. The model is golden for z = 0, and for z
  = 1 uniform. EMID = log K, the output terms are 0, and the bound is sqrt(2/3 log 2) log K = 0.68
  log K, for any K (0.82 log K with everything in bits).
- The same with a model that always says the same thing for z = 1. H = 0, EMID = log K, and the
  bound is at most 4 (log 2)^(1/4) = 3.65 nats: below EMID from K = 36 up (from K = 1,469 up in the
  8 Delta^(1/4) form).

A bound with constants that can be proved is in `tests/information/test_bound.py`: it needs exact
entropies and the number of possible responses, so it is for worlds, not for texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coevolve.errors import DataError

Form = Literal["published", "scale_adjusted"]

INPUT_FACTOR = float(np.sqrt(2 / 3))
OUTPUT_FACTOR = 4.0


@dataclass(frozen=True)
class Divergences:
    """The Jensen-Shannon divergences that a bound is made of, in nats: 0 to log 2 each.

    Attributes:
        inputs: input (user, character, dialogue) -> JSD(P_z || Q_z).
        output_p: JSD(P_theta || P_Y), the model's responses against golden ones in distribution.
        output_q: JSD(Q_theta || Q_Y), the same where the inputs have shifted.
    """

    inputs: Mapping[str, float]
    output_p: float
    output_q: float

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("inputs are empty; accepted is the JSD of at least one input.")
        outputs = {"output_p": self.output_p, "output_q": self.output_q}
        for name, jsd in {**self.inputs, **outputs}.items():
            if not 0 <= jsd <= np.log(2) + 1e-9:
                raise DataError(f"the JSD of {name} is {jsd}; accepted is 0 to log 2 (0.693 nats).")


@dataclass(frozen=True)
class Bound:
    """An upper bound of EMID, nats per response unless scale-adjusted, and its terms: what the
    shift of each input and the mismatch of the outputs in P and in Q add.
    """

    form: Form
    inputs: Mapping[str, float]
    output_p: float
    output_q: float

    @property
    def total(self) -> float:
        """The sum of the terms."""
        return sum(self.inputs.values()) + self.output_p + self.output_q


def published_bound(divergences: Divergences, entropy: float) -> Bound:
    """The published bound in its true form; no theorem, see above. `entropy` is H, nats per
    response.
    """
    _require_entropy(entropy, "entropy")
    return _of_roots("published", divergences, INPUT_FACTOR * entropy, OUTPUT_FACTOR)


def scale_adjusted_bound(divergences: Divergences) -> Bound:
    """The published bound with all factors 1: for comparing shifts and models, not for bounding."""
    return _of_roots("scale_adjusted", divergences, 1.0, 1.0)


def _of_roots(
    form: Form, divergences: Divergences, input_factor: float, output_factor: float
) -> Bound:
    return Bound(
        form,
        {name: float(input_factor * np.sqrt(jsd)) for name, jsd in divergences.inputs.items()},
        float(output_factor * divergences.output_p**0.25),
        float(output_factor * divergences.output_q**0.25),
    )


def _require_entropy(value: float, name: str) -> None:
    if not 0 <= value < np.inf:
        raise DataError(f"{name} is {value}; accepted is a finite number of nats from 0.")
