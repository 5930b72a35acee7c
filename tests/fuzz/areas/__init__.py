"""The kinds of inputs. Shares are in a hundred, by what an input costs and how much there is to
find.
"""

from tests.fuzz.areas import (
    arguments,
    checkpoints,
    data,
    endpoints,
    estimators,
    judges,
    recipe_files,
    reports,
    responses,
    run_folders,
    traces,
)
from tests.fuzz.core import Area

AREAS: tuple[Area, ...] = (
    data.AREA,
    responses.AREA,
    judges.AREA,
    traces.AREA,
    recipe_files.AREA,
    estimators.AREA,
    endpoints.AREA,
    arguments.AREA,
    checkpoints.AREA,
    run_folders.AREA,
    reports.AREA,
)


def warm_up() -> None:
    """Import what the commands import when they run, once, before processes are forked. Starts no
    thread.
    """
    import datasets

    # It looks for all fonts once, under the home that is still the user's.
    import matplotlib.font_manager  # noqa: F401
    import openai  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers

    import coevolve.cli
    import coevolve.report.page
    import coevolve.scoring.estimator
    import coevolve.teachers.chat
    import coevolve.training.export
    import coevolve.training.run  # noqa: F401

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
