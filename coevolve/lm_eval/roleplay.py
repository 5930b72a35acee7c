"""The functions that `roleplay.yaml` names, and with them the model, by an import."""

import json
from typing import Any

import datasets

import coevolve.lm_eval  # noqa: F401  registers the model
from coevolve.data.corpus import read_corpus
from coevolve.errors import DataError


def dialogues(
    data: str | None = None, split: str = "IDTest", **metadata: Any
) -> dict[str, datasets.Dataset]:
    """One document per example: `row`, as JSON without its response, and `response`, the golden
    one.
    """
    if data is None:
        raise DataError('coevolve_roleplay: no data. Give --metadata \'{"data": "FILE"}\'.')
    documents = []
    for example in read_corpus(data).require(split):
        row = example.to_row()
        response = row.pop("agent_golden_response")
        documents.append({"row": json.dumps(row, ensure_ascii=False), "response": response})
    return {"test": datasets.Dataset.from_list(documents)}


def measures(document: dict[str, str], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """`log_prob` in nats per response; `bits_per_byte` from (nats, the response's bytes)."""
    log_prob, _ = results[0]
    return {"log_prob": log_prob, "bits_per_byte": (log_prob, len(document["response"].encode()))}
