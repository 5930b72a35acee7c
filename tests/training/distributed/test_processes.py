"""Real runs of two processes on the CPU: the same figures as one, and what happens when one is told
to stop or dies.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file, save_file

from coevolve.scoring.models import load_tokenizer
from coevolve.worlds.tiny import write_tiny_base

ROOT = Path(__file__).parents[3]

ROUND = {
    "data": {"world": {"train": 40, "test": 5}, "validation": 8},
    # Enough for well-formed reasonings, so that there are rewards to be compared.
    "cold_start": {
        role: {"steps": 60, "learning_rate": 2e-3, "train_batch_size": 8}
        for role in ("connector", "estimator")
    },
    "logging": {"every": 1},
    "evaluation": {"marginal_samples": 0},
    "baselines": {"without_corl": False, "without_reasoning": False},
}

SHORT = {
    role: {"steps": 1, "learning_rate": 2e-3, "train_batch_size": 8}
    for role in ("connector", "estimator")
}
"""A cold start for where it does not matter what is written afterwards."""

pytestmark = pytest.mark.slow(seconds=13)


@pytest.fixture(scope="module")
def recipe_file(values_of, tmp_path_factory):
    """A function that writes a recipe and returns its path."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(tuning="full", **changes):
        path = folder / f"{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(values_of(tuning, **{**ROUND, **changes})))
        return path

    return write


def arguments(recipe, folder, *options):
    return ["-m", "coevolve", "train", recipe, "--output-dir", folder, *options]


def start(kind, launcher, recipe, folder, *options, fresh=False):
    return launcher.start(kind, arguments(recipe, folder, *options), f"{folder}.log", fresh)


def run(kind, launcher, recipe, folder, *options):
    launcher.run(kind, arguments(recipe, folder, *options), f"{folder}.log")
    return json.loads((folder / "results.json").read_text())


def said(folder):
    return Path(f"{folder}.log").read_text(errors="replace")


