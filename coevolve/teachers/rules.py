"""A teacher without a model: it derives the trace r* from (x, y) by rule, in any language and for
any data.

r* is a function of (x, y) that says which passages of x the response y takes up, its speech acts,
up to a few telling words of it, its tone, length and language. Of y's own wording it holds the
keywords and nothing else, save what x says as well. Keywords are what helps an estimator most: see
`keywords` below.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from coevolve.data.example import Example
from coevolve.errors import RecipeError, TeacherError
from coevolve.prompts.reasoning import missing_sections
from coevolve.prompts.sets import PromptSet
from coevolve.recipe.schema import Traces
from coevolve.teachers.base import TEACHERS, Answer, require_response
from coevolve.teachers.features import (
    Features,
    Link,
    Rarity,
    facts,
    rarest,
    response_features,
    speech_acts,
)
from coevolve.teachers.languages import UNKNOWN, content_words, language_of

Keywords = Literal["telling", "context"]

_KNOWN = ("[User Persona]", "[Agent Character]", "[Dialogue Context]", "[Connections]")
_PERSONA, _CHARACTER, _DIALOGUE, _CONNECTIONS = _KNOWN
_VERSION = 2  # of the rules; raised when traces change, so that older files are not continued


class RuleTeacher:
    """Writes traces by rule.

    Args:
        prompts: a set whose headings, but for the last, are among those of `roleplay`. With
            `[Connections]` alone before the features (as in `brief`), traces are as short as they
            can be.
        examples: the training examples, from which the rarity of words is learnt. Without them long
            words are taken for rare ones.
        max_keywords: how many of y's content words the features name, at most, and never all of
            them.
        keywords: `telling` takes the rarest words of y; `context` only words that x has as well.
    """

    def __init__(
        self,
        prompts: PromptSet,
        examples: Sequence[Example] = (),
        *,
        max_keywords: int = 3,
        keywords: Keywords = "telling",
    ):
        unknown = [heading for heading in prompts.sections[:-1] if heading not in _KNOWN]
        if unknown:
            raise RecipeError(
                f"prompts.sections: found {unknown[0]!r}; the rule teacher accepts "
                f"{', '.join(_KNOWN)} before the features. Use another teacher, or traces from a "
                "file."
            )
        if keywords not in get_args(Keywords):
            raise RecipeError(
                f"keywords: found {keywords!r}; accepted: {', '.join(get_args(Keywords))}."
            )
        if max_keywords < 0:
            raise RecipeError(f"max_keywords: found {max_keywords}; accepted is a number from 0.")
        self.prompts, self.max_keywords, self._rarity = prompts, max_keywords, Rarity(examples)
        self.keywords: Keywords = keywords

    @property
    def settings(self) -> dict[str, Any]:
        """What a trace depends on besides the example."""
        return {
            "kind": "rules",
            "version": _VERSION,
            "max_keywords": self.max_keywords,
            "keywords": self.keywords,
            "rarity": self._rarity.digest(),
        }

    def trace(self, example: Example) -> str:
        """r*, well formed for the prompt set; always the same for the same example."""
        require_response(example)
        features = response_features(example, self._rarity, self.max_keywords, self.keywords)
        *headings, last = self.prompts.sections
        terse = headings == [_CONNECTIONS]
        parts = [(heading, self._body(heading, example, features, terse)) for heading in headings]
        parts.append((last, _terse_features(features) if terse else _full_features(features)))
        trace = "\n".join(f"{heading}\n{body}" for heading, body in parts)
        missing = missing_sections(trace, self.prompts.sections)
        if missing:
            raise TeacherError(
                f"sample_ID {example.sample_id!r}: the heading {missing[0]!r} stands in the "
                "trace's text as well. Give the prompt set headings that no dialogue holds, for "
                "example in brackets."
            )
        return trace

    def answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """One trace per example, in order."""
        for example in examples:
            yield Answer(example.sample_id, self.trace(example))

    def _body(self, heading: str, example: Example, features: Features, terse: bool) -> str:
        links = {link.source: link for link in features.links}
        if heading == _PERSONA:
            bearing = _bearing("user's persona", example.user_persona, links.get("user's persona"))
            language = _user_language(example)
            return bearing if language == UNKNOWN else f"{bearing} The user writes {language}."
        if heading == _CHARACTER:
            return _bearing("character's profile", example.agent_character, links.get("character"))
        if heading == _DIALOGUE:
            return self._last_turn(example)
        return _terse_connections(features) if terse else _full_connections(features)

    def _last_turn(self, example: Example) -> str:
        turn, language = example.dialogue[-1].text, _user_language(example)
        acts = _listed(speech_acts(turn, language))
        topic = _listed(rarest(content_words(turn, language), self._rarity, 3))
        return (
            f"There have been {_counted(len(example.dialogue), 'turn')}. The user's last one: "
            f"{acts}. Its topic: {topic or 'nothing in particular'}."
        )


@TEACHERS.register("rules")
def _rules(settings: Traces, prompts: PromptSet, train: Sequence[Example], **_: Any) -> RuleTeacher:
    return RuleTeacher(
        prompts, train, keywords=settings.keywords, max_keywords=settings.max_keywords
    )


def _user_language(example: Example) -> str:
    return language_of(example.dialogue[-1].text, " ".join(turn.text for turn in example.dialogue))


def _bearing(profile: str, text: str | Mapping[str, Any], link: Link | None) -> str:
    statements = _counted(len(facts(text)), "statement")
    if link is None:
        return f"Nothing in the {profile} ({statements}) bears on this turn."
    return f"In the {profile} ({statements}), the one on {_listed(link.words)} bears on this turn."


def _full_connections(features: Features) -> str:
    if not features.links:
        return "The response takes up nothing that was said before; it brings in something new."
    taken_up = "; ".join(f"{_listed(link.words)} from the {link.source}" for link in features.links)
    return f"The response takes up {taken_up}."


def _full_features(features: Features) -> str:
    return (
        f"Act: {_listed(features.acts)}.\nWords: {_listed(features.keywords) or 'none'}.\n"
        f"Tone: {features.tone}.\nLength: {features.length}.\nLanguage: {features.language}."
    )


def _terse_connections(features: Features) -> str:
    if not features.links:
        return "something new"
    link = features.links[0]
    return f"{link.source}: {_listed(link.words)}"


def _terse_features(features: Features) -> str:
    return (
        f"act: {_listed(features.acts)}; words: {_listed(features.keywords) or 'none'}; tone: "
        f"{features.tone}; length: {features.length}; {features.language}"
    )


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
