"""A tokenizer's chat template: where an answer begins, how it is tokenised there, and where it
ends.

    [ rendered messages ][ opening ][ answer ][ closing ]
    `------- prompt ids ----------'`--- answer ids -----'

A template's generation prompt is often not what stands before an answer in a conversation: it opens
a `<think>` that no answer has before it, or leaves out a channel, a line break, a space. The
contract is that a conversation rendered with its answer begins with the prompt's ids and then the
answer's. So conversations are rendered with answers, once for a tokenizer. That gives the opening,
the closing, and which of a few ways to tokenise an answer by itself gives the ids that it has
there. A template for which none does is refused.
"""

import datetime
import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coevolve.errors import ArtifactError
from coevolve.prompts.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, USER, ANSWER = "Answer as a sailor would.", "Which harbour is next?", "Lisbon, at dawn."
CONVERSATIONS: tuple[Messages, ...] = (
    (message("system", SYSTEM), message("user", USER)),
    (message("user", USER),),
    (
        message("system", SYSTEM),
        message("user", "Ahoy!"),
        message("assistant", "Aye."),
        message("user", USER),
    ),
)
PROBES = (
    *(
        ANSWER,
        "I",
        "7 days.",
        '"Aye," she said.',
        "(nods) No",
        "*waves* Hi",
        "... well",
        "- one",
        "\u00c9lan!",
    ),
    *("\u201cQuite.\u201d", "\u4f60\u597d\u3002", "\U0001f600 yes", "two\nlines\n\nand more"),
)
"""Answers that begin in different ways; the contract has to hold for all of them."""

SHOWN = 60  # characters of a text that a refusal quotes
END_OF_THOUGHT = "\n</think>\n\n"

CODES = [dash + code for code in "aAbBcdeGHIjmMpSuUVwWxXyYZ" for dash in ("", "-")]
# Takes the place of the clock that transformers gives to templates, which cannot be given another
# time.
CLOCK = (
    "{% macro strftime_now(format) %}{% set at = namespace(text=format) %}{% for code, value in "
    "calendar.items() %}{% set at.text = at.text | replace(code, value) %}{% endfor %}{{ at.text "
    "}}{% endmacro %}\n"
)


@dataclass(frozen=True)
class Boundary:
    """How prompt and answer are tokenised apart: `space` at the opening's end is left to the
    answer, as in `[/INST] Aye`; an answer is tokenised behind `before`, whose ids `head` are cut
    off again.
    """

    space: str = ""
    before: str = ""
    head: tuple[int, ...] = ()


