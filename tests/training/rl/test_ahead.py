"""Completions that a server writes while the batch before is trained on."""

import json
import threading
from collections import Counter

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from coevolve.errors import EngineError, RecipeError
from coevolve.libraries.vllm import Written
from coevolve.recipe import check_recipe
from coevolve.scoring.generate import Sampling, generate
from coevolve.scoring.logprob import score_rows
from coevolve.training import generation
from coevolve.training.distributed.processes import Interrupted, Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.generation import UnderWay
from coevolve.training.rl.ahead import Ahead
from coevolve.training.run import train

SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}
AHEAD = {**SERVER, "async_generation": 1}


class ByTransformers:
    """A server's place taken by transformers: a base, and adapters on it by name."""

    def __init__(self, options):
        self.base = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
        self.model, self.versions, self.asked, self.busy = None, [], [], threading.Lock()

    def load_adapter(self, name, folder, instead):
        assert self.busy.acquire(blocking=False), "new weights while it writes"
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.base, folder, adapter_name=name).eval()
        else:
            self.model.load_adapter(folder, adapter_name=name)
        if instead is not None:
            self.model.delete_adapter(instead)
        self.versions.append(name)
        self.busy.release()

    def complete(self, asked, poll):
        with self.busy:
            return [self.one(ask, poll) for ask in asked]

    def one(self, ask, poll):
        poll()
        if ask.temperature:  # evaluations are greedy
            self.asked.append((self.versions.index(ask.adapter), tuple(ask.prompt), ask.seed))
        self.model.set_adapter(ask.adapter)
        with torch.no_grad():
            (found,) = generate(
                self.model,
                [ask.prompt],
                max_new_tokens=ask.max_tokens,
                stop_ids=ask.stop_ids,
                sampling=Sampling(ask.seed, ask.temperature),
                keys=[0],
                pad_id=0,
                token_budget=4096,
            )
            ids = found.ids if found.stopped_by is None else [*found.ids, found.stopped_by]
            (log_probs,) = score_rows(self.model, [ask.prompt], [ids], pad_id=0)
        return Written(ids, log_probs.tolist(), found.stopped_by is not None)

    def close(self):
        pass


@pytest.fixture
def server(monkeypatch):
    """All that were started, one for each run."""
    started = []

    def start(url, options, why, names):
        started.append(ByTransformers(options))
        return started[-1]

    monkeypatch.setattr(generation, "There", start)
    monkeypatch.setattr(
        "coevolve.preflight.training.check_engine", lambda *args: None, raising=False
    )
    monkeypatch.setattr("coevolve.libraries.vllm.missing", lambda: None)
    return started


@pytest.fixture(scope="session")
def recipe_for(values_of):
    def make(**rl):
        values = values_of(
            "lora",
            baselines={"without_corl": False, "without_reasoning": False},
            evaluation={"marginal_samples": 0},
            checkpoints={"every_steps": 1},
            rounds={"count": 1, "phases": ["connector_rl", "refresh", "estimator_sft"]},
        )
        del values["estimator_rl"]
        values["connector_rl"] |= {"steps": 4, **rl}
        return check_recipe(values, "tiny")

    return make


def outcome(folder):
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    files = json.loads((folder / "estimator" / "manifest.json").read_text())["files"]
    return results, files, (folder / "samples.jsonl").read_text()


def versions_of_batches(server, size=8):
    """Of each batch of completions in turn, the version of the weights that wrote it."""
    batches = [server.asked[start : start + size] for start in range(0, len(server.asked), size)]
    return [version for batch in batches for version in {version for version, _, _ in batch}]


