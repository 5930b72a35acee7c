"""What vLLM does here, and what it would do in place of what is here: three comparisons on one
engine.

    python -m tests.benchmarks.vllm_engine --base FOLDER

- `scoring`: all N x N pairs by `score_pairs`, against vLLM's prompt log-probabilities of the same
  ids, which runs the context again for each pair;
- `generation`: groups of completions by the engine, as RL asks it, against `scoring.generate`;
- `step`: a connector's GRPO steps with its engine, likelihood reward included, against TRL's
  GRPOTrainer as it comes with `use_vllm` and a second resident model that judges.

Own over peer, in `ratio`: below 1 the first of the two named is faster, or takes less memory. Each
side is in a process of its own, in turn; ratios are medians over repeats. CPU seconds are those of
all threads, and say more on a machine that others use. `profile` has, of each side in a further run
under cProfile, the functions in which most of its time was spent, with their share of it.
"""

import cProfile
import os
import pstats
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from coevolve.libraries.vllm import Ask, Here, Options
from coevolve.scoring.generate import Sampling, generate
from coevolve.scoring.logprob import score_pairs
from coevolve.scoring.roles import CONNECTOR
from coevolve.training.memory import bytes_per_token
from tests.benchmarks import matrix, steps, workload
from tests.benchmarks.harness import Settings, Work, arguments, compare, print_report, ratios

MOST = 4
"""Functions of a profile that are shown."""


def longest(settings: Settings) -> int:
    """Tokens of any prompt, the words around it included, and what follows."""
    return 2 * (settings["context"] + settings["completion"] + settings["response"]) + 256


def engine(settings: Settings, config: Any, *, rank: int = 0) -> Here:
    """vLLM as a run builds it, with room for what is asked."""
    length = longest(settings)
    rows = settings["n"] * settings["group"]
    room = bytes_per_token(config, settings["dtype"]) * length * rows
    how = {"dtype": settings["dtype"], "max_length": length, "cache_bytes": room}
    return Here(Options(base=settings["folder"], rank=rank, **how), "the benchmark")


def own_scoring(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"], settings["dtype"])
    contexts, responses, pairs = matrix.inputs(settings, model.config.vocab_size)
    return lambda: [
        float(x.sum())
        for x in score_pairs(model, contexts, responses, pairs, pad_id=tokenizer.pad_token_id)
    ]


def vllm_scoring(settings: Settings) -> Work:
    from vllm import SamplingParams

    config = workload.config(settings["folder"])
    contexts, responses, pairs = matrix.inputs(settings, config.vocab_size)
    llm = engine(settings, config)._llm
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)

    def work() -> list[float]:
        prompts = [{"prompt_token_ids": contexts[i] + responses[j]} for i, j in pairs]
        sums = []
        for output, (i, _) in zip(llm.generate(prompts, asked, use_tqdm=False), pairs, strict=True):
            ids, place = output.prompt_token_ids, len(contexts[i])
            found = zip(ids[place:], output.prompt_logprobs[place:], strict=True)
            sums.append(float(sum(by_id[token].logprob for token, by_id in found)))
        return sums

    return work


def _prompts(settings: Settings, vocabulary: int) -> list[list[int]]:
    contexts, _, _ = matrix.inputs(settings, vocabulary)
    return [context for context in contexts for _ in range(settings["group"])]


def own_generation(settings: Settings) -> Work:
    """The engine: no stop, so that both write as much."""
    config = workload.config(settings["folder"])
    backend = engine(settings, config)
    prompts = _prompts(settings, config.vocab_size)
    asked = [Ask(None, x, i, 1.0, settings["completion"], []) for i, x in enumerate(prompts)]
    return lambda: sum(len(x.ids) for x in backend.complete(asked, lambda: None))


