"""Exact values of models that are asked in a synthetic world of one hop, kept on disk once they are
known.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coevolve.chat.local import LocalChat
from coevolve.data.corpus import TRAIN_SPLIT
from coevolve.files import read_json, write_json
from coevolve.information.log_probs import UNITS
from coevolve.preflight.dialogues import world_seed
from coevolve.prompts.play import PlayPrompt
from coevolve.recipe import Recipe
from coevolve.remid.results import Exact
from coevolve.remid.subsets import IN_DISTRIBUTION, Subset
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.enumeration import conditional
from coevolve.worlds.truth import RESPONSE_TOKENS

Kept = Mapping[str, Mapping[str, float]]
"""Split -> `emi`, nats per response, and `within`, as `coevolve.worlds.enumeration.Exact`."""


def keep_exact(
    chat: LocalChat,
    prompt: PlayPrompt | None,
    recipe: Recipe,
    path: Path,
    advance: Callable[[int], None] | None = None,
) -> Kept:
    """EMI of a model in the world of a recipe and in its shifts; enumerated, unless the file has
    it.
    """
    world = recipe.data.world
    assert world is not None  # or nothing is known
    of: dict[str, Any] = {"seed": world_seed(recipe), **world.kind}
    asked = {"model": chat.settings, "prompt": (prompt or PlayPrompt()).recorded(), "world": of}
    found = read_json(path) if path.is_file() else {}
    if found.get("asked") != asked:
        worlds = worlds_by_split(of["seed"], **world.kind)
        del worlds[TRAIN_SPLIT]
        theta = conditional(chat, prompt, worlds[IN_DISTRIBUTION], advance=advance)
        exact = {split: theta.exact(shifted) for split, shifted in worlds.items()}
        splits = {split: {"emi": x.emi, "within": x.within} for split, x in exact.items()}
        found = {"asked": asked, "splits": splits}
        write_json(path, found)
    kept: Kept = found["splits"]
    return kept


def exact_rows(kept: Mapping[str, Kept], subsets: list[Subset], unit: str) -> tuple[Exact, Exact]:
    """True values in a unit, and what they may be off by: EMI in distribution, elsewhere EMID; of
    R-EMI, too, as x gives r.
    """
    tokens = RESPONSE_TOKENS if unit == UNITS["per_token"] else 1
    values, within = {}, {}
    for name, of_splits in kept.items():
        home = of_splits[IN_DISTRIBUTION]
        for one in subsets:
            here, key = of_splits[one.split], (name, one.row)
            shifted = one.shift is not None
            values[key] = (home["emi"] - here["emi"] if shifted else here["emi"]) / tokens
            within[key] = (here["within"] + shifted * home["within"]) / tokens
    return values, within
