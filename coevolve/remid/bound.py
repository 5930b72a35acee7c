"""The upper bound of R-EMID on a corpus, term by term, and the shift that is to blame.

`coevolve.information.bound` has the forms and where they hold. On texts each ingredient is an
estimate:

- *Shifts.* JSD(P_z || Q_z) of user personas, characters and dialogues is the representation JSD of
  their embeddings (`coevolve.information.divergence`), between equally many texts, its noise floor
  beside it. A floor is no shift: inputs are ranked by what exceeds it. The bound takes the JSD as
  measured, floor and all; `noise_floor` is what the same bound comes to with every JSD at its
  floor, that is without any shift.
- *Outputs.* The same of a model's responses against the golden ones, in distribution and in the
  subset.
- *Entropy.* H = max_x [H(Y | x) + H(theta(. | x))] is put as the largest -log q2(golden | x, r) -
  log q2(response | x, r) over the examples of both distributions, nats per response. A
  cross-entropy is at least the entropy, and a single response stands for the mean over responses:
  the largest of N is too high, and higher for more examples. The mean over the examples stands
  beside it.

The inputs' terms add up as if user, character and dialogue were independent. In real dialogues they
are not: a shift of the user's language is a shift of the dialogue too and is then counted twice.
The bound is of mutual information in nats per response, so it stands beside R-EMID per response; a
form that is too large, as CLUB is, may exceed it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import DataError
from coevolve.information.bound import Bound, Divergences, published_bound, scale_adjusted_bound
from coevolve.information.divergence import (
    LARGEST_SAMPLE,
    REPETITIONS,
    Kernel,
    MeasuredDivergence,
    check_kernel,
    measure_divergence,
    median_width,
)
from coevolve.prompts.render import character_text
from coevolve.remid.blame import remis_of
from coevolve.remid.bound_results import (
    Blamed,
    BoundOfModel,
    BoundResults,
    BoundSubset,
    Divergence,
    Entropy,
    SmallSubset,
    Terms,
)
from coevolve.remid.embeddings import Embedder
from coevolve.remid.grid import Block, Grid
from coevolve.remid.measures import Measure
from coevolve.remid.results import ChosenReasoning, Input, form_name, names_of
from coevolve.remid.score import OnStep, Reporter, ScoredCorpus, ScoredSubset, default_measures
from coevolve.remid.subsets import Subset

SCHEMA: Literal["coevolve.bound/1"] = "coevolve.bound/1"
LEAST_EXAMPLES = 4
"""Of a subset, so that a divergence has a noise floor."""
MOST_SHOWN = 8
"""Subsets and models of a summary, which is one screen."""

INPUT_TEXTS: Mapping[Input, Callable[[Example], str]] = {
    "user": lambda example: example.user_persona,
    "character": lambda example: character_text(example.agent_character),
    "dialogue": lambda example: "\n".join(f"{x.speaker}: {x.text}" for x in example.dialogue),
}
"""Input -> the text that represents it."""


@dataclass(frozen=True)
class Measuring:
    """How divergences are measured, by `coevolve.information.divergence.measure_divergence`.

    The Gaussian kernel's width is the median distance in distribution, for each kind of text, so
    that all subsets are measured by one kernel.
    """

    kernel: Kernel = "linear"
    repetitions: int = REPETITIONS
    largest: int = LARGEST_SAMPLE
    seed: int = 0

    def __post_init__(self) -> None:
        check_kernel(self.kernel)

    def divergence(self, p: np.ndarray, q: np.ndarray, width: float | None) -> MeasuredDivergence:
        return measure_divergence(p, q, width=width, **asdict(self))


def evaluate_bound(
    scored: ScoredCorpus,
    embedder: Embedder,
    *,
    form: str | None = None,
    measuring: Measuring | None = None,
    progress: OnStep | None = None,
) -> BoundResults:
    """The bound of each model's R-EMID in every shifted subset; `form` is that of the R-EMID beside
    it, nats per response, by default that of `coevolve remid`.
    """
    measuring = measuring or Measuring()
    measure = Measure(form or default_measures(scored)[0].form)
    small = _small_subsets(scored)
    home, *shifted = (one for one in scored.subsets if one.subset not in small)
    if not shifted:
        raise DataError("there is no shifted subset; a bound of R-EMID needs one beside IDTest.")
    why = f"fewer than the {LEAST_EXAMPLES} examples that a bound needs"
    in_home, *in_shifted = _embed([home, *shifted], scored, embedder, progress)
    kinds = {str(name): vectors for name, vectors in in_home.inputs.items()}
    kinds["response"] = in_home.of_models[None]
    gaussian = measuring.kernel == "gaussian"
    widths = {kind: median_width(v) if gaussian else None for kind, v in kinds.items()}

    def outputs(vectors: _Vectors) -> dict[str, MeasuredDivergence]:
        golden, width = vectors.of_models[None], widths["response"]
        of_models = {name: vectors.of_models[name] for name in scored.models}
        return {name: measuring.divergence(v, golden, width) for name, v in of_models.items()}

    outputs_p = outputs(in_home)
    rows = []
    for one, vectors in zip(shifted, in_shifted, strict=True):
        inputs = {
            name: measuring.divergence(in_home.inputs[name], vectors.inputs[name], widths[name])
            for name in INPUT_TEXTS
        }
        outputs_q = outputs(vectors)
        rows.append(
            BoundSubset(
                **one.subset.identity,
                inputs={name: _listed(divergence) for name, divergence in inputs.items()},
                blame=rank_inputs(inputs),
                models={
                    name: _of_model(
                        home, one, name, measure, inputs, outputs_p[name], outputs_q[name]
                    )
                    for name in scored.models
                },
            )
        )
    return BoundResults(
        schema=SCHEMA,
        unit="nats per response",
        form=measure.form,
        embedder=embedder.name,
        kernel=measuring.kernel,
        widths=widths,
        repetitions=measuring.repetitions,
        seed=measuring.seed,
        reasoning=ChosenReasoning.of(scored.scoring.reasoning),
        models=scored.models,
        subsets=rows,
        small_subsets=[SmallSubset(row=x.row, examples=len(x.examples), reason=why) for x in small],
    )


def _small_subsets(scored: ScoredCorpus) -> list[Subset]:
    """Those with too few examples; DataError where they are not to be shown."""
    small = [*scored.left_out]
    small += [x.subset for x in scored.subsets if len(x.subset.examples) < LEAST_EXAMPLES]
    for subset in small:
        if scored.scoring.small_subsets == "error" or subset.shift is None:
            raise DataError(
                f"{subset.row}: found {len(subset.examples)} examples; a divergence with its noise "
                f"floor needs at least {LEAST_EXAMPLES}. Add examples or leave the subset out."
            )
    return small


def rank_inputs(inputs: Mapping[Input, MeasuredDivergence]) -> list[Blamed]:
    """The inputs by how far their shift exceeds its noise floor, most first."""
    total = sum(divergence.excess for divergence in inputs.values())
    ranked = sorted(((name, one.excess) for name, one in inputs.items()), key=lambda x: -x[1])
    return [Blamed(input=name, excess=x, share=x / total if total else None) for name, x in ranked]


def entropy_of(home: ScoredSubset, subset: ScoredSubset, model: str) -> Entropy:
    """H of the bound, estimated: -log q2(golden) - log q2(response), nats per response."""
    sides = (home, subset)
    total = np.concatenate([-side.positive[None].sum - side.positive[model].sum for side in sides])
    return Entropy(largest=float(total.max()), mean=float(total.mean()))


def shift_grid(results: BoundResults, most: int | None = None) -> Grid:
    """Which input shifted in which subset: JSDs beside their noise floors, and the blame."""
    rows = []
    for row in results.subsets[:most]:
        jsds = [row.inputs[name] for name in INPUT_TEXTS]
        cells = [_with_floor(one.jsd, one.floor, 4) for one in jsds]
        first, size = row.blame[0], str(row.inputs["user"].size)
        none = "nothing above the noise"
        blamed = none if first.share is None else f"{first.input} ({first.share:.0%})"
        rows.append([results.label(row.row), *cells, size, blamed])
    caption = [
        "How far texts are from those of IDTest: representation JSD in nats, in brackets what "
        f"noise alone gives. {results.embedder}, {results.kernel} kernel.",
        *(f"{one.row}: {one.examples}, {one.reason}." for one in results.small_subsets),
        results.unanswered_line(),
    ]
    columns, title = (
        ["subset", *INPUT_TEXTS, "size", "shifted most"],
        "shift of the inputs, JSD in nats",
    )
    return Grid(columns, [Block("", rows)], [*filter(None, caption)], f"{title} (noise floor)")


def bound_grid(results: BoundResults, model: str) -> Grid:
    """A model's bound in each shifted subset, term by term, beside the measured R-EMID."""
    name = f"{names_of(results.reasoning)[1]}, {form_name(results.form)}"
    columns = ["H", *INPUT_TEXTS, "output P", "output Q", "bound", name, "scale-adjusted"]
    rows = []
    for row in results.subsets:
        of_model = row.models[model]
        published, adjusted = of_model.published, of_model.scale_adjusted
        inputs = [published.inputs[name] for name in INPUT_TEXTS]
        cells = [f"{of_model.entropy.largest:.1f}"]
        cells += [f"{term:.2f}" for term in (*inputs, published.output_p, published.output_q)]
        cells.append(_with_floor(published.total, published.noise_floor, 2))
        cells.append(f"{of_model.remid:+z.3f}")
        cells.append(_with_floor(adjusted.total, adjusted.noise_floor, 2))
        rows.append([results.label(row.row), *cells])
    caption = [
        "In brackets the bound if nothing had shifted, from noise alone. H: largest entropy, an "
        "estimate from above.",
        "Outputs: golden and the model's responses in distribution (P) and in the subset (Q).",
        "scale-adjusted: all factors 1, no unit, for comparing.",
        *([f"Reasoning: {results.reasoning.form()}."] if results.reasoning else []),
    ]
    title = f"{model}: upper bound, {results.unit} (without any shift: noise floor)"
    return Grid(["subset", *columns], [Block("", rows)], caption, title)


