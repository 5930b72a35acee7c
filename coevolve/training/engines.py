"""SFT and GRPO of one role with TRL's trainers as engines.

Deviations from the plain trainers:
- Prompts and responses reach them as the token ids that scoring uses; they tokenise nothing themselves.
- The GRPO reference for the KL term is the role as it was when the phase began (TRL's own choice needs an adapter
  called `default`, or a model that can be loaded from a path).
- The estimator's GRPO may add the golden responses' negative log-likelihood to each step's loss.
- TRL computes logits at every position wherever Triton is absent, for the sake of accelerators that recompile when
  shapes change. A CPU does not, so there only the positions that the loss is over are computed, as on a GPU.
- TRL patches the model's `forward` at each construction; the patch is taken off again when a phase ends.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from coevolve.prompts import Renderer
from coevolve.recipe.schema import Grpo, Optimization, Sft
from coevolve.scoring.roles import AdapterRoles, Role, Roles

RewardFunction = Callable[..., list[float]]
IGNORED = -100


@dataclass(frozen=True)
class SftRow:
    """Token ids of a prompt and of the response to learn."""

    prompt: Sequence[int]
    response: Sequence[int]

    def columns(self) -> dict[str, list[int]]:
        """The columns of TRL's pre-tokenised format; the loss is on the response only."""
        return {
            "input_ids": [*self.prompt, *self.response],
            "labels": [IGNORED] * len(self.prompt) + list(self.response),
        }


def steps_of(settings: Optimization, examples_per_epoch: int, processes: int = 1) -> int:
    """Optimizer steps of a phase: as given, or enough for the epochs asked for."""
    if settings.steps is not None:
        return settings.steps
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * processes
    return max(1, math.ceil(settings.epochs * examples_per_epoch / batch))


def run_sft(
    roles: Roles,
    role: Role,
    rows: Sequence[SftRow],
    settings: Sft,
    *,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    seed: int,
    log_every: int,
    callback: TrainerCallback,
) -> None:
    """Fine-tune `role` on `rows` for `steps` optimizer steps."""
    with tempfile.TemporaryDirectory() as scratch, _restored_forward(roles, role) as model:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **_common_arguments(settings, model, scratch, steps=steps, seed=seed, log_every=log_every),
                max_length=None,
                packing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([row.columns() for row in rows]),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        _train(trainer)