def ratios(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "connector/sampling/importance_sampling_ratio/max"
    return [line[name] for line in lines if name in line]


def test_each_batch_is_by_the_policy_of_one_batch_ago_and_is_corrected(
    server, recipe_for, tmp_path, stop_at_checkpoint
):
    train(recipe_for(**SERVER), tmp_path / "in_turn")
    train(recipe_for(**AHEAD), tmp_path / "ahead")
    in_turn, ahead = server
    of_rl = slice(0, 4)  # then the connector writes for the refresh; version 0 is evaluated
    assert versions_of_batches(in_turn)[of_rl] == [1, 2, 3, 4]
    assert versions_of_batches(ahead)[of_rl] == [1, 1, 2, 3]
    prompts_and_seeds = [[x[1:] for x in found.asked[:32]] for found in server]
    assert prompts_and_seeds[0] == prompts_and_seeds[1]
    assert max(abs(x - 1) for x in ratios(tmp_path / "in_turn")) < 1e-4
    assert abs(ratios(tmp_path / "ahead")[0] - 1) < 1e-4 < max(ratios(tmp_path / "ahead")) - 1

    # Stopped twice and gone on with: the same bits, and nothing is asked for twice or left out.
    run, recipe = tmp_path / "run", recipe_for(**AHEAD)
    for place in ("connector_rl-step-1", "connector_rl-step-3"):
        with pytest.raises(Interrupted):
            train(recipe, run, stop=stop_at_checkpoint(run, place))
    train(recipe, run)
    assert outcome(run) == outcome(tmp_path / "ahead")
    asked = Counter(x[1:] for part in server[2:] for x in part.asked)
    assert asked == Counter(x[1:] for x in ahead.asked)


def test_what_goes_wrong_meanwhile_ends_the_run_which_goes_on_from_its_checkpoint(
    server, recipe_for, tmp_path, monkeypatch
):
    one = ByTransformers.one

    def dying(self, ask, poll):
        if len(self.asked) == 20 and len(server) == 1:
            raise EngineError("the server at http://127.0.0.1:9 cannot be reached.")
        return one(self, ask, poll)

    monkeypatch.setattr(ByTransformers, "one", dying)
    with pytest.raises(EngineError, match="cannot be reached"):
        train(recipe_for(**AHEAD), tmp_path / "run")
    train(recipe_for(**AHEAD), tmp_path / "run")
    train(recipe_for(**AHEAD), tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_what_nobody_needs_any_more_is_left():
    begun, left = threading.Event(), threading.Event()

    def complete(poll):
        begun.set()
        try:
            while True:
                poll()
        finally:
            left.set()

    ahead = Ahead(Processes(torch.device("cpu"), Stop()))
    ahead.of(0, list, lambda: UnderWay(complete), lambda: None)
    assert begun.wait(10) and not left.is_set()
    ahead.leave()
    assert left.wait(10) and not ahead.state(1)


def test_batches_outlast_a_checkpoint_to_the_bit():
    processes, nothing = Processes(torch.device("cpu"), Stop()), lambda: None
    now = [Written([3, 1], [-0.1, -1 / 3], True), Written([], [], False)]
    later = [Written([7], [-2.0], False)]
    first = Ahead(processes)
    assert first.of(4, lambda: now, lambda: UnderWay(lambda poll: later), nothing) == now
    # Left in the middle of batch 4, both are needed; after it, the next one.
    for begins, held in ((4, [now, later]), (5, [later])):
        second = Ahead(processes)
        second.load({**first.state(begins), "0|advantages": torch.ones(1)})
        found = [second.of(at, pytest.fail, nothing, nothing) for at in range(begins, 6)]
        assert found == held
    assert not first.state(6)


@pytest.mark.parametrize(
    ("rl", "said"),
    [
        ({}, "needs use_vllm: true and vllm_mode: server, found use_vllm false"),
        ({"use_vllm": True}, "found vllm_mode colocate"),
        (
            {**SERVER, "vllm_importance_sampling_correction": False},
            "correction: true, for it trains",
        ),
    ],
)
def test_a_recipe_in_which_nothing_can_be_ahead(recipe_for, rl, said):
    with pytest.raises(RecipeError, match=said):
        recipe_for(async_generation=1, **rl)
