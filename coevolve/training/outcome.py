"""What a run measured: gathered as it goes, written to `results.json`, shown as tables."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from coevolve.data.example import Example
from coevolve.information.perplexity import compare_perplexities, perplexity
from coevolve.progress import PlainTable
from coevolve.recipe import Recipe
from coevolve.remid.table import remid_table
from coevolve.scoring.scores import Scores
from coevolve.training.evaluation import scores_from_json, scores_to_json

SCHEMA = "coevolve.run/1"


class Outcome:
    """The figures of one run.

    Attributes:
        gates: the gate's verdicts.
        remid: results of `coevolve.remid.evaluate`, if models were judged.
        exact: exact values for its table, where the truth is known.
        floors: exact perplexity floor per split, where the truth is known.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.gates: list[dict[str, Any]] = []
        self.remid: dict[str, Any] | None = None
        self.exact: Mapping[tuple[str, str], float] | None = None
        self.floors: Mapping[str, float] | None = None
        self._scores: dict[str, dict[str, Scores]] = {}
        self._subsets: dict[str, list[str]] = {}

    def perplexity(
        self, name: str, split: str, examples: Sequence[Example], scores: Scores
    ) -> None:
        """Note the scores of a split's golden responses under the model called `name`."""
        self._scores.setdefault(name, {})[split] = scores
        # A later model may have been asked about fewer: the oracle, where its teacher gave no
        # trace.
        self._subsets.setdefault(split, [example.subset for example in examples])

    def perplexities(self) -> dict[str, dict[str, float]]:
        """Model name -> split -> perplexity."""
        return {
            name: {split: perplexity(scores) for split, scores in by_split.items()}
            for name, by_split in self._scores.items()
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs of it, as JSON."""
        scores = {
            name: {split: scores_to_json(values) for split, values in by_split.items()}
            for name, by_split in self._scores.items()
        }
        exact = (
            None if self.exact is None else [[*place, value] for place, value in self.exact.items()]
        )
        return {
            "scores": scores,
            "subsets": self._subsets,
            "remid": self.remid,
            "floors": self.floors,
            "exact": exact,
        }

    def restore(self, state: Mapping[str, Any], splits: Container[str]) -> None:
        """Go on from what `state` gave of the splits that there are."""
        self._scores = {
            name: {
                split: scores_from_json(values)
                for split, values in by_split.items()
                if split in splits
            }
            for name, by_split in state["scores"].items()
        }
        self._subsets = dict(state["subsets"])
        self.remid = state["remid"]
        self.floors = state["floors"]
        if state["exact"] is not None:
            self.exact = {(model, row): value for model, row, value in state["exact"]}

    def forget(self) -> None:
        """Forget what was measured: the run trains on."""
        self._scores.clear()
        self._subsets.clear()
        self.remid = None

    def results(self, *, seconds: float) -> dict[str, Any]:
        """What `results.json` holds: `coevolve.training.documents.RunResults`."""
        values: dict[str, Any] = self.perplexities()
        if self.floors is not None:
            values["floor"] = dict(self.floors)
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "seconds": round(seconds, 1),
            "perplexity": values,
            "by_subset": self._by_subset(),
            "ratio": self._ratios(),
            "gates": self.gates,
            "remid": self.remid,
            "exact_remid": None
            if self.exact is None
            else [
                {"model": model, "row": row, "value": value}
                for (model, row), value in self.exact.items()
            ],
        }

    def show(self, console: Console) -> None:
        """The tables, on a console."""
        console.print(self._perplexity_table())
        if self.remid is not None:
            console.print(remid_table(self.remid, exact=self.exact))

    def _perplexity_table(self) -> PlainTable:
        values = self.results(seconds=0)["perplexity"]
        splits = list(next(iter(values.values())))
        table = PlainTable(title="Perplexity of golden responses (lower is better)")
        table.add_column("", no_wrap=True)
        for split in splits:
            table.add_column(split, justify="right", no_wrap=True)
        for name, by_split in values.items():
            table.add_row(
                name, *(f"{by_split[split]:.3f}" if split in by_split else "" for split in splits)
            )
        for name, by_split in self._ratios().items():
            cells = [by_split.get(split) for split in splits]
            table.add_row(
                name, *(f"{c['ratio']:.3f} ± {c['standard_error']:.3f}" if c else "" for c in cells)
            )
        return table

    def _ratios(self) -> dict[str, Any]:
        ratios: dict[str, Any] = {}
        for baseline in ("without_corl", "without_reasoning", "oracle"):
            for split, scores in self._scores.get(baseline, {}).items():
                full = self._scores.get("full", {}).get(split)
                if full is None or full.sum.shape != scores.sum.shape or full.sum.size < 2:
                    continue
                ratio = compare_perplexities(full, scores)
                ratios.setdefault(f"full/{baseline}", {})[split] = {
                    "ratio": ratio.ratio,
                    "standard_error": ratio.ratio_error,
                }
        return ratios

    def _by_subset(self) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for name, by_split in self._scores.items():
            for split, scores in by_split.items():
                tags = np.array(self._subsets[split])
                if tags.shape != scores.sum.shape:
                    continue
                for tag in dict.fromkeys(self._subsets[split]):
                    part = Scores(scores.sum[tags == tag], scores.tokens[tags == tag])
                    table.setdefault(name, {}).setdefault(split, {})[tag] = perplexity(part)
        return table
