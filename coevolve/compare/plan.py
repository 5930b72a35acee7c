"""What a grid comes to: estimators, models and data, looked at before anything is run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coevolve.compare.apart import Known, require_apart
from coevolve.data.corpus import Corpus, read_corpus
from coevolve.errors import DataError, RecipeError
from coevolve.files import read_json
from coevolve.outputs import plain_path
from coevolve.preflight.dialogues import load_corpus
from coevolve.recipe import Recipe, load_recipe
from coevolve.recipe.grid import Grid, GridEstimator, GridModel
from coevolve.recipe.load import load_grid
from coevolve.recipe.rpm import RpmRecipe
from coevolve.remid.subsets import distributions
from coevolve.scoring.publish import located


@dataclass(frozen=True)
class Trained:
    """A recipe with what goes over it, and the folder of its run."""

    command: str
    source: str
    overrides: Sequence[str]
    folder: Path

    @cached_property
    def recipe(self) -> Recipe:
        """Read and checked."""
        kind = RpmRecipe if self.command == "rpm" else Recipe
        return load_recipe(self.source, self.overrides, kind)


@dataclass(frozen=True)
class Member:
    """A model of the grid; `run` trains it, `responses` is the file of what it said."""

    name: str
    grid: GridModel
    run: Trained | None
    responses: Path

    @property
    def remedy(self) -> str | None:
        """The way in which it was trained."""
        if self.grid.remedy is not None or self.run is None:
            return self.grid.remedy
        recipe = self.run.recipe
        assert isinstance(recipe, RpmRecipe)
        if recipe.rpm.method != "grpo" or recipe.rpm.grpo is None:
            return recipe.rpm.method
        rewards = recipe.rpm.grpo.rewards
        weights = {"likelihood": rewards.likelihood, "information": rewards.information}
        weights |= rewards.custom
        return f"grpo {max(weights, key=lambda name: weights[name])}"


@dataclass(frozen=True)
class Plan:
    """A grid with every path found, and what it will be measured on.

    Attributes:
        corpus: the test rows.
        world: the recipe of the synthetic world that they come from, if they do.
        flags: what to mind, as far as it is known before.
    """

    grid: Grid
    out: Path
    estimator: Known
    reward: Known | None
    members: Sequence[Member]
    corpus: Corpus
    world: Recipe | None
    place: Path

    @property
    def seed(self) -> int:
        """Of what is asked and drawn."""
        return self.grid.seed or 0

    def found(self, text: str) -> str:
        """A path of the grid: relative to its file, or as it stands."""
        return found_in(self.place, text)

    def rewards(self) -> Iterator[tuple[str, Known]]:
        """(whose, estimator) for which models are trained, or were."""
        for member in self.members:
            if member.run is None:
                if known := _reward_of(member, self.found):
                    yield member.name, known
                continue
            recipe = member.run.recipe
            assert isinstance(recipe, RpmRecipe)
            if recipe.rpm.method == "sft":
                continue
            if self.reward is not None:
                yield member.name, self.reward
            elif recipe.rpm.estimator is not None:
                yield (
                    member.name,
                    Known.at(f"models.{member.name}: rpm.estimator", recipe.rpm.estimator),
                )

    def flags(self) -> list[str]:
        """What to mind, by all that is known by now; RecipeError for what forbids the
        comparison.
        """
        recipes = {x.name: x.run.recipe for x in self.members if x.run is not None}
        return require_apart(self.estimator, list(self.rewards()), recipes, self.corpus)


def make_plan(source: str | Path, overrides: Sequence[str], out: Path) -> Plan:
    """The plan of a grid; DataError, RecipeError, ArtifactError for what is wrong with it."""
    grid, place = load_grid(source, overrides)
    estimator = _estimator("estimator", grid.estimator, grid, place, out)
    reward = _estimator("reward", grid.reward, grid, place, out) if grid.reward else None
    members: dict[str, Member] = {}
    for name in grid.in_order:
        members[name] = _member(name, grid, place, out, members, reward)
    whole, world = _data(grid, place, estimator)
    corpus = _test_rows(whole, grid.rows)
    distributions(corpus)
    listed = [members[name] for name in grid.in_order]
    return Plan(grid, out, estimator, reward, listed, corpus, world, place)


def found_in(place: Path, text: str) -> str:
    """What lies at a path from a folder goes before what lies there from anywhere."""
    beside = place / os.path.expanduser(text)
    return str(beside) if os.path.lexists(beside) else text


def _estimator(called: str, given: GridEstimator, grid: Grid, place: Path, out: Path) -> Known:
    if given.at is not None:
        return Known.at(called, located(found_in(place, given.at)))
    overrides = [*_seed(grid), *grid.set, *given.set]
    assert given.train is not None  # one of both
    run = Trained("train", found_in(place, given.train), overrides, out / called)
    return Known(called, run.folder / "estimator", run.recipe, run)


def _member(
    name: str,
    grid: Grid,
    place: Path,
    out: Path,
    before: Mapping[str, Member],
    reward: Known | None,
) -> Member:
    model = grid.models[name]
    for field in ("responses", "prompt", "adapter"):
        if (text := getattr(model, field)) is not None and not os.path.exists(
            found_in(place, text)
        ):
            raise DataError(
                f"models.{name}.{field}: {found_in(place, text)}: no such file. Check the path."
            )
    if model.rpm is None:
        given = model.responses and Path(found_in(place, model.responses))
        return Member(name, model, None, given or out / "responses" / f"{name}.jsonl")
    source = found_in(place, model.rpm)
    overrides = [*_seed(grid), *grid.set, *model.set]
    rewarded = [] if reward is None else [f"rpm.estimator={_quoted(reward.folder)}"]
    recipe = load_recipe(source, [*overrides, *rewarded], RpmRecipe)
    assert isinstance(recipe, RpmRecipe)
    overrides += [] if recipe.rpm.method == "sft" else rewarded
    overrides += _start(name, model, before, place)
    run = Trained("rpm", source, overrides, out / "models" / name)
    return Member(name, model, run, out / "responses" / f"{name}.jsonl")


def _start(name: str, model: GridModel, before: Mapping[str, Member], place: Path) -> Iterator[str]:
    """Overrides by which a model goes on from the weights of another."""
    if model.start is None:
        return
    began = before[model.start]
    if began.run is not None:
        weights = began.run.folder / "model"
        whole = began.run.recipe.model.connector.tuning == "full"
        yield f"{'model.base' if whole else 'rpm.adapter'}={_quoted(weights)}"
    elif began.grid.model is None:
        raise RecipeError(
            f"models.{name}.start: {model.start!r} has no weights to go on from; accepted are "
            "models with rpm or model."
        )
    else:
        yield f"model.base={_quoted(found_in(place, began.grid.model))}"
        if began.grid.adapter is not None:
            yield f"rpm.adapter={_quoted(found_in(place, began.grid.adapter))}"


def _quoted(path: str | Path) -> str:
    """As YAML reads it, whatever the path's characters are."""
    return "'" + str(path).replace("'", "''") + "'"


