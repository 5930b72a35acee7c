"""The estimator's work divided among all processes of a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from coevolve.scoring.estimator import Examples, Pairs, ProbabilityEstimator, Texts, Tick, Written
from coevolve.scoring.generate import Generation
from coevolve.scoring.scores import Scores
from coevolve.training.distributed.processes import Processes


class DistributedEstimator(ProbabilityEstimator):
    """As the estimator it is made from, but each process works on its share of the examples.

    Every process has to make the same calls, and gets all results, in order. Rewards, which differ
    from process to process, ask the plain estimator.
    """

    def __init__(
        self,
        estimator: ProbabilityEstimator,
        processes: Processes,
        writing: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    ):
        """Inside `writing`, which all enter, reasonings are by the engine that it chose."""
        self.__dict__.update(vars(estimator))
        self.processes, self.writing = processes, partial(writing, self)

    def _generate(
        self, examples: Examples, seed: int | None, temperature: float, progress: Tick
    ) -> list[Generation]:
        generate = super()._generate
        costs = [len(self.connector_renderer.connector(example)) for example in examples]
        report = _scaled(progress, len(examples), self.processes.count)
        with self.writing():
            return self.processes.distribute(
                costs,
                lambda share: generate([examples[i] for i in share], seed, temperature, report),
            )

    def _sums(
        self, examples: Examples, responses: Texts, written: Written, pairs: Pairs, progress: Tick
    ) -> Scores:
        # A context goes to one process with all of its pairs, so that it is computed once.
        score = super()._sums
        rows_of = [np.flatnonzero(pairs[:, 0] == context) for context in range(len(examples))]
        lengths = np.array([len(response) for response in responses])
        costs = [
            len(self.renderer.estimator(example, text)) + lengths[pairs[rows, 1]].sum()
            for example, text, rows in zip(examples, written, rows_of, strict=True)
        ]
        report = _scaled(progress, len(pairs), self.processes.count)

        def work(share: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
            if not share:
                return []
            own = np.concatenate([rows_of[context] for context in share])
            used, place = np.unique(pairs[own, 1], return_inverse=True)
            context = np.repeat(np.arange(len(share)), [len(rows_of[i]) for i in share])
            scores = score(
                [examples[i] for i in share],
                [responses[j] for j in used],
                [written[i] for i in share],
                np.stack([context, place], axis=1),
                report,
            )
            ends = np.cumsum([len(rows_of[i]) for i in share])[:-1]
            parts = np.split(scores.sum, ends), np.split(scores.tokens, ends)
            return list(zip(*parts, strict=True))

        total, tokens = np.empty(len(pairs)), np.empty(len(pairs), dtype=np.int64)
        found = self.processes.distribute(costs, work)
        for rows, (sums, counts) in zip(rows_of, found, strict=True):
            total[rows], tokens[rows] = sums, counts
        return Scores(total, tokens)


def _scaled(progress: Tick, total: int, count: int) -> Tick:
    """Progress of one share as that of the whole: the shares go on at about the same pace."""
    if progress is None or count == 1:
        return progress
    done = shown = 0

    def report(rows: int) -> None:
        nonlocal done, shown
        done += rows
        reached = min(done * count, total)
        progress(reached - shown)
        shown = reached

    return report
