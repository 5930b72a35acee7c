"""Log-probabilities of a group's completions with the prompt that they share run once, forward and
backward.

TRL gives every completion a row with the prompt before it, so a group of 8 runs its prompt 8 times.
Here a prompt and all of its completions that are in the batch stand in one row, and a mask keeps
the completions apart:

    ids        [ x0 ... x_{p-2} ][ x_{p-1} a0 ... a_{n-2} ][ x_{p-1} b0 ... b_{m-2} ]
    positions    0 ...  p-2        p-1     p  ...            p-1     p  ...
    predicts     nothing           a0      a1 ... a_{n-1}    b0      b1 ... b_{m-1}
    attends to   what is before    the prompt and itself     the prompt and itself

The prompt's last token is repeated for each completion, since it predicts each one's first token.
Values and gradients are those of separate rows, up to rounding; dropout draws one mask for the
prompt instead of one for each row.

Shapes: B rows, P prompt and C completion columns as TRL gives them; R packed rows of S tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coevolve.libraries.transformers import attention_of
from coevolve.libraries.trl import run_head
from coevolve.scoring.backbone import Backbone

if TYPE_CHECKING:
    from coevolve.libraries.trl import OpenGRPOTrainer as _Trainer
else:
    _Trainer = object  # what it is a mixin before

IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """Prompts and completions side by side. `segments_RS` is 0 for the prompt, the number of the
    completion from 1 on, -1 for padding; `places_BC` where, in the flattened rows, the prediction
    of each completion's token stands; labels are IGNORED where nothing is asked for.
    """

    ids_RS: Tensor
    positions_RS: Tensor
    labels_RS: Tensor
    segments_RS: Tensor
    places_BC: Tensor

    def mask(self) -> Tensor:
        """(R, 1, S, S), True where a token attends to another; padding to itself, for softmax."""
        query_RS1, key_R1S = self.segments_RS[:, :, None], self.segments_RS[:, None, :]
        width, device = self.segments_RS.shape[1], self.ids_RS.device
        before_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        itself_SS = torch.eye(width, dtype=torch.bool, device=device)
        seen_RSS = ((key_R1S == query_RS1) | (key_R1S == 0)) & before_SS & (key_R1S >= 0)
        return (seen_RSS | itself_SS)[:, None]


def packed(ids_BT: Tensor, mask_BT: Tensor, width: int) -> Packed:
    """Completions of equal prompts in one row: of left-padded prompts, then `width` columns."""
    device, columns = ids_BT.device, ids_BT.shape[1] - width
    ids, mask = ids_BT.tolist(), mask_BT.bool().tolist()
    rows: dict[tuple[int, ...], list[int]] = {}
    for index, (row, real) in enumerate(zip(ids, mask, strict=True)):
        prompt = tuple(row[place] for place in range(columns) if real[place])
        rows.setdefault(prompt, []).append(index)
    built: list[dict[str, list[int]]] = []
    starts = [(0, 0)] * len(ids)
    for prompt, members in rows.items():
        shared = len(prompt) - 1
        own: dict[str, list[int]] = {"ids": list(prompt[:-1]), "positions": list(range(shared))}
        own |= {"labels": [IGNORED] * shared, "segments": [0] * shared}
        for number, member in enumerate(members, start=1):
            tail = range(columns, columns + width)
            completion = [ids[member][place] for place in tail if mask[member][place]]
            starts[member] = (len(built), len(own["ids"]))
            own["ids"] += [prompt[-1], *completion][: len(completion)]
            own["positions"] += range(shared, shared + len(completion))
            own["labels"] += completion
            own["segments"] += [number] * len(completion)
        built.append(own)
    longest = max(len(row["ids"]) for row in built)

    def filled(name: str, value: int) -> Tensor:
        rows = [row[name] + [value] * (longest - len(row[name])) for row in built]
        return torch.tensor(rows, device=device)

    first_B1 = torch.tensor([[row * longest + start] for row, start in starts], device=device)
    # Past a completion's end there is nothing; any place will do, as it is masked.
    places_BC = (first_B1 + torch.arange(width, device=device)).clamp(max=len(built) * longest - 1)
    ids_RS, positions_RS = filled("ids", 0), filled("positions", 0)
    return Packed(
        ids_RS, positions_RS, filled("labels", IGNORED), filled("segments", -1), places_BC
    )


class SharedPrompts(_Trainer):
    """A mixin before `RoleGRPOTrainer`: a shared prompt is run once, where it can and pays."""

    def __init__(self, *args: Any, model: torch.nn.Module, **kwargs: Any):
        backbone = Backbone(model)
        self._cost = backbone.cost
        # Angles by a row's length, or a mask of another form: then each completion has its own row.
        steady = backbone.plain_from() is None
        self._packs = backbone.ways.packs and steady and attention_of(backbone.config) == "sdpa"
        super().__init__(*args, model=model, **kwargs)

    def log_probs(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        options = {
            "compute_entropy": compute_entropy,
            "compute_aux_loss": compute_aux_loss,
            **kwargs,
        }
        whole, more = super().log_probs, any(value is not None for value in kwargs.values())
        if compute_aux_loss or more or not self._packs:
            inputs = model, input_ids, attention_mask, logits_to_keep
            return whole(*inputs, batch_size=batch_size, **options)
        rows = batch_size or len(input_ids)
        log_probs: list[Tensor] = []
        entropies: list[Any] = []
        for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
            layout = packed(ids, mask, logits_to_keep)
            if self._of_pass(layout.ids_RS) < self._of_pass(ids):
                found = self._of_packed(model, layout, mask[:, -logits_to_keep:], compute_entropy)
            else:
                found = whole(model, ids, mask, logits_to_keep, **options)[:2]
            log_probs.append(found[0])
            entropies.append(found[1])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _of_pass(self, ids: Tensor) -> float:
        return self._cost.of_pass(ids.shape[0], ids.shape[1], 0)

    def _of_packed(
        self, model: torch.nn.Module, layout: Packed, mask_BC: Tensor, compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(log-probabilities, entropies), each (B, C), in nats."""
        with self.accelerator.autocast():
            output = run_head(
                model,
                input_ids=layout.ids_RS,
                attention_mask=layout.mask(),
                position_ids=layout.positions_RS,
                shift_labels=layout.labels_RS,
                use_cache=False,
            )

        def unpacked(values_RS: Tensor) -> Tensor:
            return values_RS.reshape(-1)[layout.places_BC].masked_fill(mask_BC == 0, 0.0)

        return unpacked(output.log_probs), unpacked(output.entropy) if compute_entropy else None
