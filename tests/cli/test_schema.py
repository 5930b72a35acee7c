"""Every file that is written is what its printed schema says, and the schema explains itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coevolve.cli import main
from coevolve.cli.schema import SCHEMAS
from coevolve.documents import check_document
from coevolve.errors import DataError
from coevolve.recipe.yaml_text import parse_yaml
from coevolve.training.record.record import Record

RECIPES = Path(__file__).parents[2] / "recipes"


def printed(name, capsys):
    capsys.readouterr()
    assert main(["schema", name]) == 0
    return json.loads(capsys.readouterr().out)


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fault(value, schema, whole, at="$"):
    """The first fault of a JSON value by a schema, in the words of JSON Schema that are used here;
    None where there is none.
    """
    known = {"$defs", "$id", "$schema", "title", "description", "default", "propertyNames"}
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        faults = [fault(value, one, whole, at) for one in schema["anyOf"]]
        return None if None in faults else faults[0]
    looked_at = known | {"type"}
    kind = schema.get("type")
    if kind and not isinstance(value, TYPES[kind]):
        return f"{at}: {value!r} is no {kind}"
    if kind in ("integer", "number") and isinstance(value, bool):
        return f"{at}: {value!r} is no {kind}"
    rules = {
        "const": lambda x: value == x,
        "enum": lambda x: value in x,
        "pattern": lambda x: re.search(x, value),
        "minimum": lambda x: value >= x,
        "maximum": lambda x: value <= x,
        "exclusiveMinimum": lambda x: value > x,
        "exclusiveMaximum": lambda x: value < x,
        "minItems": lambda x: len(value) >= x,
        "maxItems": lambda x: len(value) <= x,
        "minProperties": lambda x: len(value) >= x,
        "required": lambda x: set(x) <= set(value),
    }
    for word, holds in rules.items():
        looked_at.add(word)
        if word in schema and not holds(schema[word]):
            return f"{at}: {word} {schema[word]!r} does not hold of {str(value)[:80]}"
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    inner = []
    if isinstance(value, dict):
        for name, one in value.items():
            patterns = schema.get("patternProperties", {}).items()
            of_name = next((of for pattern, of in patterns if re.search(pattern, name)), more)
            of_name = properties.get(name, of_name)
            if of_name is False:
                return f"{at}: {name} is not described"
            inner += [] if of_name is True else [(one, of_name, f"{at}.{name}")]
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        items = [*prefix, *[schema.get("items", {})] * (len(value) - len(prefix))]
        inner = [
            (one, of, f"{at}[{i}]") for i, (one, of) in enumerate(zip(value, items, strict=True))
        ]
    looked_at |= {"properties", "patternProperties", "additionalProperties", "items", "prefixItems"}
    assert set(schema) <= looked_at, set(schema) - looked_at  # nothing is passed over
    return next(filter(None, (fault(*one[:2], whole, one[2]) for one in inner)), None)


def closed(schema):
    """The schema with no room for a field that is not described."""
    if isinstance(schema, dict):
        found = {name: closed(one) for name, one in schema.items()}
        if "properties" in found and isinstance(found.get("type"), str):
            found.setdefault("additionalProperties", False)
        return found
    return [closed(one) for one in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_described(name, capsys):
    schema = printed(name, capsys)
    assert schema["$id"] == SCHEMAS[name].identity
    undescribed = [
        f"{part['title']}.{field}"
        for part in (schema, *schema.get("$defs", {}).values())
        for field, of_field in part.get("properties", {}).items()
        if not of_field.get("description")
    ]
    assert undescribed == []
    parts = [part for part in schema.get("$defs", {}).values() if "properties" in part]
    assert all(part.get("description") for part in (schema, *parts))


def test_the_names_are_listed_and_another_is_refused(capsys):
    assert main(["schema"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, schema.identity] for name, schema in SCHEMAS.items()
    ]
    with pytest.raises(SystemExit):
        main(["schema", "remids"])
    assert "invalid choice: 'remids'" in capsys.readouterr().err


def test_a_schema_is_printed_without_torch():
    code = (
        "import sys; from coevolve.cli import main; main(['schema', 'run']); main(['schema', "
        "'truth'])\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_of_another_version_is_one_sentence():
    from coevolve.remid.results import RemidResults

    with pytest.raises(
        DataError, match=r"^f: schema is 'coevolve.remid/4'; accepted is [^.]*\."
    ) as e:
        check_document({"schema": "coevolve.remid/4"}, RemidResults, where="f", remedy="Do.")
    assert "\n" not in str(e.value)


def test_the_schema_of_recipes_lies_beside_them_and_each_names_it(capsys):
    capsys.readouterr()
    assert main(["schema", "recipe"]) == 0
    assert (RECIPES / "recipe.schema.json").read_text() == capsys.readouterr().out
    assert main(["schema", "grid"]) == 0
    assert (RECIPES / "grid.schema.json").read_text() == capsys.readouterr().out
    for path in RECIPES.glob("*/*.yaml"):
        line = path.read_text().partition("\n")[0]
        named = line.removeprefix("# yaml-language-server: $schema=")
        kind = "grid" if path.name == "grid.yaml" else "recipe"
        assert (path.parent / named).resolve() == RECIPES / f"{kind}.schema.json"
    schema = printed("recipe", capsys)
    for text, problem in {
        "rounds: {phases: [connector_lr]}": "$.rounds.phases[0]: pattern",
        "connector_rl: {rewards: {'custom:a:b': -1}}": "$.connector_rl.rewards.custom:a:b: minimum",
        "modell: {}": "$: modell is not described",
        "model: {base: 1}": "$.model.base: 1 is no string",
    }.items():
        assert fault(parse_yaml(text, "x"), schema, schema).startswith(problem), text


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_the_commands_write_is_what_the_schemas_say(run, tmp_path, capsys):
    """And nothing that they do not: with no room for other fields, but where these are free."""
    world, names = run / "world", ("perfect", "noise_0.4")
    common = ["--estimator", str(run / "estimator"), "--data", str(world / "dialogues.json")]
    models = ["--responses", *(f"{name}={world / name}.jsonl" for name in names)]
    results = json.loads((run / "results.json").read_text())
    judged = [
        {"model": name, "subset": row["row"], "score": number + index}
        for number, name in enumerate(names)
        for index, row in enumerate(results["remid"]["subsets"])
    ]
    (tmp_path / "judge.json").write_text(json.dumps(judged))
    missing = lines(world / "perfect.jsonl")[1:]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in missing))
    out = {name: str(tmp_path / name) for name in ("remid", "bound", "score", "marginal", "truth")}
    remid = ["remid", *common, *models, f"some={tmp_path / 'some.jsonl'}", "--missing", "drop"]
    remid += ["--contexts", "2"]  # the example that was dropped
    grid = {
        "name": "both",
        "estimator": str(run / "estimator"),
        "models": {
            names[0]: {"responses": str(world / f"{names[0]}.jsonl"), "remedy": "none"},
            names[1]: {"responses": str(world / f"{names[1]}.jsonl"), "remedy": "noise"},
        },
        "judge": {"scores": str(tmp_path / "judge.json")},
    }
    grid["models"][names[1]]["start"] = names[0]
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    bound = ["bound", *common, *models, "--base", str(run / "base"), "--shown", "1"]
    for arguments in (
        [*remid, "--judge", str(tmp_path / "judge.json"), "--out", out["remid"]],
        [*bound, "--reasoning", "marginal:2", "--show-small-subsets", "--out", out["bound"]],
        ["score", *common, "--out", out["score"]],
        ["score", *common, "--reasoning", "marginal:2", "--seed", "1", "--out", out["marginal"]],
        ["compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "compare")],
        ["truth", str(run), "--test", "8", "--policies", "perfect", "--json", out["truth"]],
    ):
        assert main(arguments) == 0
    usual = json.loads((tmp_path / "remid" / "results.json").read_text())["subsets"][0]
    assert usual["contexts"] == usual["examples"]  # all others, and the dropped one
    record = Record(tmp_path)  # the run is too short to show samples
    record.samples("samples/connector_rl", ["text", "reward"], [["a", 0.5]], where={"round": 1})
    shipped = list(RECIPES.glob("*/*.yaml"))
    written = {
        "run": [results],
        "status": [json.loads((run / "status.json").read_text())],
        "metrics": lines(run / "metrics.jsonl"),
        "samples": lines(tmp_path / "samples.jsonl"),
        "checkpoint": [
            json.loads(path.read_text()) for path in run.glob("checkpoints/*/manifest.json")
        ],
        "estimator": [json.loads((run / "estimator" / "manifest.json").read_text())],
        "remid": [json.loads((tmp_path / "remid" / "results.json").read_text())],
        "contributions": lines(tmp_path / "remid" / "contributions.jsonl"),
        "judge": [json.loads((tmp_path / "remid" / "judge.json").read_text())],
        "bound": [json.loads((tmp_path / "bound" / "bound.json").read_text())],
        "blame": [json.loads((tmp_path / "bound" / "blame.json").read_text())],
        "score": lines(tmp_path / "score") + lines(tmp_path / "marginal"),
        "truth": [json.loads((tmp_path / "truth").read_text())],
        "compare": [json.loads((tmp_path / "compare" / "results.json").read_text())],
        "recipe": [parse_yaml(x.read_text(), str(x)) for x in shipped if x.name != "grid.yaml"],
        "grid": [
            grid,
            *(parse_yaml(x.read_text(), str(x)) for x in shipped if x.name == "grid.yaml"),
        ],
    }
    assert set(written) == set(SCHEMAS)
    assert written["bound"][0]["reasoning"]["kind"] == "marginal"
    assert written["remid"][0]["unanswered"] is not None
    for name, values in written.items():
        schema = closed(printed(name, capsys))
        assert values
        assert [found for value in values if (found := fault(value, schema, schema))] == [], name
    changed = {**written["bound"][0], "seed": "0"}
    assert fault(changed, schema := printed("bound", capsys), schema) == "$.seed: '0' is no integer"
