"""One of each that a user can add, from a file of their own in the working directory,
run for real.
"""

import json
import sys
import textwrap

import pytest

from coevolve.cli import main
from coevolve.data.corpus import read_corpus
from coevolve.errors import CoevolveError, RecipeError, TeacherError
from coevolve.recipe import check_recipe
from coevolve.registry import Registry
from coevolve.teachers import TEACHERS
from coevolve.training.run import train

MINE = """
    from coevolve.information.influence import Influence
    from coevolve.shifts import shifted
    from coevolve.teachers import Answer
    from coevolve.training.rl.grpo import SharedPromptTrainer

    def brevity(completions, **columns):
        return [-len(text.split()) / 10 for text in completions]

    class Copying:
        settings = {"kind": "copying"}

        def __init__(self, prompts, **given):
            self.prompts = prompts

        def answers(self, examples):
            for example in examples:
                yield Answer(example.sample_id, "Here you are. " + example.trace)

    def spread(contrast):
        value = contrast.matched.std()
        empty = contrast.mismatched * 0
        return value, Influence(contrast.matched - contrast.matched.mean(), empty, contrast.pairs)

    spread.needs = "matched"

    def forgetful(context, state, scheduled):
        state.reasoning = list(context.traces)
        context.record.log({**state.where, "forgetful/round": scheduled.round})

    class Halved(SharedPromptTrainer):
        def policy_loss(self, *args, **kwargs):
            self.figures["halved"].append(0.5)
            return super().policy_loss(*args, **kwargs) / 2

    def models(results):
        return " ".join(results.models)

    def louder(sources, seed, tag, **given):
        return [
            shifted(x, tag, "louder", record={"seed": seed}, user_persona=x.user_persona.upper())
            for x in sources
        ]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into a working directory that is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))

    return write


def test_one_of_each_that_a_run_and_its_evaluation_name(recipe_of, write, tmp_path, capsys):
    write("mine.py", MINE)
    recipe = recipe_of(
        traces={"teacher": "custom:mine.py:Copying"},
        rounds={"phases": ["connector_rl", "custom:mine.py:forgetful"]},
        connector_rl={
            "algorithm": "custom:mine.py:Halved",
            "rewards": {"target_words": 5, "custom:mine:brevity": 0.5},
        },
        baselines={"without_corl": False, "without_reasoning": False},
        logging={"every": 1},
    )
    train(recipe, tmp_path / "run")
    header, *traces = (tmp_path / "run" / "traces.jsonl").read_text().splitlines()
    assert json.loads(header)["teacher"] == {"kind": "copying"}
    assert len(traces) == 40 - 8
    assert all(json.loads(line)["trace"].startswith("[Connections]") for line in traces)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    brevity = [json.loads(line).get("connector/rewards/brevity/mean") for line in metrics]
    assert [value < 0 for value in brevity if value is not None] == [True, True]
    halved = [json.loads(line)["connector/halved"] for line in metrics if "halved" in line]
    assert halved == [0.5, 0.5]
    (line,) = [json.loads(line) for line in metrics if "forgetful" in line]
    assert line["forgetful/round"] == 1 and line["coevolve/phase"] == "forgetful"

    remid = ["remid", "--estimator", "run/estimator", "--data", "run/world/dialogues.json"]
    remid += ["--responses", "perfect=run/world/perfect.jsonl", "--device", "cpu", "--out", "remid"]
    assert (
        main(
            [
                *remid,
                "--measures",
                "custom:mine.py:spread:per_token",
                "club",
                "--renderer",
                "custom:mine.py:models",
            ]
        )
        == 0
    )
    assert (tmp_path / "remid" / "results.txt").read_text() == "perfect"
    results = json.loads((tmp_path / "remid" / "results.json").read_text())
    assert (results["form"], results["unit"]) == ("custom:mine.py:spread", "nats per token")
    for subset in results["subsets"]:
        assert subset["golden"]["mutual_information"] > 0
    assert "custom:mine.py:spread" in capsys.readouterr().out
    write("odd.py", "def odd(contrast): return contrast.matched")
    assert main([*remid, "--overwrite", "--measures", "custom:odd.py:odd"]) == 2
    assert "form 'custom:odd.py:odd' gave array(" in capsys.readouterr().err
    assert main([*remid, "--overwrite", "--renderer", "custom:odd.py:odd"]) == 2
    assert "--renderer 'custom:odd.py:odd' cannot be called with results" in capsys.readouterr().err


def test_a_shift_of_ones_own_makes_a_subset(write, tmp_path):
    write("kinds/mine.py", MINE)
    row = {
        "sample_ID": "a",
        "subset_tag": "x",
        "user_persona": "I bake.",
        "agent_character": "",
        "dialogue_context": [{"user_query": "Hi"}],
    }
    write("data.json", json.dumps({"IDTest": [row]}))
    command = [
        "shift",
        "custom",
        "kinds/mine.py:louder",
        "--data",
        "data.json",
        "--out",
        "out.json",
    ]
    assert main([*command, "--into", "OOD1Test", "--seed", "3"]) == 0
    (made,) = read_corpus(tmp_path / "out.json", require_golden=False).require("OOD1Test")
    assert (made.sample_id, made.subset, made.user_persona) == ("louder:a", "louder", "I BAKE.")
    assert made.shift == {"kind": "louder", "source": "a", "seed": 3, "golden": "none"}


@pytest.mark.parametrize("path", ["1", ":", "odd.py", "odd.py:", ":odd", "odd:odd:odd"])
def test_what_is_no_import_path_is_told_what_one_is(write, path, capsys):
    write("data.json", json.dumps({"IDTest": []}))
    command = ["shift", "custom", path, "--data", "data.json", "--out", "out.json"]
    assert main([*command, "--into", "OOD1Test"]) == 2
    said = capsys.readouterr().err
    assert "is no import path; accepted are package.module:name and file.py:name" in said


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def odd(sources): ...", "cannot be called with sources, corpus, seed, tag"),
        ("def odd(**given): return [1]", "gave 1; accepted is a function (sources, corpus"),
        ("def odd(**given): return 1 / len(given['tag'][9:])", "odd.py:1)"),
        ("odd = print(1", "SyntaxError"),
        ("raise SystemExit(3)", "failed with SystemExit: 3"),
        ("", "has no 'odd'"),
    ],
)
def test_what_is_wrong_with_a_shift_is_one_message(write, tmp_path, capsys, function, message):
    write("odd.py", function)
    write(
        "data.json",
        json.dumps({"IDTest": []}).replace(
            "[]",
            json.dumps(
                [
                    {
                        "sample_ID": "a",
                        "subset_tag": "x",
                        "user_persona": "",
                        "agent_character": "",
                        "dialogue_context": [{"user_query": "Hi"}],
                    }
                ]
            ),
        ),
    )
    command = ["shift", "custom", "odd.py:odd", "--data", "data.json", "--out", "out.json"]
    assert main([*command, "--into", "OOD1Test"]) == 2
    said = capsys.readouterr().err
    assert "shift 'odd.py:odd'" in said and message in said and "Traceback" not in said
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("def odd(prompts, **given): return 1", "gave int, which has no 'prompts'"),
        ("def odd(prompts): ...", "cannot be called with settings, prompts, renderer"),
        ("odd = 1", "is int; accepted is a function or class (prompts, train, **more)"),
        ("async def odd(**given): ...", "is asynchronous"),
        ("def odd(prompts, **given): return given['sed']", "failed with KeyError: 'sed'"),
        (
            ANSWERS := """
            class odd:
                settings = {}
                def __init__(self, prompts, **given): self.prompts = prompts
                def answers(self, examples): ANSWERS
         """.replace("ANSWERS", "yield from ()"),
            "the teacher gave no answer",
        ),
        (ANSWERS.replace("yield from ()", "yield 'a trace'"), "answered with 'a trace'"),
        (ANSWERS.replace("yield from ()", "yield 1 / 0"), "failed with ZeroDivisionError"),
        (ANSWERS.replace("{}", "{1, 2}"), "not JSON serializable"),
    ],
)
def test_what_is_wrong_with_a_teacher_is_one_message(recipe_of, write, tmp_path, teacher, message):
    write("odd_teacher.py", teacher)
    recipe = recipe_of(traces={"teacher": "custom:odd_teacher.py:odd"}, rounds={"count": 0})
    with pytest.raises(TeacherError) as caught:
        train(recipe, tmp_path / "run")
    assert message in str(caught.value)
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("def odd(state): ...", "cannot be called with context, state, scheduled"),
        ("def odd(context, **given): return 1 / 0", "failed with ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_phase_is_one_message(recipe_of, write, tmp_path, phase, message):
    write("odd_phase.py", phase)
    recipe = recipe_of(rounds={"phases": ["custom:odd_phase.py:odd"]})
    with pytest.raises(RecipeError, match="rounds.phases 'custom:odd_phase.py:odd'.*" + message):
        train(recipe, tmp_path / "run")


def test_an_algorithm_is_a_trainer(recipe_of, write, tmp_path):
    write("odd_algorithm.py", "class Odd: ...")
    recipe = recipe_of(connector_rl={"algorithm": "custom:odd_algorithm.py:Odd"})
    with pytest.raises(RecipeError, match=r"connector_rl.algorithm 'custom:.* class that inherits"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_malformed_trace_of_a_users_teacher_is_named(recipe_of, write, tmp_path):
    write("mine.py", textwrap.dedent(MINE).replace('"Here you are. " + example.trace', '"No."'))
    recipe = recipe_of(traces={"teacher": "custom:mine.py:Copying"})
    with pytest.raises(TeacherError, match=r"sample_ID 'IDTrain-\d+': no usable trace.*'No.'"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("text", ["endpoints", "custom:", "custom:my-file:f", "custom:mine"])
def test_a_recipe_says_what_it_accepts(recipe_of, text):
    with pytest.raises(RecipeError, match=r"traces.teacher: found .*; accepted are .*custom:file"):
        recipe_of(traces={"teacher": text})


def test_a_recipe_names_the_teachers_that_there_are(values_of):
    for name in TEACHERS:
        values = values_of(traces={"teacher": name, "model": "m", "base_url": "http://x"})
        assert check_recipe(values, "tiny").traces.teacher == name


def test_a_name_is_given_once_and_an_unknown_one_is_told_what_there_is():
    kinds = Registry("kind", accepted="a function", given=())
    kinds.register("one")(min)
    assert kinds["one"] is min and list(kinds) == ["one"]
    with pytest.raises(ValueError, match="two of the kind 'one'"):
        kinds.register("one")(max)
    with pytest.raises(CoevolveError, match="--kind is 'two'; accepted are 'one', custom:"):
        kinds.get("two", "--kind")
