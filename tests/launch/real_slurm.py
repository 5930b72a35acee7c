"""launch/slurm.sh under real Slurm, by hand: `python -m tests.launch.real_slurm [CASE ...]`, as
root, after `apt-get install slurm-wlm munge`. Brings up a controller and two nodes on this machine,
submits a run of a tiny world for each case, and says what became of it:

- time limit: saved by the warning, requeued, finished;
- preemption: saved in the grace time, requeued by Slurm, finished;
- cancel: saved, and it does not come back;
- requeue: by the administrator (`scontrol requeue`), one record, finished;
- node failure: a node's daemon and its processes are killed; requeued, finished.

Exit status 0: all as it should be.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.fuzz.valid import RECIPE

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "slurm-n1", "slurm-n2"
NODES = {FIRST: 17011, SECOND: 17012}
"""Ports of the nodes' daemons. The names go into HOSTS while the cluster is up."""
HOSTS = Path("/etc/hosts")

CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=17010
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=20
MessageTimeout=60
BatchStartTimeout=120
SlurmdParameters=config_overrides
KillWait=60
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=off MaxTime=INFINITE
"""

LAUNCH = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "mixed_precision": "no",
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": True,
    "num_machines": 2,
    "num_processes": 2,
    "machine_rank": 0,
    "main_process_ip": "127.0.0.1",
    "main_process_port": 29500,
}


PATIENCE = 900.0
"""Seconds that anything may take on a machine with other work."""


class Cluster:
    """Slurm with two nodes, for as long as the context lasts."""

    def __init__(self, folder: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.environ = {**os.environ, "SLURM_CONF": str(self.conf), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "Cluster":
        self.hosts = HOSTS.read_text()
        HOSTS.write_text(self.hosts + "".join(f"127.0.0.1 {node}\n" for node in NODES))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 "
            "RealMemory=1000 Gres=gpu:1 State=UNKNOWN"
            for node, port in NODES.items()
        )
        self.conf.write_text(CONF.format(folder=self.folder, nodes=nodes))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        if subprocess.run(["munge", "-n"], capture_output=True).returncode:
            os.makedirs("/run/munge", exist_ok=True)
            self.run("munged", "--force", cwd="/")
        self.run("slurmctld", "-c", "-f", self.conf)
        for node in NODES:
            self.start_node(node)
        try:
            self.wait(lambda: self.out("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"])
        except TimeoutError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "-u", "root", check=False)
        with suppress(TimeoutError):
            self.wait(lambda: not self.out("squeue", "-h"), 60)
        HOSTS.write_text(self.hosts)
        for process in psutil.process_iter():  # daemons, steps and what they started, munged too
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf):
                    process.kill()

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node, "-f", self.conf)

    def run(self, *command: object, check: bool = True, cwd: str | None = None) -> str:
        words = [str(word) for word in command]
        result = subprocess.run(words, env=self.environ, capture_output=True, text=True, cwd=cwd)
        if check and result.returncode:
            raise SystemExit(f"{' '.join(words)}: {result.stdout}{result.stderr}")
        return result.stdout

    def out(self, *command: object) -> str:
        return self.run(*command, check=False).strip()

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {seconds:.0f} s; see {self.folder}")
            time.sleep(0.5)

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\S+)", self.out("scontrol", "show", "job", job))
        return found[1] if found else "gone"

    def restarts(self, job: str) -> int:
        found = re.search(r"Restarts=(\d+)", self.out("scontrol", "show", "job", job))
        return int(found[1]) if found else 0


class Job:
    """A run of a tiny world, submitted by launch/slurm.sh."""

    def __init__(self, cluster: Cluster, name: str, *options: str):
        self.cluster, self.folder = cluster, cluster.folder / name
        self.folder.mkdir()
        self.run = self.folder / "run"
        recipe, launch = self.folder / "recipe.yaml", self.folder / "launch.yaml"
        recipe.write_text(yaml.safe_dump(long_recipe()))
        launch.write_text(yaml.safe_dump(LAUNCH))
        submitted = subprocess.run(
            [
                *("sbatch", "--parsable", "--gpus-per-node=1", "--cpus-per-task=1"),
                *("--mem=100", f"--output={self.folder / 'log'}", *options),
                *(ROOT / "launch" / "slurm.sh", recipe, self.run),
            ],
            env={**cluster.environ, "LAUNCH": str(launch)},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        self.id = submitted.stdout.strip()
        if not self.id:
            raise SystemExit(f"sbatch: {submitted.stderr}")

    @property
    def status(self) -> dict:
        try:
            return json.loads((self.run / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def observed(self) -> str:
        """What became of it, in a line."""
        shown = self.cluster.out("scontrol", "show", "job", self.id)
        fields = [
            re.search(rf"\b{name}=\S+", shown) for name in ("JobState", "Restarts", "ExitCode")
        ]
        exits = re.findall(r"slurm.sh: .*", (self.folder / "log").read_text())
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        states = f"status {self.status.get('state')}, {len(lines)} lines of metrics"
        return "; ".join([*(found[0] for found in fields if found), states, *exits])

    def trains(self) -> bool:
        """Whether it is in its long phase."""
        return "connector_rl" in self.status.get("stage", "")

    @property
    def seconds(self) -> int:
        """Since it started."""
        hours, minutes, seconds = re.search(
            r"RunTime=(\d+):(\d+):(\d+)", self.cluster.out("scontrol", "show", "job", self.id)
        ).groups()
        return 3600 * int(hours) + 60 * int(minutes) + int(seconds)

    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def runs_again(self) -> bool:
        return self.cluster.restarts(self.id) > 0 and self.trains()

    def records_once(self) -> bool:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        return steps == sorted(set(steps))

    def hurry(self) -> None:
        """Let the next start do what is left in a moment."""
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace(f"steps: {LONG}", "steps: 4"))
        run = json.loads((self.run / "run.json").read_text())
        run["recipe"]["connector_rl"]["steps"] = 4
        (self.run / "run.json").write_text(json.dumps(run))


LONG = 100_000


def long_recipe() -> dict:
    rl = RECIPE["connector_rl"] | {"steps": LONG}
    changes = {"connector_rl": rl, "checkpoints": {"every_steps": 20}}
    return RECIPE | changes | {"rounds": {"count": 1, "phases": ["connector_rl"]}}


def time_limit(cluster: Cluster) -> list[str]:
    """When it trains, three more minutes, of which the last two are the warning's."""
    job = Job(cluster, "time-limit", "--time=60", "--signal=B:USR1@120")
    cluster.wait(job.trains)
    limit = job.seconds // 60 + 3
    cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={limit}")
    cluster.wait(lambda: cluster.restarts(job.id) == 1)
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    job.hurry()
    finishes(job)
    return said(job, restarts=1)


