"""The page says what the result files say, is whole in itself, and shows nothing that the files do
not hold.
"""

import copy
import html
import json
import os
import random
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import coevolve
from coevolve.cli import main
from coevolve.errors import DataError
from coevolve.files import write_json, write_jsonl
from coevolve.information.uncertainty import LEAST
from coevolve.remid.blame import blame_examples
from coevolve.remid.bound import evaluate_bound
from coevolve.remid.bound_results import BlameResults, BoundResults
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.results import RemidResults
from coevolve.remid.score import Scoring, score_corpus
from coevolve.remid.subsets import evaluated_examples
from coevolve.remid.table import remid_rows
from coevolve.report.contents import Contents, read_contents
from coevolve.report.figures import _named, _panels, _picture, _steps, training_pictures
from coevolve.report.origin import odds
from coevolve.report.page import heat_maps, make_pictures, render
from coevolve.report.summary import cards, losses, size_warning
from coevolve.scoring.reasoning import Reasoning, ReasoningKind
from coevolve.scoring.scores import Scores
from coevolve.worlds.corpus import world_corpus, world_of
from coevolve.worlds.language import SLOTS
from coevolve.worlds.role_players import role_players

ROOT = Path(__file__).parents[2]
SEED = 3
HOSTILE = "</style><script>alert('x')</script>"
AXE = next(
    (
        path
        for path in (
            Path(os.environ.get("AXE_CORE", "")),
            ROOT / "node_modules/axe-core/axe.min.js",
        )
        if path.is_file()
    ),
    None,
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Truth:
    """The world's own p(y | x) as the estimator, the same for each of a response's tokens."""

    def __init__(self, world):
        self.world = world
        self.renderer = self.tokenizer = self

    def response_ids(self, text):
        return [*text.split(), "<|im_end|>"]

    def decode(self, ids):
        return " ".join(ids)

    def reason(self, examples, seed=None):
        return [""] * len(examples)

    def log_prob_pairs(self, examples, responses, reasoning, pairs):
        contexts, texts = [examples[i] for i, _ in pairs], [responses[j] for _, j in pairs]
        return Scores(self.world.golden.log_prob(contexts, texts), np.full(len(pairs), SLOTS + 1))

    def token_log_prob_pairs(self, examples, texts, reasoning, pairs):
        whole = self.log_prob_pairs(examples, texts, reasoning, pairs).sum
        return [np.full(SLOTS + 1, value / (SLOTS + 1)) for value in whole]


class Letters:
    name = "letters"

    def __call__(self, texts):
        return np.array(
            [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts],
            float,
        )


@pytest.fixture(scope="module")
def evaluated():
    """What `coevolve remid` and `coevolve bound` write for two role-players, one of them unsure of
    other users.
    """
    corpus = world_corpus(SEED, train=1, test=40)
    examples, policies, rng = (
        evaluated_examples(corpus),
        role_players(world_of(SEED)),
        np.random.default_rng(0),
    )
    responses = {
        name: dict(
            zip([x.sample_id for x in examples], policies[name].respond(examples, rng), strict=True)
        )
        for name in ("perfect", "unsure_of_user")
    }
    truth = Truth(world_of(SEED))
    scored = score_corpus(truth, corpus, responses, Scoring(negatives="all"))
    return {
        "results.json": evaluate_remid(truth, corpus, responses, Scoring(negatives="all")).values(),
        "bound.json": evaluate_bound(scored, Letters()).values(),
        "blame.json": blame_examples(truth, scored, shown=3).values(),
    }


@pytest.fixture(scope="module")
def remid(evaluated):
    return RemidResults.model_validate(evaluated["results.json"])


@pytest.fixture(scope="module")
def trained(evaluated):
    """What `coevolve train` writes in a world whose truth is known."""
    remid = evaluated["results.json"]
    gate = {"round": 1, "phase": "connector_rl", "before": 1.911, "after": 1.441, "kept": True}
    return {
        "schema": "coevolve.run/1",
        "perplexity": {
            "full": {"IDTest": 1.3627, "OOD1Test": 1.3598},
            "without_corl": {"IDTest": 1.7478},
        },
        "ratio": {"full/without_corl": {"IDTest": {"ratio": 0.7797, "standard_error": 0.0096}}},
        "gates": [
            gate,
            gate | {"phase": "estimator_rl", "before": 1.441, "after": 1.523, "kept": False},
        ],
        "remid": remid,
        "exact_remid": [
            {"model": model, "row": row["row"], "value": index / 8}
            for model in remid["models"]
            for index, row in enumerate(remid["subsets"])
        ],
    }


LOG = [
    {
        "step": 1,
        "coevolve/round": 1,
        "connector/phase_step": 4,
        "connector/rewards/likelihood/mean": 0.60,
    },
    {
        "step": 2,
        "coevolve/round": 1,
        "connector/phase_step": 5,
        "connector/rewards/likelihood/mean": None,
    },
    {
        "step": 3,
        "coevolve/round": 2,
        "estimator/phase_step": 6,
        "estimator/rewards/match/mean": 0.85,
    },
]


def report(folder, files):
    """The page of these files, as the command writes it."""
    for name, value in files.items():
        (write_jsonl if name.endswith("jsonl") else write_json)(folder / name, value)
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a browser would load, and what it would show."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.ids, self.shown = [], [], [], []
        self._style = False
        self.feed(page)
        self.text = " ".join(" ".join(self.shown).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self._style = tag == "style"
        self.links += [
            found[name] for name in ("src", "href", "xlink:href", "srcset") if found.get(name)
        ]
        self.ids += [found["id"]] if "id" in found else []

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.shown.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory, evaluated):
    return report(tmp_path_factory.mktemp("evaluated"), evaluated)


def test_every_number_of_the_table_is_in_the_page(page, evaluated):
    shown = Reader(page).text
    _, rows = remid_rows(RemidResults.model_validate(evaluated["results.json"]))
    for row in rows:
        for value in row.values:
            assert str(value) in shown
    for row in evaluated["bound.json"]["subsets"]:
        for found in row["models"].values():
            assert (
                f"{found['published']['total']:.2f} ({found['published']['noise_floor']:.2f})"
                in shown
            )


def test_perplexities_ratios_verdicts_and_exact_values_are_in_the_page(tmp_path, trained):
    shown = Reader(report(tmp_path, {"results.json": trained, "metrics.jsonl": LOG})).text
    for text in (
        "1.363",
        "1.360",
        "1.748",
        "0.780 ± 0.010",
        "1.523",
        "rolled back",
        "exact +0.375",
        "not measured",
    ):
        assert text in shown
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        f"{name}.{end}"
        for name in ("remid", "truth", "rounds", "rewards")
        for end in ("svg", "png")
    }