def logged(folder, name):
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def wait_for(condition, process, folder, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, said(folder)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(launcher, recipe_file, tmp_path_factory):
    """(recipe, folder) of a run of one process."""
    recipe, folder = recipe_file(), tmp_path_factory.mktemp("alone") / "run"
    run("one", launcher, recipe, folder)
    return recipe, folder


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_two_processes_do_what_one_does(kind, launcher, alone, tmp_path):
    """The same prompts in the same order, so the same completions and rewards, and figures that
    differ by rounding.

    Only the order of sums differs between one process and two, 1e-7 of each at float32. A hundred
    updates let that grow, and Adam divides by gradients that may be near 0: 1e-6 of the perplexity
    was seen, 1e-3 is allowed.
    """
    recipe, folder = alone
    results = run(kind, launcher, recipe, tmp_path / "run")
    expected = json.loads((folder / "results.json").read_text())
    for split, value in expected["perplexity"]["full"].items():
        assert results["perplexity"]["full"][split] == pytest.approx(value, rel=1e-3)
    for name in (
        "completions/mean_length",
        "rewards/likelihood/mean",
        "rewards/format/mean",
        "reward",
    ):
        one, two = (logged(place, f"connector/{name}") for place in (folder, tmp_path / "run"))
        assert len(one) == len(two) == 2 and one == pytest.approx(two, rel=1e-3) and min(one) > 0, (
            name
        )
    assert len(logged(tmp_path / "run", "time/connector_rl")) == 1
    assert re.search(r"2 processes", said(tmp_path / "run"))
    rows = [(row["row"], row["examples"], row["negatives"]) for row in expected["remid"]["subsets"]]
    assert [
        (row["row"], row["examples"], row["negatives"]) for row in results["remid"]["subsets"]
    ] == rows
    one, two = ((place / "samples.jsonl").read_text() for place in (folder, tmp_path / "run"))
    texts = [
        [json.loads(line)["sample"]["reasoning"] for line in text.splitlines()]
        for text in (one, two)
    ]
    assert texts[0] == texts[1]
    assert (tmp_path / "run" / "estimator" / "manifest.json").exists()


PPO = {
    "algorithm": "ppo",
    "num_generations": 1,
    "num_iterations": 2,
    "steps": 4,
    "per_device_train_batch_size": 2,
    "ppo": {"kl_target": 0.01},
}


@pytest.fixture(scope="module")
def ppo_alone(launcher, recipe_file, tmp_path_factory):
    """(recipe, folder) of a run of one process with PPO."""
    recipe = recipe_file(connector_rl=PPO, rounds=TWICE)
    folder = tmp_path_factory.mktemp("ppo") / "run"
    run("one", launcher, recipe, folder)
    return recipe, folder


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_two_processes_do_ppo_as_one_does(kind, launcher, ppo_alone, tmp_path):
    """The value head included, left in the second round and started again."""
    recipe, folder = ppo_alone
    stop_inside(kind, launcher, recipe, tmp_path / "run", "round-2-connector_rl")
    run(kind, launcher, recipe, tmp_path / "run")
    names = ("kl", "kl_coef", "scores", "rlhf_reward")
    for name in (
        *(f"objective/{name}" for name in names),
        "loss/value_avg",
        "val/ratio",
        "val/explained_variance",
    ):
        one, two = (logged(place, f"connector/{name}") for place in (folder, tmp_path / "run"))
        assert len(one) == len(two) >= 4 and one == pytest.approx(two, rel=2e-3, abs=1e-4), name
    heads = [value_function(place) for place in (folder, tmp_path / "run")]
    assert set(heads[0]) == set(heads[1]) == {"own|value_head.weight", "own|value_head.bias"}
    for name, value in heads[0].items():
        assert bool(value.any()) and (value - heads[1][name]).abs().max() < 2e-3, name


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_value_function_with_its_own_adapter(kind, launcher, recipe_file, tmp_path):
    """A random base writes nothing that is rewarded, so there is nothing to compare but that all of
    it moves.
    """
    ppo = {**PPO, "ppo": {"value_backbone": "adapter"}}
    recipe = recipe_file("lora", connector_rl=ppo, rounds=TWICE, cold_start=SHORT)
    run(kind, launcher, recipe, tmp_path / "run")
    assert len(logged(tmp_path / "run", "connector/objective/kl")) == 4
    found = value_function(tmp_path / "run")
    assert any("critic" in name for name in found) and all(
        bool(value.isfinite().all()) for value in found.values()
    )


TWICE = {"count": 2, "phases": ["connector_rl"], "gate_tolerance": 1e9}  # nothing is rolled back


def value_function(folder):
    """The weights that the last checkpoint holds of it."""
    newest = max((folder / "checkpoints").glob("[0-9]*"))
    state = load_file(newest / "optimizer-connector_rl.safetensors")
    return {name: value for name, value in state.items() if name.startswith("own|") and value.dim()}


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_nan_stops_all_processes_before_the_step(kind, launcher, recipe_file, tmp_path):
    """A base model whose token for the end of a turn is beyond all norms; only prompts have it."""
    base = write_tiny_base(tmp_path / "base", seed=0, hidden=32, layers=1, heads=2)
    weights = load_file(base / "model.safetensors")
    (end,) = load_tokenizer(base)("<|im_end|>", add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"][end] = 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    sft = {"steps": 4, "learning_rate": 1e-3, "warmup_ratio": 0.0, "train_batch_size": 8}
    recipe = recipe_file(cold_start={"connector": sft, "estimator": sft}, model={"base": str(base)})
    process = start(kind, launcher, recipe, tmp_path / "run")
    assert launcher.wait(process, 300) != 0
    assert said(tmp_path / "run").count("The step was not taken") == 1, said(tmp_path / "run")
    for rank in range(2):
        (described,) = (tmp_path / "run" / "failed").glob(f"connector-step-0-process-{rank}.json")
        assert len(json.loads(described.read_text())["texts"]) == 4
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_rewards_that_look_beyond_their_own_process(launcher, recipe_file, tmp_path):
    """A group that lies on two processes, and lowest values that are those of the whole batch."""
    whole = {"train_batch_size": 8, "num_generations": 8, "steps": 2}
    recipe = recipe_file(
        cold_start=ROUND["cold_start"],
        connector_rl={**whole, "rewards": {"target_words": 5, "log_likelihood": 1.0, "gain": 1.0}},
        estimator_rl={
            **whole,
            "scale_rewards": "none",
            "rewards": {"judge": "likelihood", "kernel_score": 1.0},
        },
    )
    folders = {kind: tmp_path / kind for kind in ("one", "ddp")}
    for kind, folder in folders.items():
        run(kind, launcher, recipe, folder)
    for name in (
        "connector/rewards/log_likelihood",
        "connector/rewards/gain",
        "estimator/rewards/kernel_score",
    ):
        for what in ("mean", "std", "lowest"):
            one, two = (logged(folder, f"{name}/{what}") for folder in folders.values())
            assert len(one) == 2 and one == pytest.approx(two, rel=1e-3, abs=1e-5), f"{name}/{what}"


def test_adapters_and_dropout_under_zero3(launcher, recipe_file, tmp_path):
    recipe = recipe_file("lora", rounds={"count": 1}, cold_start=SHORT)
    results = run("zero3", launcher, recipe, tmp_path / "run")
    assert all(value > 1 for value in results["perplexity"]["full"].values())


@pytest.mark.parametrize(
    ("first", "then"), [("ddp", "one"), ("one", "zero2"), ("zero2", "ddp"), ("zero3", "ddp")]
)
def test_a_run_goes_on_under_another_launch(first, then, launcher, alone, recipe_file, tmp_path):
    """Stopped in the middle of a phase; the same prompts, the same batches, figures that differ by
    rounding.
    """
    recipe, folder = alone
    stop_inside(first, launcher, recipe, tmp_path / "run", "cold-start-connector")
    assert "cold-start-connector" in " ".join(
        path.name for path in (tmp_path / "run" / "checkpoints").iterdir()
    )
    stop_inside(first, launcher, recipe, tmp_path / "run", "connector_rl")
    results = run(then, launcher, recipe, tmp_path / "run")
    expected = json.loads((folder / "results.json").read_text())
    for split, value in expected["perplexity"]["full"].items():
        assert results["perplexity"]["full"][split] == pytest.approx(value, rel=1e-3)
    for name in ("connector/rewards/likelihood/mean", "estimator/completions/mean_length"):
        assert logged(tmp_path / "run", name) == pytest.approx(logged(folder, name), rel=1e-3)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps))


