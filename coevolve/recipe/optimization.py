"""How a phase is trained: optimizer, batch, budget."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coevolve.recipe.section import (
    Amount,
    Fraction,
    LearningRate,
    Positive,
    PositiveAmount,
    Section,
)

MOST_ROWS = 100_000_000
"""Rows of a phase, as often as they are met: their order is drawn before it begins."""


class Optimization(Section):
    """One training phase's optimizer, under the names of transformers' TrainingArguments."""

    steps: Positive | None = None
    """Optimizer steps. Give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training examples, turned into steps when the data is known."""
    learning_rate: LearningRate
    """AdamW's, at its greatest."""
    optim: Literal["adamw_torch_fused", "adamw_8bit"] = "adamw_torch_fused"
    """AdamW with its two moments like the weights, or in 8 bits each, which needs bitsandbytes and
    that no process holds but a part of them (ZeRO, FSDP).
    """
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate goes on from there."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which it rises from 0, where the scheduler has a warm-up."""
    max_grad_norm: PositiveAmount = 1.0
    """A large one, such as 1e9, clips nothing."""
    weight_decay: Amount = 0.0
    """AdamW's."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's, of the squared gradient."""
    train_batch_size: Annotated[int, Field(gt=0, le=65_536)] = 4
    """Rows (completions in RL) of one optimizer step, over all processes. However many processes
    there are, an update is over the same rows; each process takes an equal share, so their number
    must divide this.
    """
    per_device_train_batch_size: Positive | None = None
    """At most so many rows at once on one process; the rest of its share follows by gradient
    accumulation. None is the whole share at once.
    """
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""

    @model_validator(mode="after")
    def _one_budget(self) -> "Optimization":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if problem := self.too_many_rows(self.steps):
            raise ValueError(problem)
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate x weight_decay is {self.learning_rate * self.weight_decay:g}; "
                "accepted is less than 1"
            )
        return self

    def too_many_rows(self, steps: int | None) -> str | None:
        """What is wrong with so many steps, if they pass over more rows than MOST_ROWS."""
        rows = (steps or 0) * self.train_batch_size
        if rows <= MOST_ROWS:
            return None
        return (
            f"{steps:,} steps of {self.train_batch_size:,} rows are {rows:,}; accepted are "
            f"{MOST_ROWS:,}"
        )

    def micro_batch(self, processes: int) -> tuple[int, int]:
        """(rows at once on one process, accumulation steps); `processes` divides the batch."""
        share = self.train_batch_size // processes
        limit = min(self.per_device_train_batch_size or share, share)
        rows = next(rows for rows in range(limit, 0, -1) if share % rows == 0)
        return rows, share // rows


class Sft(Optimization):
    """Supervised fine-tuning with TRL's SFTTrainer; the loss is on the completion's tokens only."""

    padding_free: bool = False
    """The rows that are at once on a process stand in one, without padding between them; needs
    `model.attention: flash_attention_2`. An update is over the same rows, up to rounding.
    """
    activation_offloading: bool = False
    """Keep activations in the machine's memory until the backward pass; needs a GPU."""
