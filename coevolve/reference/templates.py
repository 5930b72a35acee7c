"""The prompts of the public code, which stand as string constants in its `templates.py`.

The file is read as syntax and never executed. What the constants leave out, because it is written
into the public scripts, is here: how a dialogue and the core features become text, and what begins
the response.
"""

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter

from coevolve.errors import ArtifactError, DataError, RecipeError
from coevolve.files import is_file, parse_json, read_text, write_text
from coevolve.prompts import PromptSet
from coevolve.prompts.sets import FEATURES_HEADING

FILE = "templates.py"
CONNECTOR_SYSTEM, CONNECTOR_USER = "system_prompt_for_SThought", "base_prompt_for_SThought"
ESTIMATOR_SYSTEM, ESTIMATOR_USER = "system_prompt_for_model_pxy", "base_prompt_for_model_pxy"
CONSTANTS = (CONNECTOR_SYSTEM, CONNECTOR_USER, ESTIMATOR_SYSTEM, ESTIMATOR_USER)

EXPORT = "coevolve_export"
"""A further constant in files of coevolve: JSON of what the other four cannot say."""

# What the public scripts put where the teacher would see the golden response.
NO_GOLDEN_RESPONSE = "Please give your analysis without any given reference response"

INPUTS = {
    "user_persona": "{user_persona}",
    "agent_character": "{agent_character}",
    "str_dialogue_context": "{dialogue}",
}
CONNECTOR_FIELDS = {**INPUTS, "agent_golden_response": NO_GOLDEN_RESPONSE}

# Blocks of one exchange each are joined by a newline; the last one is followed by the turn that is
# to be answered.
_SCRIPTS = PromptSet(
    name="reference",
    convention="reference",
    sections=(FEATURES_HEADING,),
    context="",
    user_turn="User Query {k}: {text}\n",
    agent_turn="Agent Response {k}: {text}\n\n",
    next_turn="\nAgent Response {k}: ",
    turn_separator="",
    labels=(r"(User Query|Agent Response) \d+:", "```"),
    connector_user="",
    estimator_user="{context}\n\n## Core Features of the Golden Response\n```{features}```\n\n",
    direct_user="{context}",
    response_start="## Agent Response\n",
)


@dataclass(frozen=True)
class EmbeddedExport:
    """What the four constants cannot say of an estimator that coevolve exported."""

    prompts: PromptSet
    max_new_tokens: int
    no_repeat_ngram: int
    base_source: str
    base_fingerprint: str


def read_templates(checkout: Path) -> dict[str, str]:
    """The string constants of a checkout's `templates.py`: the four prompts, perhaps `EXPORT`."""
    path = checkout / FILE
    if not is_file(path):
        raise ArtifactError(
            f"{path}: no such file. Give the folder of the public code that holds {FILE} and "
            "estimator_training/."
        )
    try:
        tree = ast.parse(read_text(path))
    except DataError as error:
        raise ArtifactError(str(error)) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # The last two: brackets without end.
        line = getattr(error, "lineno", None) or 1
        raise ArtifactError(f"{path}:{line}: not Python ({error}). Copy it again.") from None
    found: dict[str, str] = {}
    for statement in tree.body:
        for name in {*_assigned(statement)} & {*CONSTANTS, EXPORT}:
            where, value = f"{path}:{statement.lineno}", getattr(statement, "value", None)
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                raise ArtifactError(
                    f"{where}: {name} is no plain string (the file is read, never executed); "
                    'accepted is name = """text""".'
                )
            if name in found:
                raise ArtifactError(f"{where}: {name} is assigned twice; remove one.")
            found[name] = value.value
    missing = [name for name in CONSTANTS if name not in found]
    if missing:
        raise ArtifactError(f"{path}: lacks {missing[0]}; needed are {', '.join(CONSTANTS)}.")
    return found


