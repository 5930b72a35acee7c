"""Train connector and estimator against each other, export the estimator, print the tables.

Started again on the same --output-dir, it goes on where it was left. Exit status 75: asked to stop
(SIGTERM, SIGUSR1, Ctrl-C, --deadline), saved, to be started again; 2: a mistake that the message
explains.
"""

import argparse
import os
from typing import TYPE_CHECKING

from coevolve.cli import validate
from coevolve.cli.paths import adders
from coevolve.outputs import RUN
from coevolve.shipped import recipe_path

if TYPE_CHECKING:
    from coevolve.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    add, *_ = adders(parser)
    add("--dry-run", "say what `coevolve validate` says, and train nothing", action="store_true")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Of every run."""
    add, reads, writes = adders(parser)
    what = "a recipe's folder or YAML file, or a name that `coevolve recipes` lists"
    reads("recipe", what, means=recipe_path)
    add("overrides", "dotted keys, for example data.path=FILE", nargs="*", metavar="key=value")
    what = "the run's directory; one that holds this run is resumed"
    writes("--output-dir", what, kind=RUN, required=True)
    what = "go on with the run there (auto, the default), refuse one, or go on from a checkpoint"
    reads("--resume", what, default="auto", metavar="auto|never|DIR")
    add("--force", "resume although the recipe has changed", action="store_true")
    add("--deadline", "save and leave by itself after so long", metavar="3h50m")


def run(options: argparse.Namespace) -> int:
    if options.dry_run:
        parser = argparse.ArgumentParser()
        validate.add_arguments(parser)
        validate.run(parser.parse_args(["--", str(options.recipe), *options.overrides]))
        return 0
    from coevolve.recipe import Recipe

    return run_recipe(options, Recipe)


def run_recipe(options: argparse.Namespace, kind: "type[Recipe]") -> int:
    """The run of a recipe of some kind, begun or gone on with; the exit status."""
    from coevolve.recipe import load_recipe
    from coevolve.recipe.rpm import RpmRecipe
    from coevolve.training.distributed.stopping import (
        INTERRUPTED,
        StopRequested,
        end_with_launcher,
        seconds_of,
    )

    # Checked before the heavy imports: a mistyped key costs a second, not a minute.
    recipe = load_recipe(options.recipe, options.overrides, kind)
    if options.deadline is not None:
        options.stop.end_after(seconds_of(options.deadline))
    from coevolve.training.distributed.launch import Launch, check_launch

    launch = Launch.from_environment(os.environ)
    if launch.launched:
        end_with_launcher(options.stop)
    check_launch(recipe, launch)
    if not launch.gpu:
        # DeepSpeed would look for an accelerator when it is imported, and say at length that there
        # is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from coevolve.training.distributed.processes import Interrupted
    from coevolve.training.run import train

    job = None
    if issubclass(kind, RpmRecipe):
        from coevolve.training.rpm import RPM

        job = RPM
    try:
        with options.stop.listening(), options.stop.raising(False):
            how = {"environ": os.environ, "resume": options.resume, "force": options.force}
            train(recipe, options.output_dir, stop=options.stop, job=job, **how)
    except (Interrupted, StopRequested):
        if os.environ.get("RANK", "0") == "0":
            told = f"{options.stop.reason}: saved. The same command goes on from here"
            print(f"coevolve: {told}; exit status {INTERRUPTED}.")
        return INTERRUPTED
    return 0
