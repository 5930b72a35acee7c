"""What a run measured: gathered as it goes, written to `results.json`, shown as tables."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console

from coevolve.data.example import Example
from coevolve.information.perplexity import compare_perplexities, perplexity
from coevolve.progress import PlainTable
from coevolve.remid.results import RemidResults
from coevolve.remid.table import remid_table
from coevolve.scoring.scores import Scores
from coevolve.training.documents import OutcomeState, ScoresOfExamples

ENSEMBLE = "without_reasoning_ensemble_"
"""What the name of an ensemble of baselines begins with; its size follows."""


@dataclass
class Outcome:
    """The figures of one run.

    Attributes:
        scores: model name -> split -> of its golden responses.
        subsets: split -> the examples' subset tags.
        floors: exact perplexity floor per split, where the truth is known.
        exact: (model, row of the R-EMID table) -> exact value, where the truth is known.
    """

    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    subsets: dict[str, list[str]] = field(default_factory=dict)
    remid: RemidResults | None = None
    floors: Mapping[str, float] | None = None
    exact: Mapping[tuple[str, str], float] | None = None

    def note(self, name: str, split: str, examples: Sequence[Example], scores: Scores) -> None:
        """Note the scores of a split's golden responses under the model called `name`."""
        self.scores.setdefault(name, {})[split] = scores
        # A later model may have been asked about fewer: the oracle, without some traces.
        self.subsets.setdefault(split, [example.subset for example in examples])

    def perplexities(self) -> dict[str, dict[str, float]]:
        """Model name -> split -> perplexity."""
        return {
            name: {split: perplexity(scores) for split, scores in by_split.items()}
            for name, by_split in self.scores.items()
        }

    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """`full/BASELINE`, `full_FORM/without_reasoning`, ... -> split -> ratio of perplexities."""
        ratios: dict[str, dict[str, dict[str, float]]] = {}
        alone = ["without_reasoning", *(x for x in self.scores if x.startswith(ENSEMBLE))]
        forms = [name for name in self.scores if name.startswith("full")]
        pairs = [("full", "without_corl"), *product(forms, alone), ("full", "oracle")]
        for model, baseline in pairs:
            for split, scores in self.scores.get(baseline, {}).items():
                full = self.scores.get(model, {}).get(split)
                if full is None or full.sum.shape != scores.sum.shape or full.sum.size < 2:
                    continue
                found = compare_perplexities(full, scores)
                figures = {"ratio": found.ratio, "standard_error": found.ratio_error}
                ratios.setdefault(f"{model}/{baseline}", {})[split] = figures
        return ratios

    def figures(self) -> dict[str, Any]:
        """The part of `results.json` (`RunResults`) that was measured."""
        exact = (self.exact or {}).items()
        listed = [{"model": model, "row": row, "value": value} for (model, row), value in exact]
        return {
            "perplexity": self._with_floor(),
            "by_subset": self._by_subset(),
            "ratio": self.ratios(),
            "remid": None if self.remid is None else self.remid.values(),
            "exact_remid": None if self.exact is None else listed,
        }

    def show(self, console: Console) -> None:
        """The tables, on a console."""
        console.print(self._perplexity_table())
        if self.remid is not None:
            console.print(remid_table(self.remid, exact=self.exact))

    def document(self) -> OutcomeState:
        """What a checkpoint holds of it."""
        exact = None if self.exact is None else [(*key, x) for key, x in self.exact.items()]
        return OutcomeState(
            scores={
                name: {split: ScoresOfExamples.of(scores) for split, scores in by_split.items()}
                for name, by_split in self.scores.items()
            },
            subsets=self.subsets,
            remid=self.remid,
            floors=None if self.floors is None else dict(self.floors),
            exact=exact,
        )

    @classmethod
    def read(cls, saved: OutcomeState, splits: Collection[str]) -> "Outcome":
        """What `document` gave, of the splits that there are."""
        exact = None if saved.exact is None else {(name, row): x for name, row, x in saved.exact}
        scores = {
            name: {split: x.scores() for split, x in by_split.items() if split in splits}
            for name, by_split in saved.scores.items()
        }
        return cls(scores, saved.subsets, saved.remid, saved.floors, exact)

    def _with_floor(self) -> dict[str, dict[str, float]]:
        return self.perplexities() | ({"floor": dict(self.floors)} if self.floors else {})

    def _perplexity_table(self) -> PlainTable:
        values = self._with_floor()
        splits = list(next(iter(values.values())))
        table = PlainTable(title="Perplexity of golden responses (lower is better)")
        table.add_column("", no_wrap=True)
        for split in splits:
            table.add_column(split, justify="right", no_wrap=True)
        for name, by_split in values.items():
            found = [by_split.get(split) for split in splits]
            table.add_row(name, *("" if x is None else f"{x:.3f}" for x in found))
        for name, ratios in self.ratios().items():
            cells = [ratios.get(split) for split in splits]
            shown = [f"{c['ratio']:.3f} ± {c['standard_error']:.3f}" if c else "" for c in cells]
            table.add_row(name, *shown)
        return table

    def _by_subset(self) -> dict[str, dict[str, dict[str, float]]]:
        table: dict[str, dict[str, dict[str, float]]] = {}
        for name, by_split in self.scores.items():
            for split, scores in by_split.items():
                tags = np.array(self.subsets[split])
                if tags.shape != scores.sum.shape:
                    continue
                for tag in dict.fromkeys(self.subsets[split]):
                    part = Scores(scores.sum[tags == tag], scores.tokens[tags == tag])
                    table.setdefault(name, {}).setdefault(split, {})[tag] = perplexity(part)
        return table
