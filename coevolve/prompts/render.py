"""From an example to the token ids that a model sees.

    [ chat template around system and user message ][ generation prompt ][ response ][ end of turn ]
    `------------------- prompt ids -------------------------------------'`---- response ids ------'

Prompt and response are tokenised apart and their ids joined, so that the boundary between them is a fact.
What comes from data or from a model (persona, character, turns, features, a response to be judged) is made harmless
before it enters a template: a word joiner (U+2060, invisible) goes behind the first character of whatever would be
read as a control token or as one of the template's own headings. A response is tokenised with control tokens
switched off, so nothing in it can end its turn.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coevolve.data.example import Example
from coevolve.errors import ArtifactError
from coevolve.prompts.reasoning import core_features, unfenced_features
from coevolve.prompts.sets import PromptSet
from coevolve.prompts.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_JOINER = "\u2060"


class Renderer:
    """Renders examples with one prompt set and one tokenizer's chat template.

    Args:
        prompts: the templates.
        tokenizer: a fast tokenizer with a chat template.

    Raises:
        ArtifactError: the tokenizer has no chat template, or it does not say how a turn ends.
    """

    def __init__(self, prompts: PromptSet, tokenizer: "PreTrainedTokenizerBase"):
        if not tokenizer.chat_template:
            raise ArtifactError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template. Use an instruction-tuned model, "
                "or set tokenizer.chat_template and save the tokenizer again."
            )
        self.prompts = prompts
        self.tokenizer = tokenizer
        self._harmful = _harmful_pattern(prompts, tokenizer)
        self.end_of_turn_id = _end_of_turn(tokenizer)

    # Prompts, as text that starts with the template's first token and ends with its generation prompt.

    def connector(self, example: Example) -> str:
        """The prompt of q1(r | x)."""
        return self._chat(self.prompts.connector_system, self.prompts.connector_user, **self._parts(example))

    def estimator(self, example: Example, reasoning: str | None) -> str:
        """The prompt of q2(y | x, r); with `reasoning=None` that of the baseline q2(y | x)."""
        messages = self.estimator_messages(example, reasoning)
        return render_chat(self.tokenizer, messages) + self.prompts.response_start

    def estimator_messages(self, example: Example, reasoning: str | None) -> list[dict[str, str]]:
        """The chat messages of `estimator`."""
        parts = self._parts(example)
        if reasoning is None:
            return _messages(self.prompts.estimator_system, self.prompts.direct_user.format(**parts))
        user = self.prompts.estimator_user.format(**parts, features=self.features(reasoning))
        return _messages(self.prompts.estimator_system, user)

    def judge(self, reasoning: str, response: str) -> str:
        """The prompt that asks how much of the core features a response matches."""
        return self._chat(
            self.prompts.judge_system,
            self.prompts.judge_user,
            features=self.features(reasoning),
            response=self.harmless(response),
        )

    def teacher(self, example: Example) -> list[dict[str, str]]:
        """The chat messages that ask a teacher, who is shown the golden response, for a reasoning."""
        if example.golden_response is None:
            raise ValueError(f"sample_ID {example.sample_id!r} has no golden response to show to a teacher.")
        return _messages(
            self.prompts.teacher_system,
            self.prompts.teacher_user.format(**self._parts(example), response=self.harmless(example.golden_response)),
        )

    # Token ids.

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a rendered prompt. Its control tokens are the template's own, so nothing is added to them."""
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def response_ids(self, response: str) -> list[int]:
        """Ids of a response and the end of its turn; text that looks like a control token stays text."""
        ids = self.tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.end_of_turn_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without control tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

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
        """`text` with every control token and heading broken by a word joiner; other text is unchanged."""
        return self._harmful.sub(lambda match: match[0][0] + WORD_JOINER + match[0][1:], text)

    def _parts(self, example: Example) -> dict[str, str]:
        """What the templates may ask for of x: its three inputs, and all of them together as `context`."""
        to_text = str if self.prompts.convention == "reference" else character_text
        inputs = {
            "user_persona": self.harmless(example.user_persona),
            "agent_character": self.harmless(to_text(example.agent_character)),
            "dialogue": self._dialogue(example),
        }
        return {**inputs, "context": self.prompts.context.format(**inputs)}

    def _dialogue(self, example: Example) -> str:
        turns, k = [], 1
        for index, turn in enumerate(example.dialogue):
            if index > 0 and turn.speaker == "user":
                k += 1
            template = self.prompts.user_turn if turn.speaker == "user" else self.prompts.agent_turn
            turns.append(template.format(k=k, text=self.harmless(turn.text)))
        if self.prompts.next_turn:
            turns.append(self.prompts.next_turn.format(k=k))
        return self.prompts.turn_separator.join(turns)

    def _chat(self, system: str, user: str, **parts: str) -> str:
        return render_chat(self.tokenizer, _messages(system, user.format(**parts)))


def render_chat(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str:
    """Messages as text up to and including the generation prompt, thinking switched off where there is a switch."""
    with _in_time(tokenizer):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


@contextmanager
def _in_time(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    try:
        with time_limit():
            yield
    except TimeoutError as error:
        raise ArtifactError(
            f"The chat template of {tokenizer.name_or_path!r} cannot be used: {error}. Use another model, or set "
            "tokenizer.chat_template and save the tokenizer again."
        ) from None


def character_text(character: str | Mapping[str, Any]) -> str:
    """A character as text: itself, or one line per field of the object, nested values joined by semicolons."""
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
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": user}]


def _harmful_pattern(prompts: PromptSet, tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Control tokens and section headings anywhere; the template's labels at the start of a line."""
    anywhere = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(prompts.sections)
    anywhere = {text for text in anywhere if len(text) > 1 and not text.isspace()}
    patterns = [re.escape(text) for text in sorted(anywhere, key=lambda text: (-len(text), text))]
    patterns += [rf"^[^\S\n]*(?:{label})" for label in prompts.labels]
    return re.compile("|".join(patterns) or r"(?!)", re.MULTILINE)


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that the chat template puts behind an assistant's message."""
    probe = "probe"
    with _in_time(tokenizer):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}], tokenize=False
        )
    ids = tokenizer(text.rpartition(probe)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):
        return ids[0]
    if tokenizer.eos_token_id is None:
        raise ArtifactError(
            f"The chat template of {tokenizer.name_or_path!r} ends an assistant's message with {text[-20:]!r}, which "
            "is no control token, and the tokenizer has no end-of-sequence token. Set one of the two."
        )
    return tokenizer.eos_token_id
