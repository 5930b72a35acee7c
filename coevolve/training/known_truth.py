"""The synthetic world's side of a run: policies to be judged, and the exact answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from coevolve.data.corpus import SHIFT_OF_SPLIT, TRAIN_SPLIT, Corpus
from coevolve.data.example import Example
from coevolve.errors import ArtifactError
from coevolve.files import write_jsonl
from coevolve.information.log_probs import UNITS
from coevolve.preflight.dialogues import world_seed
from coevolve.seeds import derive_seed
from coevolve.training.run_folder import read_run
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.policies import Policy
from coevolve.worlds.role_players import role_players
from coevolve.worlds.truth import RESPONSE_TOKENS, emi, information
from coevolve.worlds.world import World

JUDGED = ("perfect", "noise_0.4", "unsure_of_user", "unsure_of_dialogue")
"""Of `worlds.role_players`: without fault, bad everywhere, and two that a shift makes worse."""


@dataclass(frozen=True)
class WorldOfRun:
    """Which synthetic world a run was trained on, of what kind, and its export."""

    seed: int
    kind: Mapping[str, Any]
    estimator: Path


def world_of_run(folder: str | Path) -> WorldOfRun:
    """What `coevolve truth` needs of a finished run on a synthetic world; else ArtifactError."""
    folder = Path(folder)
    recipe, _, _ = read_run(folder)
    if recipe.data.world is None:
        raise ArtifactError(
            f"{folder}: was trained on data whose truth is not known; accepted are runs with "
            "data.world."
        )
    if not (folder / "estimator").is_dir():
        raise ArtifactError(f"{folder}: holds no estimator; let the run end, then ask again.")
    return WorldOfRun(world_seed(recipe), recipe.data.world.kind, folder / "estimator")


class KnownTruth:
    """Exact values for every test split of a synthetic world."""

    def __init__(self, seed: int, kind: Mapping[str, Any], corpus: Corpus):
        """`kind`: as of `recipe.schema.WorldData`."""
        self.corpus, self.seed = corpus, seed
        self.worlds: dict[str, World] = dict(worlds_by_split(seed, **kind))
        self.world = self.worlds[TRAIN_SPLIT]
        self.worlds.pop(TRAIN_SPLIT, None)

    def floors(self) -> dict[str, float]:
        """Split -> exp(H(Y | X) / tokens), the perplexity that none can beat in expectation."""
        return {split: information(world).perplexity_floor for split, world in self.worlds.items()}

    def policies(self) -> Sequence[Policy]:
        """The role-playing models that the run judges."""
        known = role_players(self.world)
        return [known[name] for name in JUDGED]

    @cached_property
    def responses(self) -> dict[str, dict[str, str]]:
        """Policy name -> sample_ID -> response, for every test example."""
        splits = map(self.corpus.require, self.corpus.test_splits)
        examples = [example for split in splits for example in split]
        answers = {}
        for policy in self.policies():
            rng = np.random.default_rng(derive_seed(self.seed, "responses", policy.name))
            texts = zip(examples, policy.respond(examples, rng), strict=True)
            answers[policy.name] = {example.sample_id: text for example, text in texts}
        return answers

    def responses_to(self, examples: Sequence[Example]) -> dict[str, dict[str, str]]:
        """Those that are to some of the test examples."""
        wanted = {example.sample_id for example in examples}
        return {
            name: {key: text for key, text in by_id.items() if key in wanted}
            for name, by_id in self.responses.items()
        }

    def write(self, folder: Path) -> None:
        """The world as any data would come: `dialogues.json`, and `NAME.jsonl` of each policy."""
        if not (folder / "dialogues.json").exists():
            self.corpus.to_json(folder / "dialogues.json")
        for name, by_id in self.responses.items():
            if not (folder / f"{name}.jsonl").exists():
                rows = [{"sample_ID": key, "response": text} for key, text in by_id.items()]
                write_jsonl(folder / f"{name}.jsonl", rows)

    def exact_remid(self, unit: str = UNITS["per_token"]) -> dict[tuple[str, str], float]:
        """(policy, row of the R-EMID table) -> exact EMI in distribution, EMID elsewhere, in its
        unit.

        r is a function of x, so the exact R-EMI is the exact EMI.
        """
        tokens = RESPONSE_TOKENS if unit == UNITS["per_token"] else 1
        exact = {}
        for policy in self.policies():
            emis = {split: emi(world, policy) / tokens for split, world in self.worlds.items()}
            for split in self.corpus.test_splits:
                if SHIFT_OF_SPLIT[split] is None:
                    exact[policy.name, split] = emis[split]
                else:
                    for subset in self.corpus.subsets(split):
                        exact[policy.name, f"{split}/{subset}"] = emis["IDTest"] - emis[split]
        return exact
