"""Make an estimator directory from any checkpoint of a run."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="RUN/checkpoints/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="the estimator directory to write")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    import transformers

    from coevolve.training.export import export_checkpoint

    transformers.logging.set_verbosity_error()
    export_checkpoint(Path(options.checkpoint), Path(options.out))
    print(f"exported {options.checkpoint} to {options.out}")
