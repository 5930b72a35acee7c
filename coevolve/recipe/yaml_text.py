"""YAML as recipes and overrides have it: the core schema of YAML 1.2, and nothing that can grow.

PyYAML by itself reads YAML 1.1: `yes` and `off` are booleans, `1:30` is 90, `010` is 8,
`2026-01-01` is a date, `1e-3` is text, and of a key that is there twice the last one counts,
without a word. Here a value is a boolean (`true`, `false`), null, a number, text, a list or a
mapping; keys are text. Anchors, aliases and `<<` work, within MOST_VALUES.
"""

import re
from typing import Any

import yaml

from coevolve.errors import RecipeError
from coevolve.files import DEEPEST, LONGEST_NUMBER

LARGEST = 1 << 18
"""Characters of a text."""
MOST_VALUES = 10_000
"""Values in a text, every alias written out. A recipe has some 100."""

_LEVELS = f"accepted are {DEEPEST} levels, every alias written out"
_TAG = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
# In this order: what is an integer is not asked whether it is a float.
_CORE = {
    f"{_TAG}null": re.compile(r"~|null|Null|NULL|"),
    f"{_TAG}bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    f"{_TAG}int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    f"{_TAG}float": re.compile(rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}


def parse_yaml(text: str, where: str) -> Any:
    """The value of YAML text, called `where` in errors; RecipeError, naming the line, for what is
    not YAML, has a tag or a key twice, or is longer, deeper or larger than is accepted.
    """
    if len(text) > LARGEST:
        raise RecipeError(
            f"{where}: has {len(text):,} characters; accepted are at most {LARGEST:,}."
        )
    try:
        composer = _Composer(text)
        try:
            node = composer.get_single_node()
        finally:
            composer.dispose()
        return None if node is None else _Values().of(node, 1)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        found = reason if isinstance(error, _Refused) else f"not YAML ({reason})"
        raise RecipeError(f"{where}{line}: {found}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an escape beyond Unicode
        raise RecipeError(f"{where}: not YAML ({' '.join(str(error).split())}).") from None


class _Refused(yaml.MarkedYAMLError):
    """YAML that is well-formed and not accepted."""


class _Composer(yaml.SafeLoader):
    """Makes nodes of text, with the tags of the core schema and no others."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _fault(f"found the tag {event.tag!r}; accepted are values without tags", event)
        if self.depth > DEEPEST:
            raise _fault(f"lists and mappings lie in one another too deep; {_LEVELS}", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            for tag, pattern in _CORE.items():
                if pattern.fullmatch(value):
                    return tag
        return str(super().resolve(kind, None, (False, False)))


class _Values:
    """Makes values of nodes; an alias gives one of its own, so that no two places share one."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: yaml.Node, depth: int) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _fault(
                f"has too many values; accepted are {MOST_VALUES:,}, every alias written out", node
            )
        if depth > DEEPEST:
            raise _fault(f"lists and mappings lie in one another too deep; {_LEVELS}", node)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        return self._mapping(node, depth) if isinstance(node, yaml.MappingNode) else _scalar(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault("found a list or a mapping as a key; accepted is text", key_node)
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines:
                raise _fault(
                    f"the key {key!r} is there twice (first in line {lines[key]}); remove one",
                    key_node,
                )
            lines[key] = line
            if key == "<<" and key_node.style is None:
                for source in (
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                ):
                    if not isinstance(source, yaml.MappingNode):
                        raise _fault(
                            "the value of << is no mapping; accepted is an alias of one, or a list "
                            "of them",
                            source,
                        )
                    merged = {**self.of(source, depth + 1), **merged}
            else:
                own[key] = self.of(value_node, depth + 1)
        return {**merged, **own}


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _fault(
            f"found half of a surrogate pair in {text!r}; write the character itself", node
        )
    kind = node.tag.removeprefix(_TAG)
    if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
        raise _fault(
            f"found a number of {len(text):,} characters; accepted are {LONGEST_NUMBER}", node
        )
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def _fault(found: str, place: yaml.Node | yaml.Event) -> _Refused:
    return _Refused(problem=found, problem_mark=place.start_mark)
