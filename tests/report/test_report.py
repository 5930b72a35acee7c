"""The page says what the result files say, is whole in itself, and shows nothing that the files do
not hold.
"""

import copy
import html
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import get_args

import numpy as np
import pytest

from coevolve.cli import main
from coevolve.errors import DataError
from coevolve.files import write_json, write_jsonl
from coevolve.remid.blame import blame_examples
from coevolve.remid.bound import evaluate_bound
from coevolve.remid.bound_results import BlameResults, BoundResults
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.results import RemidResults
from coevolve.remid.score import Scoring, score_corpus
from coevolve.remid.subsets import evaluated_examples
from coevolve.remid.table import remid_rows
from coevolve.report.contents import read_contents
from coevolve.report.figures import _panels, _picture
from coevolve.report.page import heat_maps, make_pictures, render
from coevolve.report.summary import Loss, cards, losses, size_warning
from coevolve.scoring.reasoning import Reasoning, ReasoningKind
from coevolve.scoring.scores import Scores
from coevolve.worlds.corpus import world_corpus, world_of
from coevolve.worlds.language import SLOTS
from coevolve.worlds.role_players import role_players

SEED = 3
HOSTILE = "</style><script>alert('x')</script>"
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
    scored = score_corpus(truth, corpus, responses)
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
    {"step": 1, "coevolve/round": 1, "connector/rewards/likelihood/mean": 0.60},
    {"step": 2, "coevolve/round": 1, "connector/rewards/likelihood/mean": None},
    {"step": 3, "coevolve/round": 2, "estimator/rewards/match/mean": 0.85},
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
    assert worst.blame.startswith("Most to blame: other users")


def test_the_first_screen_says_what_there_was_to_lose(page, evaluated):
    """A model that says nothing of its dialogues loses nothing, and must not look well for it."""
    shown = Reader(page).text
    for model, numbers in evaluated["results.json"]["subsets"][0]["models"].items():
        assert f"{model}" in shown
        assert f"it stands at {numbers['remi']:+z.3f} against the reference responses" in shown


def test_exact_values_outside_their_intervals_are_explained(remid):
    rows = [row.row for row in remid.subsets if row.shift]
    for shift, said in ((0.0, None), (99.0, "1 of 2 exact values lie outside their intervals")):
        exact = {("perfect", row): remid.average["perfect"].remid + shift for row in rows}
        warning = size_warning(remid, cards(remid, exact))
        assert warning is None if said is None else warning.startswith(said)


@pytest.mark.parametrize(
    ("low", "high", "certain"),
    [(0.1, 0.3, True), (-0.1, 0.3, False), (-0.3, -0.1, False), (None, None, False)],
)
def test_a_loss_is_certain_where_its_interval_is_above_0(low, high, certain):
    assert Loss("user", 0.2, low, high).certain is certain


def test_the_exact_mean_is_over_the_subsets_that_the_estimate_is_over(remid):
    rows = [row.row for row in remid.subsets if row.shift]
    exact = {("perfect", row): float(index) for index, row in enumerate(rows)}
    assert losses(remid, "perfect", exact)[-1].exact == pytest.approx(np.mean(range(len(rows))))
    del exact["perfect", rows[0]]
    assert losses(remid, "perfect", exact)[-1].exact is None


def test_colour_follows_the_contribution_and_its_sign(evaluated):
    for group in heat_maps(BlameResults.model_validate(evaluated["blame.json"])):
        tokens = [token for example in group.examples for token in example.tokens]
        assert all(np.sign(token.share) == np.sign(token.contribution) for token in tokens)
        by_value = sorted(tokens, key=lambda token: token.contribution)
        assert [token.share for token in by_value] == sorted(token.share for token in tokens)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, evaluated, trained, width):
    """In a frame of that width, for a window of its own is never narrower than 500 pixels."""
    page = report(tmp_path, {**evaluated, "results.json": trained, "metrics.jsonl": LOG})
    (tmp_path / "probe.html").write_text(
        f'<iframe style="border:0;width:{width}px;height:2000px" srcdoc="{html.escape(page)}"></iframe><script>'
        "addEventListener('load', () => {const page = document.querySelector('iframe').contentDocument.documentElement;"
        "document.body.textContent = `wide ${page.scrollWidth} of ${page.clientWidth}`})</script>",
        encoding="utf-8",
    )
    where = (f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,2200")
    done = subprocess.run(
        [CHROMIUM, *QUIET, *where, "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    wide, screen = map(int, re.search(r"wide (\d+) of (\d+)", done.stdout).groups())
    assert width - 20 <= screen <= width  # less the scroll bar
    assert wide <= screen
