"""A value function on the policy's own backbone, for as long as a phase trains it.

The head is a part of the model while it is attached, so that whatever divides, averages or steps
the model's parameters does it to the head's as well. Before and after, the model has no trace of
it: no export holds a value function.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from coevolve.errors import ArtifactError
from coevolve.scoring.roles import Role

Backbone = Literal["policy", "head", "adapter"]

HEAD = "value_head"
ADAPTER = "critic"
"""The value function's own adapter."""


class ValueHead(torch.nn.Linear):
    """One number from a hidden state, with weights of zero: every value begins as 0."""

    def __init__(self, hidden_size: int, device: torch.device):
        super().__init__(hidden_size, 1, device=device, dtype=torch.float32)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Values of shape (B, T), float32."""
        return super().forward(hidden_BTD.to(self.weight.dtype)).squeeze(-1).float()


class ValueFunction:
    """V of the state in which each token of a completion is chosen, on the unwrapped `model` of the
    role, its adapter's name where it has one; `backbone` as in `recipe.rl.Ppo.value_backbone`.
    """

    def __init__(self, model: Any, role: Role, backbone: Backbone):
        self.model, self.role, self.backbone = model, role, backbone
        self._causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._width: int | None = None
        self._read: list[Tensor] = []

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The head's and its adapter's, by their names in the model."""
        named, wanted = self.model.named_parameters(), {HEAD, ADAPTER}
        return {name: value for name, value in named if wanted & set(name.split("."))}

    @contextmanager
    def attached(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the head (and its adapter) are part of the model, new or with these weights
        (named as in `parameters`). Raises ArtifactError for those of another value function.
        """
        device = next(self.model.parameters()).device
        if self.backbone == "adapter":
            self._add_adapter()  # before the head, a linear layer, which must not get one itself
        hidden_size = self._causal.config.get_text_config().hidden_size
        self._causal.add_module(HEAD, ValueHead(hidden_size, device))
        hook = self._causal.base_model.register_forward_hook(self._after_backbone)
        try:
            if weights:
                self._load(weights)
            yield
        finally:
            hook.remove()
            delattr(self._causal, HEAD)
            if self.backbone == "adapter":
                self.model.delete_adapter(ADAPTER)
                self.model.set_adapter(self.role)

    @contextmanager
    def reading(self, width: int) -> Iterator[list[Tensor]]:
        """The values of the last `width` tokens of each pass through the backbone made inside."""
        self._width, self._read = width, []
        try:
            yield self._read
        finally:
            self._width = None

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, a pass through the model is one of the value function's adapter."""
        self.model.set_adapter(ADAPTER)
        try:
            yield
        finally:
            self.model.set_adapter(self.role)
            self.require_gradients()

    def _after_backbone(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        if self._width is not None:
            # The state before a token is where its predecessor was read.
            hidden_BTD = output.last_hidden_state[:, -self._width - 1 : -1]
            head = getattr(self._causal, HEAD)
            self._read.append(head(hidden_BTD.detach() if self.backbone == "head" else hidden_BTD))

    def _add_adapter(self) -> None:
        """It begins as a copy of the policy's."""
        self.model.add_adapter(ADAPTER, self.model.peft_config[self.role])
        self.model.set_adapter(self.role)
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self.parameters().items():
                value.copy_(named[name.replace(f".{ADAPTER}.", f".{self.role}.")])

    def require_gradients(self) -> None:
        """PEFT freezes what is not active; the loss is over both adapters."""
        for value in self.parameters().values():
            value.requires_grad_(True)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        parameters = self.parameters()
        odd = sorted(set(parameters) ^ set(weights)) or [
            name for name, value in parameters.items() if value.shape != weights[name].shape
        ]
        if odd:
            raise ArtifactError(
                f"{self.role}: the saved value function is not the one that ppo.value_backbone "
                f"{self.backbone} asks for; odd is {odd[0]!r}. Set ppo.value_backbone to what it "
                "was, or begin a new run."
            )
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(weights[name])
