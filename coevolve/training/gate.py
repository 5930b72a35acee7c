"""The gate: what a phase produced is kept only if held-out perplexity did not get worse.

A connector that has just learned writes reasonings that the estimator has not met yet, so its phase may look worse
than it is until the estimator has been trained on them. Such a phase is on probation until the round's estimator SFT
is judged: then both are kept, or both are rolled back to the best pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coevolve.data.example import Example
from coevolve.scoring.roles import CONNECTOR, ROLES, Role
from coevolve.training.evaluation import Evaluated, evaluate
from coevolve.training.phases import Trainee


@dataclass(frozen=True)
class Snapshot:
    """A pair as it was, with the reasonings that its estimator was trained with and its held-out scores."""

    weights: dict[Role, dict[str, Tensor]]
    reasoning: list[str]
    held_out: Evaluated


class Gate:
    """Judges phases by held-out examples that nothing trains on.

    Attributes:
        best: the pair to return to.
        verdicts: round, phase, perplexity before and after, and whether it was kept; None while on probation.
    """

    def __init__(self, trainee: Trainee, examples: Sequence[Example], tolerance: float):
        self.trainee, self.examples, self.tolerance = trainee, examples, tolerance
        self.verdicts: list[dict[str, Any]] = []
        self._on_probation: list[dict[str, Any]] = []
        self.best = self._snapshot(self._evaluate("after the cold start", None))

    def judge(self, index: int, phase: str, role: Role, *, may_wait: bool) -> None:
        """Evaluate what a phase of round `index` did to `role`, and keep it, put it on probation, or roll back.

        Args:
            may_wait: an estimator SFT still comes in this round, so a worse connector is not judged yet.
        """
        # Only a changed connector has to write its held-out reasonings anew.
        held_out = self._evaluate(f"after {phase}", None if role == CONNECTOR else self._reasoning)
        before, after = self.best.held_out.perplexity, held_out.perplexity
        verdict = {"round": index, "phase": phase, "before": before, "after": after, "kept": None}
        self.verdicts.append(verdict)
        self._on_probation.append(verdict)
        change = f"gate: {phase}: held-out perplexity {before:.4f} -> {after:.4f}"
        if after <= before * (1 + self.tolerance):
            self._settle(kept=True)
            self.best = self._snapshot(held_out)
            self.trainee.record.say(f"{change}, kept")
        elif may_wait and role == CONNECTOR:
            self.trainee.record.say(f"{change}, on probation until the estimator has met the new reasonings")
        else:
            undone = ", ".join(waiting["phase"] for waiting in self._on_probation)
            self._settle(kept=False)
            self._roll_back()
            self.trainee.record.say(f"{change}, got worse: rolled back {undone}")
        self.trainee.record.log({**self.trainee.where, "gate/perplexity": after, "gate/kept": verdict["kept"]})

    def _settle(self, *, kept: bool) -> None:
        for verdict in self._on_probation:
            verdict["kept"] = kept
        self._on_probation.clear()

    def _roll_back(self) -> None:
        for role in ROLES:
            self.trainee.estimator.roles.load_weights(role, self.best.weights[role])
        self.trainee.reasoning[:] = self.best.reasoning
        self._reasoning = self.best.held_out.reasoning

    def _snapshot(self, held_out: Evaluated) -> Snapshot:
        roles = self.trainee.estimator.roles
        return Snapshot({role: roles.weights(role) for role in ROLES}, list(self.trainee.reasoning), held_out)

    def _evaluate(self, title: str, reasoning: Sequence[str | None] | None) -> Evaluated:
        held_out = evaluate(
            self.trainee.estimator,
            self.examples,
            self.trainee.record,
            f"held-out evaluation {title}",
            reasoning=reasoning,
        )
        self._reasoning = held_out.reasoning
        self.trainee.record.log({**self.trainee.where, "eval/perplexity/validation": held_out.perplexity})
        return held_out
