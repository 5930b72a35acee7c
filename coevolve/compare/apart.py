"""Whether the estimator may judge: it must not be the reward, nor know the test rows.

A model that was trained for an estimator has learned what that one likes. Another estimator may
like the same for the same reasons, where both come from one base model or have seen the same rows:
that is told, and stands in every table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.data.corpus import TRAIN_SPLIT, Corpus
from coevolve.data.example import Example, listed
from coevolve.data.ledger import digest
from coevolve.errors import RecipeError
from coevolve.preflight.dialogues import limited, load_corpus
from coevolve.recipe import Recipe
from coevolve.scoring.artifact import MANIFEST, read_manifest
from coevolve.training.run_folder import read_run


@dataclass(frozen=True)
class Known:
    """An estimator, as far as it is known without being loaded.

    Attributes:
        called: in messages.
        recipe: by which it is or was trained; None where nobody knows.
        run: what trains it, if that is part of the comparison.
        said: the identity of one that is not here.
    """

    called: str
    folder: Path
    recipe: Recipe | None = None
    run: Any = None
    said: str | None = None

    @classmethod
    def at(cls, called: str, folder: str | Path) -> "Known":
        """An exported estimator; ArtifactError where there is none."""
        folder = Path(folder)
        read_manifest(folder, verify=False)
        beside = folder.resolve().parent
        recipe = read_run(beside)[0] if (beside / "run.json").is_file() else None
        return cls(called, folder, recipe)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """Once it is there."""
        there = self.said is None and (self.folder / MANIFEST).is_file()
        return read_manifest(self.folder, verify=False) if there else None

    @property
    def identity(self) -> str | None:
        """`identity` of its manifest."""
        manifest = self.manifest
        return self.said if manifest is None else manifest["identity"]

    def parents(self) -> dict[str, str]:
        """What its roles stand on: fingerprint or, before it is there, name -> how it is called."""
        if (manifest := self.manifest) is not None:
            bases = [entry["base"] for entry in manifest["roles"].values()]
            return {base["fingerprint"]: base["source"] for base in bases}
        roles = (
            []
            if self.recipe is None
            else [self.recipe.model.connector, self.recipe.model.estimator]
        )
        return {role.base: role.base for role in roles if role.base != "tiny"}


def require_apart(
    estimator: Known,
    rewards: Sequence[tuple[str, Known]],
    trained: Mapping[str, Recipe],
    corpus: Corpus,
) -> list[str]:
    """What to mind when the estimator judges; RecipeError where it must not.

    Args:
        rewards: (model, the estimator for which it is or was trained).
        trained: recipes of models.
        corpus: the test rows.
    """
    flags = []
    grouped: dict[str, list[str]] = {}
    known = {reward.called: reward for _, reward in rewards}
    for model, reward in rewards:
        grouped.setdefault(reward.called, []).append(model)
    for called, models in grouped.items():
        reward, of = known[called], f"models trained for it: {', '.join(models)}"
        if _same(estimator, reward):
            raise RecipeError(
                f"estimator: is the reward as well ({of}), and would judge itself. Give another "
                "one, of another seed and other training rows."
            )
        flags += _in_common(estimator, reward, of)
    recipes = {x.called: x.recipe for x in (estimator, *known.values()) if x.recipe is not None}
    recipes |= {f"models.{name}": recipe for name, recipe in trained.items()}
    for called, recipe in recipes.items():
        _require_unseen(called, recipe, corpus)
    for one in (estimator, *known.values()):
        if (one.manifest or {}).get("imported"):
            flags.append(
                f"{one.called}: is an imported release; its reinforcement learning may have used "
                "test rows."
            )
        elif one.recipe is None:
            flags.append(
                f"{one.called}: lies in no run, so it is not known which rows it was trained on."
            )
    return flags


def _same(a: Known, b: Known) -> bool:
    if a.identity is not None and b.identity is not None:
        return a.identity == b.identity
    return a.recipe is not None and a.recipe == b.recipe


def _in_common(estimator: Known, reward: Known, of: str) -> list[str]:
    flags = []
    theirs = reward.parents()
    names = {name for name in theirs.values() if not (name == "tiny" or name.startswith("./"))}
    shared = {name for key, name in estimator.parents().items() if key in theirs or name in names}
    if shared:
        flags.append(
            f"estimator and {reward.called} share a parent, {', '.join(sorted(shared))} ({of}): "
            "what pleases the one may please the other."
        )
    if estimator.recipe is not None and reward.recipe is not None:
        rows, others = _rows(estimator.recipe), _rows(reward.recipe)
        if both := len(rows.keys() & others.keys()):
            flags.append(
                f"estimator and {reward.called} were trained on {both:,} of the same rows, of "
                f"{len(rows):,} and {len(others):,} ({of})."
            )
    return flags


def _require_unseen(called: str, recipe: Recipe, corpus: Corpus) -> None:
    if recipe.data.world is not None:
        return  # its test rows are drawn by themselves, and some of its few dialogues come twice
    seen = _rows(recipe)
    known = [x.sample_id for x in corpus.examples if _key(x) in seen]
    if known:
        raise RecipeError(
            f"{called}: is trained on {len(known):,} of {len(corpus.examples):,} test rows "
            f"({listed(known, 3)}). Train it on other rows, or take these out of the data."
        )


def _rows(recipe: Recipe) -> dict[str, str]:
    """Of the rows that a run trains on, validation included: what they say -> sample_ID."""
    rows = load_corpus(recipe).splits.get(TRAIN_SPLIT, ())
    world = recipe.data.world is not None
    return {_key(x, world): x.sample_id for x in limited(recipe, TRAIN_SPLIT, list(rows))}


def _key(x: Example, world: bool = False) -> str:
    """Of what a row says; in the synthetic world, where many say the same, of which one it is,
    too.
    """
    dialogue = [[turn.speaker, turn.text] for turn in x.dialogue]
    name = x.sample_id if world else None
    return digest([x.user_persona, x.agent_character, dialogue, x.golden_response, name])
