"""A run so small that it takes seconds: two or three steps of everything,
on the synthetic world.
"""

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from coevolve.preflight.dialogues import Dialogues, load_corpus
from coevolve.recipe import check_recipe, recipe_values
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES
from coevolve.training import phases
from coevolve.training.checkpoints import CHECKPOINTS, CheckpointWriter
from coevolve.training.context import Context
from coevolve.training.distributed.estimator import DistributedEstimator
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.record.record import Record
from coevolve.training.run import train
from coevolve.training.run_folder import RunFolder
from coevolve.training.schedule import Budget
from coevolve.training.setup import build_estimator, build_renderers, prepare_origins
from coevolve.training.state import RunState
from coevolve.training.tracing import Tracer

ROOT = Path(__file__).parents[2]
FORKS = ROOT / "tests" / "forks.py"
MARK = "COEVOLVE_TEST"

SFT = {"steps": 3, "learning_rate": 2e-3, "train_batch_size": 8}
GRPO = {"steps": 2, "learning_rate": 1e-3, "train_batch_size": 8, "num_generations": 4}

VALUES = {
    "name": "tiny",
    "prompts": "world",
    "data": {"world": {"train": 40, "test": 6}, "validation": 8},
    "model": {
        "base": "tiny",
        "tiny": {"hidden_size": 32, "layers": 1, "heads": 2},
        "tuning": "full",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 96,
        "max_reasoning_tokens": 24,
    },
    "traces": {"teacher": "dataset"},
    "cold_start": {"connector": SFT, "estimator": SFT},
    "rounds": {"count": 1},
    "connector_rl": {**GRPO, "max_completion_length": 24, "rewards": {"target_words": 5}},
    "refresh": {"temperature": 1.0},
    "estimator_sft": SFT,
    "estimator_rl": {
        **GRPO,
        "max_completion_length": 8,
        "golden_nll_weight": 1.0,
        "rewards": {"judge": "likelihood"},
    },
    "baselines": {"without_corl": True, "without_reasoning": True},
    "evaluation": {"marginal_samples": 2},
}

LORA = {
    "tuning": "lora",
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
}

OWN = {
    "mixed": {"estimator": {"tuning": "full"}},
    "ranks": {
        "connector": {
            "lora": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "lora_dropout": 0.3}
        }
    },
}


def values(tuning="full", **sections):
    """The recipe's values, with whole sections or parts of them replaced.

    `tuning` is that of both roles. `mixed` is an adapter for the connector and a whole model for
    the estimator; `ranks` is two adapters, the connector's of another rank, on other modules, with
    more dropout.
    """
    merged = copy.deepcopy(VALUES)
    if tuning != "full":
        merged["model"].update(copy.deepcopy(LORA))
    merged["model"].update(OWN.get(tuning, {}))
    for name, section in sections.items():
        merged[name] = {**merged.get(name, {}), **section} if isinstance(section, dict) else section
    return merged


@pytest.fixture(scope="session")
def values_of():
    """A function from changes to a recipe's values, to be written to a file."""
    return values


@pytest.fixture(scope="session")
def recipe_of():
    """A function from changes to a checked recipe."""
    return lambda tuning="full", **sections: check_recipe(values(tuning, **sections), "tiny")


@pytest.fixture(scope="session")
def build():
    """A function from a recipe and a folder to context and state after a cold start of
    a few steps.
    """
    return build_cold


@pytest.fixture(scope="module")
def judge(recipe_of, tmp_path_factory):
    """An exported estimator, hardly trained."""
    folder = tmp_path_factory.mktemp("judge")
    nothing = {"without_corl": False, "without_reasoning": False}
    recipe = recipe_of(rounds={"count": 0}, baselines=nothing, evaluation={"marginal_samples": 0})
    train(recipe, folder)
    return str(folder / "estimator")


@pytest.fixture(scope="session")
def stop_after():
    """A function from a number of looks to a Stop that asks to stop when it has been looked at so
    many times.
    """
    return StopAfter


@pytest.fixture(scope="session")
def stop_at_checkpoint():
    """A function from a run's folder and the end of a checkpoint's name to a Stop that asks to stop
    as soon as there is one.
    """
    return StopAtCheckpoint


class StopAtCheckpoint(Stop):
    def __init__(self, folder, name):
        super().__init__()
        self.folder, self.name = folder, name

    @property
    def requested(self):
        there = any((self.folder / CHECKPOINTS).glob(f"*{self.name}"))
        self.reason = "the test" if there else None
        return there