def _seed(grid: Grid) -> list[str]:
    return [] if grid.seed is None else [f"seed={grid.seed}"]


def _data(grid: Grid, place: Path, estimator: Known) -> tuple[Corpus, Recipe | None]:
    """The data, and the recipe of its synthetic world."""
    if grid.data is not None:
        return read_corpus(plain_path(found_in(place, grid.data), "data")), None
    if estimator.recipe is None:
        raise RecipeError(
            f"data: missing, and {estimator.folder} lies in no run that would say what it is. Give "
            "a file."
        )
    recipe = estimator.recipe
    if recipe.data.world is None:
        return load_corpus(recipe), None
    if grid.rows is not None:  # there are as many as are asked for
        world = recipe.data.world.model_copy(update={"test": grid.rows})
        data = recipe.data.model_copy(update={"world": world})
        recipe = recipe.model_copy(update={"data": data})
    return load_corpus(recipe), recipe


def _test_rows(corpus: Corpus, rows: int | None) -> Corpus:
    """The test splits, of each of their subsets the first so many."""
    kept = {}
    for split in corpus.test_splits:
        chosen = {x.sample_id for of in corpus.subsets(split).values() for x in of[:rows]}
        kept[split] = tuple(x for x in corpus.splits[split] if x.sample_id in chosen)
    return replace(corpus, splits=kept)


def _reward_of(member: Member, found: Any) -> Known | None:
    """The estimator for which a model that is there was trained, if its folder says so."""
    for text in (member.grid.adapter, member.grid.model):
        about = text and Path(found(text)) / "rpm.json"
        if about and about.is_file():
            said = read_json(about)
            identity = said.get("estimator") if isinstance(said, dict) else None
            return Known(f"models.{member.name}", about.parent, None, None, identity)
    return None
