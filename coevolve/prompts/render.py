"""From an example to the token ids that a model sees.

    [ chat template around system and user message ][ opening ][ response ][ end of turn ]
    `------------------- prompt ids ---------------------------'`---- response ids ------'

Prompt and response are tokenised apart and their ids joined, so that the boundary between them is a
fact; that it is the one that the chat template has as well, `template` sees to. What comes from
data or from a model (persona, character, turns, features, a response to be judged) is made harmless
before it enters a template: a word joiner (U+2060, invisible) goes behind the first character of
whatever would be read as a control token or as one of the template's own headings. A response is
tokenised with control tokens switched off, so nothing in it can end its turn.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coevolve.data.example import Example
from coevolve.errors import ArtifactError, DataError
from coevolve.prompts.reasoning import core_features, unfenced_features
from coevolve.prompts.rendering import RENDERING, VERSION
from coevolve.prompts.sets import PromptSet
from coevolve.prompts.template import ChatTemplate, Messages, any_of, message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_JOINER = "\u2060"
MOST_UNKNOWN = 0.1


class Renderer:
    """Renders examples with one prompt set and one tokenizer's chat template.

    ArtifactError for a tokenizer without a chat template, or with one under which a response has no
    exact place. `date` (ISO; today by default) is what a template that shows the date shows, None
    where it shows none; a run keeps it, so that all of its prompts have the same.
    """

    def __init__(
        self, prompts: PromptSet, tokenizer: "PreTrainedTokenizerBase", *, date: str | None = None
    ):
        if not tokenizer.chat_template:
            raise ArtifactError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template. Use an "
                "instruction-tuned model, or set tokenizer.chat_template and save the tokenizer "
                "again."
            )
        self.prompts = prompts
        self.tokenizer = tokenizer
        self._harmful = _harmful_pattern(prompts, tokenizer)
        self._template = ChatTemplate(tokenizer, date=date, start=prompts.response_start)
        self.date = self._template.date
        self.end_of_turn_id = self._template.closing_ids[-1]

    @property
    def shown_date(self) -> dict[str, str]:
        """`template_date` as a manifest or a header has it, where the chat template shows one."""
        return {} if self.date is None else {"template_date": self.date}

    @property
    def rendering(self) -> dict[str, Any]:
        """How the ids come about, for a manifest (`coevolve.prompts.rendering`)."""
        return {"version": VERSION, **RENDERING[self.prompts.convention]}

    @property
    def answer(self) -> dict[str, Any]:
        """What the chat template makes of an answer, for a manifest."""
        return self._template.found

    # Prompts, as text that starts with the template's first token and ends where the response
    # begins.

    def connector(self, example: Example) -> str:
        """The prompt of q1(r | x)."""
        return self.chat(
            _messages(
                self.prompts.connector_system,
                self.prompts.connector_user.format(**self._parts(example)),
            )
        )

    def estimator(self, example: Example, reasoning: str | None) -> str:
        """The prompt of q2(y | x, r); with `reasoning=None` that of the baseline q2(y | x)."""
        messages = self.estimator_messages(example, reasoning)
        return self._template.prompt(messages, self.prompts.response_start)

    def estimator_messages(self, example: Example, reasoning: str | None) -> list[dict[str, str]]:
        """The chat messages of `estimator`, folded as the chat template needs them."""
        template, parts = self.prompts.direct_user, self._parts(example)
        if reasoning is not None:
            template, parts["features"] = self.prompts.estimator_user, self.features(reasoning)
        return self._template.folded(
            _messages(self.prompts.estimator_system, template.format(**parts))
        )

    def judge(self, reasoning: str, response: str) -> str:
        """The prompt that asks how much of the core features a response matches."""
        parts = {"features": self.features(reasoning), "response": self.harmless(response)}
        return self.chat(
            _messages(self.prompts.judge_system, self.prompts.judge_user.format(**parts))
        )

    def teacher(self, example: Example) -> list[dict[str, str]]:
        """The chat messages that ask a teacher, shown the golden response, for a reasoning."""
        if example.golden_response is None:
            raise ValueError(f"{example.sample_id!r} has no golden response to show.")
        return _messages(
            self.prompts.teacher_system,
            self.prompts.teacher_user.format(
                **self._parts(example), response=self.harmless(example.golden_response)
            ),
        )

    def chat(self, messages: Messages) -> str:
        """The prompt of any chat that ends with the user's message."""
        return self._template.prompt(messages)

    # Token ids.

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a rendered prompt, whose control tokens are the template's own."""
        return self._template.ids(prompt)

    def response_ids(self, response: str) -> list[int]:
        """Ids of a response and the end of its turn; what looks like a control token stays text."""
        return [*self._template.answer_ids(response), *self._template.closing_ids]

    def stop_ids(self, model: Any) -> list[int]:
        """What ends a generation: the template's end of turn, and the ends of sequence that
        tokenizer and model know.

        Args:
            model: whose generation config counts as far as the tokenizer has its ends as control
                tokens.
        """
        known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        known = {
            self.tokenizer.eos_token_id,
            *(known if isinstance(known, (list, tuple)) else [known]),
        }
        control = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}
        return [self.end_of_turn_id, *sorted((known & control) - {self.end_of_turn_id})]

    def unknown_share(self, text: str) -> float:
        """The share of a text's tokens that the tokenizer knows only as `<unk>`; 0 for no text."""
        if self.tokenizer.unk_token_id is None:
            return 0.0
        ids = self._template.answer_ids(text)
        return ids.count(self.tokenizer.unk_token_id) / max(len(ids), 1)

    def require_known(self, example: Example, where: str, responses: Iterable[str] = ()) -> None:
        """Raise DataError, which names the field, where more than a tenth of a text of the example
        is unknown.

        Args:
            responses: to it, beside its golden one.
        """
        texts = {
            "user_persona": example.user_persona,
            "agent_character": character_text(example.agent_character),
            "dialogue_context": "\n".join(turn.text for turn in example.dialogue),
            "agent_golden_response": example.golden_response or "",
        }
        for field, text in (*texts.items(), *(("response", response) for response in responses)):
            share = self.unknown_share(text)
            if share > MOST_UNKNOWN:
                raise DataError(
                    f"{where}, sample_ID {example.sample_id!r}: {field}: {share:.0%} of its tokens "
                    f"are unknown to the tokenizer of {self.tokenizer.name_or_path!r}; accepted is "
                    f"{MOST_UNKNOWN:.0%} at most. Use a base model that knows the language, or "
                    "leave the example out."
                )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # Parts.

    def context(self, example: Example) -> str:
        """x as text."""
        return self._parts(example)["context"]

    def features(self, reasoning: str) -> str:
        """The core features of a reasoning, as they stand in the estimator's prompt."""
        if self.prompts.convention == "reference":
            return self.harmless(unfenced_features(reasoning, self.prompts.sections[-1]))
        features = core_features(reasoning, self.prompts.sections)
        return self.prompts.no_features if features is None else self.harmless(features)

    def harmless(self, text: str) -> str:
        """`text` with every control token and heading broken by a word joiner."""
        return self._harmful.sub(lambda match: match[0][0] + WORD_JOINER + match[0][1:], text)

    def _parts(self, example: Example) -> dict[str, str]:
        """What the templates may ask for of x."""
        to_text = str if self.prompts.convention == "reference" else character_text
        words = self.prompts
        shown = words.user_turn, words.agent_turn, words.next_turn
        turns = turns_of(example, self.harmless, *shown)
        inputs = {
            "user_persona": self.harmless(example.user_persona),
            "agent_character": self.harmless(to_text(example.agent_character)),
            "dialogue": self.prompts.turn_separator.join(turns),
        }
        last = turns[-2:] if self.prompts.next_turn else turns[-1:]
        return {
            **inputs,
            "context": self.prompts.context.format(**inputs),
            "last_exchange": self.prompts.turn_separator.join(last),
        }


