"""What other libraries raise over files and machines that are not as they expect, in one sentence
each.

transformers, PEFT, huggingface_hub, tokenizers and safetensors read what others made, and raise
whatever they stumble over: an OSError for a name that is none, a KeyError for a word in a
configuration, a bare Exception. Their calls that load something stand inside `explained`, which
names what was to be loaded and says what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from coevolve.errors import ArtifactError, CoevolveError, OutOfMemoryError

_SHOWN = 200  # characters of a library's own words that an error quotes


@dataclass(frozen=True)
class _Kind:
    """A fault that has a name, by the class of an error, or of a cause, or by words in it."""

    signs: tuple[str, ...]
    found: str
    advice: str
    quoted: bool = False

    def fits(self, error: BaseException) -> bool:
        classes = {base.__name__ for link in _causes(error) for base in type(link).__mro__}
        return any(sign in classes or (" " in sign and sign in str(error)) for sign in self.signs)


_KINDS = (
    _Kind(
        ("GatedRepoError",),
        "the hub gives it only to those who have accepted its terms",
        "Accept them on its page and log in with `hf auth login`",
    ),
    _Kind(
        ("RepositoryNotFoundError",),
        "the hub has no such model, or does not show it to you",
        "Check the name, or log in with `hf auth login`",
    ),
    _Kind(
        ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "TransportError"),
        "there is no such folder here, it is not in the hub's cache, and the hub cannot be reached",
        "Check the name and the connection, or give a folder",
    ),
    _Kind(
        ("HFValidationError",),
        "there is no such folder here, and it is no name on the hub",
        "Check the path",
    ),
    _Kind(
        ("argument `trust_remote_code=True`",),
        "it comes with code of its own, which is run only where that is allowed",
        "If you trust it, allow it: model.trust_remote_code in a recipe, --trust-remote-code of "
        "import-reference, trust_remote_code in Python; a chat model's code is never run",
    ),
    _Kind(
        ("instantiate the backend tokenizer",),
        "tokenizer.json is missing, or needs a package to be made from what is there",
        "Save the tokenizer there with save_pretrained",
    ),
    _Kind(
        ("Unrecognized model in", "does not recognize this architecture"),
        "config.json is missing, or names no model_type that the installed transformers knows",
        "Complete the folder, upgrade transformers, or give another model",
    ),
    _Kind(
        ("Unrecognized configuration class",),
        "it is no causal language model",
        "Give one that AutoModelForCausalLM loads",
    ),
    _Kind(
        ("Specified `attn_implementation=", "has been toggled on"),
        "the attention implementation is unknown here, or its package is not installed",
        "Leave model.attention out, or set it to sdpa or eager",
    ),
    _Kind(
        ("SafetensorError",), "its weights are damaged", "Copy or download them again", quoted=True
    ),
    _Kind(
        ("JSONDecodeError", "UnicodeDecodeError"),
        "a file of it is damaged",
        "Copy or download it again",
        quoted=True,
    ),
)


@contextmanager
def explained(what: str, advice: str, *, loads: bool = True) -> Iterator[None]:
    """For calls of a library: all that it raises becomes one ArtifactError (or OutOfMemoryError)
    that begins with `what`, with `advice` where the fault has no name above. The names are for
    calls that load something.
    """
    try:
        yield
    except CoevolveError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{what}: it does not fit the memory ({_words(error)}). Use a smaller dtype or "
                "model, or quantize it."
            ) from error
        nameless = _Kind((), "", advice, quoted=True)
        kind = next((kind for kind in _KINDS if loads and kind.fits(error)), nameless)
        words = f"({_words(error)})" if kind.found else _words(error)
        found = " ".join(filter(None, (kind.found, words if kind.quoted else "")))
        raise ArtifactError(f"{what}: {found}. {kind.advice}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a GPU or of the CPU, had no more to give."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "DefaultCPUAllocator" in str(error)


def _words(error: BaseException) -> str:
    """The error's own words, as a part of a sentence; its class too, if they say little."""
    words = " ".join(str(error).split()).rstrip(".: ")
    words = words if len(words) <= _SHOWN else f"{words[:_SHOWN].rstrip()} ..."
    return words if " " in words else f"{type(error).__name__}: {words}".rstrip(": ")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