def preemption(cluster: Cluster) -> list[str]:
    job = Job(cluster, "preemption", "--partition=low")
    cluster.wait(job.trains)
    other = cluster.run(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--gpus-per-node=1"),
        *("--output=/dev/null", "--wrap", "sleep 5"),
    ).strip()
    cluster.wait(lambda: job.status.get("state") == "interrupted")
    job.hurry()
    cluster.wait(lambda: cluster.state(other) == "COMPLETED")
    finishes(job)
    return said(job, restarts=1)


def cancel(cluster: Cluster) -> list[str]:
    job = Job(cluster, "cancel")
    cluster.wait(job.trains)
    cluster.run("scancel", job.id)
    cluster.wait(lambda: cluster.state(job.id) == "CANCELLED")
    time.sleep(20)
    problems = said(job, restarts=0)
    if cluster.state(job.id) != "CANCELLED":
        problems.append(f"came back as {cluster.state(job.id)}")
    if job.status.get("state") != "interrupted":
        problems.append(f"status {job.status.get('state')}")
    return problems


def requeue(cluster: Cluster) -> list[str]:
    job = Job(cluster, "requeue")
    cluster.wait(job.trains)
    cluster.run("scontrol", "requeue", job.id)
    cluster.wait(lambda: cluster.restarts(job.id) == 1)
    job.hurry()
    finishes(job)
    return said(job, restarts=1)


def node_failure(cluster: Cluster) -> list[str]:
    """The second node's daemon and all below it die, as when a machine is lost."""
    job = Job(cluster, "node-failure")
    cluster.wait(job.trains)
    daemon = psutil.Process(int((cluster.folder / f"slurmd-{SECOND}.pid").read_text()))
    steps = [p for p in psutil.process_iter(["cmdline"]) if f"[{job.id}." in shown(p)]
    steps = [p for p in steps if not below(p, FIRST)]
    for process in [daemon, *steps, *(child for p in steps for child in p.children(True))]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.wait(lambda: cluster.restarts(job.id) >= 1)
    job.hurry()
    cluster.start_node(SECOND)
    finishes(job)
    return said(job, restarts=1)


def finishes(job: Job) -> None:
    job.cluster.wait(lambda: job.finished() and job.cluster.state(job.id) != "RUNNING")


def shown(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


def below(process: psutil.Process, node: str) -> bool:
    """Whether a step's daemon is that of a node."""
    try:
        return process.environ().get("SLURMD_NODENAME") == node
    except psutil.Error:
        return False


def said(job: Job, restarts: int) -> list[str]:
    print(f"  {job.observed}", flush=True)
    problems = []
    if not job.records_once():
        problems.append("metrics.jsonl has a step twice, or out of order")
    found = job.cluster.restarts(job.id)
    if found != restarts:
        problems.append(f"{found} restarts instead of {restarts}")
    return problems


CASES = {
    "time-limit": time_limit,
    "preemption": preemption,
    "cancel": cancel,
    "requeue": requeue,
    "node-failure": node_failure,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    options = parser.parse_args()
    if shutil.which("slurmctld") is None:
        raise SystemExit("Install Slurm first: apt-get install slurm-wlm munge")
    folder, failed = Path(tempfile.mkdtemp(prefix="slurm-")), 0
    with Cluster(folder) as cluster:
        for name in options.cases or CASES:
            began = time.monotonic()
            try:
                problems = CASES[name](cluster)
            except TimeoutError as error:
                problems = [str(error)]
            failed += bool(problems)
            took = time.monotonic() - began
            print(f"{name}: {'; '.join(problems) or 'as it should be'} ({took:.0f} s)", flush=True)
    if not (failed or options.keep):
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
