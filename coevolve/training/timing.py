"""How long a run takes, by a few seconds of each kind of its work on this machine."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from coevolve.data.example import Example
from coevolve.recipe import Recipe
from coevolve.scoring.batching import pad
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR
from coevolve.training.plan import Step
from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

SECONDS = 2.0
"""Of each kind, at least, after a first time that does not count."""
SHORT = 0.5
"""Seconds of work that is too little: twice as many rows are tried, up to MOST_ROWS."""
LEAST_ROWS, MOST_ROWS = 4, 256


@dataclass(frozen=True)
class Pace:
    """Seconds, on one process.

    Attributes:
        row: of a row in an update, forward and backward.
        token: of a token that is written, beside others.
        load: until the models are there.
    """

    row: float
    token: float
    load: float

    def seconds(self, step: Step, processes: int = 1) -> float:
        """Of a part of a run, whose work the processes share."""
        work = step.updates * step.rows * self.row + step.texts * step.tokens * self.token
        return work / processes


def measure_pace(recipe: Recipe, examples: Sequence[Example]) -> Pace:
    """By the models as they start; nothing is kept."""
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        origins = prepare_origins(recipe, Path(folder))
        estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
        load = time.monotonic() - began
        logging.disable(logging.WARNING)  # nobody wants to read what is written here
        try:
            written, seconds = _paced(lambda rows: _write(estimator, rows), examples)
            trained, of_rows = _paced(lambda rows: _update(estimator, rows), examples)
        finally:
            logging.disable(logging.NOTSET)
    return Pace(of_rows / trained, seconds / max(written, 1), load)


def _paced(
    work: Callable[[Sequence[Example]], int], examples: Sequence[Example]
) -> tuple[int, float]:
    """(units, seconds) of work on so many examples that it takes a while."""
    rows, spent, units, took = LEAST_ROWS, 0.0, 0, 0.0
    work(examples[:rows])
    while spent < SECONDS:
        began = time.monotonic()
        units = work(examples[:rows])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.monotonic() - began
        spent += took
        if took < SHORT:
            rows = min(2 * rows, MOST_ROWS)
    return units, took


def _write(estimator: ProbabilityEstimator, examples: Sequence[Example]) -> int:
    """Tokens of sampled reasonings."""
    renderer = estimator.renderer_of(CONNECTOR)
    return sum(len(renderer.response_ids(text)) for text in estimator.reason(examples, seed=0))


def _update(estimator: ProbabilityEstimator, examples: Sequence[Example]) -> int:
    """Rows of a gradient of the examples' log q2(y | x)."""
    render, model = estimator.renderer, estimator.roles.module(ESTIMATOR)
    rows = [
        render.prompt_ids(render.estimator(x, None)) + render.response_ids(x.golden_response or "")
        for x in examples
    ]
    device = next(model.parameters()).device
    pad_id = render.tokenizer.pad_token_id
    ids, mask = (x.to(device) for x in pad(rows, pad_id, left=False))
    found: Any = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False)
    found.loss.backward()
    model.zero_grad(set_to_none=True)
    return len(rows)
