"""What the full run is compared with, trained update for update like its estimator, and like it
left where it was best on the held-out rows: else what the gate adds would be taken for what
reasoning adds.
"""

from collections.abc import Sequence

import torch

from coevolve.recipe import Recipe
from coevolve.scoring.estimator import Written
from coevolve.scoring.reasoning import combine
from coevolve.scoring.roles import ESTIMATOR, ROLES, Role, Weights
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.evaluation import evaluate
from coevolve.training.gate import is_no_worse
from coevolve.training.outcome import ENSEMBLE
from coevolve.training.phases import estimator_rows, rows_of_estimator, sft
from coevolve.training.rows import Rows
from coevolve.training.schedule import Budget
from coevolve.training.state import BASELINE, COLD, DIRECT, UNTRAINED, RunState

WITHOUT_CORL = "without_corl"


def baseline_parts(recipe: Recipe) -> int:
    """How many trainings the baselines' updates are divided into: one for each rate schedule."""
    rounds = recipe.rounds
    return rounds.count if rounds.lr_schedule == "phase" else min(rounds.count, 1)


def forget_those_left(state: RunState, stages: Sequence[str]) -> None:
    """A baseline's weights are not kept. Where a run comes back to one that it had left behind, it
    is trained again; `stages` are the names of all that the run has.
    """
    last = max((place for place, name in enumerate(stages) if name in state.done), default=0)
    missing = {name.partition("-")[0] for name in stages[:last] if name not in state.done}
    if "oracle" in missing:  # measured with that pair
        missing.add("without_corl")
    for label in missing:
        if label.startswith(("without_corl", "without_reasoning")):
            state.done = [name for name in state.done if name.partition("-")[0] != label]
            for training in (label, cold_name(label), direct_name(label)):
                state.progress.pop(training, None)
                state.optimizers.pop(training, None)


def go_back(context: Context, state: RunState, name: str, roles: Sequence[Role] = ROLES) -> None:
    """Give roles the weights that were kept under a name."""
    for role in roles:
        state.load(context.roles, role, state.kept[name][role])


def without_corl(context: Context, state: RunState, part: int) -> None:
    """The pair after the cold start, its estimator trained on as long as by the rounds."""
    if part == 1 and state.segment is None:
        assert state.probe is not None  # since the first gate
        go_back(context, state, COLD)
        _note_best(state, state.probe.perplexity)
    state.where = {"coevolve/phase": WITHOUT_CORL}
    reasoning = state.cold_reasoning or context.traces
    rows = rows_of_estimator(context, WITHOUT_CORL, reasoning)
    _continue(context, state, WITHOUT_CORL, part, rows)


def without_reasoning_cold(context: Context, state: RunState, member: int = 1) -> None:
    """The cold start of q2(y | x), on top of the direct one if there is one."""
    direct, label = context.recipe.cold_start.direct, member_name(member)
    if state.segment is None:
        state.baseline_perplexity = None
    if state.segment is None and member == 1:
        go_back(context, state, DIRECT if direct else UNTRAINED, (ESTIMATOR,))
    if state.segment is None and member > 1 and not direct:
        begin_anew(context, state, member)
    state.optimizers.pop(member_name(member - 1), None)  # of no use any more
    state.where = {"coevolve/phase": label}
    name, title = cold_name(label), f"{label}: estimator SFT"
    settings = context.recipe.cold_start.estimator
    sft(context, state, ESTIMATOR, name, title, _direct(context), settings, carry=False)


def member_direct(context: Context, state: RunState, member: int) -> None:
    """The direct cold start, which the pair and the first baseline share, of another member."""
    settings, label = context.recipe.cold_start.direct, member_name(member)
    assert settings is not None  # since the stage is there
    if state.segment is None:
        begin_anew(context, state, member)
    state.where = {"coevolve/phase": label}
    name, title = direct_name(label), f"{label}: estimator SFT, direct"
    sft(context, state, ESTIMATOR, name, title, _direct(context), settings, carry=False)


