"""Role-playing models by every method: what is trained on what, stopped anywhere to the same bits,
and asked as they were trained.
"""

import json
import math
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coevolve.chat.local import LocalChat
from coevolve.data.responses import read_responses
from coevolve.errors import ArtifactError, CoevolveError, RecipeError
from coevolve.files import write_json
from coevolve.preflight.dialogues import load_corpus
from coevolve.prompts import prompt_set
from coevolve.prompts.play import THINK, PlayPrompt, play_messages
from coevolve.recipe.load import check_recipe, load_recipe, read_section
from coevolve.recipe.rpm import RpmRecipe, RpmRewards
from coevolve.respond import collect_responses
from coevolve.scoring.by_form import ByForm
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.export import export_checkpoint
from coevolve.training.rewards.phase import PhaseRewards
from coevolve.training.rewards.registry import RPM_REWARDS
from coevolve.training.rewards.responses import Others, ResponseBatch, response_of
from coevolve.training.rpm import RPM
from coevolve.training.run import train
from coevolve.training.status import read_status
from coevolve.worlds.language import vocabulary
from coevolve.worlds.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import GRPO, LORA, SFT, VALUES

METHODS = ("sft", "rejection_sft", "dpo", "likelihood", "information")
MODEL = {**{x: y for x, y in VALUES["model"].items() if x != "max_reasoning_tokens"}, **LORA}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def values(judge, method, changes=None):
    # The model is random, and seldom ends a response.
    grpo = {**GRPO, "steps": 4, "updates_per_generation": 2, "max_completion_length": 24}
    grpo |= {"train_batch_size": 16, "num_generations": 8}
    if method in ("likelihood", "information"):
        other = {"likelihood": "information", "information": "likelihood"}[method]
        grpo["rewards"], method = {method: 1.0, other: 0.0}, "grpo"
    return {
        "name": "small",
        "data": {"world": {"train": 24, "test": 3}, "validation": 6},
        "model": MODEL,
        "rpm": {
            "method": method,
            "estimator": judge,
            "max_response_tokens": 6,
            "samples": 3,
            "contexts": 2,
            "sft": {**SFT, "steps": 5},
            "dpo": {**SFT, "steps": 5},
            "grpo": grpo,
            **(changes or {}),
        },
        "checkpoints": {"every_steps": 1},
        "logging": {"every": 1},
    }


@pytest.fixture(scope="module")
def run(judge, tmp_path_factory):
    """A function from a method to its finished run, which is made once."""
    done = {}

    def of(method):
        if method not in done:
            done[method] = tmp_path_factory.mktemp(method) / "run"
            train(check_recipe(values(judge, method), "rpm"), done[method], job=RPM)
        return done[method]

    return of


def weights(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


def results(folder):
    read = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in read.items() if name != "seconds"}


@pytest.mark.parametrize("method", METHODS)
def test_stopped_anywhere_it_ends_with_the_same_bits(
    run, judge, method, tmp_path, stop_after, stop_at_checkpoint
):
    whole, recipe, folder = (
        run(method),
        check_recipe(values(judge, method), "rpm"),
        tmp_path / "run",
    )
    for stop in (stop_after(2), stop_at_checkpoint(folder, "training-step-2")):
        with pytest.raises(Interrupted):
            train(recipe, folder, job=RPM, stop=stop)
    assert read_status(folder)["stage"] == "training"
    train(recipe, folder, job=RPM)
    assert results(tmp_path / "run") == results(whole)
    found, expected = weights(tmp_path / "run"), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(tensor.any() for name, tensor in found.items() if "lora_B" in name)  # was trained


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(run, judge, launcher, tmp_path):
    recipe, folder, whole = tmp_path / "rpm.yaml", tmp_path / "run", run("information")
    write_json(recipe, values(judge, "information"))
    words = ["-m", "coevolve", "rpm", recipe, "--output-dir", folder]
    process = launcher.start("one", words, tmp_path / "log")
    until = time.monotonic() + 120
    while not any((folder / "checkpoints").glob("*-step-2")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "results.json").exists()
    launcher.run("one", words, tmp_path / "log")
    assert results(folder) == results(whole)
    expected = weights(whole)
    assert all(torch.equal(x, expected[name]) for name, x in weights(folder).items())


def test_no_estimator_is_made_of_it(run, tmp_path):
    (*_, newest) = sorted((run("sft") / "checkpoints").iterdir())
    with pytest.raises(ArtifactError, match="is of a role-playing model"):
        export_checkpoint(newest, tmp_path / "estimator")


def test_methods_differ_and_say_by_whom_they_were_judged(run, judge):
    trained = [weights(run(method)) for method in METHODS]
    name = next(name for name in trained[0] if "lora_B" in name)
    assert len({tuple(of[name].ravel().tolist()) for of in trained}) == len(METHODS)
    identity = json.loads((Path(judge) / "manifest.json").read_text())["identity"]
    assert results(run("sft"))["estimator"] is None
    assert results(run("likelihood"))["estimator"] == identity


def last_state(folder):
    (*_, newest) = sorted((folder / "checkpoints").iterdir())
    return json.loads((newest / "state.json").read_text())


def test_the_best_and_the_worst_of_its_own_are_chosen(run, judge):
    recipe = check_recipe(values(judge, "dpo"), "rpm")
    golden = {x.golden_response for x in load_corpus(recipe).splits["IDTrain"]}
    pairs = last_state(run("dpo"))["reasoning"]
    assert all(chosen in golden for chosen, _ in pairs) and len(pairs) == 18
    assert any(rejected not in golden for _, rejected in pairs)
    best = last_state(run("rejection_sft"))["reasoning"]
    by = ByForm(ProbabilityEstimator.from_pretrained(judge, device="cpu"))
    worst = [rejected for _, rejected in pairs]
    # Both runs drew the same samples of the same model.
    order = {x.golden_response: x for x in load_corpus(recipe).splits["IDTrain"]}
    examples = [order[chosen] for chosen, _ in pairs]
    assert (by.log_prob(examples, best).mean >= by.log_prob(examples, worst).mean - 1e-6).all()


def test_it_is_asked_with_the_prompt_that_it_was_trained_on(run, judge, tmp_path):
    folder = run("sft")
    prompt = read_section(folder / "model" / "prompt.yaml", PlayPrompt)
    recipe = check_recipe(values(judge, "sft"), "rpm")
    examples = load_corpus(recipe).splits["IDTest"]
    model = LocalChat.load(
        str(folder / "base"),
        prompt_set("world"),
        adapter=str(folder / "model"),
        max_new_tokens=6,
        dtype="float32",
        device="cpu",
    )
    (shown,) = play_messages(examples[0], model.harmless, prompt)
    assert examples[0].user_persona in shown["content"]
    path = tmp_path / "responses.jsonl"
    collect_responses(examples, model, path, prompt=prompt, keep_cut_off=True)
    assert len(read_responses(path, examples)) == 3


def test_rewards_are_their_definitions(judge, recipe_of):
    estimator = ProbabilityEstimator.from_pretrained(judge, device="cpu")
    by = ByForm(estimator)
    examples = load_corpus(check_recipe(values(judge, "sft"), "rpm")).splits["IDTrain"][:5]
    others = Others(examples, 2, 0)
    render = estimator.connector_renderer
    ids = [render.response_ids(x.golden_response) for x in examples[:2]] + [[5, 5]]
    batch = ResponseBatch(estimator, by, examples, others, ids, [0, 1, 2], thinking=False)
    assert batch.usable == [True, True, False]
    for row in (0, 1):
        text, own = examples[row].golden_response, others.of(row)
        assert len(own) == 2 and examples[row] not in own
        score = by.log_prob([examples[row], *own], [text] * 3)
        assert batch.likelihood[row] == pytest.approx(math.exp(score.mean[0]))
        expected = score.sum[0] - np.log(np.mean(np.exp(score.sum[1:])))
        assert batch.information[row] == pytest.approx(expected, rel=1e-6)
    assert batch.likelihood[2] is batch.information[2] is None