def stop_inside(kind, launcher, recipe, folder, stage, fresh=False):
    """Run until the stage is under way, send SIGTERM to the launcher; returns the seconds that
    leaving took.
    """
    process = start(kind, launcher, recipe, folder, fresh=fresh)

    def under_way():
        try:
            return stage in json.loads((folder / "status.json").read_text())["stage"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            return False

    wait_for(under_way, process, folder)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    launcher.wait(process, 60)
    took = time.monotonic() - began
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted", said(folder)
    return took


@pytest.mark.parametrize("kind", ["one", "ddp"])
@pytest.mark.parametrize("stage", ["connector_rl", "refresh"])
def test_a_signal_saves_and_leaves(kind, stage, launcher, recipe_file, tmp_path):
    long = {
        "data": {"world": {"train": 4000, "test": 5}, "validation": 8},
        "connector_rl": {"steps": 2 if stage == "refresh" else 2000, "max_completion_length": 24},
        "cold_start": SHORT,
    }
    recipe = recipe_file(**long)
    fresh = (kind, stage) == ("ddp", "refresh")
    assert stop_inside(kind, launcher, recipe, tmp_path / "run", stage, fresh) < 30
    assert f"round-1-{stage}" in max(
        path.name for path in (tmp_path / "run" / "checkpoints").iterdir()
    )
    status = subprocess.run(
        [sys.executable, "-m", "coevolve", "status", tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert status.returncode == 75 and "state: interrupted" in status.stdout


def test_one_process_leaves_with_the_documented_status(launcher, alone, tmp_path):
    recipe, _ = alone
    process = start("one", launcher, recipe, tmp_path / "run", "--deadline", "1s", fresh=True)
    assert launcher.wait(process, 120) == 75
    assert "the deadline: saved" in said(tmp_path / "run")


@pytest.mark.parametrize("kind", ["one_cpu", "several_cpus"])
def test_what_a_launcher_leaves_behind_ends(kind, launcher, recipe_file, tmp_path):
    """SIGUSR1, of which `accelerate launch` knows nothing, ends it alone."""
    recipe = recipe_file(connector_rl={"steps": 2000}, cold_start=SHORT)
    folder = tmp_path / "run"
    command = arguments(recipe, folder)
    process = launcher.start(kind, command, f"{folder}.log", fresh=True)
    wait_for(lambda: logged(folder, "connector/reward"), process, folder)
    process.send_signal(signal.SIGUSR1)
    assert launcher.wait(process, 30) == -signal.SIGUSR1
    checkpoints = sorted((folder / "checkpoints").iterdir())
    until = time.monotonic() + 30
    while launcher.running():
        assert time.monotonic() < until, said(folder)
        time.sleep(0.2)
    assert sorted((folder / "checkpoints").iterdir()) == checkpoints
    assert re.search(r"(its launcher \(pid \d+\)|holds its store,) is gone", said(folder))
    recipe.write_text(recipe.read_text().replace("steps: 2000", "steps: 2"))
    run("one", launcher, recipe, folder, "--force")


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_is_named_and_the_other_leaves(dies, launcher, recipe_file, tmp_path):
    """Without a launcher that would look after them."""
    recipe, port = recipe_file(connector_rl={"steps": 2000}, cold_start=SHORT), launcher.free_port()
    folder, processes = tmp_path / "run", []
    for rank in range(2):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = tmp_path / f"{rank}.log"
        words = arguments(recipe, folder)
        processes.append(launcher.start("one", words, log, **ranks, **place))

    def training():
        return (folder / "metrics.jsonl").exists() and "connector/reward" in (
            folder / "metrics.jsonl"
        ).read_text()

    Path(f"{folder}.log").touch()
    wait_for(training, processes[1 - dies], folder)
    processes[dies].kill()
    began = time.monotonic()
    assert launcher.wait(processes[1 - dies], 90) != 0
    assert time.monotonic() - began < 60
    last = (tmp_path / f"{1 - dies}.log").read_text()
    assert re.search(rf"process {dies}", last), last
    shutil.copy(tmp_path / "0.log", f"{folder}.log")
    recipe.write_text(recipe.read_text().replace("steps: 2000", "steps: 2"))
    run("one", launcher, recipe, folder, "--force")


def test_a_mistake_is_said_once(launcher, recipe_file, tmp_path):
    for mistake, message in (
        (
            {"data": {"world": {"train": 40, "test": 5}, "validation": 40}},
            "data.validation takes 40",
        ),
        (
            {"estimator_rl": {"train_batch_size": 9, "num_generations": 3}},
            "2 processes cannot take equal shares",
        ),
    ):
        process = start("ddp", launcher, recipe_file(**mistake), tmp_path / "run")
        assert launcher.wait(process, 120) != 0
        assert said(tmp_path / "run").count(message) == 1


def machines(launcher, recipe, folders, *options):
    """Two launchers, as on two machines, with a process each."""
    port, started = launcher.free_port(), []
    for rank, folder in enumerate(folders):
        config = ROOT / "launch" / "several_nodes.yaml"
        here = recipe.with_name(f"machine-{recipe.stem}.yaml")
        here.write_text(config.read_text().replace("use_cpu: false", "use_cpu: true"))
        place = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        place += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            here,
            *place,
        ]
        log = folder.parent / f"machine-{rank}.log"
        words = [*command[1:], *launcher.forked(arguments(recipe, folder, *options))]
        started.append(launcher.start("one", words, log, fresh=True))
    return started


def test_two_machines_do_what_one_does(launcher, alone, recipe_file, tmp_path):
    """Begun on two, of which the second is lost; gone on with on one machine and on two."""
    recipe, folder = alone
    expected = json.loads((folder / "results.json").read_text())["perplexity"]["full"]

    def require_same(place):
        found = json.loads((place / "results.json").read_text())["perplexity"]["full"]
        assert found == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}
        lines = (place / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps))

    lost = tmp_path / "lost"
    one, two = machines(launcher, recipe, [lost] * 2, "checkpoints.every_steps=20")
    Path(f"{lost}.log").touch()
    wait_for(lambda: any((lost / "checkpoints").glob("*step*")), one, lost)
    for process in [*psutil.Process(two.pid).children(recursive=True), psutil.Process(two.pid)]:
        process.kill()
    assert launcher.wait(one, 120) != 0
    shutil.copytree(lost, tmp_path / "again")
    run("one", launcher, recipe, lost)
    require_same(lost)
    for process in machines(launcher, recipe, [tmp_path / "again"] * 2):
        assert launcher.wait(process, 300) == 0, (tmp_path / "machine-0.log").read_text()
    require_same(tmp_path / "again")


def test_machines_without_a_common_disk_are_told(launcher, recipe_file, tmp_path):
    (tmp_path / "here").mkdir()
    started = machines(launcher, recipe_file(), [tmp_path / "here" / "run", tmp_path / "run"])
    assert all(launcher.wait(process, 120) for process in started)
    logs = "".join((log).read_text() for log in tmp_path.rglob("machine-*.log"))
    assert "is not seen on" in logs and "a disk that all" in logs, logs
