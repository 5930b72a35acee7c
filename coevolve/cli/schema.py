"""Print the JSON Schema of a file that coevolve writes; without NAME, which ones there are."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from coevolve.cli.paths import adders


@dataclass(frozen=True)
class Schema:
    """A kind of file, or of its lines: kind and version, module and class, and which file it is."""

    identity: str
    model: str
    file: str

    def values(self) -> dict[str, Any]:
        """The JSON Schema."""
        module, _, name = self.model.partition(":")
        schema = getattr(import_module(f"coevolve.{module}"), name).model_json_schema()
        draft = "https://json-schema.org/draft/2020-12/schema"
        return {"$schema": draft, "$id": self.identity, **schema}


# name, version, module and class, which file it is
_LISTED = """
recipe         1 recipe.rpm:RecipeFile                  a recipe, for editors of its YAML
grid           1 recipe.grid:Grid                       a grid of compare, for editors of its YAML
run            1 training.documents:RunResults          results.json of train
status         1 training.status:Status                 status.json of train
metrics        1 training.documents:Line                a line of metrics.jsonl of train
samples        1 training.documents:SampleLine          a line of samples.jsonl of train
checkpoint     1 training.documents:CheckpointManifest  manifest.json of a checkpoint
estimator      4 training.manifest:EstimatorManifest    manifest.json of an exported estimator
remid          2 remid.results:RemidResults             results.json of remid
contributions  1 remid.results:ShareLine                a line of contributions.jsonl of remid
judge          1 remid.judge:JudgeComparison            judge.json of remid
compare        1 compare.results:CompareResults         results.json of compare
bound          1 remid.bound_results:BoundResults       bound.json of bound
blame          1 remid.bound_results:BlameResults       blame.json of bound
score          1 remid.results:ScoreLine                a line of score's --out
truth          1 worlds.results:TruthResults            truth's --json
"""
SCHEMAS: Mapping[str, Schema] = {
    name: Schema(f"coevolve.{name}/{version}", model, file)
    for name, version, model, file in (x.split(maxsplit=3) for x in _LISTED.strip().splitlines())
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, _, _ = adders(parser)
    add("name", ", ".join(SCHEMAS), nargs="?", choices=SCHEMAS, metavar="NAME")


def run(options: argparse.Namespace) -> None:
    if options.name is not None:
        print(json.dumps(SCHEMAS[options.name].values(), indent=2, ensure_ascii=False))
        return
    for name, schema in SCHEMAS.items():
        print(f"{name:14} {schema.identity:26} {schema.file}")
