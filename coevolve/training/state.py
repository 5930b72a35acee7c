"""All of a run that is not there from its beginning: what a checkpoint holds, and nothing else.

Phases, gate and measures change the one `RunState`. `document` and `tensors` give what
is written of it, `RunState.read` takes that back.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from coevolve.errors import DivergenceError
from coevolve.information.perplexity import perplexity
from coevolve.scoring.roles import ROLES, Role, Roles, Weights
from coevolve.scoring.scores import Scores
from coevolve.training.documents import (
    CheckpointState,
    EvaluatedExamples,
    Facts,
    FormOfExport,
    GateState,
    RecordState,
    ScoresOfExamples,
    SegmentState,
    Verdict,
    Written,
)
from coevolve.training.engines import Segment
from coevolve.training.outcome import Outcome

Pair = dict[Role, Weights]
DIRECT, COLD, TRAINED = "direct", "cold", "trained"
"""The pair when its estimator is a trained q(y | x), after the cold start, after the rounds."""
BASELINE = "baseline"
"""The pair of the baseline under way when it was best on the held-out rows."""
UNTRAINED = "untrained"
"""The pair that the run begins with; it follows from the seed and is not saved."""

KEPT = (DIRECT, COLD, TRAINED, BASELINE)

AS_IT_IS: tuple[str, ...] = ("done", "stage", "texts", "reasoning", "chosen", "posterior", "where")
AS_IT_IS += ("updates", "progress", "rounds", "trained_updates", "cold_reasoning", "form")
AS_IT_IS += ("baseline_perplexity",)
"""Fields of the state that a checkpoint has under the same name."""


@dataclass(frozen=True)
class Evaluated:
    """Scores of golden responses, with the reasonings that they were scored with."""

    scores: Scores
    reasoning: Sequence[str | None]

    @property
    def perplexity(self) -> float:
        """exp(-sum of log-probabilities / number of tokens), over all responses together."""
        return perplexity(self.scores)

    def measurable(self, what: str) -> "Evaluated":
        """Itself; DivergenceError, naming `what`, where its perplexity is beyond all numbers."""
        if not math.isfinite(self.perplexity):
            raise DivergenceError(
                f"{what}: the perplexity of the golden responses is beyond all numbers. Lower the "
                "learning rate, or max_grad_norm, of what was trained last, and begin anew."
            )
        return self

    def document(self) -> EvaluatedExamples:
        scores = ScoresOfExamples.of(self.scores)
        return EvaluatedExamples(scores=scores, reasoning=list(self.reasoning))

    @classmethod
    def read(cls, saved: EvaluatedExamples) -> "Evaluated":
        return cls(saved.scores.scores(), saved.reasoning)


@dataclass(frozen=True)
class Snapshot:
    """A pair as it was, with all that its training would go on from, and its held-out scores."""

    pair: Pair
    optimizers: Mapping[str, Weights]
    reasoning: Sequence[Written]
    chosen: Sequence[int]
    held_out: Evaluated


@dataclass
class RunState:
    """A run at some moment.

    Attributes:
        pair: weights of both roles as they are between two phases.
        reasoning: for each training example, what the estimator is trained with, one or several.
        cold_reasoning: as it was in the estimator's cold start; empty where that was the traces.
        chosen: training examples that the last refresh drew; all before the first.
        posterior: (training example, reasoning) of the last posterior sample; a roll-back leaves
            it.
        optimizers: optimizer states to go on with, by phase.
        updates, progress: optimizer steps so far, by role, and by the name of the phase, whose data
            goes on there; rolled-back ones count.
        rounds: the estimator's updates in each round, for baselines that are to have as many.
        where: round and phase, for the record.
        done, stage: names of the stages that are, and of the one under way or done last.
        segment, texts: the training phase under way, and what a phase has written so far.
        best: the pair to return to; None before the first gate.
        verdicts: the gate's; `kept` is None on probation.
        held_out_reasoning: the connector's last for the held-out examples, after `held_out_written`
            updates of it.
        probe: held-out examples after the cold start, to see how far the estimator drifts.
        kept: pairs by name, to go back to.
        trained_updates: `updates` when training ended; empty before.
        form: by which the exported estimator scores; None before it is chosen.
        baseline_perplexity: held-out, of the baseline under way when it was best.
    """

    pair: Pair
    reasoning: list[Written]
    chosen: list[int]
    posterior: list[tuple[int, str]] = field(default_factory=list)
    optimizers: dict[str, Weights] = field(default_factory=dict)
    updates: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    progress: dict[str, int] = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)
    where: dict[str, str | int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    stage: str = ""
    segment: Segment | None = None
    texts: list[str] = field(default_factory=list)
    cold_reasoning: list[Written] = field(default_factory=list)
    best: Snapshot | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    held_out_reasoning: Sequence[str | None] | None = None
    held_out_written: int = 0
    probe: Evaluated | None = None
    kept: dict[str, Pair] = field(default_factory=dict)
    trained_updates: dict[Role, int] = field(default_factory=dict)
    form: FormOfExport | None = None
    baseline_perplexity: float | None = None
    outcome: Outcome = field(default_factory=Outcome)

    @classmethod
    def begin(cls, roles: Roles, traces: Sequence[str]) -> "RunState":
        """Before anything is trained: the roles as they are, and the teacher's reasonings."""
        pair: Pair = {role: roles.weights(role) for role in ROLES}
        return cls(dict(pair), list(traces), list(range(len(traces))), kept={UNTRAINED: pair})

    def load(self, roles: Roles, role: Role, weights: Weights) -> None:
        """Give a role other weights."""
        roles.load_weights(role, weights)
        self.pair[role] = weights

    def keep(self, name: str) -> None:
        """Keep the pair as it is under a name."""
        self.kept[name] = dict(self.pair)

    def holds(self, name: str) -> bool:
        """Whether the pair as it is is the very one that was kept under a name."""
        return all(self.pair[role] is self.kept[name][role] for role in ROLES)

    @property
    def holds_best(self) -> bool:
        """Whether the pair as it is now is the best one."""
        best = self.best
        return best is not None and all(self.pair[role] is best.pair[role] for role in ROLES)

    def facts(self) -> Facts:
        """What the manifest of an exported estimator says of its training."""
        measured: dict[str, Any] = {
            "form": "one greedy reasoning per example",
            "validation": None if self.best is None else self.best.held_out.perplexity,
            **self.outcome.perplexities().get("full", {}),
        }
        return Facts(updates=self.trained_updates or self.updates, held_out_perplexity=measured)

    # What is written of it.

    def tensors(self) -> dict[str, Weights]:
        """All that are not empty, by the name of their file."""
        groups: dict[str, Mapping[Any, Weights]] = {"": self.pair, "optimizer-": self.optimizers}
        groups |= {f"{name}-": pair for name, pair in self.kept.items() if name != UNTRAINED}
        if self.best is not None:
            groups |= {"best-": self.best.pair, "best-optimizer-": self.best.optimizers}
        if self.segment is not None:
            rollouts = enumerate(self.segment.rollouts)
            groups["segment-"] = {
                "weights": self.segment.weights,
                "optimizer": self.segment.optimizer,
                **{f"rollouts-{rank}": values for rank, values in rollouts},
            }
        return {
            f"{prefix}{name}": weights
            for prefix, group in groups.items()
            for name, weights in group.items()
            if weights
        }

    def document(
        self, *, processes: int, record: RecordState, parents: dict[Role, Any]
    ) -> CheckpointState:
        """All that is no tensor, with what else a checkpoint is to tell."""
        under_way, gate, best = None, None, self.best
        if self.segment is not None:
            segment = self.segment
            under_way = SegmentState(
                step=segment.step,
                figures=segment.tokens,
                rollouts=len(segment.rollouts),
                # The next batch has its own.
                samples=segment.samples if segment.rollouts else [],
            )
        if best is not None:
            gate = GateState(
                verdicts=self.verdicts,
                held_out=best.held_out.document(),
                best_reasoning=list(best.reasoning),
                best_chosen=list(best.chosen),
                reasoning=list(self.held_out_reasoning or ()),
                written=self.held_out_written,
            )
        return CheckpointState(
            **{name: getattr(self, name) for name in AS_IT_IS},
            processes=processes,
            segment=under_way,
            gate=gate,
            outcome=self.outcome.document(),
            record=record,
            parents=parents,
            probe=None if self.probe is None else self.probe.document(),
            facts=self.facts(),
        )

    @classmethod
    def read(
        cls, saved: CheckpointState, tensors: Mapping[str, Any], splits: Collection[str]
    ) -> "RunState":
        """What `document` and `tensors` gave; what was measured on other `splits` is forgotten."""

        def group(prefix: str) -> dict[str, Weights]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): tensors[name] for name in names}

        def pair(prefix: str) -> Pair:
            return {role: tensors[prefix + role] for role in ROLES if prefix + role in tensors}

        state = cls(
            **{name: getattr(saved, name) for name in AS_IT_IS},
            pair=pair(""),
            optimizers=group("optimizer-"),
            probe=None if saved.probe is None else Evaluated.read(saved.probe),
            kept={name: pair(f"{name}-") for name in KEPT if pair(f"{name}-")},
            outcome=Outcome.read(saved.outcome, splits),
        )
        if saved.gate is not None:
            # One object where it is one pair, so that it is known as the best and written once.
            best = {
                role: state.pair[role] if _same(state.pair[role], weights) else weights
                for role, weights in pair("best-").items()
            }
            written = saved.gate.best_reasoning, saved.gate.best_chosen
            held_out = Evaluated.read(saved.gate.held_out)
            state.best = Snapshot(best, group("best-optimizer-"), *written, held_out)
            state.verdicts = saved.gate.verdicts
            state.held_out_reasoning = saved.gate.reasoning
            state.held_out_written = saved.gate.written
        if saved.segment is not None:
            ranks = range(saved.segment.rollouts)
            state.segment = Segment(
                step=saved.segment.step,
                weights=tensors.get("segment-weights", {}),
                optimizer=tensors.get("segment-optimizer", {}),
                samples=saved.segment.samples,
                rollouts=[tensors.get(f"segment-rollouts-{rank}", {}) for rank in ranks],
                tokens=saved.segment.tokens(),
            )
        return state


def _same(weights: Weights, others: Weights) -> bool:
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )
