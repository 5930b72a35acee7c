"""The bound on a corpus whose truth is known: which shift is found, what the terms are made of,
what is refused.
"""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from coevolve.data.corpus import Corpus
from coevolve.data.responses import write_responses
from coevolve.errors import DataError, RecipeError
from coevolve.information.discrete import jensen_shannon
from coevolve.prompts import Renderer, prompt_set
from coevolve.remid.blame import losses, remi_of
from coevolve.remid.bound import (
    INPUT_TEXTS,
    Measuring,
    bound_grid,
    evaluate_bound,
    shift_grid,
)
from coevolve.remid.bound_results import BoundResults
from coevolve.remid.evaluate import summarise
from coevolve.remid.grid import grid_table
from coevolve.remid.measures import RECOMMENDED, Measure
from coevolve.remid.score import Scoring, score_corpus
from coevolve.remid.subsets import evaluated_examples
from coevolve.scoring.scores import Scores
from coevolve.worlds.corpus import world_corpus, world_of, worlds_by_split
from coevolve.worlds.language import SLOTS
from coevolve.worlds.role_players import role_players
from coevolve.worlds.truth import emid

SEED = 3


class Truth:
    """The world's own p(y | x) as the estimator."""

    def __init__(self, world):
        self.world = world

    def reason(self, examples):
        return [""] * len(examples)

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        contexts, texts = [examples[i] for i, _ in pairs], [responses[j] for _, j in pairs]
        return Scores(self.world.golden.log_prob(contexts, texts), np.full(len(pairs), SLOTS + 1))


class OneHot:
    """Each distinct text is a direction of its own: the representation that loses nothing."""

    name = "one-hot"

    def __init__(self, texts):
        self.place = {text: index for index, text in enumerate(dict.fromkeys(texts))}

    def __call__(self, texts):
        return np.eye(len(self.place))[[self.place[text] for text in texts]]


class Words:
    """Which words a text holds."""

    name = "bag of words"

    def __init__(self, texts):
        self.words = sorted({word for text in texts for word in text.split()})

    def __call__(self, texts):
        return np.array(
            [[text.split().count(word) for word in self.words] for text in texts], dtype=float
        )


def texts_of(corpus, responses):
    texts = [
        text(example) for example in evaluated_examples(corpus) for text in INPUT_TEXTS.values()
    ]
    texts += [example.golden_response for example in evaluated_examples(corpus)]
    return texts + [text for given in responses.values() for text in given.values()]


@pytest.fixture(scope="module")
def corpus():
    return world_corpus(SEED, train=1, test=160)


@pytest.fixture(scope="module")
def responses(corpus):
    examples, policies = evaluated_examples(corpus), role_players(world_of(SEED))
    rng = np.random.default_rng(0)
    return {
        shown: dict(
            zip([x.sample_id for x in examples], policies[name].respond(examples, rng), strict=True)
        )
        for shown, name in {
            "user": "perfect",
            "[bold]noisy": "noise_0.8",
            "unsure": "unsure_of_user",
        }.items()
    }


@pytest.fixture(scope="module")
def scored(corpus, responses):
    return score_corpus(Truth(world_of(SEED)), corpus, responses)


@pytest.fixture(scope="module")
def results(corpus, responses, scored):
    return evaluate_bound(scored, Words(texts_of(corpus, responses))).values()


def test_the_input_that_shifted_is_to_blame(results):
    for row in results["subsets"]:
        ranked = [found["input"] for found in row["blame"]]
        assert sum(found["share"] for found in row["blame"]) == pytest.approx(1)
        if row["shift"] != "all":
            assert ranked[0] == row["shift"] and row["blame"][0]["share"] > 0.8
        else:
            assert all(row["inputs"][name]["excess"] > 0 for name in INPUT_TEXTS)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_the_shift_is_found_by_either_kernel(corpus, responses, scored, kernel):
    measuring = Measuring(kernel=kernel, repetitions=3, largest=80)
    found = evaluate_bound(scored, Words(texts_of(corpus, responses)), measuring=measuring).values()
    assert [row["blame"][0]["input"] for row in found["subsets"][:3]] == [
        "user",
        "character",
        "dialogue",
    ]
    assert found["kernel"] == kernel and {
        row["inputs"]["user"]["size"] for row in found["subsets"]
    } == {80}
    assert (found["widths"]["user"] is None) == (kernel == "linear")


