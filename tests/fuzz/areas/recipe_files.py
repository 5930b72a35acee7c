"""Recipes: YAML text, sections, overrides, chains of `extends`.

An accepted recipe is JSON, is the same when it is read again, and says under each key what YAML 1.2
says that the file says: true is not 1, 017 is not 15, a key is there once.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.core import Case, RefusedError
from tests.fuzz.mutate import Raw, Twice, mutate_bytes, mutate_folder, mutate_json
from tests.fuzz.valid import ROOT

SCALARS = (
    "yes", "no", "on", "off", "y", "True", "TRUE", "~", "null", "", ".inf", "-.inf", ".nan", ".NAN",
    "1e-3", "1e5",
    "1e300", "1e400", "0x10", "0o17", "017", "08", "1_000", "12:30:45", "2024-01-01", (
        "2001-12-14t21:59:43.10-05:00"
    ),
    "+1", "-1", "0", "1.0", "1.5", "00", "=", "<<", "!!int 3", "!!str 3", "!!float 3", "!!bool 1",
    "!!binary aGk=",
    "!!python/object/apply:os.system "
    "['true']", "!!python/name:os.system", "!!set {a, b}", "!!timestamp 2024-01-01",
    "!unknown x", "!!null ''", "'1'", "\"\\ud800\"", "\"\\0\"", "\"\\x1b[1m\"", "'[/b]'", "[1, 2]",
    "{a: 1}", "[]",
    "{}", "9" * 400, "1" * 5000, "-" * 3, "|\n  text", "*sft", "&x 3", "{? a : b}",
    "[" * 3000 + "]" * 3000,
    "100000000000", "-0.0", "1e-320", "4.0", "3.9", "tiny", "auto", "never", "greedy", "cpu",
    "endpoint",
)  # fmt: skip
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "7",
    "64",
    "0.5",
    "1.0",
    "0.0",
    "1e-4",
    "1.0e-3",
    "1E3",
    "100",
    "4.0",
    "+2",
    ".5",
    "1.",
    "-1",
)
WORDS = (
    "true",
    "false",
    "True",
    "yes",
    "no",
    "on",
    "null",
    "~",
    "cpu",
    "auto",
    "lora",
    "full",
    "rules",
    "cosine",
    "grpo",
    "drop",
)
LINES = (
    "seed: 1", "name: again", "extends: config.yaml", "extends: .", "extends: [a, b]",
    "extends: nowhere.yaml",
    "unknown: 1", "extends: recipe.yaml", "extends: other.yaml", "extends: /dev/zero", "1: 2",
    "null: 1", "true: 1",
    "? [a]\n: 1", "<<: {seed: 3}", "'': 1", "---", "...", "--- {}", "%YAML 1.2", "\tseed: 1",
    "data: {world: {}}",
    "model: {base: tiny}",
    "rounds: {count: 1}\nrounds: {count: "
    "2}", "<<: 1", "<<: [1]", "seed: {<<: *nowhere}", "- a", "model:",
)  # fmt: skip


class RecipeFiles:
    name = "recipes"
    share = 16

    def run(self, case: Case) -> None:
        from coevolve.recipe import load_recipe

        path = _source(case)
        overrides: list[str] = []
        if not case.untouched:
            level = case.rng.choices(list(_DAMAGE), [share for share, _ in _DAMAGE.values()])[0]
            overrides = _DAMAGE[level][1](case, path)
        source = case.rng.choice((path, path.parent)) if path.name == "config.yaml" else path
        try:
            recipe = case.call(load_recipe, source, overrides)
        except RefusedError:
            if case.chance(0.3) and not case.untouched:
                said = case.command(
                    "train", source, *overrides, "--output-dir", case.outputs / "run"
                )
                case.wrong_if(said.status == 0, "train accepts a recipe that is refused elsewhere")
            raise
        _check(case, recipe, path, overrides)


def _source(case: Case) -> Path:
    """A copy of a shipped recipe, or of the tiny run's, alone in its folder but for what it
    extends.
    """
    # Those of role-playing models are for another command.
    shipped = [
        path
        for path in sorted((ROOT / "recipes").glob("*/*.yaml"))
        if not re.search(r"^rpm:", path.read_text("utf-8"), re.MULTILINE)
    ]
    chosen = case.rng.choice([*shipped, *sorted((case.valid.folder / "recipes").glob("*.yaml"))])
    target = case.inputs / chosen.name
    for path in chosen.parent.glob("*.yaml"):
        (case.inputs / path.name).write_bytes(path.read_bytes())
    if case.untouched and "path: null" in target.read_text("utf-8"):
        return target
    return target


def _sections(case: Case, path: Path) -> list[str]:
    """Values changed as in JSON, which is YAML, or in YAML's own clothes."""
    values, did = mutate_json(case.rng, yaml.safe_load(path.read_text("utf-8")))
    case.note(did)
    path.write_text(_to_yaml(values), "utf-8")
    return []


