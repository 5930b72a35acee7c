"""The commands as a user types them."""

import hashlib
import json
import math
import re
import shutil

import pytest

from coevolve.cli import main
from coevolve.scoring.artifact import identity


def test_overrides_reach_the_run(run):
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert (recipe["seed"], recipe["logging"]["every"]) == (3, 1)


def test_score(run, tmp_path):
    out = tmp_path / "scores.jsonl"
    data = run / "world" / "dialogues.json"
    assert (
        main(
            ["score", "--estimator", str(run / "estimator"), "--data", str(data), "--out", str(out)]
        )
        == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 24 + 5 * 5
    assert all(
        row["log_prob"] < 0 and row["tokens"] == 6 and row["reasoning"] is not None for row in rows
    )


def test_given_reasonings(run, tmp_path, capsys):
    """Those that the estimator wrote, given back to it, change no number, in the public code's
    layout either.
    """
    estimator, data = run / "estimator", run / "world" / "dialogues.json"
    score = ["score", "--estimator", str(estimator), "--data", str(data), "--out"]
    written, again = tmp_path / "written.jsonl", tmp_path / "again.jsonl"
    assert main([*score, str(written)]) == 0
    assert main([*score, str(again), "--reasoning", str(written)]) == 0
    rows, back = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (written, again)
    )
    identity = json.loads((estimator / "manifest.json").read_text())["identity"]
    assert {row["estimator_identity"] for row in rows} == {identity}
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    assert back == [row | {"reasoning_sha256": digest} for row in rows]
    public = tmp_path / "[ckpt]-[FullSize]-SThought_dict.json.tmp"
    public.write_text(json.dumps({row["sample_ID"]: row["reasoning"] for row in rows}))
    for name, options in {
        "exact": ["--negatives", "5"],
        "public": ["--protocol", "reference"],
    }.items():
        results = []
        for given in ([], ["--reasoning", str(public)]):
            out = tmp_path / f"{name}{len(given)}"
            assert main([*remid_arguments(run, out, "perfect", "noise_0.4"), *options, *given]) == 0
            results.append(json.loads((out / "results.json").read_text()))
        assert results[1]["reasoning"] == {
            "kind": "given",
            "sha256": hashlib.sha256(public.read_bytes()).hexdigest(),
        }
        assert results[0]["estimator_identity"] == results[1]["estimator_identity"] == identity
        assert results[0]["average"] == results[1]["average"]
        assert f"given (SHA-256 {results[1]['reasoning']['sha256'][:8]}" in re.sub(
            r"\s+", " ", capsys.readouterr().out
        )
    public.write_text("{}")
    arguments = remid_arguments(run, tmp_path / "none", "perfect")
    for text, message in (
        ("sampeld", "accepted are greedy, sampled, marginal:K, mixture, mixture:W, and a file"),
        (public, "lacks a reason"),
    ):
        assert main([*arguments, "--reasoning", str(text)]) == 2
        assert message in capsys.readouterr().err


