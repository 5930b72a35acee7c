"""Files of models' responses. Each accepted response is the one that an independent reading finds
under its id.
"""

from pathlib import Path
from typing import Any

from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_bytes, mutate_folder, mutate_json, to_json, to_jsonl
from tests.fuzz.strict import Unreadable, is_text, strict_json, strict_jsonl

HEADER = {"model": {"kind": "local", "weights": "ab"}, "prompt": "cd", "address": "models/mine"}


class Responses:
    name = "responses"
    share = 9

    def run(self, case: Case) -> None:
        from coevolve.data.corpus import read_corpus
        from coevolve.data.responses import read_partial_responses, read_responses

        corpus = read_corpus(case.valid.folder / "corpus.json")
        examples = [example for split in corpus.test_splits for example in corpus.splits[split]]
        path = _damaged(case, examples)
        ids = [example.sample_id for example in examples]
        if case.untouched or case.chance(0.5):
            texts = case.call(read_responses, path, examples)
            found = dict(zip(ids, texts, strict=True))
        else:
            partial = case.call(read_partial_responses, path, examples)
            found = dict(partial.by_id)
            left = {*partial.missing, *partial.empty, *partial.duplicated}
            case.wrong_if(
                left | set(found) != set(ids) or left & set(found),
                "samples that are nowhere, or twice",
            )
        by_id = _independent(case, path)
        case.wrong_if(
            not set(by_id) <= set(ids), "a sample_ID that is not in the data", list(by_id)
        )
        for sample_id, text in found.items():
            said = by_id.get(sample_id, [])
            case.wrong_if(
                said != [text] or not is_text(text),
                "another response than in the file",
                (said, text),
            )


def _damaged(case: Case, examples: list[Any]) -> Path:
    rng = case.rng
    rows: Any = [_row(case, example, index) for index, example in enumerate(examples)]
    rng.shuffle(rows)
    lines = rng.random() < 0.6
    if rng.random() < 0.3:
        rows.insert(0, dict(HEADER))
    level = "none" if case.untouched else rng.choice(("json", "json", "json", "bytes", "place"))
    if level == "json":
        rows, did = mutate_json(rng, rows)
        case.note(did)
    path = case.inputs / ("r.jsonl" if lines else "r.json")
    path.write_text(to_jsonl(rows, rng) if lines else to_json(rows, rng), "utf-8")
    if level == "bytes":
        changed, did = mutate_bytes(rng, path.read_bytes())
        path.write_bytes(changed)
        case.note(did)
    elif level == "place":
        case.note(mutate_folder(rng, path.parent))
    return path


def _row(case: Case, example: Any, index: int) -> dict[str, Any]:
    text = f"Answer {index} to {example.sample_id}."
    form = case.rng.random()
    if form < 0.6:
        return {"sample_ID": example.sample_id, "response": text}
    if form < 0.8:
        return {
            "sample_ID": example.sample_id,
            "model_response": text,
            "subset_tag": example.subset,
        }
    return {
        "sample_ID": example.sample_id,
        "model_response": {"model_response": text, "model": "m"},
    }


def _independent(case: Case, path: Path) -> dict[str, list[str]]:
    """sample_ID -> every response that the file has for it."""
    content = path.read_bytes()
    try:
        rows = strict_jsonl(content) if path.suffix == ".jsonl" else strict_json(content)
    except Unreadable as error:
        case.wrong_if(True, f"not JSON by the letter: {str(error).partition(':')[0][:40]}", error)
        raise AssertionError from error
    by_id: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if number == 0 and isinstance(row, dict) and set(row) == set(HEADER):
            continue
        given = [row[name] for name in ("response", "model_response") if row.get(name) is not None]
        case.wrong_if(len(given) != 1, "a row with no response or two", row)
        text = given[0].get("model_response") if isinstance(given[0], dict) else given[0]
        by_id.setdefault(row["sample_ID"], []).append(text)
    return by_id


AREA = Responses()