def test_the_page_is_whole_in_itself_and_without_scripts(page):
    found = Reader(page)
    outside = {link for link in found.links if not link.startswith("#")}
    assert outside == {"https://arxiv.org/abs/2512.17270"}
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)


def test_no_number_is_missing_without_its_reason(tmp_path, evaluated):
    results = copy.deepcopy(evaluated["results.json"])
    lone = {
        "row": "OOD1Test/german",
        "split": "OOD1Test",
        "subset": "german",
        "shift": "user",
        "examples": 1,
    }
    results["subsets"].append(
        lone | {"reason": "a single example", "models": dict.fromkeys(results["models"])}
    )
    results["beside"] = []
    shown = Reader(report(tmp_path, {"results.json": results})).text
    assert "(a single example)" in shown
    assert not re.search(r"\b(nan|none|inf)\b", shown, re.IGNORECASE)


def test_texts_from_the_files_cannot_change_the_page(tmp_path, evaluated):
    text = json.dumps(evaluated).replace("unsure_of_user", HOSTILE)
    files = json.loads(text)
    for subset in files["blame.json"]["subsets"]:
        for example in subset["models"][HOSTILE]["worst"]:
            example["user_persona"] = example["tokens"][0]["text"] = example["agent_character"] = (
                HOSTILE
            )
    page = report(tmp_path, files)
    assert "script" not in Reader(page).tags
    assert HOSTILE in Reader(page).text


