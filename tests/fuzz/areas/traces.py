"""Trace files of a user, and ledgers: the teacher's traces, which are gone on with and must never
lose a line.

A refusal leaves the ledger as it was. What is accepted keeps every whole line that was there, and
each trace is the one that the file holds under its id.
"""

import json
from pathlib import Path
from typing import Any

from tests.fuzz.core import Case, RefusedError
from tests.fuzz.mutate import mutate_bytes, mutate_folder, mutate_json, to_jsonl
from tests.fuzz.strict import Unreadable, is_text, strict_json, strict_jsonl


class Traces:
    name = "traces"
    share = 8

    def run(self, case: Case) -> None:
        from coevolve.data.corpus import read_corpus
        from coevolve.prompts import prompt_set

        examples = list(read_corpus(case.valid.folder / "corpus.json").require("IDTrain"))
        prompts = prompt_set(case.rng.choice(("roleplay", "brief")))
        if case.chance(0.5):
            _own_file(case, examples, prompts)
        else:
            _ledger(case, examples, prompts)


def _own_file(case: Case, examples: list[Any], prompts: Any) -> None:
    """`traces.teacher: file`."""
    from coevolve.teachers.traces import read_traces

    path = case.inputs / "traces.jsonl"
    headed = case.chance(0.3)
    _write(case, path, examples, prompts, headed=headed)
    found = case.call(read_traces, path, examples, prompts)
    case.wrong_if(
        list(found) != [example.sample_id for example in examples], "other examples", list(found)
    )
    said = _independent(case, path)
    for sample_id, trace in found.items():
        texts = said.get(sample_id, [])
        case.wrong_if(
            texts != [trace] or not is_text(trace), "another trace than in the file", (texts, trace)
        )


def _ledger(case: Case, examples: list[Any], prompts: Any) -> None:
    """The rules teacher goes on with a damaged ledger."""
    from coevolve.teachers import rules
    from coevolve.teachers.traces import collect_traces

    teacher = rules.RuleTeacher(prompts)
    path = case.inputs / "traces.jsonl"
    whole = case.folder / "whole.jsonl"
    collect_traces(examples, teacher, whole)
    lines = whole.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[: case.rng.randrange(1, len(lines) + 1)]), "utf-8")
    if not case.untouched:
        _damage(case, path)
    before = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else None
    case.protect()
    try:
        found = case.call(collect_traces, examples, teacher, path)
    except RefusedError:
        case.check_untouched_inputs()
        raise
    case.may_change.append("traces.jsonl")
    case.wrong_if(
        list(found) != [example.sample_id for example in examples], "other examples", list(found)
    )
    after = path.read_bytes()
    if before is not None:
        case.wrong_if(
            not goes_on(before, after),
            "lines of the ledger were lost",
            (before[-200:], after[-400:]),
        )
    said = _independent(case, path)
    for sample_id, trace in found.items():
        case.wrong_if(
            said.get(sample_id) != [trace],
            "another trace than in the ledger",
            (said.get(sample_id), trace),
        )


def goes_on(before: bytes, after: bytes) -> bool:
    """Whether all is there that was, but for a last line that was torn."""
    if after.startswith(before):
        return True
    whole, _, torn = before.rpartition(b"\n")
    try:
        strict_json(torn)
    except Unreadable:
        return after.startswith(whole + b"\n" if whole else b"")
    return False  # the line was whole, and lacked nothing but its end


def _write(case: Case, path: Path, examples: list[Any], prompts: Any, *, headed: bool) -> None:
    text = "\n".join(f"{section} what matters here" for section in prompts.sections)
    rows: Any = [
        {"sample_ID": example.sample_id, "trace": f"{text}, {number}"}
        for number, example in enumerate(examples)
    ]
    if headed:
        rows.insert(0, {"teacher": {"kind": "rules"}, "prompts": "ab"})
    level = "none" if case.untouched else case.rng.choice(("json", "json", "other"))
    if level == "json":
        rows, did = mutate_json(case.rng, rows)
        case.note(did)
    path.write_text(to_jsonl(rows, case.rng), "utf-8")
    if level == "other":
        _damage(case, path, share_of_json=0.0)


def _damage(case: Case, path: Path, share_of_json: float = 0.5) -> None:
    rng = case.rng
    if rng.random() < share_of_json:
        rows, did = mutate_json(
            rng, [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        )
        path.write_text(to_jsonl(rows, rng), "utf-8")
    elif rng.random() < 0.8:
        changed, did = mutate_bytes(rng, path.read_bytes())
        path.write_bytes(changed)
    else:
        did = mutate_folder(rng, path.parent)
    case.note(did)


def _independent(case: Case, path: Path) -> dict[str, list[Any]]:
    try:
        rows = strict_jsonl(path.read_bytes())
    except Unreadable as error:
        case.wrong_if(True, f"not JSON by the letter: {str(error).partition(':')[0][:40]}", error)
        raise AssertionError from error
    by_id: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        if number == 0 and isinstance(row, dict) and set(row) == {"teacher", "prompts"}:
            continue
        by_id.setdefault(row["sample_ID"], []).append(row["trace"])
    return by_id


AREA = Traces()