def test_with_one_hot_vectors_the_jsd_is_the_exact_one_and_its_noise():
    corpus = world_corpus(SEED, train=1, test=1600)
    corpus = replace(
        corpus, splits={split: corpus.splits[split] for split in ("IDTest", "OOD2Test")}
    )
    golden = {x.sample_id: x.golden_response for x in evaluated_examples(corpus)}
    scored = score_corpus(Truth(world_of(SEED)), corpus, {"golden": golden}, Scoring(negatives=100))
    one_hot = OneHot([INPUT_TEXTS["character"](x) for x in evaluated_examples(corpus)])

    class CharactersOnly:
        name = "one-hot characters"

        def __call__(self, texts):
            return one_hot(texts) if texts[0] in one_hot.place else np.ones((len(texts), 1))

    found = evaluate_bound(scored, CharactersOnly(), measuring=Measuring(largest=800)).values()
    measured = found["subsets"][0]["inputs"]["character"]
    worlds = (world_of(SEED), worlds_by_split(SEED)["OOD2Test"])
    exact = jensen_shannon(*(world.factors["character"] for world in worlds))
    assert measured["excess"] < measured["jsd"] == pytest.approx(exact, rel=0.2)
    assert measured["excess"] == pytest.approx(exact, rel=0.2)
    assert found["subsets"][0]["inputs"]["user"]["jsd"] == pytest.approx(0, abs=1e-12)


def test_terms_follow_from_what_stands_beside_them(results):
    for row in results["subsets"]:
        for found in row["models"].values():
            for measured, total in (("jsd", "total"), ("floor", "noise_floor")):
                roots = sum(row["inputs"][name][measured] ** 0.5 for name in INPUT_TEXTS)
                outputs = sum(found[name][measured] ** 0.25 for name in ("output_p", "output_q"))
                entropy = found["entropy"]["largest"]
                assert found["published"][total] == pytest.approx(
                    (2 / 3) ** 0.5 * entropy * roots + 4 * outputs
                )
                assert found["scale_adjusted"][total] == pytest.approx(roots + outputs)
            terms = found["published"]
            assert sum(terms["inputs"].values()) + terms["output_p"] + terms[
                "output_q"
            ] == pytest.approx(terms["total"])


def test_bound_holds_for_the_exact_emid_and_remid_is_the_measured_one(scored, results):
    policies = role_players(world_of(SEED))
    worlds = worlds_by_split(SEED)
    for subset, row in zip(scored.subsets[1:], results["subsets"], strict=True):
        for shown, name in {
            "user": "perfect",
            "[bold]noisy": "noise_0.8",
            "unsure": "unsure_of_user",
        }.items():
            remi = [
                remi_of(side, shown, Measure("club")).value for side in (scored.subsets[0], subset)
            ]
            assert row["models"][shown]["remid"] == pytest.approx(remi[0] - remi[1])
            exact = emid(worlds["IDTest"], worlds[row["split"]], policies[name])
            assert row["models"][shown]["published"]["total"] > exact


def test_remid_is_that_of_the_table_in_subsets_of_any_size(corpus, responses):
    """By a form that depends on the number of contexts, R-EMID is over as many on either side."""
    splits = {
        name: rows[: 20 + 7 * place] for place, (name, rows) in enumerate(corpus.splits.items())
    }
    corpus = replace(corpus, splits=splits)
    texts = {"unsure": responses["unsure"]}
    kept = {x.sample_id for x in evaluated_examples(corpus)}
    texts = {name: {x: text for x, text in of.items() if x in kept} for name, of in texts.items()}
    scored = score_corpus(Truth(world_of(SEED)), corpus, texts, Scoring(negatives="all"))
    table = {one.row: one.models["unsure"].remid for one in summarise(scored).subsets[1:]}
    bound = evaluate_bound(scored, Words(texts_of(corpus, texts)))
    assert bound.form == "calibrated"
    assert {one.row: one.models["unsure"].remid for one in bound.subsets} == pytest.approx(table)
    parts = losses(scored.subsets, "unsure", RECOMMENDED)[1:]
    assert [loss.mean() for _, loss in parts] == pytest.approx(list(table.values()))


def test_entropy_is_the_largest_surprise_of_both_distributions(scored, results):
    for subset, row in zip(scored.subsets[1:], results["subsets"], strict=True):
        surprise = [
            -golden - model
            for side in (scored.subsets[0], subset)
            for golden, model in zip(
                side.positive[None].sum, side.positive["unsure"].sum, strict=True
            )
        ]
        found = row["models"]["unsure"]["entropy"]
        assert (found["largest"], found["mean"]) == pytest.approx(
            (max(surprise), np.mean(surprise))
        )


def test_a_models_outputs_are_further_from_golden_the_noisier_it_is(results):
    for row in results["subsets"]:
        by_model = {name: found["output_q"]["excess"] for name, found in row["models"].items()}
        assert by_model["[bold]noisy"] > by_model["user"]
        assert by_model["[bold]noisy"] > 0.01


def test_results_are_json_and_tables_show_every_subset(results):
    json.dumps(results, allow_nan=False)
    typed = BoundResults.model_validate(results)
    for grid in (shift_grid(typed), bound_grid(typed, "[bold]noisy")):
        console = Console(file=io.StringIO(), width=200)
        console.print(grid_table(grid))
        text = console.file.getvalue()
        assert all(row["row"] in text for row in results["subsets"])
    assert "[bold]noisy" in text


def test_progress_counts_every_text_once(corpus, responses, scored):
    steps = []
    evaluate_bound(
        scored,
        Words(texts_of(corpus, responses)),
        measuring=Measuring(repetitions=1, largest=8),
        progress=lambda what, done, total: steps.append((done, total)),
    )
    total = len(evaluated_examples(corpus)) * (3 + 1 + len(responses))
    assert steps[-1] == (total, total) and [done for done, _ in steps] == sorted(
        done for done, _ in steps
    )


