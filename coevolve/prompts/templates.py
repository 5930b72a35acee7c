"""What a prompt set may hold that came from a manifest: text that is filled in and searched for,
and nothing that runs.

`str.format` would do more (`{context.__class__}` reaches into objects, `{k:9999999999}` fills the
memory), and so would regular expressions (`(a|a)*b` takes for ever). So a template has plain
fields, and a label is literal text with `\\d+` in one place and with alternatives such as
`(User|Agent)`, which no text makes slow.
"""

import re
from collections.abc import Collection
from string import Formatter

LONGEST = 100_000
"""Characters of a text of a prompt set."""
MOST_USES = 10
"""Of one field in a template."""
LONGEST_LABEL = 200

_LITERAL = r"(?:[^\\.^$*+?{}\[\]()|]|\\[^\w])"
_LABEL = re.compile(rf"(?:{_LITERAL}|\\d\+|\({_LITERAL}+(?:\|{_LITERAL}+)*\))+")


def problem_of_text(text: object) -> str | None:
    """What is wrong with a text of a prompt set, None where nothing is."""
    if not isinstance(text, str):
        return f"is {text!r:.80}; accepted is text"
    if len(text) > LONGEST:
        return f"has {len(text):,} characters; accepted are {LONGEST:,}"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "has half of a surrogate pair; accepted is text that UTF-8 can hold"
    return None


def fields_of(template: str) -> list[str]:
    """The fields that a template without problems uses, each as often as it does."""
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def literals_of(template: str) -> list[str]:
    """The text of such a template around its fields."""
    return [literal for literal, _, _, _ in Formatter().parse(template)]


def problem_of_template(template: str, fields: Collection[str]) -> str | None:
    """What is wrong with a template to be filled with these fields, None where nothing is."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return f"is no template of str.format ({error}); double a brace that is text"
    used = [field for _, field, _, _ in parts if field is not None]
    for _, field, specification, conversion in parts:
        if field is None:
            continue
        if field not in fields or specification or conversion:
            shown = (
                field
                + (f"!{conversion}" if conversion else "")
                + (f":{specification}" if specification else "")
            )
            return f"has the field {{{shown:.80}}}; accepted are {', '.join(fields)}, plain"
        if used.count(field) > MOST_USES:
            return f"has {{{field}}} {used.count(field):,} times; accepted are {MOST_USES}"
    return None


def problem_of_label(label: str) -> str | None:
    """What is wrong with a label, None where nothing is."""
    if (
        len(label) <= LONGEST_LABEL
        and _LABEL.fullmatch(label)
        and label.count(r"\d+") <= 1
        and label.count("(") <= 3
    ):
        return None
    return (
        f"has {label!r:.80}; accepted is literal text of up to {LONGEST_LABEL} characters, with "
        "\\d+ once and up to three groups of alternatives such as (User|Agent)"
    )
