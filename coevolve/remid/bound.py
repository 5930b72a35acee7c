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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from rich import box

from coevolve.data.corpus import Corpus
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
from coevolve.progress import PlainTable
from coevolve.prompts.render import character_text
from coevolve.remid.blame import remi_of
from coevolve.remid.embeddings import Embedder
from coevolve.remid.pairs import PUBLISHED_NEGATIVES, Negatives, negative_pairs
from coevolve.remid.score import (
    Estimator,
    Progress,
    Reporter,
    Responses,
    ScoredSubset,
    distributions,
    evaluated_examples,
    golden_by_id,
    responses_by_id,
    score_subset,
)
from coevolve.remid.unanswered import row_label, unanswered_line

SCHEMA = "coevolve.bound/1"

INPUT_TEXTS: Mapping[str, Callable[[Example], str]] = MappingProxyType(
    {
        "user": lambda example: example.user_persona,
        "character": lambda example: character_text(example.agent_character),
        "dialogue": lambda example: "\n".join(
            f"{turn.speaker}: {turn.text}" for turn in example.dialogue
        ),
    }
)
"""Input -> the text that represents it."""


@dataclass(frozen=True)
class Measuring:
    """How divergences are measured.

    Attributes:
        kernel: `linear` or `gaussian`; the latter's width is the median distance in distribution,
            for each kind of text, so that all subsets are measured by one kernel.
        repetitions, largest, seed: as in `coevolve.information.divergence.measure_divergence`.
    """

    kernel: Kernel = "linear"
    repetitions: int = REPETITIONS
    largest: int = LARGEST_SAMPLE
    seed: int = 0

    def __post_init__(self) -> None:
        check_kernel(self.kernel)


def score_corpus(
    estimator: Estimator,
    corpus: Corpus,
    responses: Mapping[str, Responses],
    *,
    negatives: Negatives = PUBLISHED_NEGATIVES,
    seed: int = 0,
    contexts_at_once: int = 32,
    progress: Progress | None = None,
) -> list[ScoredSubset]:
    """The scores of golden and model responses on a corpus's test splits: what bound and blame are
    made of.

    Arguments and errors as for `coevolve.remid.evaluate.evaluate_remid`; in distribution first.
    """
    subsets = distributions(corpus)
    examples = evaluated_examples(corpus)
    by_id: dict[str | None, dict[str, str]] = {None: golden_by_id(examples, corpus.source)}
    by_id |= {name: responses_by_id(name, given, examples) for name, given in responses.items()}
    reporter = Reporter(progress, len(examples))
    scored = []
    for subset in subsets:
        where = f"{corpus.source}: {subset.row}"
        pairs = negative_pairs(
            [x.sample_id for x in subset.examples], negatives, seed=seed, where=where
        )
        scored.append(score_subset(estimator, subset, by_id, pairs, contexts_at_once, reporter))
    return scored