def turns_of(
    example: Example,
    harmless: Callable[[str], str],
    user_turn: str,
    agent_turn: str,
    next_turn: str,
) -> list[str]:
    """The turns of the dialogue, and what comes before the next one where there is such."""
    turns, k = [], 1
    for index, turn in enumerate(example.dialogue):
        if index > 0 and turn.speaker == "user":
            k += 1
        template = user_turn if turn.speaker == "user" else agent_turn
        turns.append(template.format(k=k, text=harmless(turn.text)))
    return [*turns, next_turn.format(k=k)] if next_turn else turns


def character_text(character: str | Mapping[str, Any]) -> str:
    """A character as text: itself, or one line per field, nested values joined by semicolons."""
    if isinstance(character, str):
        return character
    return "\n".join(f"{name}: {_value_text(value)}" for name, value in character.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_value_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_value_text(item) for item in value)
    return str(value)


def _messages(system: str, user: str) -> list[dict[str, str]]:
    return [*([message("system", system)] if system else []), message("user", user)]


def _harmful_pattern(prompts: PromptSet, tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Control tokens and section headings anywhere; the template's labels where a line starts."""
    anywhere = any_of(
        {token.content for token in tokenizer.added_tokens_decoder.values()} | set(prompts.sections)
    )
    patterns = [anywhere.pattern, *(rf"^[^\S\n]*(?:{label})" for label in prompts.labels)]
    return re.compile("|".join(patterns), re.MULTILINE)
