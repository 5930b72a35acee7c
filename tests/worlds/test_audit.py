"""The audit: its numbers against estimates made by hand, and what it says of an estimator that is
exact.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from coevolve.errors import DataError
from coevolve.information.agreement import spearman
from coevolve.scoring.scores import Scores
from coevolve.worlds import audit
from coevolve.worlds.audit import (
    GOLDEN,
    MEASURES,
    SOURCES,
    audit_world,
    emi_agreement,
    emid_agreement,
    information_agreement,
)
from coevolve.worlds.audit_tables import audit_tables
from coevolve.worlds.corpus import world_of, worlds_by_split
from coevolve.worlds.role_players import role_players
from coevolve.worlds.truth import RESPONSE_TOKENS, information

SEED = 1
NAMES = ("perfect", "noise_0.4", "unsure_of_user", "shuffled")


class Exact:
    """The world's own p(y | x) as an estimator, each word's probability raised to a power."""

    def __init__(self, world, power=1.0):
        self.policy = replace(world.golden, emission=world.golden.emission**power)
        self.scored = 0

    def reason(self, examples):
        return [""] * len(examples)

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        self.scored += len(pairs)
        sums = self.policy.log_prob(
            [examples[i] for i, _ in pairs], [responses[j] for _, j in pairs]
        )
        return Scores(sums, np.full(len(pairs), RESPONSE_TOKENS))


@pytest.fixture(scope="module")
def rows():
    return audit_world(Exact(world_of(SEED)), SEED, test=16, names=NAMES, own_readers=True)


def of(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_some_splits_have_the_numbers_that_all_of_them_have(rows):
    """And in distribution alone there is no EMID, in rows and tables."""
    exact = Exact(world_of(SEED))
    for splits in (["OOD2Test"], ["IDTest"]):
        some = audit_world(exact, SEED, test=16, names=NAMES, own_readers=True, splits=splits)
        assert some == [row for row in rows if row["split"] in ("IDTest", *splits)]
    titles = [str(table.title) for table in audit_tables(some)]
    assert not [title for title in titles if title.startswith(("EMID", "How EMID"))]


def test_every_estimate_stands_beside_its_exact_value(rows):
    assert len(rows) == 5 * (len(NAMES) + 1) * len(set(SOURCES) - {"fitted"}) * len(MEASURES)
    worlds = worlds_by_split(SEED)
    policies = role_players(worlds["IDTest"])
    informations = {
        (split, name): information(
            worlds[split], None if name == GOLDEN else policies[name]
        ).mutual_information
        for split in ("IDTest", "OOD1Test")
        for name in (GOLDEN, *NAMES)
    }
    emis = {
        (split, name): value - informations[split, GOLDEN]
        for (split, name), value in informations.items()
    }
    for row in of(rows, split="IDTest") + of(rows, split="OOD1Test"):
        key = row["split"], row["policy"]
        assert row["exact_information"] == pytest.approx(informations[key])
        assert row["exact_emi"] == pytest.approx(emis[key])
        if row["emid"] is not None:
            assert row["exact_emid"] == pytest.approx(emis["IDTest", row["policy"]] - emis[key])
    json.dumps(rows, allow_nan=False)


def test_differences_are_of_what_stands_there(rows):
    for row in of(rows, policy="noise_0.4", split="OOD1Test"):
        key = {"source": row["source"], "measure": row["measure"]}
        (golden,) = of(rows, policy=GOLDEN, split="OOD1Test", **key)
        (home,) = of(rows, policy="noise_0.4", split="IDTest", **key)
        assert row["emi"] == pytest.approx(row["information"] - golden["information"])
        assert row["emid"] == pytest.approx(home["emi"] - row["emi"])
        assert row["emid_error"] == pytest.approx(np.hypot(home["emi_error"], row["emi_error"]))
        assert golden["emi"] is None and home["emid"] is None


def test_an_exact_estimator_is_the_ideal_one(rows):
    for row in of(rows, source="estimator"):
        (ideal,) = of(
            rows, **{name: row[name] for name in ("split", "policy", "measure")}, source="ideal"
        )
        assert row["information"] == pytest.approx(ideal["information"])


def test_the_ideal_conditional_of_golden_responses_is_their_own(rows):
    for row in of(rows, policy=GOLDEN, source="ideal"):
        (own,) = of(rows, policy=GOLDEN, source="own", split=row["split"], measure=row["measure"])
        assert row["information"] == own["information"]


def test_only_a_policys_own_conditional_sees_that_a_permutation_loses_nothing(rows):
    (seen,) = of(rows, policy="shuffled", split="IDTest", source="own", measure="barber_agakov")
    (unseen,) = of(rows, policy="shuffled", split="IDTest", source="ideal", measure="barber_agakov")
    assert seen["emi"] == pytest.approx(0, abs=4 * seen["emi_error"])
    assert unseen["emi"] < -4


def test_the_best_reader_reads_what_the_estimator_cannot_and_is_not_their_maximum(rows):
    for split in ("IDTest", "OOD1Test"):
        found = {
            source: of(rows, policy="shuffled", split=split, source=source, measure="calibrated")[0]
            for source in ("estimator", "own", "best")
        }
        assert found["best"]["information"] == found["own"]["information"]
        assert found["best"]["emi"] > found["estimator"]["emi"] + 1.5
    # Where both readers are as good, halves may differ: the better of the other half is not one's
    # own.
    alike = [
        [x["information"] for x in of(rows, policy="perfect", source=source, measure="club")]
        for source in ("estimator", "own", "best")
    ]
    np.testing.assert_allclose(alike[2], alike[0])  # exact and own are the same conditional


def test_readers_that_were_fitted_read_their_own_policy_and_take_the_place_of_own(monkeypatch):
    monkeypatch.setattr(audit, "FITTED_TO", 12)
    world, fitted_to, told = world_of(SEED), [], []
    policies = [world.golden, role_players(world)["shuffled"]]

    def fit(examples, said):
        reader = Exact(world)
        reader.policy = policies[len(fitted_to)]
        fitted_to.append((examples, said))
        return reader

    names = ["shuffled"]
    found = audit_world(Exact(world), SEED, test=16, names=names, fit=fit, advance=told.append)
    assert sum(told) == 2 * 5 * 16
    (golden_contexts, golden), (contexts, said) = fitted_to
    assert golden_contexts == contexts and len(contexts) == len(said) == 12 and said != golden
    assert golden == [x.golden_response for x in contexts]
    assert len({x.sample_id.partition("-")[0] for x in contexts} - {"fit"}) == 0
    for row in of(found, source="fitted"):
        key = {name: row[name] for name in ("split", "policy", "measure")}
        (own,), (best,) = of(found, source="own", **key), of(found, source="best", **key)
        assert row["information"] == pytest.approx(own["information"])
        if row["policy"] == "shuffled" and row["measure"] == "calibrated":
            assert best["information"] == row["information"]


def test_agreement_counts_by_hand(rows):
    for row in emi_agreement(rows, same_code=True):
        chosen = [
            found
            for found in of(rows, split="IDTest", measure=row["measure"], source=row["source"])
            if found["policy"] in ("perfect", "noise_0.4", "unsure_of_user")
        ]
        assert row["policies"] == 3
        assert row["spearman"] == spearman(
            [x["exact_emi"] for x in chosen], [x["emi"] for x in chosen]
        )
    for row in emid_agreement(rows, same_code=False):
        chosen = [
            x
            for x in of(rows, measure=row["measure"], source=row["source"])
            if x["emid"] is not None
        ]
        large = [x for x in chosen if abs(x["exact_emid"]) > 0.1]
        right = [x for x in large if x["exact_emid"] * x["emid"] > 0]
        assert (row["losses"], row["large"]) == (4 * len(NAMES), len(large))
        assert row["right"] == len(right) / len(large)
    for row in information_agreement(rows):
        chosen = of(rows, policy=GOLDEN, measure=row["measure"], source=row["source"])
        assert row["ratio"] == pytest.approx(
            np.mean([x["information"] / x["exact_information"] for x in chosen])
        )


def test_calibration_forgives_an_estimator_that_is_too_sure():
    sure = audit_world(Exact(world_of(SEED), power=3.0), SEED, test=16, names=["noise_0.4"])
    found = {
        (row["source"], row["measure"]): row["emi"]
        for row in of(sure, split="IDTest", policy="noise_0.4")
    }
    assert found["estimator", "calibrated"] == pytest.approx(found["ideal", "calibrated"], abs=0.05)
    assert found["estimator", "barber_agakov"] < 2 * found["ideal", "barber_agakov"]
    assert found["estimator", "club"] == pytest.approx(3 * found["ideal", "club"])


def test_a_response_that_several_gave_is_scored_once():
    estimator = Exact(world_of(SEED))
    seen = []
    audit_world(estimator, SEED, test=8, names=["perfect", "noise_0.05"], advance=seen.append)
    assert sum(seen) == 5 * 8
    assert estimator.scored < 5 * 8 * (3 * 8)


def test_tables_show_every_policy_and_measure(rows, capsys):
    for table in audit_tables(rows):
        Console(width=200).print(table)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*NAMES, *MEASURES))
    assert "nan" not in shown
    line = next(x for x in shown.partition("by reader")[2].splitlines() if x.strip()[:4] == "best")
    emi = {x["policy"]: x for x in of(rows, split="IDTest", source="best", measure="calibrated")}
    del emi[GOLDEN]
    off = np.mean([abs(x["emi"] - x["exact_emi"]) for x in emi.values()])
    assert f"{off:.2f}" == line.split()[4]


def test_tables_of_one_policy_have_no_correlation_and_say_so(capsys):
    rows = audit_world(Exact(world_of(SEED)), SEED, test=8, names=["perfect"])
    for table in audit_tables(rows):
        Console(width=200).print(table)
    shown = capsys.readouterr().out
    assert "nan" not in shown and " - " in shown


def test_without_an_estimator_the_exact_conditionals_are_compared(rows, capsys):
    alone = audit_world(None, SEED, test=16, names=NAMES)
    assert alone == [row for row in rows if row["source"] not in ("estimator", "best")]
    for table in audit_tables(alone):
        Console(width=200).print(table)
    shown = capsys.readouterr().out
    assert "by the ideal" in shown and "by the estimator" not in shown


def test_audits_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="'parrot' is unknown; accepted are perfect"):
        audit_world(Exact(world_of(SEED)), SEED, test=8, names=["parrot"])
    with pytest.raises(DataError, match="needs 8 or more"):
        audit_world(Exact(world_of(SEED)), SEED, test=1)
