"""Files of a judge's scores. Accepted means are those that an independent reading gives."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_bytes, mutate_folder, mutate_json, to_json, to_jsonl
from tests.fuzz.strict import Unreadable, strict_json, strict_jsonl

MODELS = ("perfect", "noise_0.4")


class Judges:
    name = "judges"
    share = 6

    def run(self, case: Case) -> None:
        from coevolve.data.corpus import read_corpus
        from coevolve.remid.judge import read_judge_scores
        from coevolve.remid.subsets import distributions

        corpus = read_corpus(case.valid.folder / "corpus.json")
        subsets = distributions(corpus)
        rows = [subset.row for subset in subsets]
        row_of = {
            example.sample_id: subset.row for subset in subsets for example in subset.examples
        }
        by = case.rng.choice(("subset", "sample_ID"))
        path = _damaged(case, by, rows if by == "subset" else list(row_of))
        left_out = set(case.rng.sample(sorted(row_of), 2)) if case.chance(0.3) else set()
        scores = case.call(read_judge_scores, path, MODELS, rows, row_of, left_out=left_out)
        expected = _independent(case, path, row_of, left_out)
        case.wrong_if(
            set(scores) != set(expected), "other pairs than in the file", [*scores, *expected]
        )
        for pair, score in scores.items():
            close = isinstance(score, float) and math.isclose(
                score, expected[pair], rel_tol=1e-9, abs_tol=1e-12
            )
            case.wrong_if(not close, "another mean than in the file", (pair, score, expected[pair]))


def _damaged(case: Case, by: str, names: list[str]) -> Path:
    rng = case.rng
    judges = ("Ann", "Ben") if rng.random() < 0.4 else (None,)
    rows: Any = [
        {by: name, "model": model, "score": rng.choice((rng.randrange(1, 6), rng.uniform(0, 5)))}
        | ({} if judge is None else {"judge": judge})
        for name in names
        for model in MODELS
        for judge in judges
    ]
    level = "none" if case.untouched else rng.choice(("json", "json", "json", "bytes", "place"))
    if level == "json":
        rows, did = mutate_json(rng, rows)
        case.note(did)
    lines = rng.random() < 0.5
    path = case.inputs / ("judge.jsonl" if lines else "judge.json")
    path.write_text(to_jsonl(rows, rng) if lines else to_json(rows, rng), "utf-8")
    if level == "bytes":
        changed, did = mutate_bytes(rng, path.read_bytes())
        path.write_bytes(changed)
        case.note(did)
    elif level == "place":
        case.note(mutate_folder(rng, path.parent))
    return path


def _independent(
    case: Case, path: Path, row_of: dict[str, str], left_out: set[str]
) -> dict[tuple[str, str], float]:
    """(model, row) -> the mean over samples of the mean over judges."""
    content = path.read_bytes()
    try:
        rows = strict_jsonl(content) if path.suffix == ".jsonl" else strict_json(content)
    except Unreadable as error:
        case.wrong_if(True, f"not JSON by the letter: {str(error).partition(':')[0][:40]}", error)
        raise AssertionError from error
    given: dict[tuple[str, str], dict[str | None, float]] = defaultdict(dict)
    for row in rows:
        score, judge = row["score"], row.get("judge")
        number = (
            isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        )
        case.wrong_if(not number, "a score that is no number", score)
        key = (row["model"], row["subset"] if "subset" in row else row["sample_ID"])
        case.wrong_if(judge in given[key], "two scores of one judge", row)
        given[key][judge] = score
    by_pair: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (model, name), by_judge in given.items():
        if name not in left_out:
            by_pair[model, row_of.get(name, name)].append(
                math.fsum(by_judge.values()) / len(by_judge)
            )
    return {pair: math.fsum(values) / len(values) for pair, values in by_pair.items()}


AREA = Judges()
