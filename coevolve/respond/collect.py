"""Collecting a role-playing model's responses, so that each is on disk when it arrives and none is
asked for twice.

The file is a ledger (`coevolve.data.ledger`), and `coevolve.data.responses.read_responses` reads
it:

    {"model": {"kind": "local", "weights": "<sha256>", ...}, "prompt": "<sha256>", "address":
    "models/mine"} {"sample_ID": "IDTest-00000", "response": "Ahoy!", "example": "<fingerprint>"}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coevolve.chat.base import ChatModel, Completion, Question, Read, without_thinking
from coevolve.data.example import Example, text_field
from coevolve.data.ledger import Ledger, digest
from coevolve.data.responses import HEADER, read_response_row
from coevolve.errors import ChatError, DataError
from coevolve.prompts.play import PlayPrompt, play_messages

Progress = Callable[[int, int, str], None]
"""Called with the number of examples done, their total, and a note in words."""

BEGIN_OF_THINKING = "<think>"
_SHOWN = 200  # characters of a faulty response that an error quotes


@dataclass(frozen=True)
class Collection:
    """What came of asking for responses to so many examples: how many the file had `found` before,
    how many were `asked` for now, how many of those are kept though `cut_off`, and what was wrong
    with each that was `dropped`.
    """

    examples: int
    found: int
    asked: int
    cut_off: int
    dropped: tuple[str, ...]


def collect_responses(
    examples: Sequence[Example],
    model: ChatModel,
    path: str | Path,
    *,
    on_failure: Literal["error", "drop"] = "error",
    keep_cut_off: bool = False,
    progress: Progress | None = None,
    prompt: PlayPrompt | None = None,
) -> Collection:
    """Ask a model for the responses that a file lacks, and append each to it as it arrives.

    ChatError for a model out of order, DataError for a file that another model or other settings
    began, or whose examples have changed since.

    Args:
        path: the JSONL file to begin or to go on with. Responses in it to other examples stay.
        on_failure: `error` stops at the first example without a usable response. `drop` goes on,
            and says so; a second start asks for it again.
        keep_cut_off: keep a response that has not ended when the model's tokens were used up, with
            `cut_off: true` in its row; otherwise it is a failure.
        progress: told after every answer.
        prompt: what the model is shown, if not what the built-in one says.
    """
    prompt = prompt or PlayPrompt()
    header = dict(zip(HEADER, (model.settings, prompt.recorded(), model.address), strict=True))
    ledger = Ledger(path, header, ("model", "prompt"), examples, read_response_row, _fingerprint)
    found, todo = len(ledger.answers), ledger.todo
    questions = [Question(x.sample_id, play_messages(x, model.harmless, prompt)) for x in todo]
    dropped: list[str] = []
    answered = cut_off = 0
    with ledger.adding() as add:
        for reply in model.replies(questions, _reader(model.max_tokens, keep_cut_off)):
            if reply.value is not None:
                answered, cut_off = answered + 1, cut_off + ("cut_off" in reply.value)
                add(reply.id, **reply.value)
            elif on_failure == "error":
                raise ChatError(
                    f"sample_ID {reply.id!r}: no usable response: {reply.problem}. Allow such "
                    "samples to be dropped (--on-failure drop), or mend what is wrong and start "
                    "again."
                )
            else:
                dropped.append(f"sample_ID {reply.id!r}: {reply.problem}")
            if progress is not None:
                note = f"{len(dropped)} dropped" if dropped else ""
                progress(found + answered + len(dropped), len(examples), note)
    if dropped and not (found or answered):
        none = f"The model gave no usable response to any of {len(dropped)} samples"
        raise ChatError(f"{none}. First: {dropped[0]}.")
    return Collection(len(examples), found, len(todo), cut_off, tuple(dropped))


def _reader(max_tokens: int, keep_cut_off: bool) -> Read[dict[str, Any]]:
    """Reads a row's fields `response` and, where it was, `cut_off`."""

    def read(_: Question, completion: Completion) -> tuple[dict[str, Any] | None, str]:
        text, problem = without_thinking(completion.text).strip(), ""
        used_up = f"{max_tokens} tokens"
        if text.startswith(BEGIN_OF_THINKING):
            problem = f"the model had not ended its thinking after {used_up}. Allow more of them"
        elif not text:
            used = f", and {used_up} are used up. Allow more of them"
            problem = f"the response is empty{'' if completion.finished else used}"
        elif not (completion.finished or keep_cut_off):
            problem = (
                f"the response was cut off after {used_up}: {text[:_SHOWN]!r}. Allow more tokens, "
                "or keep responses that are cut off (--keep-cut-off)"
            )
        if problem:
            return None, problem
        fields: dict[str, Any] = {"response": text}
        try:
            text_field(fields, "response", "the answer")
        except DataError as error:
            return None, str(error).removesuffix(".")
        return fields if completion.finished else {**fields, "cut_off": True}, ""

    return read


def _fingerprint(example: Example) -> str:
    """Of what the model is shown."""
    dialogue = [[turn.speaker, turn.text] for turn in example.dialogue]
    return digest([example.user_persona, example.agent_character, dialogue])[:16]