def evaluate_bound(
    scored: Sequence[ScoredSubset],
    responses: Mapping[str, Responses],
    embedder: Embedder,
    *,
    form: str = "club",
    measuring: Measuring | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The bound of each model's R-EMID in every shifted subset.

    Args:
        scored: the in-distribution subset first, then the shifted ones; with every model's scores.
        responses: per model, sample_ID -> response for the examples of all subsets, or a list in
            their order.
        embedder: of all texts.
        form: of the R-EMID beside the bound, a key of `coevolve.information.estimate.FORMS`.
        progress: called with what is happening, the texts done, and the texts in all.

    Returns:
        JSON values: `coevolve.remid.results.BoundResults` has every field.

    Raises:
        DataError: no shifted subset, one with fewer than 4 examples, or a response is missing or
            blank.
        RecipeError: unusable `measuring`, or an unknown form.
    """
    measuring = measuring or Measuring()
    if len(scored) < 2:
        raise DataError(
            "there is no shifted subset; a bound of R-EMID needs IDTest and at least one shifted split."
        )
    for subset in scored:
        if len(subset.subset.examples) < 4:
            raise DataError(
                f"{subset.subset.row}: found {len(subset.subset.examples)} examples; a divergence with its noise floor "
                "needs at least 4. Add examples or leave the subset out."
            )
    vectors = _embed(scored, responses, embedder, progress)
    widths: dict[str, float | None] = dict.fromkeys((*INPUT_TEXTS, "response"))
    if measuring.kernel == "gaussian":
        widths = {
            kind: median_width(found)
            for kind, found in {**vectors[0].inputs, "response": vectors[0].golden}.items()
        }

    def measure(kind: str, p: np.ndarray, q: np.ndarray) -> MeasuredDivergence:
        return measure_divergence(
            p,
            q,
            kernel=measuring.kernel,
            width=widths[kind],
            repetitions=measuring.repetitions,
            largest=measuring.largest,
            seed=measuring.seed,
        )

    outputs = [
        {name: measure("response", found.models[name], found.golden) for name in responses}
        for found in vectors
    ]
    rows = []
    for index, subset in enumerate(scored[1:], start=1):
        inputs = {
            name: measure(name, vectors[0].inputs[name], vectors[index].inputs[name])
            for name in INPUT_TEXTS
        }
        rows.append(
            {
                "row": subset.subset.row,
                "split": subset.subset.split,
                "subset": subset.subset.name,
                "shift": subset.subset.shift,
                "examples": len(subset.subset.examples),
                "inputs": {name: _listed(found) for name, found in inputs.items()},
                "blame": rank_inputs(inputs),
                "models": {
                    name: _of_model(
                        scored[0],
                        subset,
                        name,
                        form,
                        inputs,
                        outputs[0][name],
                        outputs[index][name],
                    )
                    for name in responses
                },
            }
        )
    return {
        "schema": SCHEMA,
        "unit": "nats per response",
        "form": form,
        "embedder": embedder.name,
        "kernel": measuring.kernel,
        "widths": widths,
        "repetitions": measuring.repetitions,
        "seed": measuring.seed,
        "models": list(responses),
        "subsets": rows,
    }


def rank_inputs(inputs: Mapping[str, MeasuredDivergence]) -> list[dict[str, Any]]:
    """The inputs by how far their shift exceeds its noise floor, most first: [{input, excess,
    share}].
    """
    total = sum(found.excess for found in inputs.values())
    ranked = sorted(inputs, key=lambda name: -inputs[name].excess)
    return [
        {
            "input": name,
            "excess": inputs[name].excess,
            "share": inputs[name].excess / total if total else None,
        }
        for name in ranked
    ]


def largest_and_mean_entropy(subsets: Sequence[ScoredSubset], model: str) -> tuple[float, float]:
    """H of the bound, estimated: largest and mean -log q2(golden) - log q2(response), nats per
    response.
    """
    total = np.concatenate(
        [-subset.positive[None].sum - subset.positive[model].sum for subset in subsets]
    )
    return float(total.max()), float(total.mean())


def shift_table(results: Mapping[str, Any]) -> PlainTable:
    """Which input shifted in which subset: the JSDs beside their noise floors, and what is to
    blame.
    """
    table = PlainTable(
        box=box.SIMPLE_HEAD,
        title="shift of the inputs, JSD in nats (noise floor)",
        caption="\n".join(_shift_caption(results)),
        caption_justify="left",
    )
    table.add_column("subset")
    for name in (*INPUT_TEXTS, "size"):
        table.add_column(name, justify="right")
    table.add_column("to blame")
    for row in results["subsets"]:
        cells = [
            _with_floor(row["inputs"][name]["jsd"], row["inputs"][name]["floor"], 4)
            for name in INPUT_TEXTS
        ]
        first = row["blame"][0]
        blamed = (
            "nothing above the noise"
            if first["share"] is None
            else f"{first['input']} ({first['share']:.0%})"
        )
        table.add_row(
            row_label(results, row["row"]), *cells, str(row["inputs"]["user"]["size"]), blamed
        )
    return table


def bound_table(results: Mapping[str, Any], model: str) -> PlainTable:
    """A model's bound in each shifted subset, term by term, beside the measured R-EMID."""
    table = PlainTable(
        box=box.SIMPLE_HEAD,
        title=f"{model}: upper bound of R-EMID, nats per response (without any shift: noise floor)",
        caption="H: largest entropy, an estimate from above. Outputs: golden and the model's responses in "
        f"distribution (P) and in the subset (Q).\nR-EMID by {results['form']}. "
        "scale-adjusted: all factors 1, no unit, for comparing.",
        caption_justify="left",
    )
    table.add_column("subset")
    for name in ("H", *INPUT_TEXTS, "output P", "output Q", "bound", "R-EMID", "scale-adjusted"):
        table.add_column(name, justify="right")
    for row in results["subsets"]:
        found = row["models"][model]
        published, adjusted = found["published"], found["scale_adjusted"]
        terms = [*published["inputs"].values(), published["output_p"], published["output_q"]]
        table.add_row(
            row_label(results, row["row"]),
            f"{found['entropy']['largest']:.1f}",
            *(f"{term:.2f}" for term in terms),
            _with_floor(published["total"], published["noise_floor"], 2),
            f"{found['remid']:+z.3f}",
            _with_floor(adjusted["total"], adjusted["noise_floor"], 2),
        )
    return table


@dataclass(frozen=True)
class _Vectors:
    """A subset's embeddings, (N, d) each: of every input, of the golden responses, of every
    model's.
    """

    inputs: Mapping[str, np.ndarray]
    golden: np.ndarray
    models: Mapping[str, np.ndarray]


def _embed(
    scored: Sequence[ScoredSubset],
    responses: Mapping[str, Responses],
    embedder: Embedder,
    progress: Progress | None,
) -> list[_Vectors]:
    examples = [example for subset in scored for example in subset.subset.examples]
    golden = golden_by_id(examples, "bound")
    by_model = {name: responses_by_id(name, given, examples) for name, given in responses.items()}
    reporter = Reporter(progress, len(examples) * (len(INPUT_TEXTS) + 1 + len(by_model)))

    def embedded(subset: ScoredSubset, text: Callable[[Example], str]) -> np.ndarray:
        reporter.step(f"{subset.subset.row}: embedding")
        vectors = embedder([text(example) for example in subset.subset.examples])
        reporter.step(f"{subset.subset.row}: embedded", finished=len(vectors))
        return vectors

    return [
        _Vectors(
            {name: embedded(subset, text) for name, text in INPUT_TEXTS.items()},
            embedded(subset, lambda example: golden[example.sample_id]),
            {
                name: embedded(subset, lambda example, given=given: given[example.sample_id])
                for name, given in by_model.items()
            },
        )
        for subset in scored
    ]


def _of_model(
    p: ScoredSubset,
    q: ScoredSubset,
    model: str,
    form: str,
    inputs: Mapping[str, MeasuredDivergence],
    output_p: MeasuredDivergence,
    output_q: MeasuredDivergence,
) -> dict[str, Any]:
    largest, mean = largest_and_mean_entropy((p, q), model)
    measured = Divergences(
        {name: found.jsd for name, found in inputs.items()}, output_p.jsd, output_q.jsd
    )
    floors = Divergences(
        {name: found.floor for name, found in inputs.items()}, output_p.floor, output_q.floor
    )
    remi_p, remi_q = (remi_of(side, model, form, "per_response").value for side in (p, q))
    return {
        "output_p": _listed(output_p),
        "output_q": _listed(output_q),
        "entropy": {"largest": largest, "mean": mean},
        "published": _terms(published_bound(measured, largest), published_bound(floors, largest)),
        "scale_adjusted": _terms(scale_adjusted_bound(measured), scale_adjusted_bound(floors)),
        "remid": remi_p - remi_q,
    }


def _shift_caption(results: Mapping[str, Any]) -> list[str]:
    """How the JSDs were measured, and what was left out, a line each."""
    measured = (
        f"Representation JSD against IDTest: {results['embedder']}, {results['kernel']} kernel."
    )
    unanswered = unanswered_line(results)
    return [measured, unanswered] if unanswered else [measured]


def _terms(bound: Bound, floor: Bound) -> dict[str, Any]:
    return {
        "inputs": dict(bound.inputs),
        "output_p": bound.output_p,
        "output_q": bound.output_q,
        "total": bound.total,
        "noise_floor": floor.total,
    }


def _listed(found: MeasuredDivergence) -> dict[str, Any]:
    return {**asdict(found), "excess": found.excess}


def _with_floor(value: float, floor: float, digits: int) -> str:
    return f"{value:.{digits}f} ({floor:.{digits}f})"
