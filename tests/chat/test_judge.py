"""A language model as judge: what it is asked, which answers count, and that nothing is asked
twice.
"""

import argparse
import json
import re

import pytest

from coevolve.chat import Endpoint
from coevolve.chat.base import Completion
from coevolve.cli import judge as command
from coevolve.errors import ChatError, DataError, RecipeError
from coevolve.files import write_jsonl
from coevolve.information.agreement import krippendorff_alpha
from coevolve.prompts.rubric import Rubric
from coevolve.recipe.load import check_section
from coevolve.remid.judge import read_judge_scores
from coevolve.respond.judge import Judged, judge_responses, read_answer
from tests.chat.test_endpoint import says

pytest.importorskip("openai")
RUBRIC = Rubric(criteria={"role": "In role?", "role play": "Well played?"})
TWO = {"good": {"bread": "I bake bread.", "rain": "Aye."}, "bad": {"bread": "Error 404."}}


def shown(request):
    """Label -> response, and the criteria, as the judge sees them."""
    text = request["messages"][-1]["content"]
    return dict(re.findall(r"## Response (.)\n(.*)", text)), re.findall(r"^(role.*):", text, re.M)


def fair(number, request):
    responses, criteria = shown(request)
    good = {label: 1 if "404" in text else 5 for label, text in responses.items()}
    return says("\n".join(f"{x} {name}: {good[x]}" for x in responses for name in criteria))


def judge(server, examples, out, responses=TWO, attempts=2, **options):
    endpoint = Endpoint(server.url, "m", temperature=0, attempts=attempts, concurrency=1)
    return judge_responses(examples, responses, endpoint, out, rubric=RUBRIC, **options)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "judged.jsonl"


def read(path):
    rows = {"bread": "IDTest", "rain": "IDTest"}
    return read_judge_scores(path, ["good", "bad"], ["IDTest"], rows)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_scores_are_what_remid_reads(serve, examples, out, side_by_side):
    server = serve(fair)
    judged = judge(server, examples, out, repeats=3, side_by_side=side_by_side)
    # bread has two responses, rain one
    assert len(server.requests) == judged.asked == (6 if side_by_side else 9)
    assert judged.means() == {
        "good": {"role": 5, "role play": 5, "score": 5},
        "bad": {"role": 1, "role play": 1, "score": 1},
    }
    assert judged.agreement() == {"role": 1.0, "role play": 1.0, "score": 1.0}
    assert read(out) == {("good", "IDTest"): 5, ("bad", "IDTest"): 1}
    assert "good" not in str(server.requests) and "golden of" not in str(server.requests)


def test_places_are_drawn_by_the_seed(serve, examples, out, tmp_path):
    def placed(seed, path):
        server = serve(fair)
        judge(server, examples, path, repeats=8, side_by_side=True, seed=seed)
        return [(list(of.values()), criteria) for of, criteria in map(shown, server.requests)]

    first = placed(0, out)
    assert first == placed(0, tmp_path / "again") != placed(1, tmp_path / "other")
    assert {tuple(criteria) for _, criteria in first} == {
        ("role", "role play"),
        ("role play", "role"),
    }
    assert len({tuple(responses) for responses, _ in first if len(responses) == 2}) == 2


def test_a_second_start_asks_only_for_what_is_missing(serve, examples, out):
    whole = serve(fair)
    judge(whole, examples, out, repeats=2)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed while writing the third
    server = serve(fair)
    judged = judge(server, examples, out, repeats=2)
    assert (judged.found, len(server.requests)) == (2, len(whole.requests) - 2)
    assert sorted(out.read_bytes().splitlines()[1:]) == sorted(x.rstrip() for x in lines[1:])
    changed = {**TWO, "bad": {"bread": "Error 405."}}
    with pytest.raises(DataError, match=r"'bread bad repeat 1' has changed since"):
        judge(server, examples, out, responses=changed, repeats=2)
    with pytest.raises(DataError, match="other asked: seed was 0 and is now 1"):
        judge(server, examples, out, repeats=2, seed=1)


def test_a_bad_answer_is_asked_again_then_counted(serve, examples, out):
    def mostly_bad(number, request):
        return (
            says("Well, 5 of 5!") if "404" in str(request) or number == 1 else fair(number, request)
        )

    server = serve(mostly_bad)
    judged = judge(server, examples, out)
    assert len(judged.bad) == 1 and "no score for A role" in judged.bad[0]
    assert [request["temperature"] for request in server.requests].count(0.7) == 2
    assert judged.means() == {"good": {"role": 5, "role play": 5, "score": 5}}
    assert judge(serve(fair), examples, out).asked == 1
    with pytest.raises(ChatError, match="no usable answer to 3 questions"):
        judge(serve(lambda n, r: says("5")), examples, out.with_name("none.jsonl"))


