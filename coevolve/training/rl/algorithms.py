"""The algorithms of reinforcement learning by the names that recipes give them."""

from collections.abc import Sequence
from typing import Any

from coevolve.errors import RecipeError
from coevolve.recipe import Recipe
from coevolve.recipe.rl import Grpo
from coevolve.registry import Registry
from coevolve.training.engines import Plan, Segment
from coevolve.training.rl.grpo import Rewards, RoleGRPOTrainer, SharedPromptTrainer, run_grpo
from coevolve.training.rl.ppo import RolePPOTrainer, RoleRLOOTrainer


def _trainer(found: Any, where: str) -> type[RoleGRPOTrainer]:
    if not (isinstance(found, type) and issubclass(found, RoleGRPOTrainer)):
        raise RecipeError(f"{where} is {found!r:.100}; accepted is {ALGORITHMS.accepted}.")
    return found


ALGORITHMS: Registry[type[RoleGRPOTrainer]] = Registry(
    "algorithm",
    accepted="a class that inherits coevolve.training.rl.grpo.RoleGRPOTrainer",
    given=None,
    adopt=_trainer,
)
"""What takes the steps; `own_options` of each says what it reads of a recipe beside the others."""
ALGORITHMS.register("grpo")(SharedPromptTrainer)
ALGORITHMS.register("rloo")(RoleRLOOTrainer)
ALGORITHMS.register("ppo")(RolePPOTrainer)


def check_algorithms(recipe: Recipe) -> None:
    """Find the recipe's own algorithms, before anything is trained. Raises as `Registry.get`."""
    for name in ("connector_rl", "estimator_rl"):
        used = recipe.rounds.count and any(phase.name == name for phase in recipe.rounds.phases)
        settings = getattr(recipe, name)
        if settings and used:
            ALGORITHMS.get(settings.algorithm, f"{name}.algorithm")


def run_rl(
    plan: Plan, prompts: Sequence[str], rewards: Rewards, settings: Grpo, **options: Any
) -> Segment:
    """RL of the role by the algorithm that the settings name; the rest is as for `run_grpo`."""
    trainer = ALGORITHMS.get(settings.algorithm, f"{plan.rl_field}.algorithm")
    return run_grpo(plan, prompts, rewards, settings, trainer=trainer, **options)
