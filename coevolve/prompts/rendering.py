"""How texts and ids are made of an example, in words: an estimator's manifest carries this beside
its prompts, so that its ids can be had without this package. What `render`, `reasoning` and
`template` do; a change there that moves an id is another VERSION here.
"""

from collections.abc import Mapping
from types import MappingProxyType

VERSION = 1

_AS_PYTHON = "numbers, true and false as Python prints them (3, 0.5, True)"
_DIALOGUE = (
    "The turns in order through user_turn and agent_turn; k is 1 and goes up by one at each user "
    "turn but the very first turn; then next_turn with the last k, unless it is empty; joined by "
    "turn_separator. last_exchange is the last two of these, or the last one where next_turn is "
    "empty."
)
_HARMLESS = (
    "In user_persona, agent_character, the texts of turns, features and responses to be judged, a "
    "word joiner (U+2060) is put behind the first character of every match, found from left to "
    "right: of an added token of tokenizer.json or one of sections (two characters or more, not "
    "only white space; the longest first), or of a pattern of labels at the start of a line, with "
    "white space that is no line feed before it."
)
_PROMPT = (
    "The system message, unless its template is empty, and the user's go through the tokenizer's "
    "chat template with add_generation_prompt and enable_thinking false, strftime_now showing "
    "template_date; where system_in_user is true, there is one user message, of system text, an "
    "empty line, user text. From the end of the text, instead_of is taken away and opening put in "
    "its place; then comes response_start, in the estimator's prompts only; where that is empty, "
    "and for the connector, space is taken away from the end. It is tokenised with control tokens "
    "and without adding any."
)
_ANSWER = (
    "behind + text is tokenised with control tokens read as plain text, and the ids cut_off are "
    "taken from its front; where it does not begin with them, the text is tokenised alone. An "
    "added token that is not special is cut behind its first character, and what follows is "
    "tokenised in the same way behind a line feed, whose ids are cut off. closing_ids end it. They "
    "are scored: the text's own and these."
)
_SHARED = {
    "templates": (
        "Python's str.format: {name} is a field, {{ and }} are braces. Templates that may hold "
        "{context} may hold its own fields."
    ),
    "dialogue": _DIALOGUE,
    "harmless": _HARMLESS,
    "prompt": _PROMPT,
    "answer": _ANSWER,
}
RENDERING: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "coevolve": {
            **_SHARED,
            "agent_character": (
                "A text as it is. An object is a line for each field, in its order: `name: value`. "
                "In values, the fields of an object, `name: value`, and the items of a list are "
                f"joined by `; `; {_AS_PYTHON}."
            ),
            "features": (
                "Of a reasoning, what stands behind the last one of the last of sections, up to "
                "the first of another section; without lines that begin, after white space, with "
                "three backticks; white space, then backticks, then white space stripped from both "
                "ends. no_features where the heading or all text is missing."
            ),
        },
        "reference": {
            **_SHARED,
            "agent_character": "A text as it is; an object as Python's str() shows a dict.",
            "features": (
                "Of a reasoning, what stands behind the last one of the last of sections, or all "
                "of it where there is none; without three backticks wherever they stand."
            ),
        },
    }
)
"""By a prompt set's convention."""