def test_what_a_folder_lacks_is_named_with_the_command_that_gives_it(tmp_path, evaluated):
    shown = Reader(report(tmp_path, {"bound.json": evaluated["bound.json"]})).text
    assert "coevolve remid --estimator" in shown and "coevolve train RECIPE" in shown
    (tmp_path / "bound.json").unlink()
    shown = Reader(report(tmp_path, {"results.json": evaluated["results.json"]})).text
    assert shown.count("coevolve bound --estimator") == 2  # the bound and the examples


def test_a_folder_with_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"found none of results\.json"):
        read_contents(tmp_path)
    write_json(tmp_path / "bound.json", {"schema": "coevolve.bound/99"})
    with pytest.raises(
        DataError, match=r"bound.json: schema is 'coevolve.bound/99'; accepted is coevolve.bound/1"
    ):
        read_contents(tmp_path)


MODELS = {"results.json": RemidResults, "bound.json": BoundResults, "blame.json": BlameResults}


@pytest.mark.parametrize("name", MODELS)
def test_the_schema_has_every_field_that_is_written(evaluated, name):
    written = json.loads(json.dumps(evaluated[name]))
    assert MODELS[name].model_validate(written).values() == written


@pytest.mark.parametrize("kind", get_args(ReasoningKind))
def test_the_schema_has_every_protocol_of_reasoning(tmp_path, evaluated, kind):
    of_kind = {"given": {"texts": {"a": "b"}, "sha256": "f"}, "mixture": {"weight": 0.25}}
    protocol = Reasoning(kind, **of_kind.get(kind, {}))
    results = {**evaluated["results.json"], "reasoning": protocol.values()}
    assert "Reasoning: " in Reader(report(tmp_path, {"results.json": results})).text