def _to_yaml(value: Any, indent: int = 0) -> str:
    """Block mappings and flow for the rest; double keys and raw text as they are."""
    if not isinstance(value, dict) or not value:
        return _flow(value) + "\n"
    lines = []
    for key, item in value.items():
        for part in (item.first, item.second) if isinstance(item, Twice) else (item,):
            name = f"{' ' * indent}{_flow(str(key))}:"
            lines.append(
                f"{name}\n{_to_yaml(part, indent + 2)}"
                if isinstance(part, dict) and part
                else f"{name} {_flow(part)}\n"
            )
    return "".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{_flow(str(key))}: {_flow(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, Twice):
        return _flow(value.second)
    return json.dumps(value)


def _scalar(case: Case, path: Path) -> list[str]:
    """One value of the text replaced by something that YAML 1.1 and 1.2, or people, read
    differently.
    """
    text = path.read_text("utf-8")
    place = case.rng.choice(list(re.finditer(r"(?<=: )[^\s{}\[\],#&*][^\n,}\]#]*", text)))
    new = case.rng.choice(SCALARS)
    case.note(
        f"{text[max(0, place.start() - 30) : place.start()]!r} {place.group()!r} -> {new[:60]!r}"
    )
    path.write_text(text[: place.start()] + new + text[place.end() :], "utf-8")
    return []


def _lines(case: Case, path: Path) -> list[str]:
    """A line more, somewhere; the file that it may extend lies beside."""
    line = case.rng.choice(LINES)
    other = path.with_name("other.yaml")
    other.write_text(
        case.rng.choice(
            (f"extends: {path.name}\n", "extends: other.yaml\n", "seed: 4\n", "- 1\n", "", "\x00")
        )
    )
    lines = path.read_text("utf-8").split("\n")
    if line.startswith("extends"):
        lines = [one for one in lines if not one.startswith("extends")]
    at = case.rng.choice((0, len(lines), case.rng.randrange(len(lines) + 1)))
    lines.insert(at, line)
    case.note(f"line {at + 1}: {line!r}; other.yaml: {other.read_text()!r}")
    path.write_text("\n".join(lines), "utf-8")
    return []


def _text(case: Case, path: Path) -> list[str]:
    changed, did = mutate_bytes(case.rng, path.read_bytes())
    path.write_bytes(changed)
    case.note(did)
    return []


def _bomb(case: Case, path: Path) -> list[str]:
    """What is small to write and large to read."""
    kind = case.rng.choice(("aliases", "merges", "depth", "length", "keys", "chain"))
    case.note(f"bomb of {kind}")
    text = path.read_text("utf-8")
    if kind == "aliases":
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
        text = "\n".join(lines) + "\n" + text
    elif kind == "merges":
        lines = ["m0: &m0 {a: 1}"] + [
            f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 9)
        ]
        text = "\n".join(lines) + "\n" + text
    elif kind == "depth":
        text += "\ndeep: " + case.rng.choice(("[" * 50_000, "{a: " * 20_000, "- " * 20_000)) + "\n"
    elif kind == "length":
        text += f"\nname: {'x' * 3_000_000}\n"
    elif kind == "keys":
        text += "\n" + "".join(f"k{number}: 1\n" for number in range(20_000))
    else:
        text = f"extends: c0.yaml\n{text}"
        for number in range(1200):
            path.with_name(f"c{number}.yaml").write_text(f"extends: c{number + 1}.yaml\n")
    path.write_text(text, "utf-8")
    return []


def _override(case: Case, path: Path) -> list[str]:
    keys = [
        "seed",
        "name",
        "model.base",
        "model.lora.r",
        "rounds.count",
        "rounds.phases",
        "data.limit.IDTest",
        "data.path",
    ]
    keys += [
        "connector_rl.learning_rate",
        "cold_start.connector.steps",
        "remid.negatives",
        "logging.report_to",
        "extends",
    ]
    keys += [
        "model.trust_remote_code",
        "traces.on_failure",
        "refresh.trace_share",
        "evaluation.marginal_samples",
    ]
    odd = [
        "",
        ".",
        "a.b",
        "seed.x",
        "data..path",
        "model.",
        ".seed",
        "rounds.phases.0",
        "[/b]",
        "\ud800",
        "é",
        "seed=1",
    ]
    overrides = []
    for _ in range(case.rng.choice((1, 1, 2))):
        key = case.rng.choice(keys if case.chance(0.8) else odd)
        overrides.append(f"{key}={case.rng.choice(SCALARS)}" if case.chance(0.97) else key)
    case.note(f"{overrides!r}"[:300])
    return overrides


def _place(case: Case, path: Path) -> list[str]:
    case.note(mutate_folder(case.rng, path.parent))
    return []