def write_templates(checkout: Path, constants: Mapping[str, str]) -> None:
    """A `templates.py` with these constants, and the function that the public scripts call."""
    assigned = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    write_text(
        checkout / FILE,
        f"""# Prompts of an estimator that coevolve exported.

{assigned}

def import_template(mode):
    return {{
        "thought_completion": ({CONNECTOR_SYSTEM}, {CONNECTOR_USER}),
        "model_pxy": ({ESTIMATOR_SYSTEM}, {ESTIMATOR_USER}),
    }}[mode]
""",
    )


def imported_prompts(constants: Mapping[str, str], where: str) -> PromptSet:
    """The prompt set that shows models exactly what the public scripts show them."""
    for name in CONSTANTS:
        if not constants[name].strip():
            raise ArtifactError(f"{where}: {name} is empty; accepted is text.")

    def part(name: str, fields: Mapping[str, str]) -> str:
        return _substituted(constants[name], fields, f"{where}: {name}", INPUTS)

    connector, estimator = part(CONNECTOR_USER, CONNECTOR_FIELDS), part(ESTIMATOR_USER, INPUTS)
    try:
        return replace(
            _SCRIPTS,
            context=estimator,
            connector_user=connector,
            connector_system=constants[CONNECTOR_SYSTEM],
            estimator_system=constants[ESTIMATOR_SYSTEM],
        )
    except RecipeError as error:
        raise ArtifactError(f"{where}: {error}") from None


def exported_constants(prompts: PromptSet) -> dict[str, str]:
    """The four constants that come closest to a prompt set; exact where `shows_the_same`."""
    inputs = {field: f"{{{field}}}" for field in ("user_persona", "agent_character")}
    inputs["dialogue"] = "{str_dialogue_context}"
    inputs["context"] = context = _substituted(prompts.context, inputs, "context")
    return {
        CONNECTOR_SYSTEM: prompts.connector_system,
        CONNECTOR_USER: _substituted(prompts.connector_user, inputs, "connector_user"),
        ESTIMATOR_SYSTEM: prompts.estimator_system,
        ESTIMATOR_USER: context,
    }


def shows_the_same(prompts: PromptSet, constants: Mapping[str, str]) -> bool:
    """Whether the public scripts with these constants show models what this set shows."""
    try:
        imported = imported_prompts(constants, FILE)
    except ArtifactError:
        return False
    return imported == replace(prompts, name=imported.name)


def embedded_export(constants: Mapping[str, str], where: str) -> EmbeddedExport | None:
    """What an export of coevolve says of itself; None in the public release's own file."""
    if EXPORT not in constants:
        return None
    try:
        export = parse_json(constants[EXPORT], EXPORT)
        return EmbeddedExport(
            prompts=PromptSet.from_dict(export["prompts"]),
            max_new_tokens=int(export["reasoning"]["max_new_tokens"]),
            no_repeat_ngram=int(export["reasoning"].get("no_repeat_ngram", 0)),
            base_source=str(export["base"]["source"]),
            base_fingerprint=str(export["base"]["fingerprint"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{where}: {EXPORT} is damaged ({error!r}). Export the estimator again, or remove that "
            "constant to go by the other ones."
        ) from None


def _assigned(statement: ast.stmt) -> list[str]:
    """The names that a module's statement assigns a value to."""
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, (ast.AnnAssign, ast.AugAssign)) and isinstance(
        statement.target, ast.Name
    ):
        return [statement.target.id]
    return []


def _substituted(
    template: str, fields: Mapping[str, str], where: str, required: Collection[str] = ()
) -> str:
    """The template with each field replaced by a part of a template."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ArtifactError(
            f"{where}: no template ({error}); double a brace that is text."
        ) from None
    text, used = [], set()
    for literal, field, specification, conversion in parts:
        text.append(literal.replace("{", "{{").replace("}", "}}"))
        if field is None:
            continue
        if field not in fields or specification or conversion:
            raise ArtifactError(
                f"{where}: has {{{field}}}; accepted are {', '.join(fields)}, plain."
            )
        text.append(fields[field])
        used.add(field)
    missing = [field for field in required if field not in used]
    if missing:
        raise ArtifactError(f"{where}: lacks {{{missing[0]}}}; needed are {', '.join(required)}.")
    return "".join(text)