def run_grpo(
    roles: Roles,
    role: Role,
    prompts: Sequence[str],
    rewards: Sequence[tuple[str, RewardFunction, float]],
    settings: Grpo,
    *,
    renderer: Renderer,
    steps: int,
    seed: int,
    log_every: int,
    callback: TrainerCallback,
    golden_rows: Sequence[SftRow] = (),
    golden_nll_weight: float = 0.0,
    reference: torch.nn.Module | None = None,
) -> None:
    """GRPO of `role` for `steps` optimizer steps.

    Args:
        prompts: rendered prompts; a reward gets each completion's place in this list as `index`.
        rewards: (name, function, weight).
        golden_rows: what the negative log-likelihood term is over, if its weight is not 0.
        reference: what `Roles.frozen` yielded, where `beta` is above 0.
    """
    functions = [_named(name, function) for name, function, _ in rewards]
    with tempfile.TemporaryDirectory() as scratch, _restored_forward(roles, role) as model:
        trainer = RoleGRPOTrainer(
            model=model,
            reward_funcs=functions,
            args=GRPOConfig(
                **_common_arguments(settings, model, scratch, steps=steps, seed=seed, log_every=log_every),
                num_generations=settings.num_generations,
                max_completion_length=settings.max_completion_length,
                temperature=settings.temperature,
                top_k=0,
                loss_type=settings.loss_type,
                scale_rewards=settings.scale_rewards,
                mask_truncated_completions=settings.mask_truncated_completions,
                reward_weights=[weight for _, _, weight in rewards],
                use_vllm=settings.use_vllm,
                beta=0.0,
                remove_unused_columns=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": list(prompts), "index": list(range(len(prompts)))}),
            processing_class=renderer.tokenizer,
            callbacks=[callback],
            golden_rows=golden_rows,
            golden_nll_weight=golden_nll_weight,
            kl_weight=settings.beta,
            kl_reference=reference,
            stop_id=renderer.end_of_turn_id,
        )
        _train(trainer)


class RoleGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer on rendered prompts, with a reference of our own and an optional golden NLL term."""

    def __init__(
        self,
        *args: Any,
        golden_rows: Sequence[SftRow],
        golden_nll_weight: float,
        kl_weight: float,
        kl_reference: torch.nn.Module | None,
        stop_id: int,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._golden_rows = list(golden_rows)
        self._golden_nll_weight = golden_nll_weight
        self._golden_next = self.accelerator.process_index * self.args.per_device_train_batch_size
        # Constructed with beta=0, TRL looks for no reference; from here on it uses the one that is already there.
        self.beta = kl_weight
        if kl_reference is not None:
            trl_utils.add_fused_lm_head(kl_reference, temperature=self.temperature)
            self.ref_model = kl_reference
        # The end of a turn that scoring counts is the one that ends a completion.
        self.eos_token_ids = [stop_id]
        if not self.use_vllm:
            self.generation_config.eos_token_id = [stop_id]
            self.generation_kwargs["eos_token_id"] = [stop_id]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # A rendered prompt already holds its control tokens, the beginning of the text included.
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if self._golden_nll_weight and self.model.training:
            nll = self._golden_nll(model)
            self._metrics["train"]["golden_nll"].append(self.accelerator.gather(nll.detach()).mean().item())
            loss = loss + self._golden_nll_weight * nll / self.current_gradient_accumulation_steps
        return loss

    def _golden_nll(self, model: torch.nn.Module) -> torch.Tensor:
        """Mean negative log-likelihood per token (nats) of the next few golden responses."""
        count, total = self.args.per_device_train_batch_size, len(self._golden_rows)
        rows = [self._golden_rows[(self._golden_next + i) % total].columns() for i in range(count)]
        self._golden_next += count * self.accelerator.num_processes
        width = max(len(row["input_ids"]) for row in rows)
        pad_id = self.processing_class.pad_token_id

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

        device = self.accelerator.device
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        return model(
            input_ids=padded("input_ids", pad_id).to(device),
            attention_mask=mask.to(device),
            labels=padded("labels", IGNORED).to(device),
        ).loss


@contextmanager
def _restored_forward(roles: Roles, role: Role):
    """The role's module ready to train, and afterwards without what trainers leave on it."""
    model = roles.module(role)
    bare = model.get_base_model() if isinstance(roles, AdapterRoles) else model
    use_triton = trl_utils._use_triton
    if next(model.parameters()).device.type == "cpu":
        trl_utils._use_triton = lambda device: True
    try:
        yield model
    finally:
        trl_utils._use_triton = use_triton
        bare.__dict__.pop("forward", None)
        model.zero_grad(set_to_none=True)
        model.eval()


def _train(trainer: SFTTrainer | GRPOTrainer) -> None:
    trainer.remove_callback(PrinterCallback)  # the record shows the figures
    trainer.train()
    trainer.accelerator.free_memory()


def _common_arguments(
    settings: Optimization, model: torch.nn.Module, scratch: str, *, steps: int, seed: int, log_every: int
) -> dict[str, Any]:
    """What SFT and GRPO share. Everything that TRL sets differently by default is said here."""
    device = next(model.parameters()).device
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": round(settings.warmup_ratio * steps),
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "gradient_checkpointing": settings.gradient_checkpointing,
        # The weights' dtype is the recipe's; autocast on top of it would make scores depend on who computes them.
        "bf16": False,
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "seed": seed,
        "data_seed": seed,
        "logging_steps": log_every,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _named(name: str, function: RewardFunction) -> RewardFunction:
    def reward(**columns: Any) -> list[float]:
        return function(**columns)

    reward.__name__ = name
    return reward
