"""What the full run is compared with, trained update for update like its estimator."""

from collections.abc import Sequence

from coevolve.data.example import Example
from coevolve.scoring.roles import ESTIMATOR
from coevolve.training.phases import Trainee, estimator_rows, sft
from coevolve.training.schedule import Budget


def continue_cold_start(
    trainee: Trainee,
    examples: Sequence[Example],
    reasoning: Sequence[str | None],
    label: str,
    part: int,
    parts: int,
) -> None:
    """SFT of the estimator for as many further updates as the rounds gave it, whether by SFT or by
    RL.

    Where each phase has a learning-rate schedule of its own, part by part for each round, so that
    the baseline's rate decays as far, and goes on with the optimizer's state as the rounds do.
    """
    steps = trainee.rounds[part - 1] if parts == len(trainee.rounds) else sum(trainee.rounds)
    if steps:
        settings = trainee.recipe.estimator_sft or trainee.recipe.cold_start.estimator
        rows = estimator_rows(trainee.estimator, examples, reasoning)
        title = f"{label}: estimator SFT, part {part} of {parts}"
        sft(trainee, ESTIMATOR, label, title, rows, settings, Budget(steps, schedule=steps))
