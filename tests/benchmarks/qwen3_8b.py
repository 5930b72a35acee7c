"""A Qwen3-8B-shaped model with random weights on a GPU: scoring N x N pairs, and one GRPO step of
the connector.

    python -m tests.benchmarks.qwen3_8b                                  # bfloat16, a GPU of 40 GB
    or more python -m tests.benchmarks.qwen3_8b --shape tiny --n 3 --context 64 --response 8    #
    anywhere

It needs torch, transformers and peft, and nothing else. The step is written out here: completions
are sampled, the reward is the likelihood of a response under the estimator's adapter, and the
policy's adapter is updated with it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from coevolve.scoring.generate import Sampling, generate
from coevolve.scoring.logprob import score_pairs, score_rows
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, AdapterRoles, lora_config
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, measure, print_report, synchronise

PAD, STOP = 0, 1
SHAPES = {
    "8b": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def random_model(shape: str) -> Qwen3ForCausalLM:
    """In bfloat16, made where it will run."""
    config = Qwen3Config(**SHAPES[shape], max_position_embeddings=40_960, tie_word_embeddings=False)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return Qwen3ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(default)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    synchronise()
    begin = time.perf_counter()
    result = work()
    synchronise()
    return time.perf_counter() - begin, result


def scoring(settings: Settings) -> Work:
    """All N x N pairs; once with N = 1 before, so that what is done only once is not timed."""
    model = random_model(settings["shape"])
    rng = np.random.default_rng(settings["seed"])
    n, vocabulary = settings["n"], model.config.vocab_size
    contexts = [rng.integers(2, vocabulary, size=settings["context"]).tolist() for _ in range(n)]
    responses = [rng.integers(2, vocabulary, size=settings["response"]).tolist() for _ in range(n)]
    pairs = np.stack(np.mgrid[:n, :n], axis=-1).reshape(-1, 2)
    score_pairs(
        model, contexts[:1], responses, pairs[:n], pad_id=PAD, token_budget=settings["token_budget"]
    )

    def work() -> dict[str, float]:
        seconds, values = timed(
            lambda: score_pairs(
                model, contexts, responses, pairs, pad_id=PAD, token_budget=settings["token_budget"]
            )
        )
        flops = workload.flops_needed(
            model.config, [settings["context"]] * n, [[settings["response"]] * n] * n
        )
        rate = workload.matmul_rate(
            model.config, 4096, dtype=torch.bfloat16, device=str(model.device)
        )
        return {
            "seconds": seconds,
            "scored_tokens_per_s": sum(len(value) for value in values) / seconds,
            "flops": flops,
            "matmul_flops_per_s": rate,
            "fraction_of_matmul_rate": flops / seconds / rate,
        }

    return work


def connector_step(settings: Settings) -> Work:
    """Sample a group, score a response behind each, update the connector's adapter; twice, the
    second is reported.
    """
    roles = AdapterRoles.create(
        random_model(settings["shape"]), dict.fromkeys(ROLES, lora_config(LORA)), seed=0
    )
    policy = roles.module(CONNECTOR)
    # Activations are computed anew in the backward pass, as one does with a model of this size.
    policy.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-5)
    rng = np.random.default_rng(settings["seed"])
    vocabulary, group = policy.config.vocab_size, settings["group"]
    context = rng.integers(2, vocabulary, size=settings["context"]).tolist()
    response = rng.integers(2, vocabulary, size=settings["response"]).tolist()

    def sample() -> list[list[int]]:
        with roles.acting(CONNECTOR) as model:
            written = generate(
                model,
                [context] * group,
                max_new_tokens=settings["completion"],
                stop_ids=[STOP],
                pad_id=PAD,
                sampling=Sampling(0),
                token_budget=settings["token_budget"],
            )
        return [[*done.ids, STOP] for done in written]

    def rewards(completions: list[list[int]]) -> torch.Tensor:
        prompts = [context + completion for completion in completions]
        with roles.acting(ESTIMATOR) as model:
            values = score_rows(
                model,
                prompts,
                [response] * group,
                pad_id=PAD,
                token_budget=settings["token_budget"],
            )
        return torch.tensor([np.exp(value.mean()) for value in values])

    def update(completions: list[list[int]], reward: torch.Tensor) -> None:
        advantages = (reward - reward.mean()) / (reward.std() + 1e-4)
        tokens = sum(len(completion) for completion in completions)
        policy.train()
        # One row at a time: a group of them would not fit beside the model.
        for completion, advantage in zip(completions, advantages.tolist(), strict=True):
            ids = torch.tensor([context + completion], device=policy.device)
            logits = (
                policy(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1)
                .logits[0, :-1]
                .float()
            )
            chosen = logits.gather(-1, ids[0, len(context) :, None]).squeeze(-1) - logits.logsumexp(
                dim=-1
            )
            (-advantage * chosen.sum() / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    def work() -> dict[str, float]:
        for _ in range(2):
            generation, completions = timed(sample)
            reward, values = timed(lambda written=completions: rewards(written))
            learning, _ = timed(lambda written=completions, given=values: update(written, given))
        return {
            "seconds": generation + reward + learning,
            "generation_s": generation,
            "reward_s": reward,
            "update_s": learning,
            "completion_tokens": sum(len(completion) for completion in completions) / group,
        }

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(
        __doc__, n=64, context=2048, response=128, group=8, completion=256, token_budget=32_768
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b", help=" ")
    settings = vars(parser.parse_args(argv))
    settings.pop("base")
    parts = {}
    for side in (scoring, connector_step):
        runs = [measure(side, settings, isolate=isolate) for _ in range(settings["repeats"])]
        parts[side.__name__] = {
            **{
                name: float(np.median([run.result[name] for run in runs]))
                for name in runs[0].result
            },
            "peak_bytes": max(run.peak_bytes for run in runs),
            "cuda_peak_bytes": max((run.cuda_peak_bytes or 0) for run in runs) or None,
            "runs": [run.result for run in runs],
        }
    print_report("qwen3_8b", settings, goal={"fraction_of_matmul_rate": 0.5}, **parts)


if __name__ == "__main__":
    sys.exit(main())
