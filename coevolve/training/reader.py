"""Readers fitted to responses: the estimator's second role, trained further on what one model says.

A reader begins at the estimator, and is trained by SFT on the same prompts, reasonings as its form
shows them. Of the responses a fifth is held out: what these have after each pass says when to stop,
and the pass where they had the most is the reader; that may be none, the estimator itself. So to
the held-out responses a reader gives no less than the estimator; of few, that need not be so in
other contexts.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save
from transformers import TrainerCallback

from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DivergenceError
from coevolve.recipe.optimization import Sft
from coevolve.remid.score import PairScorer
from coevolve.scoring.batching import device_of
from coevolve.scoring.cache import WorkCache, fingerprint, fingerprint_of
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.reasoning import Reasoning, combine
from coevolve.scoring.roles import ESTIMATOR, Roles, Weights
from coevolve.scoring.scores import Scores
from coevolve.seeds import derive_seed
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.engines import LeftHalfway, Plan, Schedule, Segment, run_sft
from coevolve.training.phases import estimator_rows

SETTINGS = Sft(
    epochs=20,
    learning_rate=5e-4,
    lr_scheduler_type="constant_with_warmup",
    adam_beta2=0.98,
    train_batch_size=8,
)
HELD_OUT, PATIENCE = 0.2, 3
"""Share of responses that say when to stop, and passes without a gain until then."""
MOST_KEPT = 900_000_000
"""Bytes of weights that a cache takes."""


def settings() -> dict[str, Any]:
    """For results."""
    return {**SETTINGS.model_dump(exclude_none=True), "held_out": HELD_OUT, "patience": PATIENCE}


@dataclass(frozen=True)
class Fitting:
    """By what readers are fitted.

    Args:
        form: the reasonings that are shown, then and when they read.
        folder: of the cache; None keeps nothing.
        poll: called between two steps; what it raises ends the fit.
    """

    estimator: ProbabilityEstimator
    form: Reasoning
    seed: int
    folder: Path | None = None
    poll: Callable[[], None] = lambda: None

    def reader(self, examples: Sequence[Example], responses: Sequence[str]) -> "FittedReader":
        """One fitted to the responses to these examples; found again where it was fitted before."""
        if self.estimator.roles.tuning[ESTIMATOR] == "none":
            raise ArtifactError(
                "A reader is fitted from the weights of a trained estimator; this one is a base "
                "model as it is. Give another estimator."
            )
        order = np.array(sorted(range(len(examples)), key=lambda i: examples[i].sample_id))
        drawn = np.random.default_rng(derive_seed(self.seed, "reader")).permutation(order)
        held = drawn[: max(1, round(HELD_OUT * len(drawn)))]
        said = [replace(x, golden_response=y) for x, y in zip(examples, responses, strict=True)]
        parts = [[said[i] for i in places] for places in (drawn[held.size :], held)]
        written = [self.form.write(self.estimator, part) for part in parts]
        own = _Fit(self, *parts, *written)
        weights, epochs = own.found() or own.trained()
        return FittedReader(self.copy(own.key), weights, epochs, len(parts[0]), held.size)

    def copy(self, key: str | None = None) -> ProbabilityEstimator:
        """The same models without a cache, or with that of the reader of the key."""
        ours = self.estimator
        copy = ProbabilityEstimator(
            ours.roles,
            ours.renderer,
            connector_renderer=ours.connector_renderer,
            max_new_tokens=ours.max_new_tokens,
            token_budget=ours.token_budget,
            poll=ours.poll,
        )
        if key is not None and self.folder is not None:
            copy.caches[ESTIMATOR] = WorkCache(self.folder, fingerprint({"reader": key}))
        return copy


@dataclass(frozen=True)
class FittedReader:
    """Scores responses by weights of its own, which are in the model only as long as that lasts.

    `epochs` are the passes over `fitted_to` responses that it was trained for, by `held_out` more.
    """

    estimator: ProbabilityEstimator
    weights: Weights
    epochs: int
    fitted_to: int
    held_out: int

    def log_prob_pairs(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        pairs: np.ndarray,
    ) -> Scores:
        """log p(y_j | x_i) of `pairs`, (Q, 2), nats per response."""
        with _holding(self.estimator.roles, self.weights):
            return self.estimator.log_prob_pairs(examples, responses, reasoning, pairs)


@dataclass(frozen=True)
class CrossFitted:
    """Two readers of one model's responses: in contexts of either half, by sample_ID, that reads
    which was fitted to the other.
    """

    readers: Sequence[PairScorer]
    half_of: Mapping[str, int]

    def log_prob_pairs(
        self,
        examples: Sequence[Example],
        responses: Sequence[str],
        reasoning: Sequence[str | None],
        pairs: np.ndarray,
    ) -> Scores:
        """As of `FittedReader`."""
        half = np.array([self.half_of[example.sample_id] for example in examples])[pairs[:, 0]]
        sums, tokens = np.empty(len(pairs)), np.empty(len(pairs), dtype=np.int64)
        for number, reader in enumerate(self.readers):
            own = half == number
            if own.any():
                found = reader.log_prob_pairs(examples, responses, reasoning, pairs[own])
                sums[own], tokens[own] = found.sum, found.tokens
        return Scores(sums, tokens)


class _Fit:
    """One reader to be fitted: rows to train on and rows to stop by, with their reasonings."""

    def __init__(
        self,
        by: Fitting,
        train: Sequence[Example],
        held: Sequence[Example],
        written: Sequence[Sequence[str | None]],
        written_held: Sequence[Sequence[str | None]],
    ) -> None:
        self.by, self.held, self.written_held = by, held, written_held
        self.plain, self.roles = by.copy(), by.estimator.roles
        # A row for each reasoning of a form with several.
        every, shown = [*train] * len(written), [text for part in written for text in part]
        self.rows = estimator_rows(self.plain, every, shown)
        of_held = estimator_rows(
            self.plain, [*held] * len(written_held), [x for part in written_held for x in part]
        )
        ids = [[*map(list, (row.prompt, row.response))] for row in (*self.rows, *of_held)]
        about = {"rows": ids, "held": len(held), "weights": by.form.weights, "seed": by.seed}
        text = json.dumps({**about, **settings()}, sort_keys=True)
        parameters = self.roles.module(ESTIMATOR).parameters()
        place = (
            fingerprint_of(by.estimator.manifest, ESTIMATOR, parameters)
            if by.estimator.manifest
            else ""
        )
        self.key = f"reader {place} {hashlib.sha256(text.encode()).hexdigest()}"
        self.cache = None if by.folder is None else WorkCache(by.folder, place)

    def found(self) -> tuple[Weights, int] | None:
        """Weights and passes of the one that was fitted before."""
        if self.cache is None:
            return None
        weights, about = self.cache.get("readers", [self.key, f"{self.key} passes"])
        return None if weights is None or about is None else (load(weights), int(about))

    def trained(self) -> tuple[Weights, int]:
        """The same of a new one."""
        before = self.roles.weights(ESTIMATOR)
        self.best, self.weights, self.epochs, self.without = -np.inf, before, 0, 0
        every = -(-len(self.rows) // SETTINGS.train_batch_size)
        steps, seed = int(SETTINGS.epochs or 1) * every, derive_seed(self.by.seed, "reader")
        with tempfile.TemporaryDirectory() as scratch, _holding(self.roles, before):
            plan = Plan(
                roles=self.roles,
                role=ESTIMATOR,
                renderer=self.plain.renderer,
                processes=Processes(device_of(self.roles.module(ESTIMATOR)), Stop()),
                first=0,
                steps=steps,
                tokens=None,
                schedule=Schedule(0, steps),
                seed=seed,
                callback=TrainerCallback(),
                watcher=_Watch(self.by.poll, every, self.look),
                segment=Segment(),
                token_budget=self.plain.token_budget,
                folder=Path(scratch),
            )
            with suppress(Interrupted):
                self.look(0)
                # A step on what is no number ends a fit as one without a gain does.
                with suppress(LeftHalfway, DivergenceError):
                    run_sft(plan, self.rows, SETTINGS)
                    self.look(steps // every)
        packed = save(dict(self.weights))
        if self.cache is not None and len(packed) < MOST_KEPT:
            self.cache.put([(self.key, packed), (f"{self.key} passes", str(self.epochs).encode())])
        return self.weights, self.epochs

    def look(self, epoch: int) -> None:
        """Keep the weights if held-out responses are the likeliest yet; Interrupted after too many
        passes without.
        """
        responses = [example.golden_response or "" for example in self.held]
        scores = [self.plain.log_prob(self.held, responses, part) for part in self.written_held]
        value = float(combine(self.by.form.weights, scores).sum.mean())
        if value > self.best:
            self.best, self.epochs, self.without = value, epoch, 0
            self.weights = self.roles.weights(ESTIMATOR)
        else:
            self.without += 1
            if self.without >= PATIENCE:
                raise Interrupted


@dataclass(frozen=True)
class _Watch:
    """Looks after every pass; the engine's `Watcher`."""

    poll: Callable[[], None]
    every: int
    look: Callable[[int], None]

    def after_step(self, step: int, capture: Callable[[], Segment]) -> None:
        self.poll()
        if step % self.every == 0:
            self.look(step // self.every)

    def between(self) -> None:
        self.poll()


@contextmanager
def _holding(roles: Roles, weights: Weights) -> Iterator[None]:
    """Inside, the role has these weights."""
    before = roles.weights(ESTIMATOR)
    roles.load_weights(ESTIMATOR, weights)
    try:
        yield
    finally:
        roles.load_weights(ESTIMATOR, before)