class StopAfter(Stop):
    """A signal at a moment that can be repeated."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        if self.looks < 0:
            self.reason = "the test"
        return self.reason is not None


def build_cold(recipe, folder):
    """A pair that writes well-formed reasonings, so that its rewards differ and there is something
    to learn.

    Adapters cannot teach a random base that much, so they get a base that can do it already.
    """
    corpus = load_corpus(recipe)
    train = corpus.require("IDTrain")
    origins = prepare_origins(recipe, folder)
    if recipe.model.tuning == "lora":
        values = recipe_values(recipe)
        shared = {name: value for name, value in values["model"].items() if name not in ROLES}
        nothing = {"rounds": {"count": 0}, "connector_rl": None, "estimator_rl": None}
        whole = check_recipe({**values, **nothing, "model": {**shared, "tuning": "full"}}, "whole")
        context, _ = build_cold(whole, folder / "whole")
        context.roles.save(CONNECTOR, Path(origins[CONNECTOR].base.path))
    estimator = build_estimator(recipe, origins, build_renderers(recipe, origins))
    processes, record = Processes(torch.device("cpu"), Stop()), Record(folder, main=False)
    (folder / ".lock").touch()
    context = Context(
        recipe=recipe,
        data=Dialogues(train=train, validation=train[:8], tests={}, corpus=corpus),
        train=train,
        traces=[example.trace for example in train],
        origins=origins,
        estimator=estimator,
        distributed=DistributedEstimator(estimator, processes),
        record=record,
        processes=processes,
        folder=RunFolder(folder, processes),
        checkpoints=CheckpointWriter(folder, keep=1),
        tracer=Tracer(
            *(recipe, corpus, train, estimator.renderer, record, {}), "2026-01-01", processes
        ),
    )
    state = RunState.begin(context.roles, context.traces)
    rows = {
        CONNECTOR: phases.connector_rows(estimator, train, context.traces),
        ESTIMATOR: phases.estimator_rows(estimator, train, context.traces),
    }
    settings, budget = recipe.cold_start.connector, Budget(60, 60)
    for role in ROLES:
        phases.sft(context, state, role, "cold", "cold", rows[role], settings, budget, carry=False)
    return context, state


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """Starts processes as users do."""
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR") or str(
        tmp_path_factory.mktemp("extensions")
    )
    launcher = Launcher(tmp_path_factory.mktemp("launcher"), extensions)
    yield launcher
    launcher.end()


@pytest.fixture(autouse=True)
def _nothing_goes_on_after_a_test(request):
    yield
    if "launcher" in request.fixturenames:
        request.getfixturevalue("launcher").kill()


class Launcher:
    """Starts what a test launches, and leaves nothing of it behind.

    A `kind` is `one` for a process alone, `ddp` for two under torchrun, or the name of a file in
    `launch/` for two under `accelerate launch`. Launchers and what they launch begin with
    everything imported (tests/forks.py), unless they are to be `fresh`.
    """

    def __init__(self, folder, extensions):
        self.folder, self.started, self.forking = folder, [], None
        # DeepSpeed compiles a helper once, which takes a minute. The fault handler is for `wait`.
        self.environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "TORCH_EXTENSIONS_DIR": extensions,
            "PYTHONFAULTHANDLER": "1",
            MARK: str(folder),
        }

    def launched(self, kind, arguments):
        """Arguments of Python, by which a launcher starts what has these."""
        if kind == "ddp":
            port = ["--master_port", self.free_port()]
            return ["-m", "torch.distributed.run", "--nproc_per_node", "2", *port, *arguments]
        # `accelerate launch --cpu` would start one process, without DeepSpeed; the same in the file
        # does not.
        config = self.folder / f"{kind}.yaml"
        shipped = (ROOT / "launch" / f"{kind}.yaml").read_text()
        config.write_text(shipped.replace("use_cpu: false", "use_cpu: true"))
        count = "1" if kind.startswith("one_") else "2"
        options = ["--config_file", config, "--num_processes", count]
        options += ["--main_process_port", self.free_port()]
        return ["-m", "accelerate.commands.launch", *options, *arguments]

    def free_port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])

    def forked(self, arguments):
        """The arguments of a process that begins with everything imported."""
        place = self.folder / "forks"
        if self.forking is None:
            environ = {name: value for name, value in self.environ.items() if name != MARK}
            command = [sys.executable, FORKS, "serve", place]
            self.forking = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, cwd=ROOT)
        while not place.exists():
            assert self.forking.poll() is None
            time.sleep(0.05)
        return [FORKS, place, *arguments]

    def start(self, kind, arguments, log, fresh=False, **environ):
        """What it prints is added to the file `log`."""
        begin = list if fresh else self.forked
        arguments = begin(arguments)
        if kind != "one":
            arguments = begin(self.launched(kind, arguments))
        # For the others the launch file says it, and this would make DDP of them.
        on_cpu = {"ACCELERATE_USE_CPU": "true"} if kind in ("one", "ddp") else {}
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env={**self.environ, **on_cpu, **environ},
                stdout=file,
                stderr=file,
                cwd=ROOT,
            )
        process.log = Path(log)
        self.started.append(process)
        return process

    def wait(self, process, seconds):
        """The exit status. A process that hangs is killed, with all that it started, and says where
        it was.
        """
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            family = self.running()
            self.send(family, signal.SIGABRT)
            psutil.wait_procs(family, timeout=5)
            self.kill()
            pytest.fail(f"not done after {seconds} s\n{said(process)}")

    def run(self, kind, arguments, log, seconds=400, fresh=False):
        process = self.start(kind, arguments, log, fresh)
        assert self.wait(process, seconds) == 0, said(process)

    def running(self):
        """Everything that was started and has not ended, also what outlived the launcher that
        started it.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.environ[MARK]:
                    found.append(process)
        return found

    def send(self, processes, number):
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
                process.send_signal(number)

    def kill(self):
        running = self.running()
        self.send(running, signal.SIGKILL)
        psutil.wait_procs(running, timeout=5)
        for process in self.started:
            process.wait()
        self.started.clear()

    def end(self):
        self.kill()
        if self.forking:
            self.forking.communicate(timeout=20)


def said(process):
    return process.log.read_text(errors="replace")
