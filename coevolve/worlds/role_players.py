"""The role-playing models judged in a synthetic world: from perfect to hardly listening."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coevolve.worlds.language import FACTORS, INPUT_WORDS, SLOTS
from coevolve.worlds.policies import Policy, assumed_values
from coevolve.worlds.world import World

DOUBT = 0.7  # noise of a policy in the contexts that it did not learn
OTHER_CODE = ("ignores_", "misinformed", "shuffled", "copies_context")
"""How the names of the policies begin that do not merely say what golden responses say less surely.
"""


def role_players(world: World) -> dict[str, Policy]:
    """Name -> policy, each with exact probabilities.

    What they assume and what they are unsure of is taken from `world`, the distribution they "were
    trained on": judge the same policies on `world` and on its shifted worlds.

    What they say is golden's, more or less surely:

    * `perfect` responds as p(y | x) does; `noise_*` and `temperature_*` are less, or more, sure
      than that;
    * `unsure_of_*` falters at values that are rarer in `world` than average: its true EMID is
      large.

    They say something else (`OTHER_CODE`), which loses little or no information about the context;
    an estimator trained on golden responses measures likeness to these, and cannot see that:

    * `ignores_*` takes the commonest user, character or dialogue, or all three, for granted;
    * `misinformed` reasons with the teacher's tables, wrong in a fifth of the cells;
    * `shuffled` says the right words in another order: its true EMI is exactly 0;
    * `copies_context` says back what stands in the context instead of an answer: its true EMI is
      above 0.
    """
    golden, everything = world.golden, {x: (x,) for x in FACTORS} | {"everything": tuple(FACTORS)}

    def unsure(name: str) -> Policy:
        policy = golden.unsure_of(rare_values(world, *everything[name]), DOUBT)
        return replace(policy, name=f"unsure_of_{name}")

    def ignoring(name: str) -> Policy:
        assumed = assumed_values(world.commonest, *everything[name])
        return replace(golden, name=f"ignores_{name}", assumed=assumed)

    copied = ("culture", "interest", "occupation", "topic_1", "intent")
    policies = [
        replace(golden, name="perfect"),
        *map(golden.noisy, (0.05, 0.15, 0.4, 0.8)),
        *map(golden.tempered, (0.5, 2.0, 4.0)),
        *map(unsure, everything),
        *map(ignoring, everything),
        replace(golden, name="misinformed", tables=world.teacher_tables),
        replace(golden, name="shuffled", order=tuple(np.roll(range(SLOTS), 1).tolist())),
        replace(golden, name="copies_context", expresses=copied),
    ]
    return {policy.name: policy for policy in policies}


def rare_values(world: World, *factors: str) -> Mapping[str, NDArray[np.bool_]]:
    """Each factor's first input -> which of its values are rarer than 1 / (number of values)."""
    rare = {}
    for factor in factors:
        name, joint = FACTORS[factor][0], world.factors[factor]
        marginal = joint.sum(axis=tuple(range(1, joint.ndim)))
        rare[name] = marginal < 1 / len(INPUT_WORDS[name])
    return rare
