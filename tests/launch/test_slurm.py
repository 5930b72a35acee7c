"""launch/slurm.sh warns the run once, and requeues it as long as it is worth it. Slurm's commands
are stand-ins.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sh"

COMMANDS = {
    "scontrol": """
        case "$1 $2" in
            "show hostnames") echo node7; echo node8 ;;
            "show job")
                echo "JobId=$4 JobState=$(cat state 2>/dev/null || echo RUNNING) Reason=None" ;;
            *) echo "scontrol $*" >> calls ;;
        esac""",
    # The step's process is the launcher itself, as on a node; its signal goes to that process
    # alone.
    "srun": 'echo $$ > step; while [ "$1" != bash ]; do shift; done; SLURM_NODEID=0 exec "$@"',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"',
    "accelerate": """
        echo "accelerate $*" >> calls
        trap 'echo "launcher got SIGTERM" >> calls; kill $!; sleep 0.3; exit 1' TERM
        touch up
        [ -e quick ] && exit 1
        sleep 30 & wait""",
    "coevolve": 'echo "coevolve $*" >> calls; exit "$(cat status)"',
}

SLURM = {
    "SLURM_JOB_ID": "41234",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.fixture
def job(tmp_path):
    """A function that starts the script where `coevolve status` will answer `status`."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        command.chmod(0o755)
    started = []

    def start(status, *arguments, **environ):
        (tmp_path / "status").write_text(str(status), encoding="utf-8")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=tmp_path,
            env={**os.environ, **SLURM, **environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def calls(folder):
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


def wait_for(file):
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file.name} never appeared"
        time.sleep(0.02)


def test_each_node_launches_the_whole_run_with_its_own_rank(job, tmp_path):
    (tmp_path / "quick").touch()
    assert job(0, "recipes/qwen3-8b", "runs/a", "seed=1").wait(60) == 0
    launched, status = calls(tmp_path)
    assert launched == (
        "accelerate launch --config_file launch/several_nodes.yaml --num_machines 2 "
        "--num_processes 8 --machine_rank 0 --main_process_ip node7 --main_process_port 21234 -m "
        "coevolve train recipes/qwen3-8b --output-dir runs/a seed=1"
    )
    assert status == "coevolve status runs/a"


@pytest.mark.parametrize("warnings", [1, 2])
def test_a_warning_reaches_the_launcher_once_and_the_job_is_requeued(job, tmp_path, warnings):
    process = job(75, "recipe", "run")
    wait_for(tmp_path / "up")
    for _ in range(warnings):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert process.wait(60) == 0
    assert calls(tmp_path)[1:] == [
        "scancel --signal=TERM 41234.0",
        "launcher got SIGTERM",
        "coevolve status run",
        "scontrol requeue 41234",
    ]


def test_the_script_outlives_a_sigterm_of_its_own(job, tmp_path):
    process = job(75, "recipe", "run")
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("status", "environ"),
    [(0, {}), (2, {}), (75, {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"})],
    ids=["finished", "failed", "too often"],
)
def test_nothing_else_is_requeued_and_the_jobs_status_is_the_runs(job, tmp_path, status, environ):
    (tmp_path / "quick").touch()
    assert job(status, "recipe", "run", **environ).wait(60) == status
    assert not any("requeue" in call for call in calls(tmp_path))


def test_a_job_that_others_end_does_not_bring_itself_back(job, tmp_path):
    """As after scancel; a preempted one is requeued by Slurm."""
    (tmp_path / "quick").touch()
    (tmp_path / "state").write_text("COMPLETING")
    process = job(75, "recipe", "run")
    assert process.wait(60) == 75
    assert "the job is COMPLETING" in process.stdout.read()
    assert not any("requeue" in call for call in calls(tmp_path))


def test_without_arguments_it_says_what_it_takes(job):
    process = job(0)
    assert process.wait(60) == 2
    assert "RECIPE RUN_DIR" in process.stdout.read()
