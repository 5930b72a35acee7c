"""Train a role-playing model: on golden responses, the best of its own, pairs, or for a reward.

The estimator that judges is an exported one. Launch, checkpoints, resuming and exit status are
those of `coevolve train`.
"""

import argparse

from coevolve.cli import train

EXAMPLE = """\
example:
  coevolve rpm mine.yaml rpm.method=grpo --output-dir runs/rpm
  coevolve respond --data dialogues.json --model BASE --adapter runs/rpm/model \\
      --prompt runs/rpm/model/prompt.yaml --out rpm.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    train.add_run_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from coevolve.recipe.rpm import RpmRecipe

    return train.run_recipe(options, RpmRecipe)
