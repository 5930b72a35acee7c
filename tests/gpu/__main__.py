"""`python -m tests.gpu`: see the package."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PART_SECONDS = 420
"""After so long a part is given up."""


def scoring(size: str, folder: Path) -> dict[str, Any]:
    """Exactness and speed of scores."""
    import numpy as np
    import torch

    from coevolve.scoring.logprob import score_pairs
    from coevolve.scoring.models import load_model
    from tests.benchmarks import workload
    from tests.gpu.world import SIZES

    how, rng = SIZES[size], np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(str(folder / "base"), device=device, dtype=how["dtype"])
    n, vocabulary = how["pairs"], model.config.vocab_size
    contexts = workload.random_ids(n, how["context"], vocabulary, rng)
    responses = workload.random_ids(n, how["response"], vocabulary, rng)
    pairs = np.stack(np.mgrid[:n, :n], axis=-1).reshape(-1, 2)
    score_pairs(model, contexts, responses, pairs, pad_id=0)  # what is done once is not timed
    began = time.perf_counter()
    values = score_pairs(model, contexts, responses, pairs, pad_id=0)
    seconds = time.perf_counter() - began
    few = pairs[:3]
    given = [contexts[i] for i, _ in few], [responses[j] for _, j in few]
    plain = workload.plain_log_probs(model, *given, 0)
    exact = load_model(str(folder / "base"), device="cpu", dtype=how["dtype"]).double()
    true = np.array(workload.plain_log_probs(exact, *given, 0, torch.float64))
    tokens = np.array([len(response) for response in given[1]])
    flops = workload.flops_needed(
        model.config, [len(x) for x in contexts], [[len(x) for x in responses]] * n
    )
    rate = workload.matmul_rate(model.config, 4096, dtype=model.dtype, device=device)
    own = np.array([float(value.sum()) for value in values[:3]])
    return {
        "nats_per_token_from_float64": float((np.abs(own - true) / tokens).max()),
        "of_a_plain_pass": float((np.abs(np.array(plain) - true) / tokens).max()),
        "scored_tokens_per_s": sum(map(len, values)) / seconds,
        "flops": flops,
        "matmul_flops_per_s": rate,
        "fraction_of_matmul_rate": flops / seconds / rate,
    }


def whole_round(size: str, folder: Path) -> dict[str, Any]:
    """One round; memory of each phase beside the table."""
    import torch

    from coevolve.preflight.models import BaseFacts
    from coevolve.recipe import check_recipe
    from coevolve.scoring.roles import ROLES
    from coevolve.training.memory import Longest, memory_of
    from coevolve.training.record import record
    from coevolve.training.run import train
    from tests.gpu.world import SIZES, config_of, recipe_values

    values, memory, cuda = (
        recipe_values(folder, size, with_vllm=True),
        record.memory,
        torch.cuda.is_available(),
    )

    def of_this_phase() -> dict[str, float]:
        found = memory()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        return found

    record.memory = of_this_phase
    recipe = check_recipe(values, "gpu")
    results = train(recipe, folder / "run")
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    peak = "memory/cuda_peak_gib" if cuda else "memory/rss_peak_gib"
    phases = {
        name.removeprefix("time/"): {"seconds": x[name], "gb": x[peak] * 2**30 / 1e9}
        for x in lines
        for name in x
        if name.startswith("time/") and peak in x
    }
    how = SIZES[size]
    prompt = recipe.model.max_length - how["reasoning"] - how["response"]
    longest = Longest(prompt, prompt, how["response"])
    parts, _ = memory_of(
        recipe, dict.fromkeys(ROLES, BaseFacts("gpu", config_of(size), None)), longest, "single", 1
    )
    off = [x[k] for x in lines for k in x if k.endswith("sampling_logp_difference/mean")]
    return {
        "phases": phases,
        "predicted_gb": {part.what: part.bytes / 1e9 for part in parts},
        "predicted_gb_without_vllm": sum(
            part.bytes / 1e9 for part in parts if not part.what.startswith("vLLM")
        ),
        "vllm": values["connector_rl"].get("use_vllm", False),
        "nats_per_token_between_vllm_and_trainer": max(off, default=0.0),
        "perplexity": results["perplexity"]["full"],
    }


def step(size: str, folder: Path) -> dict[str, Any]:
    """A GRPO step against plain TRL, both with vLLM."""
    from coevolve.libraries import vllm
    from tests.gpu.world import SIZES

    if (problem := vllm.missing()) is not None:
        return {"left_out": problem}
    how = SIZES[size]
    sizes = {"context": how["dialogue"], "completion": how["reasoning"], "group": 8, "steps": 3}
    sizes |= {"response": how["response"], "dtype": how["dtype"], "repeats": 1}
    options = [x for name, value in sizes.items() for x in (f"--{name}", str(value))]
    command = ["-m", "tests.benchmarks.vllm_engine", "--base", str(folder / "base")]
    done = subprocess.run(
        [sys.executable, *command, "--only", "step", "--no-profile", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-1500:])
    found: dict[str, Any] = json.loads(done.stdout)["step"]
    return {name: found[name] for name in ("ratio", "step_ratio", "of_a_step")}


def launches(size: str, folder: Path) -> dict[str, Any]:
    """The round under ZeRO-3 and FSDP2 on one device, beside one plain process."""
    import torch

    from tests.gpu.world import recipe_values

    recipe, cuda = folder / "launched.yaml", torch.cuda.is_available()
    recipe.write_text(json.dumps(recipe_values(folder, size, with_vllm=False)))
    found: dict[str, Any] = {}
    for name in ("one_gpu", "zero3", "fsdp2"):
        if name == "fsdp2" and not cuda:
            found[name] = {"left_out": "FSDP2 needs a GPU"}
            continue
        config, run = folder / f"{name}.yaml", folder / f"run-{name}"
        text = (ROOT / "launch" / f"{name}.yaml").read_text()
        config.write_text(text if cuda else text.replace("use_cpu: false", "use_cpu: true"))
        command = ["accelerate.commands.launch", "--config_file", config, "--num_processes", 1]
        command += ["-m", "coevolve", "train", recipe, "--output-dir", run]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout[-700:]}\n{done.stderr[-1500:]}")
        perplexity = json.loads((run / "results.json").read_text())["perplexity"]["full"]
        found[name] = {"seconds": time.perf_counter() - began, "perplexity": perplexity}
    return found


PARTS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "scoring": scoring,
    "round": whole_round,
    "step": step,
    "launches": launches,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--size", choices=("0.6b", "tiny"), default="0.6b")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.in_folder is not None:  # one part, in its process
        (name,) = options.only
        found = PARTS[name](options.size, options.in_folder)
        (options.in_folder / f"{name}.json").write_text(json.dumps(found, default=float))
        return 0
    from tests.benchmarks.harness import machine
    from tests.gpu.world import make_base

    report: dict[str, Any] = {"benchmark": "gpu", "size": options.size, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="coevolve-gpu-") as scratch:
        folder = Path(scratch)
        make_base(folder / "base", options.size)
        for name in options.only:
            report[name] = _in_a_process(name, options.size, folder)
    print(json.dumps(report, indent=1))
    return 1 if any("error" in report[name] for name in options.only) else 0


def _in_a_process(name: str, size: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.gpu", "--size", size, "--only", name]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--in-folder", str(folder)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environ,
            timeout=None if size == "tiny" else PART_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {PART_SECONDS} s"}
    if done.returncode:
        return {"error": (done.stdout[-500:] + done.stderr[-2500:]).strip()}
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return {"seconds": round(time.perf_counter() - began, 1), **found}


if __name__ == "__main__":
    sys.exit(main())
