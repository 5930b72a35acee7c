"""What the full run is compared with, trained update for update like its estimator."""

from collections.abc import Sequence
from typing import Any

from coevolve.data.example import Example
from coevolve.recipe import Recipe
from coevolve.scoring.roles import ESTIMATOR
from coevolve.training.engines import steps_of
from coevolve.training.phases import Trainee, estimator_rows, sft


def later_estimator_steps(recipe: Recipe, examples: int, processes: int) -> list[int]:
    """Estimator updates of each round after the cold start, whether by SFT or by RL."""
    steps = 0
    for phase in recipe.rounds.phases:
        if phase == "estimator_sft":
            steps += steps_of(recipe.estimator_sft, examples, processes)
        elif phase == "estimator_rl":
            steps += steps_of(recipe.estimator_rl, examples * recipe.estimator_rl.num_generations, processes)
    return [steps] * recipe.rounds.count if steps else []


def continue_cold_start(
    trainee: Trainee, examples: Sequence[Example], reasoning: Sequence[str | None], label: str
) -> int:
    """SFT of the estimator for as many further updates as the rounds give it; returns how many.

    Each round's worth has the learning-rate schedule of a round's SFT, so that the baseline's rate decays as far.
    """
    settings: Any = trainee.recipe.estimator_sft or trainee.recipe.cold_start.estimator
    rows = estimator_rows(trainee.estimator, examples, reasoning)
    rounds = later_estimator_steps(trainee.recipe, len(examples), trainee.processes)
    for index, steps in enumerate(rounds, start=1):
        title = f"{label}: estimator SFT, part {index} of {len(rounds)}"
        sft(trainee, ESTIMATOR, rows, settings, title, label, index, steps=steps)
    return sum(rounds)
