"""A whole grid: trained, asked, judged, scored, interrupted after every step."""

import csv
import json
import re
from collections import Counter

import pytest

from coevolve import cli
from coevolve.cli.comparing import Comparison
from coevolve.compare.results import CompareResults
from coevolve.documents import read_document
from coevolve.files import read_jsonl
from coevolve.prompts.rubric import Rubric
from coevolve.scoring.artifact import read_manifest
from coevolve.training import run
from coevolve.training.loop import run as run_loop
from coevolve.worlds.truth import RESPONSE_TOKENS
from tests.chat.test_endpoint import says
from tests.compare.conftest import GRID, write, write_answers


def scores(number, request):
    """Of a judge who likes long responses: by the criteria of the built-in rubric."""
    text = request["messages"][-1]["content"]
    (label, said) = re.search(r"## Response (.)\n(.*)", text).groups()
    return says("\n".join(f"{label} {x}: {1 + len(said) % 5}" for x in Rubric().criteria))


def assert_lists_every_model(path, results):
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["table"] for line in lines} >= {"models", "shifts", "remedies"}
    places = [x for x in lines if (x["table"], x["row"]) == ("models", "aggregate average")]
    assert [x["name"] for x in places] == [x.name for x in results.rows[-1].places]


@pytest.mark.slow
def test_stopped_after_every_step_it_ends_and_nothing_is_done_twice(
    serve, tmp_path, monkeypatch, capsys
):
    asked = serve(scores)
    judge = {"model": "m", "endpoint": asked.url, "repeats": 2, "max_new_tokens": 64}
    write(tmp_path, {"judge": {"ask": judge}}), write_answers(tmp_path)
    out, done, trained = tmp_path / "out", [], []
    words = ["compare", str(tmp_path / "grid.yaml"), "--out", str(out), "--device", "cpu"]
    words += ["--cache", str(tmp_path / "cache")]
    steps = Comparison.steps

    def stopped(comparison):
        """As if Ctrl-C came when a step that was not done before has ended."""
        for what, step in steps(comparison):

            def once(what=what, step=step):
                code = step()
                if what not in done:
                    done.append(what)
                    raise KeyboardInterrupt
                return code

            yield what, once

    def counted(context, *rest):
        trained.append(context.folder.path.name)
        return run_loop(context, *rest)

    monkeypatch.setattr(Comparison, "steps", stopped)
    monkeypatch.setattr(run.loop, "run", counted)
    ends = []
    while not ends or ends[-1]:
        assert len(ends) < 12
        ends.append(cli.main(words))
    said = capsys.readouterr()
    assert ends == [130] * len(done) + [0]
    assert done == [
        *("training the estimator", "training the reward", "training start", "training dpo"),
        *("responses of start", "responses of dpo", "judging", "scoring"),
        *("exact values of start", "exact values of dpo", "bound"),
    ]
    assert "interrupted. What was computed is kept: the same command goes on" in said.err
    assert trained == ["estimator", "reward", "start", "dpo"]
    for name in ("start", "dpo"):
        ids = [
            row["sample_ID"]
            for _, row in read_jsonl(out / f"responses/{name}.jsonl")
            if "response" in row
        ]
        assert max(Counter(ids).values()) == 1
    results = read_document(out / "results.json", CompareResults, remedy="")
    assert [model.name for model in results.models] == ["start", "dpo", "theirs"]
    reward = read_manifest(out / "reward" / "estimator")["identity"]
    assert [model.reward for model in results.models] == [None, reward, None]
    assert results.estimator_identity not in (None, reward)
    (flag, *_) = results.flags
    assert "estimator and reward were trained on 40 of the same rows" in flag
    for path in ("results.md", "results.tex", "report.html"):
        assert "40 of the same rows" in (out / path).read_text()
    assert "which model generalises best" in said.out and "The two rankings" in said.out
    exact = {x.name: x.exact for x in results.rows[0].places}
    kept = json.loads((out / "exact" / "start.json").read_text())["splits"]
    assert (
        exact["start"] == pytest.approx(kept["IDTest"]["emi"] / RESPONSE_TOKENS)
        and exact["theirs"] is None
    )
    assert all(
        x.bound is not None for row in results.rows if row.subset and row.shift for x in row.places
    )
    files = [*(out / "responses").glob("*.jsonl"), tmp_path / "theirs.jsonl"]
    texts = [x["response"] for path in files for _, x in read_jsonl(path) if "response" in x]
    assert len(asked.requests) == 2 * len(list(filter(None, texts)))
    assert results.judge.pairs == 15 and set(results.judge.measures) >= {"R-EMI, club per_token"}
    assert_lists_every_model(out / "results.csv", results)
    assert GRID["name"] == results.name
    before = {path: path.read_bytes() for path in out.glob("results.*")}
    assert cli.main(words) == 0 and cli.main(["report", str(out)]) == 0
    assert before == {path: path.read_bytes() for path in out.glob("results.*")}
