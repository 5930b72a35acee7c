"""The gate: what a phase produced is kept only if held-out perplexity did not get worse.

A connector that has just learned writes reasonings that the estimator has not met yet, so its phase
may look worse than it is until the estimator has been trained on them. Such a phase is on probation
until the round's estimator SFT is judged: then both are kept, or both are rolled back to the best
pair.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coevolve.data.example import Example
from coevolve.scoring.roles import CONNECTOR, ROLES, Role, Weights
from coevolve.training.evaluation import Evaluated, evaluate
from coevolve.training.phases import Trainee
from coevolve.training.schedule import Turn


@dataclass(frozen=True)
class Snapshot:
    """A pair as it was, with all that its training would go on from, and its held-out scores."""

    weights: Mapping[Role, Weights]
    optimizers: Mapping[str, Weights]
    reasoning: Sequence[str]
    chosen: Sequence[int]
    held_out: Evaluated


class Gate:
    """Judges phases by held-out examples that nothing trains on.

    Attributes:
        best: the pair to return to; None before `start`.
        verdicts: round, phase, perplexity before and after (None where it is beyond all numbers),
            and whether it was kept; None while on probation.
    """

    def __init__(self, trainee: Trainee, examples: Sequence[Example], tolerance: float):
        self.trainee, self.examples, self.tolerance = trainee, examples, tolerance
        self.verdicts: list[dict[str, Any]] = []
        self.best: Snapshot | None = None
        self._reasoning: Sequence[str | None] | None = None
        self._written = 0  # the connector's updates when it wrote them

    def start(self) -> None:
        """The pair as it is now is the first one to beat."""
        self._written = self.trainee.updates[CONNECTOR]
        self.best = self._snapshot(
            self._evaluate("after the cold start", None).measurable("cold start")
        )

    def judge(self, turn: Turn) -> None:
        """Evaluate the pair after a phase, or at an evaluation; keep it, put it on probation, or
        roll back.
        """
        # Only a changed connector has to write its held-out reasonings anew.
        written = self.trainee.updates[CONNECTOR]
        held_out = self._evaluate(
            f"after {turn.label}", self._reasoning if written == self._written else None
        )
        self._written = written
        before, after = self.best.held_out.perplexity, held_out.perplexity
        place = {
            "round": turn.round,
            "phase": turn.label,
            **({"part": turn.part} if turn.phase.until else {}),
        }
        # What is beyond a float has no JSON, and is no better for it.
        verdict = {
            **place,
            "before": before,
            "after": after if math.isfinite(after) else None,
            "kept": None,
        }
        self.verdicts.append(verdict)
        change = f"gate: {turn.label}: held-out perplexity {before:.4f} -> {after:.4f}"
        if after <= before * (1 + self.tolerance):
            self._settle(kept=True)
            self.best = self._snapshot(held_out)
            self.trainee.record.say(f"{change}, kept")
        elif turn.gated and turn.phase.role == CONNECTOR and turn.estimator_sft_follows:
            self.trainee.record.say(
                f"{change}, on probation until the estimator has met the new reasonings"
            )
        elif turn.phase.until and not turn.last_part and not self.has_stopped(turn):
            self.trainee.record.say(f"{change}, on probation while patience lasts")
        else:
            undone = ", ".join(dict.fromkeys(waiting["phase"] for waiting in self._on_probation))
            self._settle(kept=False)
            self._roll_back()
            self.trainee.record.say(f"{change}, got worse: rolled back {undone}")
        self.trainee.record.log(
            {**self.trainee.where, "gate/perplexity": after, "gate/kept": verdict["kept"]}
        )

    def has_stopped(self, turn: Turn) -> bool:
        """Whether a phase that is to go on until nothing improves has had its evaluations without a
        new best.
        """
        if turn.phase.until is None:
            return False
        mine = [
            row for row in self.verdicts if (row["round"], row["phase"]) == (turn.round, turn.label)
        ]
        seen = [row["before"] for row in mine[:1]]
        seen += [math.inf if row["after"] is None else row["after"] for row in mine]
        return len(seen) - 1 - seen.index(min(seen)) >= turn.phase.until.patience if seen else False

    def note_refresh(self) -> None:
        """The best pair's connector has written new reasonings: they stay, even if what is trained
        on them goes.
        """
        if not self._on_probation:
            self.best = replace(
                self.best, reasoning=list(self.trainee.reasoning), chosen=list(self.trainee.chosen)
            )

    @property
    def holds_best(self) -> bool:
        """Whether the pair as it is now is the best one."""
        return self.best is not None and all(
            self.trainee.pair[role] is self.best.weights[role] for role in ROLES
        )

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint needs beside the tensors of `best`, as JSON."""
        if self.best is None:
            return None
        return {
            "verdicts": self.verdicts,
            "held_out": self.best.held_out.to_json(),
            "best_reasoning": list(self.best.reasoning),
            "best_chosen": list(self.best.chosen),
            "reasoning": list(self._reasoning),
            "written": self._written,
        }

    def restore(
        self,
        state: Mapping[str, Any],
        weights: Mapping[Role, Weights],
        optimizers: Mapping[str, Weights],
    ) -> None:
        """Go on from what `state` gave."""
        self.verdicts[:] = state["verdicts"]
        held_out = Evaluated.from_json(state["held_out"])
        self.best = Snapshot(
            weights, optimizers, state["best_reasoning"], state["best_chosen"], held_out
        )
        self._reasoning = state["reasoning"]
        self._written = state["written"]

    @property
    def _on_probation(self) -> list[dict[str, Any]]:
        return [verdict for verdict in self.verdicts if verdict["kept"] is None]

    def _settle(self, *, kept: bool) -> None:
        for verdict in self._on_probation:
            verdict["kept"] = kept

    def _roll_back(self) -> None:
        trainee = self.trainee
        for role in ROLES:
            trainee.load(role, self.best.weights[role])
        trainee.optimizers = dict(self.best.optimizers)
        trainee.reasoning[:] = self.best.reasoning
        trainee.chosen = list(self.best.chosen)
        self._reasoning, self._written = self.best.held_out.reasoning, trainee.updates[CONNECTOR]

    def _snapshot(self, held_out: Evaluated) -> Snapshot:
        trainee = self.trainee
        return Snapshot(
            dict(trainee.pair),
            dict(trainee.optimizers),
            list(trainee.reasoning),
            list(trainee.chosen),
            held_out,
        )

    def _evaluate(self, title: str, reasoning: Sequence[str | None] | None) -> Evaluated:
        held_out = evaluate(
            self.trainee.spread,
            self.examples,
            self.trainee.record,
            f"held-out evaluation {title}",
            reasoning=reasoning,
        )
        self._reasoning = held_out.reasoning
        self.trainee.record.log(
            {**self.trainee.where, "eval/perplexity/validation": held_out.perplexity}
        )
        return held_out
