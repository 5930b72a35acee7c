"""By which form the exported estimator scores: each is measured on the held-out rows, and the best
is exported unless the recipe names one.

The weight of a mixture is one number, fitted to all of these rows. Its perplexity, by which it is
compared, is cross-fitted: the weight for one half of the rows is the other half's. The choice
between the forms is made on the same rows, which the gate goes by as well; test rows have no part
in either.
"""

from coevolve.information.mixture import cross_fitted, fit_weight
from coevolve.information.perplexity import perplexity
from coevolve.remid.results import ChosenReasoning
from coevolve.scoring.reasoning import Reasoning, combine
from coevolve.scoring.scores import Scores
from coevolve.training.context import Context
from coevolve.training.documents import FormOfExport, HeldOut
from coevolve.training.evaluation import evaluate_form, score_form
from coevolve.training.state import RunState

SAMPLES = 4
"""K of a marginal that is asked for without one."""


def choose_form(context: Context, state: RunState) -> None:
    """Measure each form on the held-out rows, and choose one for the export."""
    examples, asked = context.data.validation, context.recipe.export
    scores: dict[str, Scores] = {}
    forms: dict[str, Reasoning] = {}
    held_out: dict[str, HeldOut] = {}
    samples = _samples(context)
    plain = [Reasoning("none"), Reasoning("greedy")]  # the cheapest first
    plain += [Reasoning("marginal", samples, context.recipe.seed)] if samples else []
    for form in plain:
        if form.kind == "greedy" and state.best is not None and state.holds_best:
            found = state.best.held_out.scores
        else:
            found = score_form(context, examples, form, f"held-out rows, form {form.name}")
        forms[form.name], scores[form.name] = form, found
        held_out[form.name] = HeldOut(perplexity=perplexity(found), n=len(examples))
    without = scores["none"].sum
    for form in list(forms.values()):
        if form.kind == "none" or (form.kind == "marginal" and form.samples == 1):
            continue
        reasoned = scores[form.name]
        weight = fit_weight(reasoned.sum, without)
        crossed = Scores(cross_fitted(reasoned.sum, without), reasoned.tokens)
        mixed = Reasoning("mixture", form.samples, form.seed, weight)
        forms[mixed.name], value = mixed, perplexity(crossed)
        held_out[mixed.name] = HeldOut(perplexity=value, n=len(examples), weight=weight)
    if asked.form == "best":
        # Of equals the first, which costs the least.
        chosen = min(forms, key=lambda name: held_out[name].perplexity)
    else:
        several = asked.form == "marginal" or (asked.form == "mixture" and asked.samples > 1)
        chosen = f"{asked.form}_{samples}" if several else asked.form
    state.form = FormOfExport(form=ChosenReasoning.of(forms[chosen]), held_out=held_out)
    figures = {f"held_out/{name}": found.perplexity for name, found in held_out.items()}
    context.record.log({"coevolve/phase": "form", **figures})
    told = ", ".join(f"{name} {found.perplexity:.4f}" for name, found in held_out.items())
    context.record.say(f"held-out perplexity by form: {told}; exported: {forms[chosen].name}")


def evaluate_forms(context: Context, state: RunState, name: str, split: str) -> None:
    """The pair on a test split without reasoning, and by the mixtures, which cost no more."""
    evaluate_form(context, state, name, split, Reasoning("none"))
    assert state.form is not None  # since `choose_form`
    of_split = {model: by_split.get(split) for model, by_split in state.outcome.scores.items()}
    without = of_split[f"{name}_none"]
    for mixed, found in state.form.held_out.items():
        _, _, samples = mixed.partition("_")
        reasoned = of_split.get(f"{name}_marginal_{samples}" if samples else name)
        if found.weight is None or without is None or reasoned is None:
            continue
        weights = [found.weight, 1 - found.weight]
        scores = combine(weights, [reasoned, without])
        state.outcome.note(f"{name}_{mixed}", split, context.data.tests[split], scores)


def _samples(context: Context) -> int:
    """K of the marginal and its mixture; 0 where there is none: it is the dearest form."""
    recipe = context.recipe
    least = SAMPLES if recipe.export.form == "marginal" else 0
    return recipe.export.samples or recipe.evaluation.marginal_samples or least