class ChatTemplate:
    """A fast tokenizer's chat template under the contract; ArtifactError if it does not hold.

    Args:
        date: ISO; the day that a template with a calendar shows. Today by default.
        start: what the answers to some prompts begin with.

    Attributes:
        date: None where the template shows none.
        folds_system: whether the system text goes in front of the user's message, for want of a
            place of its own.
        closing_ids: what ends an answer; the last of them ends the turn.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, date: str | None = None, start: str = ""
    ):
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None and tokenizer.pad_token_id is None:
            raise ArtifactError(
                f"The tokenizer of {self._name!r} has neither an end-of-sequence nor a padding "
                "token. Set one of them, and save the tokenizer again."
            )
        added = tokenizer.added_tokens_decoder.values()
        self._unsplit = any_of(token.content for token in added if not token.special)
        self._line_break = tuple(self.ids("\n"))
        self._clock: dict[str, Any] = {}
        self.folds_system = False
        self.date = self._fix_date(date)
        self.folds_system = not self._takes_system()
        self._ending, self._opening, self._thought = self._find_opening()
        self._find_boundary(start)
        if "<think>" in self._ending:
            say_once(
                f"The generation prompt of {self._name!r} opens a <think>, and no answer in a "
                "conversation has one before it; responses are scored, trained and generated "
                "without it."
            )

    def render(self, messages: Messages, *, opening: bool = False) -> str:
        """The messages as text, thinking off where there is a switch, `opening` with the generation
        prompt.
        """
        try:
            with time_limit():
                text = self.tokenizer.apply_chat_template(
                    self.folded(messages),
                    tokenize=False,
                    add_generation_prompt=opening,
                    enable_thinking=False,
                    **self._clock,
                )
                return str(text)
        except TimeoutError as error:
            raise ArtifactError(
                f"The chat template of {self._name!r} cannot be used: {error}. Use another model, "
                "or set tokenizer.chat_template and save the tokenizer again."
            ) from error
        except Exception as error:
            # A template is a program that came with a model, and may raise anything.
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ArtifactError(
                f"The chat template of {self._name!r} refuses the messages: {why}. Use a model "
                "whose template takes turns in exchange."
            ) from error

    def prompt(self, messages: Messages, start: str = "") -> str:
        """The messages up to where their answer begins, or goes on behind `start`."""
        text = self.render(messages, opening=True)
        if not text.endswith(self._ending):
            raise ArtifactError(
                f"The chat template of {self._name!r} ends a prompt with {text[-SHOWN:]!r} and "
                f"others with {self._ending!r}, so where its answer begins is not known. Use "
                "another model."
            )
        text = text.removesuffix(self._ending) + self._opening
        return text + start if start else text.removesuffix(self._boundary.space)

    def ids(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are the template's own; none are added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer as it stands behind a prompt, without the closing; all of it is text."""
        first, *others = self._pieces(text)
        ids = self._ids_behind(self._boundary.before, self._boundary.head, first)
        for piece in others:
            ids += self._ids_behind("\n", self._line_break, piece)
        return ids

    @property
    def found(self) -> dict[str, Any]:
        """What was found out, as `coevolve.prompts.rendering` speaks of it."""
        return {
            "system_in_user": self.folds_system,
            "instead_of": self._ending,
            "opening": self._opening,
            "space": self._boundary.space,
            "behind": self._boundary.before,
            "cut_off": list(self._boundary.head),
            "closing_ids": list(self.closing_ids),
        }

    @property
    def _name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def _ids_behind(self, before: str, head: tuple[int, ...], text: str) -> list[int]:
        ids = self._text_ids(before + text)
        # Where the two merge, the text is tokenised alone: the boundary stays where it is.
        return ids[len(head) :] if tuple(ids[: len(head)]) == head else self._text_ids(text)

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        """The text, cut inside each added token that `split_special_tokens` would leave whole."""
        while found := self._unsplit.search(text):
            yield text[: found.start() + 1]
            text = text[found.start() + 1 :]
        yield text

    def folded(self, messages: Messages) -> list[dict[str, str]]:
        """The messages, without a system message where the template has no place for one."""
        system, *rest = (dict(given) for given in messages)
        if self.folds_system and system["role"] == "system" and rest and rest[0]["role"] == "user":
            return [message("user", f"{system['content']}\n\n{rest[0]['content']}"), *rest[1:]]
        return [system, *rest]

    # What is found out once.

    def _fix_date(self, date: str | None) -> str | None:
        template = self.tokenizer.get_chat_template()
        if "strftime_now" not in template:
            return None
        try:
            day = datetime.date.today() if date is None else datetime.date.fromisoformat(date)
        except (TypeError, ValueError):
            raise ArtifactError(
                f"template_date: {date!r}; accepted is such as '2026-01-31'."
            ) from None
        shown = []
        for when in (datetime.date(2001, 2, 3), day):  # the last one stays
            calendar = {f"%{code}": when.strftime(f"%{code}") for code in CODES}
            self._clock = {"chat_template": CLOCK + template, "calendar": calendar}
            shown.append(self.render([message("user", USER)]))
        return None if shown[0] == shown[1] else day.isoformat()

    def _takes_system(self) -> bool:
        """Whether a system message is shown, and all stays as it is when an answer follows."""
        try:
            shown = all(
                SYSTEM in self.render(messages, opening=True)
                for messages in CONVERSATIONS
                if len(messages) > 1
            )
            if shown:
                self._find_opening()
        except ArtifactError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            return False
        if not shown:
            say_once(
                f"The chat template of {self._name!r} leaves out system messages; here they go in "
                "front of the user's message."
            )
        return shown

    def _find_opening(self) -> tuple[str, str, str]:
        """What the generation prompt ends with and no answer has before it, what stands there
        instead, and what of that ends a thought.
        """
        found = set()
        for messages in CONVERSATIONS:
            asked = self.render(messages, opening=True)
            text = self.render([*messages, message("assistant", ANSWER)])
            before, answer, _ = text.rpartition(ANSWER)
            thought = END_OF_THOUGHT if before.rfind("<think>") > before.rfind("</think>") else ""
            shared = alike(asked, before)
            found.add((asked[shared:], before[shared:] + thought, thought))
            if not answer or USER in asked[shared:] or len(found) > 1:
                raise self._refusal(before + answer or text, asked + ANSWER)
        return found.pop()

    def _find_boundary(self, start: str) -> None:
        """Set the first way to tokenise apart that gives what stands in conversations, and the
        closing.
        """
        self._boundary = Boundary()
        text = self.prompt(CONVERSATIONS[0])
        faults = []
        for space in dict.fromkeys(("", text[len(text.rstrip(" ")) :])):
            last = text.removesuffix(space)[-1:]
            for before, head in dict.fromkeys((("", ""), (space, ""), (last + space, last))):
                self._boundary = Boundary(space, before, tuple(self.ids(head)) if head else ())
                self.closing_ids, shown = self._find_closing()
                fault = self._fault("", shown) or (self._fault(start, shown) if start else None)
                if fault is None:
                    return
                faults.append(fault)
        raise self._refusal(*faults[0])

    def _find_closing(self) -> tuple[tuple[int, ...], bool]:
        """What stands behind an answer up to the end of its turn, and whether a conversation that
        it ends shows it.

        The control tokens in question are those that follow it both at the end and before another
        turn; the end of turn is the end-of-sequence token, if it is one of them, or else the first.
        """
        eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        added = self.tokenizer.added_tokens_decoder
        control = {place for place in added if added[place].content.strip()}
        control |= set(self.tokenizer.all_special_ids)
        control -= {bos} - {eos}
        messages = CONVERSATIONS[0]
        answered = self._answered(messages, ANSWER)
        begins = len(self.ids(self.prompt(messages))) + len(self.answer_ids(ANSWER))
        at_end = self.ids(self.render(answered))[begins:]
        amid = self.ids(self.render([*answered, message("user", USER)]).rpartition(ANSWER)[2])
        ends, goes_on = ([place for place in ids if place in control] for ids in (at_end, amid))
        candidates = ends[: alike(ends, goes_on)] or ends or goes_on
        if not candidates and eos is None:
            behind = self.tokenizer.decode(amid)
            raise ArtifactError(
                f"The chat template of {self._name!r} ends an assistant's message with "
                f"{behind[:20]!r}, which is no control token, and the tokenizer has no "
                "end-of-sequence token. Set one of the two."
            )
        if not candidates:
            return (eos,), False
        ids = at_end if ends else amid
        return tuple(ids[: ids.index(eos if eos in candidates else candidates[0]) + 1]), bool(ends)

    def _fault(self, start: str, closed: bool) -> tuple[str, str] | None:
        """The first difference of what a conversation begins with and what it should, token by
        token.
        """
        for messages in CONVERSATIONS:
            prompt = self.ids(self.prompt(messages, start))
            for probe in PROBES:
                text = self.render(self._answered(messages, start + probe))
                before, shown, _ = text.rpartition(start + probe)
                if not shown:  # the template rewrites such a text, so no conversation has it
                    continue
                # An answer without an end of turn of its own may merge with what stands behind it.
                whole = self.ids(text if closed else before + shown)
                apart = [*prompt, *self.answer_ids(probe), *(self.closing_ids if closed else ())]
                if whole[: len(apart)] != apart:
                    return self._tokens(whole[: len(apart)]), self._tokens(apart)
        return None

    def _tokens(self, ids: Sequence[int]) -> str:
        return "|".join(str(self.tokenizer.decode([token])) for token in ids)

    def _answered(self, messages: Messages, answer: str) -> Messages:
        return [*messages, message("assistant", self._thought + answer)]

    def _refusal(self, whole: str, apart: str) -> ArtifactError:
        return ArtifactError(
            f"The chat template of {self._name!r} does not say where an answer begins: with the "
            f"answer, the conversation reads {whole[-SHOWN:]!r}, and prompt and answer apart read "
            f"{apart[-SHOWN:]!r}. Set tokenizer.chat_template to one under which they are the "
            "same, and save the tokenizer again."
        )


@functools.cache
def say_once(text: str) -> None:
    """A run makes several renderers with one tokenizer."""
    logger.warning("%s", text)


def alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many of the first items are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the texts that can be cut in two; nothing where there is none."""
    found = sorted(
        {text for text in texts if len(text) > 1 and not text.isspace()},
        key=lambda text: (-len(text), text),
    )
    if not found:
        return re.compile("(?!)")
    # Some tokenizers have thousands.
    first = "".join(map(re.escape, sorted({text[0] for text in found})))
    return re.compile(f"(?=[{first}])(?:{'|'.join(map(re.escape, found))})")