ANSWERS = [
    ("A role: 4\nA role play: 2", None),
    ("role play: 2\nrole: 4", None),
    ("<think>A role: 1</think>\n**A Role**: 4/5\n- Response A, role play: 2 (weak)", None),
    ("A role = 4 out of 5\nA role play: 2.0", None),
    ("A role: 4", "no score for A role play"),
    ("A role: 4\nA role: 4\nA role play: 2", "two scores for A role"),
    ("A role: 6\nA role play: 2", "A role is 6, not on the scale"),
    ("A role: 0\nA role play: 2", "A role is 0, not on the scale"),
    ("B role: 4\nB role play: 2", "found a response 'B'"),
    ("A role: 3-4\nA role play: 2", "no score for A role"),
    ("A role: 4 or 5\nA role play: 2", "no score for A role"),
    ("A role: ...\nA role play: 2", "no score for A role"),
    ("A role:\n4\nA role play: 2", "no score for A role"),
]


@pytest.mark.parametrize(("text", "problem"), ANSWERS)
def test_which_answers_count(examples, text, problem):
    item = Judged("q", examples[0], 1, {"mine": "Aye."}, ("role", "role play"))
    scores, found = read_answer(item, RUBRIC, Completion(text, True), 9)
    assert scores == ({"mine": {"role": 4, "role play": 2}} if problem is None else None)
    assert problem is None or problem in found
    assert "cut off after 9 tokens" in read_answer(item, RUBRIC, Completion(text, False), 9)[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"scores": {"good": {"role": 7}}}, "the role of 'good' is 7; .* from 1 to 5"),
        ({"scores": {"good": {"role": True}}}, "the role of 'good' is True"),
        ({"scores": {}}, "scores is an object"),
        ({"scores": {"good": {}}}, "scores of 'good'"),
        ({"repeat": 0}, "repeat is 0"),
        ({"scores": {"other": {"role": 3}}}, "model 'other' is not in the results"),
        ({"sample_ID": "x"}, "sample_ID 'x' is not in the results"),
    ],
)
def test_a_file_with_other_scores_is_refused(serve, examples, out, line, message):
    judge(serve(fair), examples, out)
    good = {"sample_ID": "bread", "repeat": 1, "scores": {"good": {"role": 3}}}
    with open(out, "a") as file:
        file.write(json.dumps({**good, "repeat": 9, **line}) + "\n")
    with pytest.raises(DataError, match=rf"judged.jsonl:5: .*{message}"):
        read(out)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"criterias": {}}, "criterias: unknown key; .* Did you mean criteria"),
        ({"low": 5}, "low is 5 and high 5"),
        ({"criteria": {}}, "criteria: found"),
        ({"criteria": {"a:b": ""}}, "criteria: 'a:b'; accepted is a name"),
        ({"criteria": {"a": "", "A": ""}}, "differ by case only"),
        ({"user": "{responses}"}, r"user: has no \{answer\}"),
        ({"user": "{responses} {answer} {oops}"}, r"user: has the field \{oops\}"),
    ],
)
def test_a_rubric_that_is_none_is_refused(values, message):
    with pytest.raises(RecipeError, match=f"r.yaml: .*{message}"):
        check_section(values, "r.yaml", Rubric)


def test_alpha_is_krippendorffs():
    # By hand: within the units squared differences 0, 0 and 1; of the 15 pairs of 1 1 2 2 3 4
    # they add up to 41.
    alpha = 1 - (0 + 0 + 1) / 3 / (41 / 15)
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 4], [9]]) == pytest.approx(alpha)
    assert krippendorff_alpha([[1, 2], [1, 2]]) < 0
    assert krippendorff_alpha([[1], [2]]) is None and krippendorff_alpha([[3, 3]]) is None


def test_the_command_shows_means_and_agreement(serve, examples, tmp_path, capsys):
    write_jsonl(tmp_path / "data.jsonl", [example.to_row() for example in examples])
    for name, of in TWO.items():
        rows = [{"sample_ID": key, "response": text} for key, text in of.items()]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "rubric.yaml").write_text("criteria: {role: 'In role?', role play: 'Well played?'}")
    words = ["--data", "data.jsonl", "--responses", "good=good.jsonl", "bad=bad.jsonl"]
    words = [re.sub(r"(\w+\.jsonl)", rf"{tmp_path}/\1", word) for word in words]
    words += ["--rubric", f"{tmp_path}/rubric.yaml", "--repeats", "2", "--limit", "3"]
    words += ["--endpoint", serve(fair).url, "--model", "m", "--out", f"{tmp_path}/out.jsonl"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(words))
    said = capsys.readouterr()
    assert re.search(r"bad +1\.00 +1\.00 +1\.00", said.out) and "agreement" in said.out
    assert "bad: 2 of 3 samples have no response to judge" in said.err
    assert "4 answers (0 were there before)" in said.err