def without_reasoning(context: Context, state: RunState, part: int, member: int = 1) -> None:
    """q2(y | x), trained as long as the pair."""
    state.where = {"coevolve/phase": member_name(member)}
    _continue(context, state, member_name(member), part, _direct(context))


def keep_best(context: Context, state: RunState, label: str, last: bool) -> None:
    """Judge what a baseline's last training made of it by the held-out rows; after its last one it
    is as it was when it was best.
    """
    examples = context.data.validation
    reasoning: Written = [None] * len(examples)
    if label == WITHOUT_CORL:
        assert state.probe is not None  # its connector is that of the cold start
        reasoning = state.probe.reasoning
    title = f"{label}: held-out evaluation"
    after = evaluate(context, examples, title, reasoning=reasoning).perplexity
    before = state.baseline_perplexity
    if before is None:
        _note_best(state, after)
    else:
        better = is_no_worse(context, before, after)
        how = "kept" if better else "got worse: not kept"
        context.record.say(f"{label}: held-out perplexity {before:.4f} -> {after:.4f}, {how}")
        if better:
            _note_best(state, after)
        elif last:
            go_back(context, state, BASELINE)
    if last:
        del state.kept[BASELINE]
        state.baseline_perplexity = None


def _note_best(state: RunState, perplexity: float) -> None:
    state.keep(BASELINE)
    state.baseline_perplexity = perplexity


def ensemble(context: Context, state: RunState, split: str) -> None:
    """The log-mean of the members' probabilities on a test split."""
    size, by_name = context.recipe.baselines.ensemble, state.outcome.scores
    scores = [by_name[member_name(member)][split] for member in range(1, size + 1)]
    together = combine([1.0] * size, scores)
    state.outcome.note(f"{ENSEMBLE}{size}", split, context.data.tests[split], together)


def member_name(member: int) -> str:
    """Of a baseline without reasoning; its trainings draw by it, so that members differ."""
    return "without_reasoning" if member == 1 else f"without_reasoning_{member}"


def cold_name(label: str) -> str:
    """Of a baseline's cold start, among the trainings."""
    return f"cold_{label}"


def direct_name(label: str) -> str:
    """Of its direct one."""
    return f"cold_direct_{label}"


def begin_anew(context: Context, state: RunState, member: int) -> None:
    """Give the estimator the weights that it would begin with under another seed."""
    seed = derive_seed(context.recipe.seed, "ensemble", member)
    state.load(context.roles, ESTIMATOR, redrawn(state.kept[UNTRAINED][ESTIMATOR], seed))


def redrawn(weights: Weights, seed: int) -> Weights:
    """A new adapter's weights with its matrices A drawn anew, as PEFT draws them: uniform, up to
    1 / sqrt(inputs) (Kaiming with a = sqrt 5). What is not a new adapter, B being 0, stays.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = dict(weights)
    for name, tensor in weights.items():
        other = weights.get(name.replace("lora_A", "lora_B"))
        if "lora_A" in name and other is not None and not other.any():
            bound = tensor.shape[1] ** -0.5
            uniform = torch.rand(tensor.shape, generator=generator)
            drawn[name] = ((2 * uniform - 1) * bound).to(tensor.dtype)
    return drawn


def _direct(context: Context) -> Rows:
    """x -> y."""
    return estimator_rows(context.estimator, context.train, [None] * len(context.train))


def _continue(context: Context, state: RunState, label: str, part: int, rows: Rows) -> None:
    """SFT of the estimator for as many further updates as the rounds gave it, by SFT or RL.

    With a schedule for each phase, part by part, so that the rate decays as far as in the rounds.
    """
    recipe, parts = context.recipe, baseline_parts(context.recipe)
    steps = state.rounds[part - 1] if parts == len(state.rounds) else sum(state.rounds)
    if steps:
        settings = recipe.estimator_sft or recipe.cold_start.estimator
        title = f"{label}: estimator SFT, part {part} of {parts}"
        budget = Budget(steps, schedule=steps)
        sft(context, state, ESTIMATOR, label, title, rows, settings, budget)
