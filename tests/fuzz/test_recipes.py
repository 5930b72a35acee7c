"""Random recipes are valid, they vary whatever the schema has, and a few are trained."""

import random

import pytest

from coevolve.recipe import Recipe, recipe_values
from tests.fuzz import recipes, runner, valid


def test_every_field_of_the_schema_varies():
    seen = {name: set() for name, _ in recipes.fields(Recipe)}
    rng = random.Random(0)
    for _ in range(300):
        values = recipe_values(recipes.random_recipe(rng)[0])
        for name, found in seen.items():
            place = values
            for part in name.split("."):
                place = place.get(part) if isinstance(place, dict) else None
            found.add(str(place))
    assert len(seen) > 100
    assert not [name for name, found in seen.items() if len(found) < 2]


def test_the_same_seed_gives_the_same_recipe():
    one, other = (recipes.random_recipe(random.Random("0:x")) for _ in range(2))
    assert one == other


@pytest.mark.slow
def test_random_recipes_train_or_are_refused(tmp_path):
    found = []
    area = recipes.AREA
    todo = [(index, area) for index in range(3)]
    limits = runner.Limits(seconds=90.0, inputs=20)
    runner.run_all(
        [area], todo, 11, valid.make(), limits=limits, processes=1, keep=None, report=found.append
    )
    assert len(found) == 3 and all(result.kind is None for result in found), found
    assert any(result.accepted for result in found)
