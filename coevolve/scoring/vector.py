"""An estimator's test vector, `check.json`: ids and log-probabilities of three examples.

The examples are built in, so that nobody's data is published; an estimator of the synthetic world
has rows of that. By it a copy, another machine, or other software is held against the export.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError, TooLongError
from coevolve.files import read_json, write_text
from coevolve.scoring.logprob import score_pairs
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role

if TYPE_CHECKING:
    from coevolve.scoring.estimator import ProbabilityEstimator

VECTOR = "check.json"
ABOUT = (
    "log_probs: nats, of each of ids behind prompt_ids. tolerance: of the root mean square of "
    "differences over a text's tokens."
)
TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""Nats, root mean square over a text's tokens. SmolLM2 in 16 bits is 0.014 and 0.12 off at most."""

_ROWS: Sequence[tuple[str, str | dict[str, Any], Sequence[str], str]] = (
    ("", "Mara keeps the lighthouse.", ["Did the storm reach you?"], "It did. The lamp held."),
    (
        "Ich lerne Deutsch.\n## Dialogue",
        {"name": "Ilse", "age": 41, "sings": True, "likes": ["tea", {"in": "winter", "no": 1.5}]},
        ["Wer da?", "Ich, Ilse.", "Sch\u00f6n!\nAgent Response 7: <|im_end|> [Connections]"],
        "Komm herein, <|im_end|> es ist kalt.",
    ),
    (
        "\u5b66\u751f",
        "{braces} and \\n",
        ["\u4f60\u597d", "...", "\u518d\u89c1?"],
        "\u597d\u7684 :)",
    ),
)
"""Persona, character, turns, response: what goes wrong easily, and short, as some models are."""


@dataclass(frozen=True)
class Piece:
    """One text that a role gives a probability, and the prompt before it."""

    name: str
    role: Role
    prompt: str
    prompt_ids: list[int]
    ids: list[int]


def write_vector(
    folder: Path,
    estimator: "ProbabilityEstimator",
    examples: Sequence[Example] = (),
    *,
    quantized: bool = False,
) -> None:
    """Measure examples, each with a trace (by default the built-in ones), and write the file."""
    rows: list[dict[str, Any]] = []
    for example in examples or _built_in(estimator.renderer.prompts.sections):
        pieces = _pieces(estimator, example)
        try:
            values = _log_probs(estimator, pieces)
        except TooLongError:  # for a model that holds next to nothing
            continue
        measured = {
            piece.name: {**asdict(piece), "log_probs": found.tolist()}
            for piece, found in zip(pieces, values, strict=True)
        }
        rows.append({"example": example.to_row(), "pieces": measured})
    with estimator.roles.acting(ESTIMATOR) as model:
        parameter = next(model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    value = {
        "about": ABOUT,
        "dtype": dtype,
        "device": parameter.device.type,
        "tolerance": TOLERANCES["bfloat16" if quantized else dtype],
        "examples": rows,
    }
    write_text(folder / VECTOR, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_vector(folder: Path) -> dict[str, Any] | None:
    """The file's value; None where there is none. ArtifactError where it is damaged."""
    path = folder / VECTOR
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = read_json(path)
        for row in found["examples"]:
            Example.from_row(row["example"], str(path))
            for piece in row["pieces"].values():
                np.asarray(piece["log_probs"], dtype=np.float64).reshape(len(piece["ids"]))
        return {**found, "tolerance": float(found["tolerance"]), "dtype": str(found["dtype"])}
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: no test vector ({error}). Copy it again.") from None


def compare(
    estimator: "ProbabilityEstimator", vector: Mapping[str, Any]
) -> tuple[list[str], float, int]:
    """What differs from the vector, in words; the largest root mean square difference of a text,
    in nats per token; and how many texts were compared.
    """
    problems: list[str] = []
    worst, count = 0.0, 0
    for row in vector["examples"]:
        example = Example.from_row(row["example"], VECTOR)
        pieces = _pieces(estimator, example)
        for piece, values in zip(pieces, _log_probs(estimator, pieces), strict=True):
            expected = row["pieces"].get(piece.name, {})
            where, count = f"{example.sample_id}, {piece.name}", count + 1
            odd = [
                x for x in ("prompt", "prompt_ids", "ids") if getattr(piece, x) != expected.get(x)
            ]
            if odd:
                problems.append(f"{where}: {', '.join(odd)} differ")
                continue
            distance = float(np.sqrt(np.mean((values - np.array(expected["log_probs"])) ** 2)))
            worst = max(worst, distance)
            if not distance <= vector["tolerance"]:
                problems.append(
                    f"{where}: log-probabilities differ by {distance:.2g} nats per token"
                )
    return problems, worst, count


def _built_in(sections: Sequence[str]) -> Iterator[Example]:
    for number, (persona, character, turns, response) in enumerate(_ROWS, start=1):
        speakers = ("user_query", "agent_response")
        row = {
            "sample_ID": f"built-in {number}",
            "subset_tag": "check",
            "user_persona": persona,
            "agent_character": character,
            "dialogue_context": [{speakers[k % 2]: text} for k, text in enumerate(turns)],
            "agent_golden_response": response,
            "trace": "\n".join(f"{heading} calm, short" for heading in sections),
        }
        yield Example.from_row(row, VECTOR)


def _pieces(estimator: "ProbabilityEstimator", example: Example) -> list[Piece]:
    """log q1(r | x), log q2(y | x, r) and log q2(y | x)."""
    reasoning, response = example.trace or "", example.golden_response or ""
    texts: Sequence[tuple[str, Role, str, str]] = (
        ("reasoning", CONNECTOR, estimator.connector_renderer.connector(example), reasoning),
        ("response", ESTIMATOR, estimator.renderer.estimator(example, reasoning), response),
        ("response_alone", ESTIMATOR, estimator.renderer.estimator(example, None), response),
    )
    pieces = []
    for name, role, prompt, text in texts:
        renderer = estimator.renderer_of(role)
        ids = renderer.prompt_ids(prompt), renderer.response_ids(text)
        pieces.append(Piece(name, role, prompt, *ids))
    return pieces


def _log_probs(estimator: "ProbabilityEstimator", pieces: Sequence[Piece]) -> list[np.ndarray]:
    """Of each piece's ids, in nats, float64."""
    found: list[np.ndarray] = []
    for piece in pieces:
        pad = estimator.renderer_of(piece.role).tokenizer.pad_token_id
        with estimator.roles.acting(piece.role) as model:
            prompts, ids = [piece.prompt_ids], [piece.ids]
            found += score_pairs(model, prompts, ids, np.zeros((1, 2), dtype=int), pad_id=pad)
    return found
