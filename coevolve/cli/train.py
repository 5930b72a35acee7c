"""Train connector and estimator against each other, export the estimator, print the tables."""

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's folder or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, for example data.path=FILE")
    parser.add_argument("--output-dir", required=True, help="a new directory for the run")


def run(options: argparse.Namespace) -> None:
    from coevolve.recipe import load_recipe

    # Checked before the heavy imports: a mistyped key costs a second, not a minute.
    recipe = load_recipe(options.recipe, options.overrides)
    from coevolve.training.run import train

    train(recipe, options.output_dir, environ=os.environ)
