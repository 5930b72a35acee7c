"""What a run ends with: the exported estimator, R-EMID of models to be judged, `results.json`."""

from dataclasses import replace
from typing import Any

from coevolve.data.corpus import Corpus
from coevolve.files import write_json
from coevolve.progress import from_totals
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.pairs import chosen_negatives
from coevolve.remid.score import Scoring
from coevolve.scoring.artifact import read_manifest
from coevolve.training.context import Context
from coevolve.training.export import export_estimator, results_facts, training_facts
from coevolve.training.state import RunState

SCHEMA = "coevolve.run/1"


def export(context: Context, state: RunState) -> None:
    """Write the trained pair as an estimator's directory."""
    recipe, folder = context.recipe, context.folder.path / "estimator"
    measured = state.facts().values()
    facts = training_facts(recipe, context.data.fingerprint, "end of the run", measured)
    assert state.form is not None  # the stage before has chosen it
    # Of baselines nothing is known the first time, and when it is made again it shall be the same.
    pair = {name: x for name, x in state.outcome.scores.items() if name.startswith("full")}
    facts |= state.form.values() | results_facts(replace(state.outcome, scores=pair))

    def write() -> None:
        with context.processes.stop.raising():  # until it is whole it has another name
            export_estimator(folder, context.estimator, recipe, context.origins, facts)

    context.processes.on_main(write)
    context.record.say(f"exported the probability estimator to {folder}")


def judge_models(context: Context, state: RunState) -> None:
    """R-EMI and R-EMID of the models whose responses there are."""
    data, recipe, form = context.data, context.recipe, state.form
    assert form is not None
    tests = {split: tuple(rows) for split, rows in data.tests.items()}
    total = len(data.test_examples)
    title = f"R-EMID of {len(context.responses)} models, {total} contexts"
    with context.record.task(title, total) as advance:
        report = from_totals(advance)
        state.outcome.remid = evaluate_remid(
            context.distributed,
            Corpus(splits=tests, source=data.corpus.source),
            context.responses,
            Scoring(
                negatives=chosen_negatives(
                    recipe.remid.negatives, recipe.remid.negatives_per_context
                ),
                seed=recipe.seed,
                reasoning=form.form.form(),
                contexts_at_once=32 * context.processes.count,
            ),
            progress=lambda what, done, total: report(done),
        )
    for row in state.outcome.remid.subsets:
        models = row.models.items()
        values = {f"eval/remi/{row.row}/{name}": model.remi for name, model in models if model}
        context.record.log({"coevolve/phase": "remid", **values})


def compare_with_truth(context: Context, state: RunState) -> None:
    """Exact values beside the estimates."""
    truth, outcome = context.truth, state.outcome
    assert truth is not None and outcome.remid is not None  # the stage is there, after `remid`
    outcome.floors, outcome.exact = truth.floors(), truth.exact_remid(outcome.remid.unit)


def finish(context: Context, state: RunState) -> dict[str, Any]:
    """Write and show the results (`RunResults`)."""
    results = {
        "schema": SCHEMA,
        "recipe": context.recipe.name,
        "seed": context.recipe.seed,
        "seconds": round(context.record.seconds, 1),
        **state.outcome.figures(),
        "gates": [verdict.values() for verdict in state.verdicts],
        **(state.form.values() if state.form else {}),
    }
    path = context.folder.path / "results.json"
    context.processes.on_main(lambda: write_json(path, results))
    state.outcome.show(context.record.console)
    if state.form is not None:
        context.record.say(f"the exported estimator scores by: {state.form.form.form()}")
    context.record.say(f"results: {path}")
    if context.processes.main:
        # Here, since a sitting that goes on offline begins a tracker's file anew.
        exported = context.folder.path / "estimator"
        about = read_manifest(exported, verify=False)["training"]
        name = f"{context.recipe.name}-estimator"
        context.record.artifact(exported, name=name, type="model", metadata=about)
    context.folder.say_status("finished", stage="", where={})
    return results
