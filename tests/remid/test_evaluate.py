"""R-EMI and R-EMID of a closed-form model, against plain loops over its log-probabilities."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coevolve.data.corpus import Corpus, read_corpus
from coevolve.data.example import Example, Turn
from coevolve.documents import Part
from coevolve.errors import ArtifactError, DataError, RecipeError
from coevolve.information.contrast import Contrast
from coevolve.information.emi import emi
from coevolve.information.estimate import FORMS
from coevolve.information.uncertainty import standard_error
from coevolve.remid import evaluate
from coevolve.remid import results as results_module
from coevolve.remid.evaluate import shares_of_examples
from coevolve.remid.measures import PUBLISHED, RECOMMENDED, Measure
from coevolve.remid.pairs import PerContext
from coevolve.remid.score import Scoring, score_corpus
from coevolve.remid.subsets import evaluated_examples, further_contexts, with_golden
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.scores import Scores

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "roleplay-shared.json"


def evaluate_remid(estimator, corpus, responses, *, measures=(), progress=None, **scoring):
    """The results as a file holds them."""
    how = {"measures": measures, "progress": progress}
    return evaluate.evaluate_remid(estimator, corpus, responses, Scoring(**scoring), **how).values()


def rows_of(results):
    return {row["row"]: row for row in results["subsets"]}


def information(estimator, examples, texts, per_token):
    """CLUB over all pairs, one pair after the other."""
    reasoning = estimator.reason(examples)
    matched, mismatched = [], []
    for example, thought, own in zip(examples, reasoning, texts, strict=True):
        for text in texts:
            value = estimator.log_prob(example, text, thought)
            value /= len(text.split()) + 1 if per_token else 1
            (matched if text is own else mismatched).append(value)
    return np.mean(matched) - np.mean(mismatched)


@pytest.mark.parametrize("normalisation", ["per_token", "per_response"])
def test_against_plain_loops(corpus, estimator, responses, normalisation):
    measures = [Measure("club", normalisation)]
    results = evaluate_remid(estimator, corpus, responses, measures=measures, negatives="all")
    groups = {
        "IDTest": corpus.splits["IDTest"],
        "OOD3Test/word_composition": corpus.splits["OOD3Test"],
    }
    groups |= {f"OOD1Test/{name}": group for name, group in corpus.subsets("OOD1Test").items()}
    assert set(rows_of(results)) == set(groups)
    remi = {}
    for row, group in groups.items():
        golden = information(
            estimator, group, [x.golden_response for x in group], normalisation == "per_token"
        )
        assert rows_of(results)[row]["golden"]["mutual_information"] == pytest.approx(golden)
        for name, given in responses.items():
            own = information(
                estimator, group, [given[x.sample_id] for x in group], normalisation == "per_token"
            )
            remi[name, row] = own - golden
            assert rows_of(results)[row]["models"][name]["remi"] == pytest.approx(own - golden)
    for name in responses:
        losses = [remi[name, "IDTest"] - remi[name, row] for row in groups if row != "IDTest"]
        found = [row["models"][name]["remid"] for row in results["subsets"] if row["shift"]]
        assert sorted(found) == pytest.approx(sorted(losses))
        assert results["average"][name]["remid"] == pytest.approx(np.mean(losses))


def test_golden_perplexity_and_means_by_loops(corpus, estimator, responses):
    row = rows_of(evaluate_remid(estimator, corpus, responses, measures=[PUBLISHED]))[
        "OOD1Test/german"
    ]
    group = corpus.subsets("OOD1Test")["german"]
    values = [
        estimator.log_prob(example, example.golden_response, thought)
        for example, thought in zip(group, estimator.reason(group), strict=True)
    ]
    assert row["golden"]["tokens"] == 3 + 4
    assert row["golden"]["perplexity"] == pytest.approx(np.exp(-sum(values) / 7))
    assert row["golden"]["positive"] == pytest.approx((values[0] / 3 + values[1] / 4) / 2)
    assert row["golden"]["mutual_information"] == pytest.approx(
        row["golden"]["positive"] - row["golden"]["negative"]
    )


def test_layout_of_the_results(corpus, estimator, responses):
    results = evaluate_remid(estimator, corpus, responses, negatives=4, seed=3)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    settings = (
        "schema",
        "reasoning",
        "normalisation",
        "unit",
        "form",
        "negatives",
        "seed",
        "models",
        "beside",
    )
    assert {key: results[key] for key in settings} == {
        "schema": "coevolve.remid/3",
        "reasoning": {"kind": "greedy"},
        "normalisation": "per_token",
        "unit": "nats per token",
        "form": "club",  # a sample of pairs allows no other
        "negatives": 4,
        "seed": 3,
        "models": ["echo", "persona"],
        "beside": [],
    }
    described = [
        [row[key] for key in ("row", "shift", "examples", "negatives")]
        for row in results["subsets"]
    ]
    assert described == [
        ["IDTest", None, 3, 4],  # two tags, pooled: 6 pairs, of which 4 are drawn
        ["OOD1Test/german", "user", 2, 2],
        ["OOD1Test/french", "user", 2, 2],
        ["OOD3Test/word_composition", "dialogue", 2, 2],
    ]
    assert list(results["by_shift"]) == ["user", "dialogue"]
    users = [row["models"]["echo"] for row in results["subsets"] if row["shift"] == "user"]
    for measure in ("remi", "remid"):
        assert results["by_shift"]["user"]["echo"][measure] == pytest.approx(
            np.mean([row[measure] for row in users])
        )
    assert rows_of(results)["IDTest"]["models"]["echo"]["remid"] is None


def test_every_field_of_the_results_is_documented(corpus, estimator, responses):
    """By the models of `coevolve.remid.results`; rows, shifts and models are names that the data
    give.
    """
    results = evaluate_remid(
        estimator, corpus, responses, negatives="all", reasoning=Reasoning("marginal", samples=2)
    )
    named = {*responses, *results["by_shift"]}

    def fields(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from [] if key in named else [key]
                yield from fields(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from fields(inner)

    parts = [
        part
        for part in vars(results_module).values()
        if isinstance(part, type) and issubclass(part, Part)
    ]
    assert all(part.__doc__ for part in parts)
    known = {field.alias or name for part in parts for name, field in part.model_fields.items()}
    assert [name for name in dict.fromkeys(fields(results)) if name not in known] == []


def test_golden_responses_as_a_model_have_zero_remi_and_remid(corpus, estimator):
    golden = [example.golden_response for example in evaluated_examples(corpus)]
    results = evaluate_remid(estimator, corpus, {"golden": golden}, negatives=3)
    assert [row["models"]["golden"]["remi"] for row in results["subsets"]] == [0.0] * 4
    assert [row["models"]["golden"]["remi_error"] for row in results["subsets"]] == [0.0] * 4
    average = results["average"]["golden"]
    assert {average[name] for name in ("remi", "remid", "remid_error")} == {0.0}
    assert average["remid_low"] == -average["remid_high"] < 0  # the next example may differ


def test_remid_is_antisymmetric(corpus, estimator, responses):
    """With P and Q exchanged, the loss changes its sign."""
    p, q = corpus.splits["IDTest"], corpus.splits["OOD3Test"]
    one = Corpus({"IDTest": p, "OOD3Test": tuple(replace(x, subset="q") for x in q)}, "P to Q")
    two = Corpus({"IDTest": q, "OOD3Test": tuple(replace(x, subset="p") for x in p)}, "Q to P")
    given = {"echo": {x.sample_id: responses["echo"][x.sample_id] for x in (*p, *q)}}
    there, back = (
        evaluate_remid(estimator, corpus, given, measures=[PUBLISHED])["average"]["echo"]["remid"]
        for corpus in (one, two)
    )
    assert there == pytest.approx(-back)
    assert abs(there) > 0.01


@pytest.mark.parametrize("larger", ["IDTest", "OOD3Test"])
def test_a_loss_is_between_as_many_contexts_on_both_sides(larger, estimator, monkeypatch):
    """A form that averages over contexts has the ceiling log(K + 1). Where golden responses are
    certain, a model that says always the same is that far below them in either subset, so that it
    loses nothing, whichever of the two has more examples.
    """
    constant = "always this"
    monkeypatch.setattr(
        estimator,
        "log_prob",
        lambda example, text, _: 0.0 if text in (constant, example.golden_response) else -500.0,
    )
    sizes = {"IDTest": 4, "OOD3Test": 4, larger: 7}
    corpus = Corpus(
        {
            split: tuple(
                Example(f"{split}{i}", "kind", "a", "b", (Turn("user", "c"),), f"of {split} {i}")
                for i in range(size)
            )
            for split, size in sizes.items()
        },
        "by hand",
    )
    results = evaluate_remid(
        estimator,
        corpus,
        {"constant": {example.sample_id: constant for example in corpus.examples}},
        measures=[Measure("info_nce", "per_response")],
        negatives="all",
    )
    found = {row["row"]: row["models"]["constant"] for row in results["subsets"]}
    assert found["IDTest"]["remi"] == pytest.approx(-np.log(sizes["IDTest"]))
    assert found["OOD3Test/kind"]["remi"] == pytest.approx(-np.log(sizes["OOD3Test"]))
    assert found["OOD3Test/kind"]["remid"] == pytest.approx(0, abs=1e-9)


def test_each_context_is_computed_once(corpus, estimator, responses):
    evaluate_remid(estimator, corpus, responses, negatives="all", contexts_at_once=2)
    tested = [example.sample_id for example in evaluated_examples(corpus)]
    assert Counter(estimator.reasoned) == Counter(estimator.contexts) == Counter(tested)


def test_the_same_text_is_scored_once_per_context(corpus, estimator, responses):
    evaluate_remid(estimator, corpus, responses, negatives="all")
    once = estimator.pairs
    twice = type(estimator)(estimator.vocabulary)
    again = evaluate_remid(twice, corpus, responses | {"same": responses["echo"]}, negatives="all")
    assert twice.pairs == once
    for row in again["subsets"]:
        assert row["models"]["same"] == row["models"]["echo"]


def test_nothing_depends_on_how_many_contexts_go_at_once(corpus, estimator, responses):
    one, many = (
        evaluate_remid(estimator, corpus, responses, contexts_at_once=count) for count in (1, 100)
    )
    assert one == many


@pytest.mark.parametrize("negatives", ["all", 3])
def test_order_of_rows_does_not_matter(corpus, estimator, responses, negatives):
    reversed_rows = Corpus(
        {split: examples[::-1] for split, examples in corpus.splits.items()}, corpus.source
    )
    one, two = (
        rows_of(
            evaluate_remid(estimator, given, responses, negatives=negatives, measures=[PUBLISHED])
        )
        for given in (corpus, reversed_rows)
    )
    for row, numbers in one.items():
        for name in responses:
            assert two[row]["models"][name]["remi"] == pytest.approx(
                numbers["models"][name]["remi"]
            )


def test_responses_as_a_list_are_in_the_corpus_order(corpus, estimator, responses):
    listed = {
        name: [given[x.sample_id] for x in evaluated_examples(corpus)]
        for name, given in responses.items()
    }
    assert evaluate_remid(estimator, corpus, listed) == evaluate_remid(estimator, corpus, responses)


def test_without_shifted_splits_there_is_no_average(corpus, estimator, responses):
    only = Corpus({"IDTest": corpus.splits["IDTest"]}, "in distribution only")
    given = {"echo": {x.sample_id: responses["echo"][x.sample_id] for x in only.examples}}
    results = evaluate_remid(estimator, only, given)
    assert (len(results["subsets"]), results["by_shift"], results["average"]) == (1, {}, {})


def test_progress_tells_what_and_how_far(corpus, estimator, responses):
    steps = []
    evaluate_remid(
        estimator, corpus, responses, contexts_at_once=2, progress=lambda *step: steps.append(step)
    )
    assert steps[0] == ("IDTest: writing reasoning", 0, 9)
    assert steps[-1] == ("OOD3Test/word_composition: scored", 9, 9)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def drop(responses, sample_id):
    return {"echo": {key: text for key, text in responses["echo"].items() if key != sample_id}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: drop(r, "g2"), r"'echo': 1 test examples lack a response \('g2'\)"),
        (
            lambda r: {"echo": r["echo"] | {"x9": "hi"}},
            r"'echo': 1 responses are of no test example \('x9'\)",
        ),
        (lambda r: {"echo": r["echo"] | {"i1": " "}}, "sample 'i1' has ' '"),
        (lambda r: {"echo": r["echo"] | {"i1": None}}, "sample 'i1' has None"),
        (
            lambda r: {"echo": list(r["echo"].values())[1:]},
            "a list of 8; accepted is one response for each of the 9",
        ),
        (lambda r: {"echo": "what now"}, "found a string"),
        (lambda r: {}, "no model's responses"),
    ],
)
def test_unusable_responses_are_refused_before_scoring(
    corpus, estimator, responses, change, message
):
    with pytest.raises(DataError, match=message):
        evaluate_remid(estimator, corpus, change(responses))
    assert estimator.reasoned == []


def test_unusable_data_is_refused_before_scoring(corpus, estimator, responses):
    lone = Corpus(dict(corpus.splits) | {"OOD3Test": corpus.splits["OOD3Test"][:1]}, "data.json")
    with pytest.raises(
        DataError, match=r"data.json: OOD3Test/word_composition: found a single example \('w1'\)"
    ):
        evaluate_remid(estimator, lone, drop(responses, "w2"))
    unanswered = tuple(
        replace(example, golden_response=None) for example in corpus.splits["OOD3Test"]
    )
    with pytest.raises(DataError, match="sample 'w1' has no agent_golden_response"):
        evaluate_remid(
            estimator,
            Corpus(dict(corpus.splits) | {"OOD3Test": unanswered}, "data.json"),
            responses,
        )
    with pytest.raises(DataError, match="IDTest"):
        evaluate_remid(
            estimator, Corpus({"OOD3Test": corpus.splits["OOD3Test"]}, "data.json"), responses
        )
    assert estimator.reasoned == []


@pytest.mark.parametrize(
    "setting", [{"negatives": 0}, {"small_subsets": "hide"}, {"contexts_at_once": 0}]
)
def test_unusable_settings_are_refused_before_scoring(corpus, estimator, responses, setting):
    with pytest.raises(RecipeError, match=f"{next(iter(setting))} is"):
        evaluate_remid(estimator, corpus, responses, **setting)
    assert estimator.reasoned == []


def test_a_broken_estimator_is_reported(corpus, estimator, responses, monkeypatch):
    sound = estimator.log_prob_pairs
    diverged = lambda *given: Scores(sound(*given).sum * np.nan, sound(*given).tokens)  # noqa: E731
    monkeypatch.setattr(estimator, "log_prob_pairs", diverged)
    with pytest.raises(ArtifactError, match="IDTest: the estimator gave 27 of 27 pairs"):
        evaluate_remid(estimator, corpus, responses)
    monkeypatch.setattr(estimator, "log_prob_pairs", lambda *given: Scores(np.zeros(3), np.ones(3)))
    with pytest.raises(ArtifactError, match=r"shape \(3,\) for 27 pairs"):
        evaluate_remid(estimator, corpus, responses)


@pytest.mark.skipif(
    not REAL_DATA.exists(), reason="the shared role-play dialogues are not beside this checkout"
)
def test_real_dialogues(estimator):
    corpus = read_corpus(REAL_DATA)
    texts = (
        text
        for x in corpus.examples
        for text in (x.user_persona, x.dialogue[-1].text, x.golden_response)
    )
    real = type(estimator)({word for text in texts for word in text.split()})
    examples = evaluated_examples(corpus)
    golden = [example.golden_response for example in examples]
    given = {"golden": golden, "of another": golden[1:] + golden[:1]}
    results = evaluate_remid(real, corpus, given, measures=[RECOMMENDED], negatives=PerContext(20))
    assert len(results["subsets"]) == 10
    for row in results["subsets"]:
        assert (row["negatives"], row["contexts"]) == (20 * row["examples"], 20)
        assert row["models"]["golden"]["remi"] == 0.0
        if row["subset"] in (
            "chinese",
            "japanese",
        ):  # written without spaces, so that no word is shared
            assert row["golden"]["mutual_information"] == pytest.approx(0, abs=0.05)
            continue
        # Even words alone tell a dialogue's own response.
        assert row["golden"]["mutual_information"] > 0.1
        assert row["models"]["of another"]["remi_high"] < 0
        assert row["models"]["of another"]["mutual_information"] == pytest.approx(0, abs=0.3)


# Several measures, uncertainty, protocols.


def test_by_default_the_published_form_stands_beside_the_recommended_one(
    corpus, estimator, responses
):
    results = evaluate_remid(estimator, corpus, responses, negatives="all")
    assert (results["form"], results["normalisation"]) == (
        RECOMMENDED.form,
        RECOMMENDED.normalisation,
    )
    (beside,) = results["beside"]
    assert (beside["form"], beside["normalisation"]) == (PUBLISHED.form, PUBLISHED.normalisation)
    alone = evaluate_remid(estimator, corpus, responses, negatives="all", measures=[PUBLISHED])
    for name in ("average", "by_shift", "comparisons"):
        assert beside[name] == alone[name]
    for row, ours in zip(beside["subsets"], alone["subsets"], strict=True):
        assert row["models"] == ours["models"]


def test_every_form_is_the_function_of_the_scores_that_its_name_says(corpus, estimator, responses):
    measures = [Measure(form, "per_token") for form in FORMS]
    results = evaluate_remid(estimator, corpus, responses, measures=measures, negatives="all")
    scoring = Scoring(negatives="all")
    scored = score_corpus(estimator, corpus, responses, scoring, measures=measures).subsets
    for block in (results, *results["beside"]):
        for row, subset in zip(block["subsets"], scored, strict=True):
            for name in responses:
                found = emi(
                    subset.contrast(name, "per_token"),
                    subset.contrast(None, "per_token"),
                    block["form"],
                )
                assert row["models"][name]["remi"] == pytest.approx(found.value)
                assert row["models"][name]["remi_error"] == pytest.approx(
                    standard_error(found.influence)
                )
                low, high = row["models"][name]["remi_low"], row["models"][name]["remi_high"]
                assert low <= found.value <= high or len(subset.subset.examples) < 4


def test_remid_compares_at_the_smaller_number_of_contexts(corpus, estimator, responses):
    """IDTest has 3 examples and each language 2: the loss is that of one other context per response
    on both sides.
    """
    measures = [Measure("info_nce")]
    results = evaluate_remid(estimator, corpus, responses, measures=measures, negatives="all")
    scoring = Scoring(negatives="all")
    scored = score_corpus(estimator, corpus, responses, scoring, measures=measures).subsets

    def remi(subset, name, contexts):
        limited = [
            subset.contrast(model, "per_response").first_pairs(
                contexts * len(subset.subset.examples)
            )
            for model in (name, None)
        ]
        assert all(isinstance(contrast, Contrast) for contrast in limited)
        return emi(*limited, "info_nce").value

    assert [row["contexts"] for row in results["subsets"]] == [2, 1, 1, 1]
    for row, subset in zip(results["subsets"][1:], scored[1:], strict=True):
        for name in responses:
            expected = remi(scored[0], name, 1) - remi(subset, name, 1)
            assert row["models"][name]["remid"] == pytest.approx(expected)


def test_further_contexts_count_as_others_of_each_response(corpus, estimator, responses):
    """In both terms; and R-EMID, which has none of them in the shifted subsets,
    stays what it is.
    """
    extra = tuple(
        replace(x, sample_id=f"u-{x.sample_id}", user_persona=f"is old and {x.user_persona}")
        for x in corpus.splits["OOD1Test"]
    )
    measures, scoring = [Measure("info_nce")], Scoring("all")
    with_more = replace(scoring, further={"IDTest": extra}, contexts_at_once=2)
    usual, more = (
        score_corpus(estimator, corpus, responses, x, measures=measures)
        for x in (scoring, with_more)
    )
    home = more.subsets[0]
    assert [x.contexts for x in more.subsets] == [2 + 4, 1, 1, 1]
    contexts = [*corpus.splits["IDTest"], *extra]
    thoughts = estimator.reason(contexts)

    def by_loops(texts):
        terms = []
        for own, text in enumerate(texts):
            every = [
                estimator.log_prob(x, text, r) for x, r in zip(contexts, thoughts, strict=True)
            ]
            terms.append(every[own] - np.log(np.mean(np.exp(every))))
        return np.mean(terms)

    golden = [x.golden_response for x in contexts[:3]]
    for name in responses:
        own = [responses[name][x.sample_id] for x in contexts[:3]]
        found, before = (evaluate.summarise(x, measures) for x in (more, usual))
        remi = found.subsets[0].models[name].remi
        assert remi == pytest.approx(by_loops(own) - by_loops(golden))
        assert remi != pytest.approx(before.subsets[0].models[name].remi)
        for row, row_before in zip(found.subsets[1:], before.subsets[1:], strict=True):
            assert row.models[name].remid == pytest.approx(row_before.models[name].remid)
        shares = [x.remi for x in shares_of_examples(more, measures[0]) if x.model == name]
        assert np.mean(shares[:3]) == pytest.approx(remi)
    assert home.contrast(None, "per_response", 2).mismatched.size == 3 * 2


def test_further_contexts_are_of_rows_that_are_not_evaluated(corpus):
    bare = [
        replace(x, sample_id=f"u-{x.sample_id}", golden_response=None)
        for split in ("IDTest", "OOD1Test")
        for x in corpus.splits[split]
    ]
    more = {"IDTest": tuple(bare[:3]), "OOD1Test": tuple(bare[3:])}
    splits = {name: (*more.get(name, ()), *rows) for name, rows in corpus.splits.items()}
    whole = replace(corpus, splits=splits)
    assert with_golden(whole) == corpus
    found = further_contexts(whole, corpus, 2, seed=0)
    ids = {row: {x.sample_id for x in rows} for row, rows in found.items() if rows}
    assert ids.pop("IDTest") < {"u-i1", "u-i2", "u-i3"}
    assert ids == {"OOD1Test/german": {"u-g1", "u-g2"}, "OOD1Test/french": {"u-f1", "u-f2"}}
    turned = replace(corpus, splits={name: rows[::-1] for name, rows in splits.items()})
    assert further_contexts(turned, corpus, 2, seed=0) == found
    with pytest.raises(DataError, match="no contexts beside those that are evaluated; accepted"):
        further_contexts(corpus, corpus, 2, seed=0)
    # A subset without any golden response is at fault, and is said to be.
    none = tuple(replace(x, golden_response=None) for x in corpus.splits["OOD3Test"])
    faulty = replace(corpus, splits=dict(corpus.splits) | {"OOD3Test": none})
    assert with_golden(faulty) == faulty


def test_comparisons_are_paired(corpus, estimator, responses):
    given = responses | {"copy": responses["echo"]}
    results = evaluate_remid(estimator, corpus, given, negatives="all")
    found = {(*row["models"], row["measure"]): row for row in results["comparisons"]}
    assert len(found) == 3 * 2
    same = found["echo", "copy", "remid"]
    assert (same["value"], same["error"], same["low"] + same["high"]) == pytest.approx((0, 0, 0))
    other = found["echo", "persona", "remid"]
    average = results["average"]
    assert other["value"] == pytest.approx(average["echo"]["remid"] - average["persona"]["remid"])
    assert other["error"] > 0


def test_contributions_average_to_remi(corpus, estimator, responses):
    for measure in (PUBLISHED, RECOMMENDED):
        scored = score_corpus(estimator, corpus, responses, Scoring(negatives="all"))
        results = evaluate_remid(estimator, corpus, responses, measures=[measure], negatives="all")
        shares = list(shares_of_examples(scored, measure))
        assert len(shares) == len(responses) * len(evaluated_examples(corpus))
        for row in results["subsets"]:
            for name in responses:
                own = [x.remi for x in shares if (x.row, x.model) == (row["row"], name)]
                assert np.mean(own) == pytest.approx(row["models"][name]["remi"])


def test_a_subset_of_one_example_is_shown_where_that_is_asked_for(corpus, estimator, responses):
    lone = Corpus(dict(corpus.splits) | {"OOD1Test": corpus.splits["OOD1Test"][:3]}, "data.json")
    given = {
        name: {key: text for key, text in texts.items() if key != "f2"}
        for name, texts in responses.items()
    }
    with pytest.raises(DataError, match=r"OOD1Test/french: found a single example \('f1'\)"):
        evaluate_remid(estimator, lone, given)
    results = evaluate_remid(estimator, lone, given, small_subsets="show")
    assert [row["row"] for row in results["subsets"]] == [
        "IDTest",
        "OOD1Test/german",
        "OOD1Test/french",
        "OOD3Test/word_composition",
    ]
    row = rows_of(results)["OOD1Test/french"]
    assert (row["examples"], row["golden"], row["models"]) == (
        1,
        None,
        {"echo": None, "persona": None},
    )
    assert "single example" in row["reason"]
    others = [rows_of(results)[name]["models"]["echo"]["remid"] for name in ("OOD1Test/german",)]
    assert results["by_shift"]["user"]["echo"]["remid"] == pytest.approx(np.mean(others))


def test_a_sample_of_pairs_is_refused_for_forms_that_average_over_contexts(
    corpus, estimator, responses
):
    with pytest.raises(
        DataError, match="IDTest: calibrated needs each response in equally many other contexts"
    ):
        evaluate_remid(estimator, corpus, responses, measures=[RECOMMENDED], negatives=4)
    assert estimator.reasoned == []


def test_reasoning_protocols(corpus, estimator, responses):
    def matched(reasoning):
        scoring = Scoring(reasoning=reasoning)
        scored = score_corpus(estimator, corpus, responses, scoring).subsets
        return scored[0].positive["echo"].sum, scored[0].negative["echo"].sum

    examples = corpus.splits["IDTest"]
    texts = [responses["echo"][x.sample_id] for x in examples]

    def literal(reasonings):
        of_each = [
            [
                estimator.log_prob(x, text, r)
                for x, text, r in zip(examples, texts, written, strict=True)
            ]
            for written in reasonings
        ]
        return np.log(np.mean(np.exp(of_each), axis=0))

    np.testing.assert_allclose(matched(Reasoning())[0], literal([estimator.reason(examples)]))
    np.testing.assert_allclose(matched(Reasoning("none"))[0], literal([[None] * 3]))
    np.testing.assert_allclose(
        matched(Reasoning("sampled", seed=5))[0], literal([estimator.reason(examples, seed=5)])
    )
    mixture = Reasoning("marginal", samples=3, seed=5)
    several = [estimator.reason(examples, seed=5 + k) for k in range(3)]
    np.testing.assert_allclose(matched(mixture)[0], literal(several))
    assert evaluate_remid(estimator, corpus, responses, reasoning=mixture)["reasoning"] == {
        "kind": "marginal",
        "samples": 3,
        "seed": 5,
    }


@pytest.mark.parametrize(
    ("kind", "samples"), [("clever", 1), ("greedy", 2), ("marginal", 0), ("marginal", 1.5)]
)
def test_protocols_that_cannot_be_are_refused(kind, samples):
    with pytest.raises(RecipeError, match="reasoning"):
        Reasoning(kind, samples)


def test_measures_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="form is 'mine'"):
        Measure("mine")
    with pytest.raises(RecipeError, match="normalisation is 'per_word'"):
        Measure("club", "per_word")