def places(value, path=()):
    """Every place in a JSON value; the first of a list, or of the models, stands for all."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        if key != "unsure_of_user":
            yield (*path, key)
            yield from places(inner, (*path, key))


def changed(value, path, change):
    value = copy.deepcopy(value)
    *parents, last = path
    parent = value
    for key in parents:
        parent = parent[key]
    change(parent, last)
    return value


SHOWN = (
    "schema",
    "unit",
    "form",
    "normalisation",
    "negatives",
    "models",
    "subsets",
    "by_shift",
    "average",
    "row",
)
SHOWN += (
    "subset",
    "shift",
    "examples",
    "remi",
    "remid",
    "blame",
    "published",
    "jsd",
    "floor",
    "total",
    "noise_floor",
)
SHOWN += (
    "inputs",
    "user",
    "output_p",
    "worst",
    "best",
    "tokens",
    "golden_tokens",
    "text",
    "contribution",
    "loss",
)
SHOWN += ("last_turn", "agent_character", "sample_ID", "perfect", "kind", "measure", "low", "high")


@pytest.mark.parametrize("name", MODELS)
def test_results_without_a_field_that_is_shown_are_refused(tmp_path, evaluated, name):
    for path in places(evaluated[name]):
        if (
            path[-1] in SHOWN
            and not {"widths", "golden"} & set(path)
            and path[-2:] != (0, "negatives")
        ):
            write_json(
                tmp_path / name,
                changed(evaluated[name], path, lambda parent, last: parent.pop(last)),
            )
            with pytest.raises(
                DataError, match=rf"{name}: .*Write the file with this version of coevolve\.$"
            ):
                read_contents(tmp_path)


@pytest.mark.parametrize("name", [*MODELS, "run"])
def test_what_is_read_can_be_shown(tmp_path, evaluated, trained, name):
    """Values at random in random places: each file is refused in one sentence, or shown."""
    value, rng = {**evaluated, "run": trained}[name], random.Random(1)
    path, fields = tmp_path / ("results.json" if name == "run" else name), list(places(value))
    junk = [
        None,
        True,
        -1,
        0,
        0.5,
        1e308,
        10**40,
        "",
        HOSTILE,
        "\ud800",
        [],
        {},
        [[]],
        {"": 1},
        "a\nb",
        "$x^{",
    ]
    shown = 0
    for count in range(80):
        wrong = rng.choice(junk)
        rest = changed(
            value,
            rng.choice(fields),
            lambda parent, last, wrong=wrong: (
                parent.update({last: wrong})
                if isinstance(parent, dict)
                else parent.__setitem__(last, wrong)
            ),
        )
        path.write_text(json.dumps(rest))
        try:
            contents = read_contents(tmp_path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        shown += 1
        assert (
            "script"
            not in Reader(render(contents, make_pictures(contents) if count % 20 == 0 else {})).tags
        )
    assert 0 < shown < 70


@pytest.mark.parametrize(
    ("name", "path", "wrong", "said"),
    [
        ("results.json", ("models",), ["perfect", "perfect"], "models: a name is there twice"),
        ("results.json", ("models",), ["perfect"], "'unsure_of_user' is not in both places"),
        (
            "results.json",
            ("subsets", 0, "shift"),
            "user",
            "subsets: only the first must be in distribution",
        ),
        (
            "results.json",
            ("subsets", 1, "shift"),
            None,
            "subsets: only the first must be in distribution",
        ),
        ("results.json", ("subsets", 1, "models", "perfect"), None, "needs numbers"),
        (
            "results.json",
            ("subsets", 1, "models", "perfect", "remid"),
            None,
            "needs numbers",
        ),
        ("results.json", ("subsets", 1, "reason"), "lost", "is not in both places"),
        ("results.json", ("by_shift",), {}, "by_shift: "),
        ("results.json", ("average",), {}, "average: "),
        ("results.json", ("average", "perfect", "remid_low"), None, "an interval has one end only"),
        ("results.json", ("level",), None, "level is missing, and there are intervals"),
        (
            "results.json",
            ("reasoning",),
            {"kind": "sampled"},
            "reasoning: sampled needs samples and seed",
        ),
        (
            "results.json",
            ("comparisons", 0, "models"),
            ["perfect", "x"],
            "comparisons: are of two models",
        ),
        ("results.json", ("beside", 0, "subsets"), [], "beside: club: subsets: "),
        (
            "results.json",
            ("unanswered",),
            {"rows": {"IDTest": {"of": 3}}, "models": {}},
            "unanswered.rows.IDTest.left_out is missing",
        ),
        ("bound.json", ("subsets", 0, "models"), {}, "'perfect' is not in both places"),
        ("bound.json", ("subsets", 0, "inputs", "user"), None, "subsets.0.inputs.user: found None"),
        ("blame.json", ("subsets", 0, "models", "perfect", "worst"), [], "worst: found a list"),
        (
            "blame.json",
            ("subsets", 0, "models", "perfect", "worst", 0, "tokens", 0, "contribution"),
            9.0,
            "log_prob",
        ),
    ],
)
def test_fields_that_do_not_agree_are_named(tmp_path, evaluated, name, path, wrong, said):
    value = changed(evaluated[name], path, lambda parent, last: parent.__setitem__(last, wrong))
    write_json(tmp_path / name, value)
    with pytest.raises(DataError, match=re.escape(name)) as error:
        read_contents(tmp_path)
    assert said in str(error.value)


def test_true_values_are_of_models_and_rows_that_were_measured(tmp_path, trained):
    for field in ("model", "row"):
        exact = [{**trained["exact_remid"][0], field: "x"}]
        write_json(tmp_path / "results.json", {**trained, "exact_remid": exact})
        with pytest.raises(DataError, match=r"results\.json: exact_remid: .*'x'.* is not in remid"):
            read_contents(tmp_path)


def test_results_without_intervals_are_shown(tmp_path, evaluated):
    """As files of the first version are."""
    added = (
        "level",
        "replicates",
        "bias",
        "reasoning",
        "comparisons",
        "beside",
        "contexts",
        "reason",
        "holm_p",
    )

    def earlier(value):
        if isinstance(value, list):
            return [earlier(one) for one in value]
        if not isinstance(value, dict):
            return value
        kept = {
            name: one
            for name, one in value.items()
            if name not in added and name != "chance_of_loss"
        }
        return {
            name: earlier(one)
            for name, one in kept.items()
            if not name.endswith(("_error", "_low", "_high"))
        }

    results = earlier(evaluated["results.json"]) | {"schema": "coevolve.remid/1"}
    shown = Reader(report(tmp_path, {"results.json": results})).text
    assert "no interval in this file" in shown


def test_a_verdict_without_a_number_or_an_end_is_shown_as_that(tmp_path, trained):
    gate = trained["gates"][0]
    gates = [gate, gate | {"after": None, "kept": False}, gate | {"after": 2.5, "kept": None}]
    shown = Reader(report(tmp_path, {"results.json": {**trained, "gates": gates}})).text
    assert "beyond all numbers rolled back" in shown and "2.500 on probation" in shown


def test_a_tall_figure_is_drawn_smaller():
    """Matplotlib refuses more than 65,535 pixels, which the bounds of 12 models on 120 subsets
    would have.
    """
    figure, _ = _panels(1, 440)
    assert _picture(figure, "bound", "title", "caption").png.startswith(b"\x89PNG")


def test_the_log_of_a_killed_run_is_read_up_to_its_torn_line(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", LOG)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "coev')
    contents = read_contents(tmp_path)
    assert list(contents.metrics) == LOG
    assert set(make_pictures(contents)) == {"rewards"}


@pytest.mark.parametrize(
    "line", ["[]", "null", "{}", '{"step": "1"}', '{"step": 1, "a/rewards/b/mean": "x"}', "{"]
)
def test_a_line_of_the_log_that_is_none_is_named(tmp_path, line):
    write_jsonl(tmp_path / "metrics.jsonl", LOG)
    (tmp_path / "metrics.jsonl").write_text((tmp_path / "metrics.jsonl").read_text() + line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:4: .*Delete that line"):
        read_contents(tmp_path)


def test_the_first_screen_names_the_planted_loss_and_its_shift(remid):
    worst, *_ = cards(remid, {})
    assert worst.model == "unsure_of_user"
    assert "the largest loss is other users" in worst.blame


def test_the_first_screen_says_what_there_was_to_lose(page, evaluated):
    """A model that says nothing of its dialogues loses nothing, and must not look well for it."""
    shown = Reader(page).text
    for model, numbers in evaluated["results.json"]["subsets"][0]["models"].items():
        assert f"{model}" in shown
        stands = f"it stands at {numbers['remi']:+z.3f} nats per response against the reference"
        assert stands in shown


def test_exact_values_outside_their_intervals_are_explained(remid):
    rows = [row.row for row in remid.subsets if row.shift]
    for shift, said in ((0.0, None), (99.0, "1 of 2 exact values lie outside their intervals")):
        exact = {("perfect", row): remid.average["perfect"].remid + shift for row in rows}
        warning = size_warning(remid, cards(remid, exact))
        assert warning is None if said is None else warning.startswith(said)


def test_the_exact_mean_is_over_the_subsets_that_the_estimate_is_over(remid):
    rows = [row.row for row in remid.subsets if row.shift]
    exact = {("perfect", row): float(index) for index, row in enumerate(rows)}
    assert losses(remid, "perfect", exact)[-1].exact == pytest.approx(np.mean(range(len(rows))))
    del exact["perfect", rows[0]]
    assert losses(remid, "perfect", exact)[-1].exact is None


def test_colour_follows_the_contribution_and_its_sign(evaluated):
    blame = BlameResults.model_validate(evaluated["blame.json"])
    for group in heat_maps(Contents(blame=blame)):
        tokens = [token for example in group.examples for token in example.tokens]
        assert all(np.sign(token.share) == np.sign(token.contribution) for token in tokens)
        by_value = sorted(tokens, key=lambda token: token.contribution)
        assert [token.share for token in by_value] == sorted(token.share for token in tokens)


def test_one_measure_is_used_and_named_by_all(page, evaluated, remid):
    """The same number of a model and a subset, to the last bit but rounding, wherever it stands."""
    bound, blame = evaluated["bound.json"], evaluated["blame.json"]
    assert (
        (remid.form, remid.unit) == (bound["form"], bound["unit"]) == (blame["form"], blame["unit"])
    )
    table = {subset.row: subset.models for subset in remid.shifted()}
    for subset in bound["subsets"]:
        for name, found in subset["models"].items():
            assert found["remid"] == pytest.approx(table[subset["row"]][name].remid, abs=1e-12)
    for subset in blame["subsets"][1:]:
        for name, found in subset["models"].items():
            assert found["loss"] == pytest.approx(table[subset["row"]][name].remid, abs=1e-12)
    assert "Mind:" not in page
    for subset in remid.shifted():
        for name, numbers in subset.models.items():
            mark = "*" * remid.is_loss(numbers)
            shown = f"{numbers.remid:+z.3f}{mark}, by calibrated, nats per response"
            assert f"{subset.row}, {name}: R-EMID {shown}" in Reader(page).text


def test_parts_that_do_not_compare_are_said_to(evaluated):
    bound = BoundResults.model_validate(evaluated["bound.json"])
    remid = RemidResults.model_validate(evaluated["results.json"])
    of_token = [one for one in remid.by_measure() if one.normalisation == "per_token"]
    (line,) = odds(Contents(remid=of_token[0], bound=bound))
    assert line.startswith("R-EMID beside the upper bound is by calibrated, nats per response")
    other = {"estimator_identity": "a", "data_fingerprint": "b"}, {"estimator_identity": "c"}
    parts = remid.model_copy(update=other[0]), bound.model_copy(update=other[1])
    assert odds(Contents(remid=parts[0], bound=parts[1])) == [
        "The parts of this page were measured with different estimators. Do not compare them."
    ]
    moved = evaluated["bound.json"]["subsets"][0]["models"]["perfect"]["remid"] + 0.5
    far = changed(
        evaluated["bound.json"],
        ("subsets", 0, "models", "perfect", "remid"),
        lambda parent, last: parent.update({last: moved}),
    )
    (line,) = odds(Contents(remid=remid, bound=BoundResults.model_validate(far)))
    assert line.endswith("up to 0.500 nats per response apart.")


def random_results(remid, rng):
    """Results of another evaluation that could have been: any losses, marks and sizes."""
    values = [0.0, -0.0004, 0.0004, 1e-9, -2.0, 3.0]
    numbers = [*values, *(rng.gauss(0, 0.3) for _ in range(6))]

    def interval(value):
        low, high = value - abs(rng.choice(numbers)), value + abs(rng.choice(numbers))
        return {"remid": value, "remid_low": low, "remid_high": high}

    def of_model(found):
        p = rng.choice([None, 0.0, 0.009, 0.01, 0.5, 1.0])
        return found.model_copy(update={**interval(rng.choice(numbers)), "holm_p": p})

    usual, *shifted = remid.subsets
    shifted = [
        one.model_copy(
            update={
                "models": {name: of_model(found) for name, found in one.models.items()},
                "examples": rng.choice([2, 3, 7, 8, 40]),
            }
        )
        for one in rng.sample(shifted, rng.randint(1, len(shifted)))
    ]

    def means(of):
        return {
            name: remid.average[name].model_copy(
                update=interval(float(np.mean([one.models[name].remid for one in of])))
            )
            for name in remid.models
        }

    shifts = dict.fromkeys(one.shift for one in shifted)
    by_shift = {shift: means([x for x in shifted if x.shift == shift]) for shift in shifts}
    drawn = {"subsets": [usual, *shifted], "by_shift": by_shift, "average": means(shifted)}
    return RemidResults.model_validate(
        remid.model_copy(update={**drawn, "beside": [], "comparisons": []}).values()
    )


def test_cards_table_and_examples_do_not_contradict_each_other(remid, evaluated):
    """Over results at random: what a card says of subsets is what the table marks, and of the mean
    what its interval says; examples bear the table's number and mark.
    """
    rng, said = random.Random(0), set()
    for _ in range(400):
        results = random_results(remid, rng)
        _, rows = remid_rows(results)
        cells = {row.label: dict(zip(results.models, row.values, strict=True)) for row in rows}
        few = [x.subset for x in results.subsets if x.examples < LEAST]
        for card in cards(results, {}):
            single = [one for one in results.shifted() if one.shift != "all"]
            shown = {one.subset: str(cells[one.subset][card.model]) for one in single}
            marked = {name for name, text in shown.items() if text.endswith("*")}
            named = re.search(r", (\w+) \(([+-][\d.]+)(\*?) nats per response\)", card.blame)
            if named:
                subset, value, mark = named.groups()
                assert shown[subset].startswith(value) and (subset in marked) == bool(mark)
            if card.blame.startswith("Most to blame"):
                assert float(value) == max(float(shown[x].split()[0]) for x in marked)
                rest = re.search(r"and (\d+) more", card.blame)
                assert len(marked) == 1 + int(rest[1] if rest else 0)
            elif len(single) > 1:
                assert not marked
            if card.blame.startswith("By this estimate no single"):
                assert all(float(text.split()[0]) <= 0 for text in shown.values())
            low, high = card.average.low, card.average.high
            assert ("more than chance" in card.meaning) == (low > 0)
            assert ("better, not worse" in card.meaning) == (high < 0 and low <= 0)
            assert ("includes 0" in card.meaning) == (low <= 0 <= high)
            assert (card.caution is not None) == bool(few)
            said.add(card.blame.split()[0] + card.meaning.split()[-1])
    assert len(said) > 8


def test_the_page_names_what_it_is_of(tmp_path, trained):
    run = {
        "recipe": {"name": "mine", "seed": 7},
        "base": {"source": "hub/model", "path": "x", "fingerprint": "f"},
        "data_fingerprint": "0123456789abcdef",
        "packages": {"coevolve": "0.2.9"},
    }
    results = {**trained, "recipe": "mine", "seed": 7}
    results["remid"] = {**trained["remid"], "estimator": "est", "estimator_identity": "e" * 64}
    shown = Reader(report(tmp_path, {"results.json": results, "run.json": run})).text
    day = datetime.now(UTC).strftime("%Y-%m-")
    for text in (
        "mine: report",
        "recipe mine",
        "role-playing models perfect, unsure_of_user",
        "base model hub/model",
        "estimator est (eeeeeeeeeeee)",
        "data 0123456789ab",
        "seed 7 of the run, 0 of the evaluation",
        f"measured {day}",
        f"version coevolve 0.2.9 (run), coevolve {coevolve.__version__} (page)",
    ):
        assert text in shown


def test_curves_are_over_optimizer_steps_of_all_phases():
    """Parts of a phase count on, and rows of baselines, which are in no round, do not."""
    phases = [("sft", 0, (1, 2)), ("sft", 0, (1, 2)), ("rl", 1, (5,)), ("rl", 2, (3, 10))]
    rows = [
        {"coevolve/round": number, "coevolve/phase": phase, "connector/phase_step": step}
        for phase, number, steps in phases
        for step in steps
    ]
    assert _steps(rows, "connector") == [1, 2, 3, 4, 9, 12, 19]
    rows = [row | {"connector/rewards/likelihood/mean": 0.5} for row in rows]
    curves = _named(rows, r"connector/rewards/(\w+)/mean", _steps(rows, "connector"))
    assert [[x for x, _ in piece] for piece in curves["likelihood"]] == [
        [1, 2, 3, 4],
        [9],
        [12, 19],
    ]
    loss = {"step": 1, "estimator/phase_step": 1, "estimator/loss": 2.0}
    assert training_pictures([loss]) == []
    (picture,) = training_pictures([loss | {"coevolve/round": 0, "coevolve/phase": "sft"}])
    assert picture.name == "losses"


VOID = {"meta", "wbr", "br", "hr", "img", "input", "link", "path", "use"}
PHRASING = {"p", "h1", "h2", "h3", "span", "small", "strong", "b", "code", "summary", "figcaption"}
BLOCKS = {"div", "p", "dl", "table", "section", "figure", "h1", "h2", "h3", "details", "ul"}


class Nesting(HTMLParser):
    """Elements that are not closed in their order, or lie where HTML does not let them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.faults = [], []
        self.feed(page)
        self.faults += self.open

    def handle_starttag(self, tag, attributes):
        if tag in BLOCKS and set(self.open) & PHRASING and "svg" not in self.open:
            self.faults.append(f"{tag} in {self.open[-1]}")
        if len({name for name, _ in attributes}) < len(attributes):
            self.faults.append(f"{tag} has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.faults.append(f"/{tag}")


def test_the_html_is_well_formed(tmp_path, evaluated, trained):
    files = {**evaluated, "results.json": trained, "metrics.jsonl": LOG}
    assert Nesting(report(tmp_path, files)).faults == []
    assert Nesting("<p><div></p></div>").faults == ["div in p", "/p", "/div"]


def in_chromium(folder, page, width, script, *flags):
    """What the script, which is awaited, finds in a frame of that width that shows the page: a
    window of its own is never narrower than 500 pixels.
    """
    probe = folder / "probe.html"
    probe.write_text(
        f'<iframe style="border:0;width:{width}px;height:2000px" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        "<script>addEventListener('load', async () => {"
        "const frame = document.querySelector('iframe').contentWindow;"
        f"const found = await (async () => {{{script}}})();"
        "document.body.textContent = `FOUND ${JSON.stringify(found)} END`})</script>",
        encoding="utf-8",
    )
    where = (f"--user-data-dir={folder / 'profile'}", "--window-size=1600,2200")
    budget = ("--virtual-time-budget=60000", "--dump-dom")
    done = subprocess.run(
        [CHROMIUM, *QUIET, *flags, *where, *budget, f"file://{probe}"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    return json.loads(html.unescape(re.search("FOUND (.*) END", done.stdout, re.DOTALL)[1]))


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture
def whole(tmp_path, evaluated, trained):
    return report(tmp_path, {**evaluated, "results.json": trained, "metrics.jsonl": LOG})


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, whole, width):
    """On a phone no table needs it either: those that are too wide are cards."""
    script = """const root = frame.document.documentElement;
        const tables = [...frame.document.querySelectorAll('.scroll')];
        return [root.scrollWidth, root.clientWidth,
                tables.filter(x => x.scrollWidth > x.clientWidth).length]"""
    wide, screen, scrolling = in_chromium(tmp_path, whole, width, script)
    assert width - 20 <= screen <= width  # less the scroll bar
    assert wide <= screen and scrolling == 0


@pytest.mark.slow
@needs_chromium
@pytest.mark.skipif(AXE is None, reason="no axe-core here: AXE_CORE names its axe.min.js")
@pytest.mark.parametrize("flags", [(), ("--blink-settings=preferredColorScheme=0",)])
@pytest.mark.parametrize("width", [390, 1280])
def test_everybody_can_use_it(tmp_path, whole, width, flags):
    """No violation of the rules of axe, in light and in dark, every example open."""
    axe = AXE.read_text(encoding="utf-8").replace("</script", r"<\/script")
    page = whole.replace("</head>", f"<script>{axe}</script></head>")
    script = """for (const one of frame.document.querySelectorAll('details')) one.open = true;
        const found = await frame.axe.run(frame.document);
        return [found.passes.length, found.violations.map(x => `${x.id}: ${x.nodes[0].html}`)]"""
    passed, violations = in_chromium(tmp_path, page, width, script, *flags)
    assert passed > 30 and violations == []