def test_one_response_in_a_group_is_worth_more_than_what_is_none(judge):
    """By its own worst value all would be alike, and GRPO would learn nothing."""
    estimator = ProbabilityEstimator.from_pretrained(judge, device="cpu")
    examples = load_corpus(check_recipe(values(judge, "sft"), "rpm")).splits["IDTrain"][:5]
    read = partial(
        ResponseBatch, estimator, ByForm(estimator), examples, Others(examples, 2, 0),
        thinking=False,
    )  # fmt: skip
    settings = RpmRewards(likelihood=0.0, information=1.0)
    alone = Processes(torch.device("cpu"), Stop())
    ((name, ask, _),) = PhaseRewards("x", settings, RPM_REWARDS, read, alone).functions()
    ids = [estimator.connector_renderer.response_ids(examples[1].golden_response), [5], [5, 5]]
    logged = {}
    found = ask(completion_ids=ids, index=[0, 0, 0], log_metric=logged.__setitem__)
    assert found[1] == found[2] == pytest.approx(min(found[0], 0.0) - 1)
    assert name == "information" and logged["rewards/information/lowest"] == 2


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A tiny base model that knows the marks of a thought, and writes one before it answers."""
    folder = tmp_path_factory.mktemp("thinker")
    tokenizer = tiny_tokenizer((*vocabulary(), "<think>", "</think>"))
    model = tiny_model(tokenizer, seed=0, hidden=32, layers=1, heads=2).train()
    texts = [
        f"<|im_start|> assistant <think> {thought} </think> gern {word} <|im_end|>"
        for thought in ("chess", "warm craft")
        for word in ("ruhig", "lieb", "langsam")
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        batch = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        loss = sum(model(input_ids=ids, labels=ids).loss for ids in batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def test_a_thought_is_neither_judged_nor_shown(judge, thinker, tmp_path):
    """From training to the responses that `remid` scores."""
    grpo = {**GRPO, "max_completion_length": 8, "train_batch_size": 16, "num_generations": 8}
    changed = values(judge, "grpo", {"thinking": True, "grpo": grpo})
    changed["model"] = {**MODEL, "base": thinker, "max_length": 160}
    recipe, folder = check_recipe(changed, "rpm"), tmp_path / "run"
    train(recipe, folder, job=RPM)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert rows and all("<think>" in row["sample"]["response"] for row in rows), rows[:1]
    by = ByForm(ProbabilityEstimator.from_pretrained(judge, device="cpu"))
    corpus = load_corpus(recipe)
    prompt = read_section(folder / "model" / "prompt.yaml", PlayPrompt)
    assert THINK in prompt.system
    options = {"max_new_tokens": 8, "dtype": "float32", "device": "cpu", "batch_size": 4}
    chat = LocalChat.load(
        thinker, prompt_set("world"), adapter=str(folder / "model"), temperature=1.0, **options
    )
    path, examples = tmp_path / "responses.jsonl", corpus.splits["IDTest"]
    collect_responses(examples, chat, path, prompt=prompt)
    said = read_responses(path, examples)
    assert all(text.split()[0] == "gern" and "think>" not in text for text in said)
    assert np.isfinite(by.log_prob(examples, said).sum).all()


@pytest.mark.parametrize(
    ("text", "thinking", "response"),
    [
        ("Aye.", False, "Aye."),
        ("<think>Hm.</think> Aye.", False, "Aye."),
        ("<think>Hm.</think> Aye.", True, "Aye."),
        ("Aye.", True, None),
        ("<think>Hm.</think> ", True, None),
        (None, True, None),
    ],
)
def test_a_thought_is_no_part_of_a_response(text, thinking, response):
    assert response_of(text, thinking) == response


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ppo"}, r"rpm.method: found 'ppo'; .*'sft', 'rejection_sft', 'dpo' or 'grpo'"),
        ({"sft": None, "method": "sft"}, r"rpm: method sft needs the section rpm.sft"),
        ({"estimator": None, "method": "dpo"}, "rpm: method dpo needs rpm.estimator"),
        ({"thinking": True, "method": "sft"}, "thinking: true goes with method grpo"),
        ({"smaples": 3}, "rpm.smaples: unknown key; .* Did you mean samples"),
    ],
)
def test_a_recipe_that_is_none_is_refused(judge, changes, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(values(judge, "sft", changes), "rpm")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"estimator": "nowhere"}, ArtifactError, "nowhere"),
        ({"prompt": "nowhere.yaml"}, RecipeError, "nowhere.yaml: no such file"),
        ({"grpo": {**GRPO, "max_completion_length": 9999}}, RecipeError, "the longest prompt has"),
        (
            {"grpo": {**GRPO, "rewards": {"custom": {"nowhere.py:reward": 1.0}}}},
            CoevolveError,
            "no file .*nowhere.py",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(judge, tmp_path, changes, error, message):
    recipe = check_recipe(values(judge, "likelihood", changes), "rpm")
    with pytest.raises(error, match=message):
        train(recipe, tmp_path / "run", job=RPM)
    assert not (tmp_path / "run" / "run.json").exists()


def test_recipes_are_told_apart(judge, tmp_path):
    write_json(tmp_path / "rpm.yaml", values(judge, "sft"))
    with pytest.raises(RecipeError, match=r"is about a role-playing model .* for `coevolve rpm`"):
        load_recipe(tmp_path / "rpm.yaml")
    with pytest.raises(RecipeError, match=r"is not about a role-playing model .* `coevolve train`"):
        load_recipe("recipes/quickstart", kind=RpmRecipe)


def test_another_recipe_does_not_go_on_with_a_run(run, judge):
    changed = check_recipe(values(judge, "sft", {"max_response_tokens": 5}), "rpm")
    with pytest.raises(ArtifactError, match=r"rpm.max_response_tokens: 6 -> 5"):
        train(changed, run("sft"), job=RPM)
    assert not re.search("cold_start", (run("sft") / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"), [("ddp", "information"), ("ddp", "dpo"), ("zero2", "information")]
)
def test_two_processes_do_what_one_does(kind, method, run, judge, launcher, tmp_path):
    """The same completions, so the same rewards but for rounding; adapters alike."""
    changed = values(judge, method)
    changed["model"] = {**MODEL, "lora": {**MODEL["lora"], "lora_dropout": 0.0}}
    changed["rpm"]["grpo"]["updates_per_generation"] = 1  # who of a batch comes first depends on it
    for name, processes in (("one", "one"), ("two", kind)):
        recipe, folder = tmp_path / f"{name}.json", tmp_path / name
        write_json(recipe, changed)
        words = ["-m", "coevolve", "rpm", recipe, "--output-dir", folder]
        launcher.run(processes, words, tmp_path / f"{name}.log")
    one, two = (logged(tmp_path / name) for name in ("one", "two"))
    assert len(one) > 3
    assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    expected = weights(tmp_path / "one")
    for name, found in weights(tmp_path / "two").items():
        assert torch.allclose(found, expected[name], rtol=1e-2, atol=1e-4), name


def logged(folder):
    """The reward of each step of GRPO, or DPO's loss."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = ("connector/reward", "connector/loss")
    return [line[name] for line in lines for name in wanted if name in line]
