"""What TRL's trainers are told."""

from typing import TYPE_CHECKING, Any

import torch

from coevolve.recipe.optimization import Optimization

if TYPE_CHECKING:
    from coevolve.training.engines import Plan


SAME_NAME = (
    *("learning_rate", "lr_scheduler_type", "max_grad_norm", "weight_decay", "adam_beta2"),
    *("gradient_checkpointing", "optim"),
)
"""Options that transformers has under the recipe's names."""


def common_arguments(
    plan: "Plan", settings: Optimization, model: torch.nn.Module, scratch: str
) -> dict[str, Any]:
    """What SFT and GRPO share. Everything that TRL sets differently by default is said here."""
    device = next(model.parameters()).device
    rows, accumulation = settings.micro_batch(plan.processes.count)
    return {
        **{name: getattr(settings, name) for name in SAME_NAME},
        "output_dir": scratch,
        "max_steps": plan.steps,
        "warmup_steps": round(settings.warmup_ratio * plan.schedule.steps),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        # The dtype is the recipe's; under autocast, scores would depend on who computes them.
        "bf16": False,
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,  # only the role's own ask for gradients, and all do
        "dataloader_pin_memory": device.type != "cpu",
        # Nothing is trained on a loss that is no number; the filter would hide it from the log.
        "logging_nan_inf_filter": False,
        "seed": plan.seed,
        "data_seed": plan.seed,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
