"""GRPO steps on the same prompts and rows: coevolve's engine, and TRL's trainer used as it comes.

The prompts are rendered once by coevolve, so both sides see the same tokens. The likelihood reward
shows the estimator the whole completion as core features, so that every completion is scored,
whatever a model says that was never trained to write features.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from coevolve.data.example import Example
from coevolve.prompts import Renderer, prompt_set
from coevolve.recipe.optimization import Sft
from coevolve.recipe.rl import Grpo
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import CONNECTOR, ROLES, AdapterRoles, Role, lora_config
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.rewards.functions import likelihood
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings

if TYPE_CHECKING:
    # What imports TRL is imported by the sides only: it may speak on the standard output, which is
    # the report's.
    from coevolve.training.engines import Plan, Segment

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
LEARNING_RATE = 1e-5


@dataclass
class Clock(TrainerCallback):
    """Seconds of each optimizer step, and what was generated in it."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    completion_tokens: list[float] = field(default_factory=list)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wall_s.append(time.perf_counter() - self._begin[0])
        self.cpu_s.append(time.process_time() - self._begin[1])

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "completions/mean_length" in logs:
            self.completion_tokens.append(logs["completions/mean_length"])

    def figures(self) -> dict[str, list[float]]:
        return {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "completion_tokens": self.completion_tokens,
        }


class Unwatched:
    """Lets a phase go on to its end."""

    def after_step(self, step: int, capture: "Callable[[], Segment]") -> None:
        pass

    def between(self) -> None:
        pass

    def poll(self) -> None:
        pass


def renderer(tokenizer: Any) -> Renderer:
    """Short prompts: a persona and a dialogue are most of them."""
    return Renderer(prompt_set("brief"), tokenizer)


def examples(settings: Settings, tokenizer: Any) -> list[Example]:
    """As many as the steps need, their prompts `context` tokens long or a little longer."""
    rng = np.random.default_rng(settings["seed"])
    count = settings["steps"] * settings["group"]
    return [
        Example.from_row(
            {
                "sample_ID": f"{index}",
                "subset_tag": "made",
                "user_persona": workload.text_of(settings["context"] // 4, tokenizer, rng),
                "agent_character": workload.text_of(settings["context"] // 4, tokenizer, rng),
                "dialogue_context": [
                    {"user_query": workload.text_of(settings["context"] // 2, tokenizer, rng)}
                ],
                "agent_golden_response": workload.text_of(settings["response"], tokenizer, rng),
            },
            f"row {index}",
        )
        for index in range(count)
    ]


def estimator(settings: Settings) -> ProbabilityEstimator:
    """Both roles as new adapters on one base."""
    model, tokenizer = workload.load(settings["folder"], settings.get("dtype", "float32"))
    roles = AdapterRoles.create(
        model, dict.fromkeys(ROLES, lora_config(LORA)), seed=settings["seed"]
    )
    return ProbabilityEstimator(roles, renderer(tokenizer), max_new_tokens=settings["completion"])


def plan(
    settings: Settings, resident: ProbabilityEstimator, role: Role, clock: TrainerCallback
) -> "Plan":
    """A phase of `steps` steps from the beginning."""
    from coevolve.training.engines import Plan, Schedule, Segment

    return Plan(
        roles=resident.roles,
        role=role,
        renderer=resident.renderer,
        processes=Processes(next(resident.roles.module(role).parameters()).device, Stop()),
        first=0,
        steps=settings["steps"],
        tokens=None,
        schedule=Schedule(0, settings["steps"]),
        seed=settings["seed"],
        callback=clock,
        watcher=Unwatched(),
        segment=Segment(),
        token_budget=resident.token_budget,
        folder=Path(tempfile.gettempdir()),
    )


def grpo(settings: Settings) -> Grpo:
    """One group a step."""
    return Grpo(
        steps=settings["steps"],
        learning_rate=LEARNING_RATE,
        train_batch_size=settings["group"],
        num_generations=settings["group"],
        max_completion_length=settings["completion"],
    )


def sft(settings: Settings) -> Sft:
    """As many rows a step as GRPO has completions."""
    return Sft(
        steps=settings["steps"], learning_rate=LEARNING_RATE, train_batch_size=settings["group"]
    )


def reasoning(text: str, render: Renderer) -> str:
    """A reasoning whose core features are all that was written."""
    return f"{render.prompts.sections[-1]} {text}"


def resident_reward(
    resident: ProbabilityEstimator, rows: list[Example]
) -> Callable[..., list[float]]:
    """exp(mean token log q2(y | x, r)) by the resident estimator."""

    def reward(*, completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        chosen = [rows[i] for i in index]
        texts = [
            reasoning(resident.renderer.decode(ids), resident.renderer) for ids in completion_ids
        ]
        golden = [example.golden_response for example in chosen]
        return [likelihood(mean) for mean in resident.log_prob(chosen, golden, texts).mean]

    return reward


def plain_reward(
    judge: torch.nn.Module, render: Renderer, rows: list[Example]
) -> Callable[..., list[float]]:
    """The same, written down with transformers alone: one padded batch, the log-softmax of all its
    logits.
    """

    def reward(*, completions: list[str], index: list[int], **_: Any) -> list[float]:
        prompts = [
            render.prompt_ids(render.estimator(rows[i], reasoning(text.strip(), render)))
            for i, text in zip(index, completions, strict=True)
        ]
        golden = [render.response_ids(rows[i].golden_response) for i in index]
        sums = workload.plain_log_probs(judge, prompts, golden, render.tokenizer.pad_token_id)
        return [likelihood(total / len(ids)) for total, ids in zip(sums, golden, strict=True)]

    return reward


def trl_steps(
    settings: Settings,
    model: torch.nn.Module,
    render: Renderer,
    rows: list[Example],
    reward: Callable[..., list[float]],
    **options: Any,
) -> dict[str, list[float]]:
    """The steps with TRL's GRPOTrainer and one adapter, everything else by its own way or by
    options.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=GRPOConfig(
                output_dir=scratch,
                max_steps=settings["steps"],
                learning_rate=LEARNING_RATE,
                per_device_train_batch_size=settings["group"],
                num_generations=settings["group"],
                max_completion_length=settings["completion"],
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                seed=settings["seed"],
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": [render.connector(row) for row in rows], "index": list(range(len(rows)))}
            ),
            processing_class=render.tokenizer,
            peft_config=lora_config(LORA),
            callbacks=[clock],
        )
        trainer.train()
    return clock.figures()


def own_steps(
    settings: Settings,
    resident: ProbabilityEstimator,
    rows: list[Example],
    reward: Callable[..., list[float]],
    engine: Any = None,
) -> dict[str, list[float]]:
    """The steps with coevolve's trainer, on the connector's adapter; vLLM's engine may generate."""
    from coevolve.training.rl.grpo import run_grpo

    clock = Clock()
    prompts = [resident.renderer.connector(row) for row in rows]
    own = plan(settings, resident, CONNECTOR, clock)
    if engine is not None:
        own = replace(own, engines=SimpleNamespace(of=lambda role, settings: engine))
    with_engine = {"use_vllm": engine is not None}
    how = grpo(settings).model_copy(update=with_engine)
    run_grpo(own, prompts, [("likelihood", reward, 1.0)], how)
    return clock.figures()
