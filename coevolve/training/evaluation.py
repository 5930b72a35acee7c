"""Perplexity of golden responses on held-out and test examples, and what stands beside it."""

from contextlib import nullcontext
from typing import cast

from coevolve.scoring.estimator import Examples, Written
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.scores import Scores
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.diagnostics import diagnose, drift, warnings_in
from coevolve.training.state import Evaluated, RunState


def golden_responses(examples: Examples) -> list[str]:
    """The golden responses, which a corpus has for every example."""
    responses = [example.golden_response for example in examples]
    assert None not in responses
    return cast(list[str], responses)


def evaluate(
    context: Context, examples: Examples, title: str, *, reasoning: Written | None = None
) -> Evaluated:
    """Score golden responses, by default with what the connector writes greedily."""
    estimator, golden = context.distributed, golden_responses(examples)
    total = len(examples) * (2 if reasoning is None else 1)
    with context.record.task(title, total) as advance:
        if reasoning is None:
            reasoning = estimator.reason(examples, progress=advance)
        scores = estimator.log_prob(examples, golden, reasoning, progress=advance)
    return Evaluated(scores, reasoning)


def evaluate_split(
    context: Context, state: RunState, name: str, split: str, *, without_reasoning: bool = False
) -> None:
    """The pair as it is, under a name, on a test split."""
    examples = context.data.tests[split]
    reasoning = [None] * len(examples) if without_reasoning else None
    title = f"{name}: {split}, {len(examples)} examples"
    evaluated = evaluate(context, examples, title, reasoning=reasoning).measurable(title)
    state.outcome.note(name, split, examples, evaluated.scores)
    figures = {f"eval/perplexity/{split}": evaluated.perplexity}
    context.record.log({"coevolve/phase": name, **figures})


def score_form(context: Context, examples: Examples, form: Reasoning, title: str) -> Scores:
    """Scores of the golden responses by a form."""
    golden = golden_responses(examples)
    task = context.record.task(title, form.steps * len(examples))
    writing = context.distributed.writing() if form.is_written else nullcontext()
    with task as advance, writing:
        return context.distributed.log_prob(examples, golden, form, progress=advance)


def evaluate_form(
    context: Context, state: RunState, name: str, split: str, form: Reasoning
) -> None:
    """The pair as it is, under a name, on a test split, by a form."""
    examples = context.data.tests[split]
    scores = score_form(context, examples, form, f"{name}: {split}, form {form.name}")
    state.outcome.note(f"{name}_{form.name}", split, examples, scores)


def evaluate_oracle(context: Context, state: RunState, split: str) -> None:
    """The ceiling: the teacher's features of the test responses, which no connector can know."""
    path = context.folder.path / "oracle" / f"{split}.jsonl"
    if context.recipe.traces.use_vllm and context.engines is not None:
        context.engines.close()  # the teacher's has the GPU, and its groups of processes, to itself
    kept, traces = context.tracer.collect(context.data.tests[split], path, log=context.record.log)
    evaluated = evaluate(context, kept, f"oracle: {split}", reasoning=traces)
    state.outcome.note("oracle", split, kept, evaluated.scores)


def diagnose_round(context: Context, state: RunState, index: int) -> None:
    """What shows whether the pair evolves as it should, on held-out examples."""
    examples, estimator = context.data.validation, context.distributed
    golden, best, probe = golden_responses(examples), state.best, state.probe
    assert best is not None and probe is not None  # since the first gate
    reasoning = cast(list[str], best.held_out.reasoning)
    title = f"round {index}: diagnosis on {len(examples)} held-out examples"
    with context.record.task(title, 1) as advance:
        seed = derive_seed(context.recipe.seed, "diagnosis", index)
        values = diagnose(estimator, examples, golden, reasoning, seed=seed)
        values |= drift(probe.scores, estimator.log_prob(examples, golden, probe.reasoning))
        advance(1)
    context.record.log({"coevolve/round": index, **values})
    for warning in warnings_in(values):
        context.record.say(f"warning: {warning}")