def summary_grid(results: BoundResults) -> Grid:
    """R-EMID and its bound of all models."""
    rows = []
    for row in results.subsets[:MOST_SHOWN]:
        of_models = [row.models[name] for name in results.models[:MOST_SHOWN]]
        cells = [f"{one.remid:+z.3f} / {one.published.total:.2f}" for one in of_models]
        rows.append([results.label(row.row), *cells])
    caption = [
        f"Nats per response. R-EMID by {form_name(results.form)}; of the bound's terms, and of "
        "what it comes to without any shift, bound.md has the tables."
    ]
    columns = ["subset", *results.models[:MOST_SHOWN]]
    return Grid(columns, [Block("", rows)], caption, "R-EMID / its upper bound")


@dataclass(frozen=True)
class _Vectors:
    """A subset's embeddings, (N, d) each: of inputs, and of responses (golden's under None)."""

    inputs: Mapping[Input, np.ndarray]
    of_models: Mapping[str | None, np.ndarray]


def _embed(
    subsets: list[ScoredSubset], scored: ScoredCorpus, embedder: Embedder, progress: OnStep | None
) -> list[_Vectors]:
    count = sum(len(one.subset.examples) for one in subsets)
    reporter = Reporter(progress, count * (len(INPUT_TEXTS) + len(scored.texts)))

    def embedded(one: ScoredSubset, text: Callable[[Example], str]) -> np.ndarray:
        reporter.step(f"{one.subset.row}: embedding")
        vectors = embedder([text(example) for example in one.subset.examples])
        reporter.step(f"{one.subset.row}: embedded", finished=len(vectors))
        return vectors

    def response_in(texts: Mapping[str, str]) -> Callable[[Example], str]:
        return lambda example: texts[example.sample_id]

    return [
        _Vectors(
            {name: embedded(one, text) for name, text in INPUT_TEXTS.items()},
            {name: embedded(one, response_in(texts)) for name, texts in scored.texts.items()},
        )
        for one in subsets
    ]


