"""What the commands that use an exported estimator have in common."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coevolve.scoring.estimator import ProbabilityEstimator


def add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--estimator", required=True, metavar="DIR", help="an exported estimator")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--quantization",
        default="as trained",
        choices=("as trained", "none", "4bit", "8bit"),
        help="how the base under adapters is held (default: as trained); 8bit halves its memory, 4bit quarters it, and "
        "other than as trained changes scores a little",
    )
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens of one forward pass (default 16384)")


def load_estimator(options: argparse.Namespace) -> "ProbabilityEstimator":
    import transformers

    from coevolve.scoring.estimator import ProbabilityEstimator

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return ProbabilityEstimator.from_pretrained(
        options.estimator,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        token_budget=options.token_budget,
    )