def _plausible(case: Case, path: Path) -> list[str]:
    """Another number or word where one was, as a person would try it."""
    text = path.read_text("utf-8")
    places = list(
        re.finditer(r"(?<=: )(?:[0-9.]+(?:e-?[0-9]+)?|true|false|[a-z_]+)(?=[,}\n])", text)
    )
    for place in sorted(
        case.rng.sample(places, min(len(places), case.rng.choice((1, 2, 4)))),
        key=lambda one: -one.start(),
    ):
        old = place.group()
        new = case.rng.choice(WORDS if old.isalpha() else NUMBERS)
        case.note(f"{text[max(0, place.start() - 20) : place.start()]!r} {old!r} -> {new!r}")
        text = text[: place.start()] + new + text[place.end() :]
    path.write_text(text, "utf-8")
    return []


_DAMAGE: dict[str, tuple[int, Callable[[Case, Path], list[str]]]] = {
    "sections": (4, _sections),
    "scalar": (4, _scalar),
    "plausible": (4, _plausible),
    "lines": (3, _lines),
    "text": (3, _text),
    "override": (3, _override),
    "bomb": (1, _bomb),
    "place": (1, _place),
}


def _check(case: Case, recipe: Any, path: Path, overrides: list[str]) -> None:
    from coevolve.recipe import check_recipe, recipe_values
    from coevolve.training.schedule import scheduled_phases

    case.call(
        lambda: sum(1 for _ in scheduled_phases(recipe))
    )  # what a run does first with it must come to an end
    values = case.call(recipe_values, recipe)
    try:
        text = json.dumps(values, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        case.wrong_if(True, f"a recipe that JSON cannot hold: {error}")
        raise AssertionError from error
    try:
        again = case.call(check_recipe, json.loads(text), "again")
    except RefusedError as error:
        case.wrong_if(True, "a recipe that is refused when it is read again", error)
        raise AssertionError from error
    case.wrong_if(again != recipe, "another recipe when it is read again")
    if not overrides and path.is_file():
        for place, scalar in _leaves(case, path):
            _check_leaf(case, place, scalar, _value_at(values, place))


def _leaves(case: Case, path: Path) -> Iterator[tuple[tuple[Any, ...], yaml.ScalarNode]]:
    """Every scalar of the file and its keys. A key that is there twice is a failure here."""
    root = yaml.compose(path.read_text("utf-8-sig"), Loader=yaml.SafeLoader)

    def below(
        node: yaml.Node, place: tuple[Any, ...], seen: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[tuple, Any]]:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            case.wrong_if(len(set(map(str, keys))) != len(keys), "a key twice", keys)
            own = [key for key in keys if key != "<<"]
            for key, item in node.value:
                if key.value == "<<":
                    merged = item.value if isinstance(item, yaml.SequenceNode) else [item]
                    for one in merged:
                        yield from (
                            leaf
                            for leaf in below(one, place, seen)
                            if leaf[0][len(place)] not in own
                        )
                else:
                    yield from below(item, (*place, key.value), seen)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from below(item, (*place, index), seen)
        else:
            yield place, node

    yield from below(root, (), ())


def _value_at(values: Any, place: tuple[Any, ...]) -> Any:
    """What the recipe has there; `...` where it says it otherwise (a phase by its name, a source
    that lost).
    """
    for part in place:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        else:
            return ...
    return values


def _check_leaf(case: Case, place: tuple[Any, ...], scalar: yaml.ScalarNode, found: Any) -> None:
    said, where = yaml_1_2(scalar), ".".join(map(str, place))
    if (
        found is ...
        or place[:2] in (("data", "world"), ("data", "hub"))
        or place[0] == "extends"
        or found is None
    ):
        return
    detail = f"{where}: the file says {scalar.value[:60]!r}, the recipe has {found!r}"
    if isinstance(found, bool):
        # Words such as yes are text in YAML 1.2; taking them for what they mean harms nobody.
        # Numbers are not words.
        case.wrong_if(not isinstance(said, bool | str), "a number taken for true or false", detail)
    elif isinstance(found, int | float):
        case.wrong_if(isinstance(said, bool), "true or false taken for a number", detail)
        number = _number(said)
        case.wrong_if(
            number is None or not math.isclose(number, found),
            "another number than in the file",
            detail,
        )
    elif isinstance(found, str):
        case.wrong_if(
            isinstance(said, str) and said != found, "another text than in the file", detail
        )


def _number(said: Any) -> float | None:
    """The number that a scalar is, or that its text spells."""
    try:
        return float(said)
    except (TypeError, ValueError, OverflowError):
        return None


def yaml_1_2(scalar: yaml.ScalarNode) -> Any:
    """A scalar by YAML 1.2's core schema (section 10.3.2 of its specification)."""
    text = scalar.value
    if scalar.style is not None or scalar.tag == "tag:yaml.org,2002:binary":
        return text
    if text in ("null", "Null", "NULL", "~", ""):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]+", text) and len(text) < 4000:
        return int(text)
    if re.fullmatch(r"0o[0-7]+", text):
        return int(text[2:], 8)
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text[2:], 16)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", text):
        return -math.inf if text[0] == "-" else math.inf
    return math.nan if text in (".nan", ".NaN", ".NAN") else text


AREA = RecipeFiles()