def _of_model(
    home: ScoredSubset,
    subset: ScoredSubset,
    model: str,
    measure: Measure,
    inputs: Mapping[Input, MeasuredDivergence],
    output_p: MeasuredDivergence,
    output_q: MeasuredDivergence,
) -> BoundOfModel:
    entropy = entropy_of(home, subset, model)
    measured, floors = (
        Divergences(
            {name: getattr(one, field) for name, one in inputs.items()},
            getattr(output_p, field),
            getattr(output_q, field),
        )
        for field in ("jsd", "floor")
    )
    remi_p, remi_q = remis_of(home, subset, model, measure)
    h = entropy.largest

    def terms(bound: Bound, floor: Bound) -> Terms:
        ends = {"output_p": bound.output_p, "output_q": bound.output_q}
        of_inputs = {name: bound.inputs[name] for name in INPUT_TEXTS}
        return Terms(inputs=of_inputs, **ends, total=bound.total, noise_floor=floor.total)

    return BoundOfModel(
        output_p=_listed(output_p),
        output_q=_listed(output_q),
        entropy=entropy,
        published=terms(published_bound(measured, h), published_bound(floors, h)),
        scale_adjusted=terms(scale_adjusted_bound(measured), scale_adjusted_bound(floors)),
        remid=remi_p.value - remi_q.value,
    )


def _listed(divergence: MeasuredDivergence) -> Divergence:
    return Divergence(**asdict(divergence), excess=divergence.excess)


def _with_floor(value: float, floor: float, digits: int) -> str:
    return f"{value:.{digits}f} ({floor:.{digits}f})"