def transformers_generation(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"], settings["dtype"])
    prompts = _prompts(settings, model.config.vocab_size)
    how = {"max_new_tokens": settings["completion"], "stop_ids": [], "sampling": Sampling(0)}
    pad_id = tokenizer.pad_token_id
    return lambda: sum(len(x.ids) for x in generate(model, prompts, pad_id=pad_id, **how))


def own_step(settings: Settings) -> Work:
    from coevolve.training.generation import Engine

    resident = steps.estimator(settings)
    rows = steps.examples(settings, resident.renderer.tokenizer)
    module: Any = resident.roles.module(CONNECTOR)
    backend = engine(settings, module.config, rank=16)
    of_run: Any = SimpleNamespace(
        processes=steps.plan(settings, resident, CONNECTOR, steps.Clock()).processes,
        config=lambda role: module.peft_config[role],
        scratch=lambda server: (Path(tempfile.gettempdir()), "benchmark-"),
    )
    options = SimpleNamespace(rank=16, tensor_parallel=1, max_length=2**20)
    held = Engine(of_run, backend, options, server=False)  # type: ignore[arg-type]
    reward = steps.resident_reward(resident, rows)
    return lambda: steps.own_steps(settings, resident, rows, reward, engine=held)


def keep_weights() -> None:
    """Let TRL, which replaces the engine's weights after each update, find them on a CPU, too,
    where vLLM packs those of linear layers and forgets them; it has no other way to run there.
    """
    from vllm.model_executor.layers import utils

    def as_they_are(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = as_they_are


def trl_step(settings: Settings) -> Work:
    model, tokenizer = workload.load(settings["folder"], settings["dtype"])
    judge, _ = workload.load(settings["folder"], settings["dtype"])
    render, rows = steps.renderer(tokenizer), steps.examples(settings, tokenizer)
    reward = steps.plain_reward(judge, render, rows)
    if not torch.cuda.is_available():
        keep_weights()
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; else a third of the machine's memory
    length = longest(settings)
    how = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": length}
    return lambda: steps.trl_steps(settings, model, render, rows, reward, **how)


COMPARED: dict[str, tuple[Callable[[Settings], Work], Callable[[Settings], Work]]] = {
    "scoring": (own_scoring, vllm_scoring),
    "generation": (own_generation, transformers_generation),
    "step": (own_step, trl_step),
}


def profiled(side: Callable[[Settings], Work], settings: Settings) -> Work:
    """The side's work under a profiler: the functions with most time of their own,
    and its share.
    """
    work = side(settings)

    def run() -> dict[str, float]:
        profile = cProfile.Profile()
        profile.runcall(work)
        found: Any = pstats.Stats(profile)
        own = {f"{Path(of[0]).name}:{of[2]}": x[2] for of, x in found.stats.items()}
        longest = sorted(own, key=lambda name: -own[name])[:MOST]
        return {name: round(own[name] / found.total_tt, 2) for name in longest}

    return run


def _agree(name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """What both sides returned, beside one another."""
    one, other = (measured[side].pop("results") for side in ("own", "peer"))
    if name == "scoring":
        difference = np.abs(np.array(one[-1]) - np.array(other[-1])).max()
        return {"pairs": len(one[-1]), "largest_difference_nats": float(difference)}
    if name == "generation":
        return {"tokens": [one[-1], other[-1]]}
    median = {
        side: {
            key: statistics.median(x for run in runs for x in run[key][1:] or run[key])
            for key in ("wall_s", "cpu_s")
        }
        for side, runs in (("own", one), ("peer", other))
    }
    ratio = {key: median["own"][key] / median["peer"][key] for key in ("wall_s", "cpu_s")}
    return {"of_a_step": median, "step_ratio": ratio}


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(
        __doc__, n=6, context=400, response=30, group=8, completion=32, steps=3, profile=True
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=" ")
    parser.add_argument("--only", nargs="+", choices=list(COMPARED), default=list(COMPARED))
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = vars(parser.parse_args(argv))
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        report: dict[str, Any] = {}
        for name in settings["only"]:
            sides = dict(zip(("own", "peer"), COMPARED[name], strict=True))
            repeats = settings["repeats"]
            measured = compare(sides, settings, repeats=repeats, isolate=isolate)
            report[name] = {"ratio": ratios(measured), **_agree(name, measured), **measured}
            if settings["profile"]:
                under = {side: partial(profiled, of) for side, of in sides.items()}
                found = compare(under, settings, repeats=1, isolate=isolate)
                report[name]["profile"] = {side: x["results"][0] for side, x in found.items()}
    print_report("vllm_engine", settings, **report)


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    sys.exit(main())
