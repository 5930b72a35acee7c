"""Make an estimator directory from a checkout of the paper's public release."""

import argparse

from coevolve.cli.paths import add_input, add_output
from coevolve.outputs import ESTIMATOR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(
        parser,
        "checkout",
        help="the folder of the public code with templates.py and estimator_training/",
    )
    add_input(
        parser,
        "--base",
        required=True,
        metavar="MODEL",
        help="the base model of its adapters: folder or hub id",
    )
    add_output(
        parser,
        "--out",
        kind=ESTIMATOR,
        required=True,
        metavar="DIR",
        help="the estimator directory to write",
    )
    parser.add_argument(
        "--name", help="the base model's name in the folders' names, where there are several"
    )
    parser.add_argument(
        "--round",
        type=int,
        help="of reinforcement learning (default: the last one); 0 is SFT alone",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="room for a reasoning (default 2048, as published)"
    )
    parser.add_argument(
        "--no-base-copy",
        action="store_true",
        help="leave a base model that is a folder where it is",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the base model's own code"
    )


def run(options: argparse.Namespace) -> None:
    from coevolve.errors import RecipeError
    from coevolve.progress import quieten_libraries
    from coevolve.reference.importing import import_reference

    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise RecipeError(
            f"--max-new-tokens {options.max_new_tokens}: accepted is a number from 1."
        )
    quieten_libraries()
    manifest = import_reference(
        options.checkout,
        options.base,
        options.out,
        name=options.name,
        number=options.round,
        max_new_tokens=options.max_new_tokens,
        copy_base=not options.no_base_copy,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"imported into {options.out}:")
    for role, adapters in manifest["imported"]["adapters"].items():
        print(f"  {role}: {' + '.join(adapters)}")
