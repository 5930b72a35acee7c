"""Recipes: one YAML file says everything about an experiment.

Fields, what each accepts and what goes with what; not what is done with them. Reading one imports
no heavy package.
"""

from coevolve.recipe.load import check_recipe, load_recipe, recipe_values
from coevolve.recipe.schema import Recipe

__all__ = ["Recipe", "check_recipe", "load_recipe", "recipe_values"]
