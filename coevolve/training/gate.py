"""The gate: what a phase produced is kept only if held-out perplexity did not get worse.

A connector that has just learned writes reasonings that the estimator has not met yet, so its phase
may look worse than it is until the estimator has been trained on them. Such a phase is on probation
until the round's estimator SFT is judged: then both are kept, or both are rolled back to the best
pair.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from coevolve.errors import ContentError
from coevolve.prompts import content_share
from coevolve.remid.results import LARGEST
from coevolve.scoring.roles import CONNECTOR, ROLES
from coevolve.training.context import Context
from coevolve.training.diagnostics import warnings_in
from coevolve.training.documents import Verdict
from coevolve.training.evaluation import evaluate
from coevolve.training.schedule import ScheduledPhase
from coevolve.training.state import COLD, Evaluated, RunState, Snapshot


def start(context: Context, state: RunState) -> None:
    """The pair as it is now is the first one to beat."""
    state.keep(COLD)
    held_out = _evaluate(context, state, "after the cold start", None).measurable("cold start")
    state.best = _snapshot(state, held_out)
    state.probe = held_out
    for warning in warnings_in(content(context, held_out.reasoning)):
        context.record.say(f"warning: {warning}")


def content(context: Context, reasoning: Sequence[str | None]) -> dict[str, float]:
    """Whether the connector writes anything, for the record."""
    return {"coevolve/content_share": content_share(reasoning, context.estimator.renderer.prompts)}


def require_content(context: Context, state: RunState, least: float) -> None:
    """Before RL of a connector, which can but choose: ContentError if too few say anything."""
    if not least:
        return
    written = state.held_out_reasoning
    if written is None or state.updates[CONNECTOR] != state.held_out_written:
        written = context.distributed.reason(context.data.validation)
    found = content(context, written)["coevolve/content_share"]
    if found < least:
        raise ContentError(
            f"{found:.0%} of the connector's held-out reasonings say anything; "
            f"connector_rl.least_content asks for {least:.0%} before RL. The run is saved. Begin "
            "another with more cold_start.connector steps or another traces.teacher, or set "
            f"connector_rl.least_content to {math.floor(100 * found) / 100:g} to go on."
        )


def judge(context: Context, state: RunState, scheduled: ScheduledPhase) -> None:
    """Evaluate the pair; keep it, put it on probation or roll back. What stopped is judged once."""
    if has_stopped(state, scheduled):
        return
    phase, label, record = scheduled.phase, scheduled.label, context.record
    # Only a changed connector has to write its held-out reasonings anew.
    written = state.updates[CONNECTOR] == state.held_out_written
    reasoning = state.held_out_reasoning if written else None
    held_out = _evaluate(context, state, f"after {label}", reasoning)
    assert state.best is not None  # since `start`
    before, after = state.best.held_out.perplexity, held_out.perplexity
    verdict = Verdict(
        round=scheduled.round,
        phase=label,
        **({"part": scheduled.part} if phase.until else {}),
        before=before,
        # What is beyond all numbers has no JSON, and is no better for it.
        after=after if after <= LARGEST else None,
        kept=None,
    )
    state.verdicts.append(verdict)
    change = f"gate: {label}: held-out perplexity {before:.4f} -> {after:.4f}"
    if is_no_worse(context, before, after):
        _settle(state, kept=True)
        state.best = _snapshot(state, held_out)
        record.say(f"{change}, kept")
    elif scheduled.gated and phase.role == CONNECTOR and scheduled.estimator_sft_follows:
        record.say(f"{change}, on probation until the estimator has met the new reasonings")
    elif phase.until and not scheduled.last_part and not has_stopped(state, scheduled):
        record.say(f"{change}, on probation while patience lasts")
    else:
        undone = ", ".join(dict.fromkeys(waiting.phase for waiting in _on_probation(state)))
        _settle(state, kept=False)
        _roll_back(context, state, state.best)
        record.say(f"{change}, got worse: rolled back {undone}")
    record.log({**state.where, "gate/perplexity": after, "gate/kept": state.verdicts[-1].kept})


def is_no_worse(context: Context, before: float, after: float) -> bool:
    """Whether a held-out perplexity rose by no more than the recipe's tolerance."""
    return after <= before * (1 + context.recipe.rounds.gate_tolerance)


def has_stopped(state: RunState, scheduled: ScheduledPhase) -> bool:
    """Whether a phase with `until` has had its evaluations without a new best."""
    until = scheduled.phase.until
    place = scheduled.round, scheduled.label
    mine = [verdict for verdict in state.verdicts if (verdict.round, verdict.phase) == place]
    if until is None or not mine:
        return False
    seen = [mine[0].before]
    seen += [math.inf if verdict.after is None else verdict.after for verdict in mine]
    return len(seen) - 1 - seen.index(min(seen)) >= until.patience


def note_refresh(state: RunState) -> None:
    """The best pair's connector wrote anew: that stays, even if what is trained on it goes."""
    if state.best is not None and not _on_probation(state):
        state.best = replace(state.best, reasoning=list(state.reasoning), chosen=list(state.chosen))


def _on_probation(state: RunState) -> list[Verdict]:
    return [verdict for verdict in state.verdicts if verdict.kept is None]


def _settle(state: RunState, *, kept: bool) -> None:
    settled = {"kept": kept}
    state.verdicts = [x.model_copy(update=settled) if x.kept is None else x for x in state.verdicts]


def _roll_back(context: Context, state: RunState, best: Snapshot) -> None:
    for role in ROLES:
        state.load(context.roles, role, best.pair[role])
    state.optimizers = dict(best.optimizers)
    state.reasoning, state.chosen = list(best.reasoning), list(best.chosen)
    state.held_out_reasoning = best.held_out.reasoning
    state.held_out_written = state.updates[CONNECTOR]


def _snapshot(state: RunState, held_out: Evaluated) -> Snapshot:
    written = list(state.reasoning), list(state.chosen)
    return Snapshot(dict(state.pair), dict(state.optimizers), *written, held_out)


def _evaluate(
    context: Context, state: RunState, when: str, reasoning: Sequence[str | None] | None
) -> Evaluated:
    title = f"held-out evaluation {when}"
    held_out = evaluate(context, context.data.validation, title, reasoning=reasoning)
    state.held_out_reasoning = held_out.reasoning
    state.held_out_written = state.updates[CONNECTOR]
    figures = {"eval/perplexity/validation": held_out.perplexity}
    context.record.log({**state.where, **figures, **content(context, held_out.reasoning)})
    return held_out