def test_what_cannot_be_measured_is_refused(corpus, responses, scored):
    words = Words(texts_of(corpus, responses))
    with pytest.raises(DataError, match="no shifted subset"):
        evaluate_bound(replace(scored, subsets=scored.subsets[:1]), words)
    with pytest.raises(RecipeError, match="kernel is 'rbf'"):
        Measuring(kernel="rbf")
    few = Corpus(
        {"IDTest": corpus.splits["IDTest"], "OOD1Test": corpus.splits["OOD1Test"][:3]}, "few"
    )
    given = {"user": {x.sample_id: responses["user"][x.sample_id] for x in evaluated_examples(few)}}
    with pytest.raises(DataError, match="OOD1Test/user: found 3 examples"):
        evaluate_bound(score_corpus(Truth(world_of(SEED)), few, given), words)


def test_small_subsets_are_listed_where_that_is_asked_for(corpus, responses):
    splits = dict(corpus.splits)
    splits |= {"OOD1Test": corpus.splits["OOD1Test"][:1], "OOD2Test": corpus.splits["OOD2Test"][:3]}
    small = Corpus(splits, "small")
    given = {
        "user": {x.sample_id: responses["user"][x.sample_id] for x in evaluated_examples(small)}
    }
    scored = score_corpus(Truth(world_of(SEED)), small, given, Scoring(small_subsets="show"))
    results = evaluate_bound(scored, Words(texts_of(small, given)))
    listed = [(one.row, one.examples) for one in results.small_subsets]
    assert listed == [("OOD1Test/user", 1), ("OOD2Test/character", 3)]
    assert [row.row for row in results.subsets] == ["OOD3Test/dialogue", "OOD4Test/all"]
    assert "OOD2Test/character: 3, fewer than the 4" in " ".join(shift_grid(results).caption)


def test_the_command_writes_both_results_and_prints_the_tables(tmp_path, capsys):
    from coevolve.cli import main
    from coevolve.recipe import check_recipe
    from coevolve.scoring.estimator import ProbabilityEstimator
    from coevolve.scoring.models import base_fingerprint, load_model, load_tokenizer
    from coevolve.scoring.origins import Base, Origin
    from coevolve.scoring.roles import ROLES, SeparateRoles
    from coevolve.training.export import export_estimator
    from coevolve.worlds.tiny import write_tiny_base

    base = str(write_tiny_base(tmp_path / "base", seed=0, hidden=32, layers=1, heads=2))
    estimator = ProbabilityEstimator(
        SeparateRoles.create(load_model(base), keep_base=False),
        Renderer(prompt_set("world"), load_tokenizer(base)),
        max_new_tokens=8,
    )
    recipe = {
        "name": "test",
        "prompts": "world",
        "data": {"world": {"train": 8, "test": 8}},
        "model": {"base": "tiny", "tuning": "full"},
        "cold_start": {
            role: {"steps": 1, "learning_rate": 0.1} for role in ("connector", "estimator")
        },
        "rounds": {"count": 0},
    }
    origins = dict.fromkeys(ROLES, Origin(Base(base, base, base_fingerprint(base))))
    export_estimator(tmp_path / "estimator", estimator, check_recipe(recipe, "test"), origins, {})
    corpus = world_corpus(SEED, train=1, test=8)
    corpus.to_json(tmp_path / "dialogues.json")
    examples = evaluated_examples(corpus)
    write_responses(
        tmp_path / "golden.jsonl", examples, [example.golden_response for example in examples]
    )

    arguments = [
        "--estimator",
        tmp_path / "estimator",
        "--base",
        base,
        "--data",
        tmp_path / "dialogues.json",
    ]
    arguments += [
        "--responses",
        f"golden={tmp_path / 'golden.jsonl'}",
        "--negatives",
        "9",
        "--shown",
        "1",
        "--out",
        tmp_path / "out",
    ]
    assert main(["bound", *map(str, arguments)]) == 0
    found = json.loads((tmp_path / "out" / "bound.json").read_text())
    blame = json.loads((tmp_path / "out" / "blame.json").read_text())
    rows = ["OOD1Test/user", "OOD2Test/character", "OOD3Test/dialogue", "OOD4Test/all"]
    assert [row["row"] for row in found["subsets"]] == rows
    assert [row["row"] for row in blame["subsets"]] == ["IDTest", *rows]
    assert all(row["models"]["golden"]["remid"] == 0 for row in found["subsets"]), (
        "golden against itself"
    )
    assert found["data_fingerprint"] == blame["data_fingerprint"] == corpus.fingerprint
    printed = capsys.readouterr().out
    for text in ("shifted most", "R-EMID / its upper bound", "the largest loss is +0.000 nats per"):
        assert text in printed
    whole = (tmp_path / "out" / "bound.md").read_text()
    assert "golden: upper bound, nats per response" in whole and "smallest losses" in whole