def test_the_form_is_the_manifests_unless_another_is_asked_for(run, tmp_path, capsys):
    data = run / "world" / "dialogues.json"

    def scored(estimator, *options):
        out = tmp_path / "scores.jsonl"
        arguments = ["score", "--estimator", str(estimator), "--data", str(data), "--overwrite"]
        assert main([*arguments, "--out", str(out), *options]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    estimator = run / "estimator"
    manifest = json.loads((estimator / "manifest.json").read_text())
    weight = manifest["held_out"]["mixture"]["weight"]
    assert manifest["form"] == {"kind": "greedy"}
    greedy, none = scored(estimator), scored(estimator, "--without-reasoning")
    for options, w in ((["mixture"], weight), (["mixture:0.25"], 0.25)):
        mixed = scored(estimator, "--reasoning", *options)
        for row, one, other in zip(mixed, greedy, none, strict=True):
            p = w * math.exp(one["log_prob"]) + (1 - w) * math.exp(other["log_prob"])
            assert row["log_prob"] == pytest.approx(math.log(p), abs=1e-5)
            assert row["weight"] == w and (not w or row["reasoning"] == one["reasoning"])
    own = tmp_path / "estimator"
    shutil.copytree(estimator, own)
    rest = {name: value for name, value in manifest.items() if name != "identity"}
    rest |= {"form": {"kind": "mixture", "weight": 0.25}}
    (own / "manifest.json").write_text(json.dumps(rest | {"identity": identity(rest)}))
    capsys.readouterr()
    by_form = scored(own)
    assert "with weight 0.25" in capsys.readouterr().err
    assert [row["log_prob"] for row in by_form] == [row["log_prob"] for row in mixed]
    arguments = remid_arguments(run, tmp_path / "remid", "perfect")
    arguments[arguments.index(str(estimator))] = str(own)
    assert main([*arguments, "--negatives", "5"]) == 0
    results = json.loads((tmp_path / "remid" / "results.json").read_text())
    assert results["reasoning"] == {"kind": "mixture", "weight": 0.25}
    assert "with weight 0.25" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_mixture_without_a_weight_is_refused(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    base = run / "base"
    assert main(["export", "--base", str(base), "--prompts", "world", "--out", str(bare)]) == 0
    arguments = ["score", "--estimator", str(bare), "--data", str(run / "world" / "dialogues.json")]
    arguments += ["--out", str(tmp_path / "scores.jsonl"), "--reasoning"]
    for text, message in (
        ("mixture", "has no weight that was fitted on held-out rows"),
        ("mixture:much", "accepted is a weight from 0 to 1"),
        ("mixture:2", "with weight 2.0; accepted is a number from 0 to 1"),
    ):
        assert main([*arguments, text]) == 2
        assert message in capsys.readouterr().err


def test_remid_gives_what_the_run_gave(run, tmp_path, capsys):
    models = ("perfect", "noise_0.4", "unsure_of_user", "unsure_of_dialogue")
    arguments = [
        "remid",
        "--estimator",
        str(run / "estimator"),
        "--data",
        str(run / "world" / "dialogues.json"),
    ]
    arguments += ["--responses", *(f"{name}={run / 'world' / name}.jsonl" for name in models)]
    assert main([*arguments, "--seed", "3", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    expected = json.loads((run / "results.json").read_text())["remid"]
    for name in models:
        assert found["average"][name]["remid"] == pytest.approx(
            expected["average"][name]["remid"], abs=1e-5
        )
    assert "R-EMI" in capsys.readouterr().out


def remid_arguments(run, out, *models):
    arguments = [
        "remid",
        "--estimator",
        str(run / "estimator"),
        "--data",
        str(run / "world" / "dialogues.json"),
    ]
    return [
        *arguments,
        "--responses",
        *(f"{name}={run / 'world' / name}.jsonl" for name in models),
        "--out",
        str(out),
    ]


def test_remid_by_the_reference_protocol(run, tmp_path, capsys):
    arguments = remid_arguments(run, tmp_path, "perfect", "noise_0.4")
    assert main([*arguments, "--protocol", "reference"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["name"] == "reference" and results["protocol"]["cut"] == 0
    assert {"perfect", "noise_0.4"} == set(results["average"])
    assert (tmp_path / "results.csv").exists() and not (tmp_path / "contributions.jsonl").exists()
    assert main([*arguments, "--overwrite", "--protocol", "reference", "--measures", "club"]) == 2
    assert "--protocol reference fixes what --measures chooses" in capsys.readouterr().err


def test_a_second_remid_computes_the_new_model_only(run, tmp_path, capsys):
    """Contexts and golden responses were done for the first model; the results are those without a
    cache.
    """
    cache = ["--cache", str(tmp_path / "cache")]
    assert main([*remid_arguments(run, tmp_path / "first", "perfect"), *cache]) == 0
    capsys.readouterr()
    assert main([*remid_arguments(run, tmp_path / "both", "perfect", "noise_0.4"), *cache]) == 0
    reasonings, scores = re.search(
        r"(\d+ of \d+) reasonings and (\d+ of \d+) scores", capsys.readouterr().err
    ).groups()
    assert reasonings == "25 of 25"
    found, asked = map(int, scores.split(" of "))
    assert asked / 2 <= found < asked
    assert (
        main([*remid_arguments(run, tmp_path / "anew", "perfect", "noise_0.4"), "--no-cache"]) == 0
    )
    assert "cache" not in capsys.readouterr().err
    both, anew = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("both", "anew")
    )
    for name in ("perfect", "noise_0.4"):
        assert both["average"][name]["remid"] == pytest.approx(
            anew["average"][name]["remid"], abs=1e-5
        )


def test_remid_beside_a_judge(run, tmp_path, capsys):
    models = ("perfect", "noise_0.4", "unsure_of_user")
    rows = [
        row["row"] for row in json.loads((run / "results.json").read_text())["remid"]["subsets"]
    ]
    scores = [
        {"model": model, "subset": row, "score": place + 0.1 * number}
        for place, model in enumerate(models)
        for number, row in enumerate(rows)
    ]
    (tmp_path / "judge.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores))
    arguments = [*remid_arguments(run, tmp_path, *models), "--judge", str(tmp_path / "judge.jsonl")]
    assert main(arguments) == 0
    assert "Kendall" in capsys.readouterr().out
    comparison = json.loads((tmp_path / "judge.json").read_text())
    assert "NaN" not in json.dumps(comparison)
    (tmp_path / "judge.jsonl").write_text('{"model": "nobody", "subset": "IDTest", "score": 1}\n')
    assert main([*arguments, "--overwrite"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.fixture
def faulty(run, tmp_path):
    """The perfect model's file with its first response gone, a blank one in OOD1Test, and one of
    OOD3Test twice.
    """
    rows = [
        json.loads(line) for line in (run / "world" / "perfect.jsonl").read_text().splitlines()
    ][1:]
    blank, twice = (
        next(row for row in rows if row["sample_ID"].startswith(name)) for name in ("OOD1", "OOD3")
    )
    rows.append(dict(twice))
    blank["response"] = " "
    (tmp_path / "faulty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"faulty={tmp_path / 'faulty.jsonl'}"


def test_unanswered_examples_are_left_out_counted_and_shown_where_that_is_allowed(
    run, tmp_path, faulty, capsys
):
    out = tmp_path / "out"
    arguments = [
        *remid_arguments(run, out, "noise_0.4"),
        "--responses",
        faulty,
        f"noisy={run}/world/noise_0.4.jsonl",
    ]
    assert main(arguments) == 2
    assert "response is empty" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--missing", "drop"]) == 0
    said = capsys.readouterr().out
    assert (
        "IDTest (1 of 5 left out)" in said
        and "faulty has 1 missing, 1 empty, 1 duplicated" in " ".join(said.split())
    )
    results = json.loads((out / "results.json").read_text())
    assert {row["row"]: row["examples"] for row in results["subsets"]} == {
        "IDTest": 4,
        "OOD1Test/user": 4,
        "OOD2Test/character": 5,
        "OOD3Test/dialogue": 4,
        "OOD4Test/all": 5,
    }
    bound = [
        "bound",
        *arguments[1:],
        "--base",
        str(run / "base"),
        "--shown",
        "1",
        "--missing",
        "drop",
    ]
    assert main(bound) == 0
    shown, whole = capsys.readouterr(), (out / "bound.md").read_text()
    assert "OOD3Test/dialogue (1 of" in shown.out and "bound.md" in shown.err
    assert len(shown.out.splitlines()) <= 40 < len(whole.splitlines())
    assert "noisy: the largest loss is" in shown.out and "output P" in whole
    for example in json.loads((out / "blame.json").read_text())["subsets"][1]["models"]["noisy"][
        "worst"
    ]:
        assert f"{example['loss']:+.3f}".replace("-", "\\-").replace("+", "") in whole
    assert json.loads((out / "bound.json").read_text())["unanswered"] == results["unanswered"]
    assert main(["report", str(out)]) == 0
    assert "OOD1Test/<wbr>user (1 of 5 left out)" in (out / "report.html").read_text()
    assert main([*arguments, "--missing", "drop", "--protocol", "reference", "--overwrite"]) == 0
    assert not (out / "contributions.jsonl").exists()  # of the older results, and not true of these
    assert json.loads((out / "results.json").read_text())["unanswered"] == results["unanswered"]


def test_score_leaves_out_what_was_not_answered_where_that_is_allowed(
    run, tmp_path, faulty, capsys
):
    score = [
        "score",
        "--estimator",
        str(run / "estimator"),
        "--data",
        str(run / "world" / "dialogues.json"),
    ]
    score += ["--responses", faulty.partition("=")[2], "--out", str(tmp_path / "scores.jsonl")]
    assert main(score) == 2
    assert main([*score, "--missing", "drop"]) == 0
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 5 * 5 - 3
    # IDTrain's 24 have no response either.
    assert "27 of 49 examples left out" in capsys.readouterr().err


def test_a_judge_may_score_what_was_left_out(run, tmp_path, faulty):
    """Its scores of these samples count for nothing."""
    data = json.loads((run / "world" / "dialogues.json").read_text())
    ids = [row["sample_ID"] for split, rows in data.items() if split != "IDTrain" for row in rows]
    scores = [
        {"sample_ID": name, "model": "faulty", "score": 1 + (index % 7)}
        for index, name in enumerate(ids)
    ]
    found = []
    for first in (scores[0], scores[0] | {"score": 1000}):
        (tmp_path / "judge.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [first, *scores[1:]])
        )
        arguments = [*remid_arguments(run, tmp_path / "out", "perfect")[:-4], "--responses", faulty]
        arguments += [
            "--missing",
            "drop",
            "--judge",
            str(tmp_path / "judge.jsonl"),
            "--out",
            str(tmp_path / "out"),
        ]
        assert main([*arguments, "--overwrite"]) == 0
        found.append(json.loads((tmp_path / "out" / "judge.json").read_text()))
    assert ids[0].startswith("IDTest") and found[0] == found[1]


def test_a_subset_of_one_example_is_an_error_or_a_row_with_its_reason(run, tmp_path, capsys):
    data = json.loads((run / "world" / "dialogues.json").read_text())
    data["OOD1Test"] = data["OOD1Test"][:1]
    (tmp_path / "one.json").write_text(json.dumps(data))
    ids = {row["sample_ID"] for rows in data.values() for row in rows}
    lines = (run / "world" / "perfect.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "one.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["sample_ID"] in ids)
    )
    arguments = [
        "--estimator",
        str(run / "estimator"),
        "--data",
        str(tmp_path / "one.json"),
        "--out",
        str(tmp_path),
    ]
    arguments += ["--responses", f"m={tmp_path / 'one.jsonl'}"]
    for command in ("remid", "bound"):
        assert (
            main(
                [
                    command,
                    *arguments,
                    *(["--base", str(run / "base")] if command == "bound" else []),
                ]
            )
            == 2
        )
        assert "OOD1Test/user: found a single example" in capsys.readouterr().err
    reference = ["remid", *arguments, "--protocol", "reference", "--show-small-subsets"]
    assert main(reference) == 2
    assert "--protocol reference fixes what --show-small-subsets chooses" in capsys.readouterr().err
    assert main(["remid", *arguments, "--show-small-subsets"]) == 0
    said = capsys.readouterr().out
    assert "user (a single example" in said and "aggregate average (of 3 of 4)" in said
    written = "".join(
        (tmp_path / name).read_text() for name in ("results.json", "results.csv", "results.tex")
    )
    assert not re.search(r"\bnan\b", written, re.IGNORECASE)


def test_export(run, tmp_path):
    checkpoint = max((run / "checkpoints").iterdir())
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "estimator")]) == 0
    manifest = json.loads((tmp_path / "estimator" / "manifest.json").read_text())
    assert manifest["training"]["checkpoint"] == checkpoint.name


def test_status(run, capsys):
    assert main(["status", str(run)]) == 0
    assert "state: finished" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("shift", "longer_turns", "--tag"), ("score", "--data"), ()])
def test_an_argument_that_is_no_text_is_named(words, capsys):
    assert main([*words, "\ud800"]) == 2
    said = capsys.readouterr().err
    assert f"argument {len(words) + 1}: found '\\ud800', which is not UTF-8" in said


def test_every_command_is_summed_up_in_a_whole_clause(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "on fresh samples of the synthetic worlds of quickstart runs" in said


def test_a_mistyped_option_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        main(["train", str(run.parent / "recipe.yaml"), "--output-dir", "x", "--colour=red"])
    assert "--colour=red" in capsys.readouterr().err


def test_mistakes_are_one_message_and_status_2(run, tmp_path, capsys):
    def message(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    assert "colour: unknown key" in message(
        "train", run.parent / "recipe.yaml", "colour=1", "--output-dir", tmp_path
    )
    unknown_split = message(
        "train",
        run.parent / "recipe.yaml",
        "data.limit={IDTrian: 3}",
        "--output-dir",
        tmp_path / "x",
    )
    assert "IDTrian" in unknown_split
    again = ("train", run.parent / "recipe.yaml", "--output-dir", run)
    assert "holds a run already" in message(*again, "--resume", "never")
    assert "seed: 3 -> 4" in message(*again, "seed=4")
    assert "--deadline 'soon'" in message(*again, "--deadline", "soon")
    assert "no run of coevolve" in message("status", tmp_path)
    assert "no complete checkpoint" in message(
        "export", tmp_path / "checkpoints" / "x", "--out", tmp_path / "e"
    )
    remid = [
        "remid",
        "--estimator",
        run / "estimator",
        "--data",
        run / "world" / "dialogues.json",
        "--out",
        tmp_path,
    ]
    assert "accepted is NAME=FILE" in message(*remid, "--responses", "perfect")
    perfect = f"perfect={run / 'world' / 'perfect.jsonl'}"
    assert "given more than once" in message(*remid, "--responses", perfect, perfect)
    assert "--negatives 'few'" in message(*remid, "--responses", perfect, "--negatives", "few")
    none = message(*remid, "--responses", perfect, "--contexts", "3")
    assert "has no contexts beside those that are evaluated" in none
    below = message(*remid, "--responses", perfect, "--contexts", "-3")
    assert "--contexts -3: accepted is a number from 0 up" in below
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join((run / "world" / "perfect.jsonl").read_text().splitlines()[:-1]))
    assert "short.jsonl" in message(*remid, "--responses", f"short={short}")
    (tmp_path / "bad.jsonl").write_text('{"sample_ID": "x"}\n')
    score = ["score", "--out", tmp_path / "scores.jsonl", "--estimator"]
    assert "bad.jsonl:1" in message(*score, run / "estimator", "--data", tmp_path / "bad.jsonl")
    assert "no manifest.json" in message(
        *score, tmp_path / "none", "--data", run / "world" / "dialogues.json"
    )
