"""Make an estimator directory from a checkout of the paper's public release."""

import argparse

from coevolve.cli.paths import adders
from coevolve.outputs import ESTIMATOR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, writes = adders(parser)
    reads("checkout", "the folder of the public code with templates.py and estimator_training/")
    reads("--base", "its adapters' base model, folder or hub id", required=True, metavar="MODEL")
    writes("--out", "the directory to write", kind=ESTIMATOR, required=True, metavar="DIR")
    add("--name", "the base model's name in the folders' names, where there are several")
    add("--round", "of reinforcement learning (default: the last one); 0 is SFT alone", type=int)
    add("--max-new-tokens", "room for a reasoning (default 2048, as published)", type=int)
    add("--no-base-copy", "leave a base model that is a folder where it is", action="store_true")
    add("--trust-remote-code", "run the base model's own code", action="store_true")


def run(options: argparse.Namespace) -> None:
    from coevolve.errors import RecipeError
    from coevolve.progress import quieten_libraries
    from coevolve.reference.importing import import_reference

    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise RecipeError(f"--max-new-tokens {options.max_new_tokens}: accepted is 1 or more.")
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
