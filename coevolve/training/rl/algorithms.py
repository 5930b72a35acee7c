"""The algorithms of reinforcement learning by the names that recipes give them."""

from collections.abc import Sequence
from typing import Any

from coevolve.errors import RecipeError
from coevolve.recipe.rl import Grpo
from coevolve.training.engines import Plan, RewardFunction, Segment
from coevolve.training.rl.grpo import RoleGRPOTrainer, SharedPromptTrainer, run_grpo
from coevolve.training.rl.ppo import RolePPOTrainer, RoleRLOOTrainer

ALGORITHMS: dict[str, type[RoleGRPOTrainer]] = {
    "grpo": SharedPromptTrainer,
    "rloo": RoleRLOOTrainer,
    "ppo": RolePPOTrainer,
}
"""What takes the steps; `own_options` of each says what it reads of a recipe beside the others."""


def register(name: str, trainer: type[RoleGRPOTrainer]) -> None:
    """Let recipes name another trainer."""
    ALGORITHMS[name] = trainer


def run_rl(
    plan: Plan,
    prompts: Sequence[str],
    rewards: Sequence[tuple[str, RewardFunction, float]],
    settings: Grpo,
    **options: Any,
) -> Segment:
    """RL of the role by the algorithm that the settings name, from the segment's step to the end.

    The arguments are those of `run_grpo`.

    Raises:
        RecipeError: there is no such algorithm.
        ArtifactError: PPO is to go on from something that has no value function, or another one.
    """
    if settings.algorithm not in ALGORITHMS:
        raise RecipeError(
            f"{plan.role}_rl.algorithm: found {settings.algorithm!r}; accepted are {', '.join(ALGORITHMS)}."
        )
    trainer = ALGORITHMS[settings.algorithm]
    return run_grpo(plan, prompts, rewards, settings, trainer=trainer, **options)
