"""What stands in the way of a run is said before anything is loaded, asked or trained, and all of
it at once.
"""

import copy
import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from coevolve.data.corpus import TRAIN_SPLIT
from coevolve.errors import CoevolveError, PreflightError
from coevolve.files import write_json
from coevolve.preflight.checks import preflight
from coevolve.preflight.training import TRAINING, Training
from coevolve.recipe import check_recipe
from coevolve.worlds.language import vocabulary
from coevolve.worlds.tiny import tiny_tokenizer

POSITIONS = 128
SFT = {"steps": 2, "learning_rate": 1e-3, "train_batch_size": 4}
RL = {"steps": 2, "learning_rate": 1e-3, "train_batch_size": 4, "num_generations": 2}
VALUES = {
    "name": "preflight",
    "prompts": "brief",
    "data": {"path": "DATA", "validation": 2},
    "model": {
        "base": "BASE",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 120,
        "max_reasoning_tokens": 24,
        "lora": {"r": 2, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
    },
    "cold_start": {"connector": SFT, "estimator": SFT},
    "connector_rl": {**RL, "max_completion_length": 24},
    "estimator_sft": SFT,
    "estimator_rl": {**RL, "max_completion_length": 8, "rewards": {"judge": "overlap"}},
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_base(folder, config_class=LlamaConfig, model_class=LlamaForCausalLM, **more):
    tokenizer = tiny_tokenizer([*vocabulary(), "I", "Ann", "Hi!", "do."])
    tokenizer.save_pretrained(folder)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = config_class(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        **SHAPE,
        **ids,
        **more,
    )
    model_class(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = tmp_path_factory.mktemp("bases")
    experts = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
    }
    return {
        "BASE": write_base(made / "base"),
        "EXPERTS": write_base(made / "experts", Qwen3MoeConfig, Qwen3MoeForCausalLM, **experts),
    }


def row(split, number, words=4, **fields):
    return {
        "sample_ID": f"{split}-{number}",
        "subset_tag": "a" if number % 2 else "b",
        "user_persona": "I " * words,
        "agent_character": "Ann",
        "dialogue_context": [{"user_query": "Hi!"}],
        "agent_golden_response": "I do.",
    } | fields


def corpus():
    splits = ("IDTrain", "IDTest", "OOD1Test", "OOD2Test", "OOD3Test")
    return {split: [row(split, number) for number in range(8)] for split in splits}


def well_formed(words=2):
    return "[Connections] because\n[Core Features of the Golden Response] " + "warm " * words


@pytest.fixture
def draft(bases, tmp_path):
    """A function from changes by dotted key, and to the data, to a draft that was looked at."""

    def made(changes=(), change_data=None, environ=None, **options):
        values, data = copy.deepcopy(VALUES), corpus()
        for key, value in dict(changes).items():
            *parents, last = key.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = bases.get(value, value) if isinstance(value, str) else value
        if change_data is not None:
            change_data(data)
        write_json(tmp_path / "data.json", data)
        values["data"]["path"] = str(tmp_path / "data.json")
        values["model"]["base"] = bases.get(values["model"]["base"], values["model"]["base"])
        recipe = check_recipe(values, "recipe")
        return preflight(Training(recipe, environ or {}, **options), TRAINING)

    return made


def test_a_recipe_that_fits_is_built_and_nothing_is_written(draft, bases, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*")]}
    found = draft()
    assert [len(found.data.train), len(found.data.validation)] == [6, 2]
    assert set(found.data.tests) == {"IDTest", "OOD1Test", "OOD2Test", "OOD3Test"}
    after = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "data.json"
    }
    assert after == before


def drop(**changes):
    return {"data.over_long": "drop", **changes}


def lengthen(split, numbers, words=200):
    def change(data):
        for number in numbers:
            data[split][number] = row(split, number, words)

    return change


def with_traces(trace, *splits):
    def change(data):
        for split in splits:
            for number, one in enumerate(data[split]):
                one["trace"] = trace(number)

    return change


STANDS_IN_THE_WAY = {
    "an example that is too long": (
        {},
        lengthen("IDTest", [3]),
        r"IDTest-3.*: needs 2\d\d tokens.*1 of 8 in IDTest",
    ),
    "a split that drop empties": (
        drop(),
        lengthen("OOD2Test", range(8)),
        r"OOD2Test: none of its 8 examples fits",
    ),
    "a validation part that leaves nothing": (
        {"data.validation": 8},
        None,
        "IDTrain has 8 usable examples, and data",
    ),
    "a limit of a split that is not there": (
        {"data.limit": {"OOD4Test": 2}},
        None,
        "split 'OOD4Test' is needed",
    ),
    "more room than the base has": (
        {"model.max_length": 4096},
        None,
        "max_length: found 4096; the base .* holds 128",
    ),
    "reasonings beyond the base": (
        {"model.max_reasoning_tokens": 100},
        None,
        "needs 1[0-9]{2} tokens with its reas",
    ),
    "completions beyond the base": (
        {"connector_rl.max_completion_length": 100},
        None,
        r"connector_rl\.max_completion_length: found 100; with it, .* holds 128",
    ),
    "responses beyond the base": (
        {"estimator_rl.max_completion_length": 99},
        None,
        r"estimator_rl\.max_completion_length: found 99; "
        r".*response with its prompt of 1\d\d tokens",
    ),
    "a judge's question beyond the base": (
        {
            "estimator_rl.max_completion_length": 60,
            "estimator_rl.rewards": {"judge": "base"},
            "model.max_length": 100,
        },
        lambda data: None,
        "a judge's question|a response with its prompt",
    ),
    "traces longer than the room": (
        {"traces.teacher": "dataset"},
        with_traces(lambda number: well_formed(200 if number else 2), "IDTrain"),
        r"IDTrain-\d'.*: needs 2\d\d tokens with its trace; model.max_length is 120, which \d of",
    ),
    "a trace that is malformed": (
        {"traces.teacher": "dataset"},
        with_traces(lambda number: "warm", "IDTrain"),
        r"trace: section '\[Connections\]' is missing",
    ),
    "an oracle without traces of the tests": (
        {"traces.teacher": "dataset", "baselines.oracle": True},
        with_traces(lambda number: well_formed(), "IDTrain"),
        "baselines.oracle .* 'IDTest-0': no trace",
    ),
    "a key that is not there": (
        {
            "traces": {
                "teacher": "endpoint",
                "model": "m",
                "base_url": "http://h/v1",
                "api_key_env": "NOT_SET",
            }
        },
        None,
        "'NOT_SET' is not set",
    ),
    "a teacher that is not there": (
        {"traces": {"teacher": "local", "model": "./nobody"}},
        None,
        "'./nobody'",
    ),
    "a target that is not in the model": (
        {"model.lora.target_modules": ["q_proj", "nope"]},
        None,
        "'nope' is not in",
    ),
    "targets none of which is": (
        {"model.lora.target_modules": ["c_attn"]},
        None,
        "found 'c_attn', none of which",
    ),
    "no target": ({"model.lora.target_modules": []}, None, "target_modules"),
    "the head": (
        {"model.lora.target_modules": ["q_proj", "lm_head"]},
        None,
        "lm_head is the model's embedding or",
    ),
    "the embedding": (
        {"model.lora.target_modules": ["embed_tokens"]},
        None,
        "embed_tokens is the model's embed",
    ),
    "a norm": (
        {"model.lora.target_modules": ["input_layernorm"]},
        None,
        "PEFT cannot put such an adapter",
    ),
    "a pattern that is none": (
        {"model.lora.target_modules": "((("},
        None,
        "PEFT cannot put such an adapter",
    ),
    "a layer that is not there": (
        {"model.lora.layers_to_transform": [0, 7]},
        None,
        "found 7; the model has layers 0",
    ),
    "a layer before the first": (
        {"model.lora.layers_to_transform": [-1]},
        None,
        "layers_to_transform",
    ),
    "an adapter of one role": (
        {"model.connector": {"lora": {"target_modules": ["nope"]}}},
        None,
        r"model\.connector\.lora\.target_modules: found 'nope'",
    ),
    "dropout on fused experts": (
        {
            "model.base": "EXPERTS",
            "model.lora": {"target_modules": "all-linear", "lora_dropout": 0.1},
        },
        None,
        "Set lora_dropout to 0",
    ),
    "attention that is not installed": (
        {"model.attention": "flash_attention_2"},
        None,
        "attention",
    ),
    "a base that is not there": ({"model.base": "./nobody"}, None, "'./nobody'"),
    "a device that is none": ({"model.device": "abacus"}, None, "abacus"),
    "a subset of one": (
        {"remid.responses": {"m": "RESPONSES.jsonl"}},
        lambda data: data["OOD1Test"].__delitem__(slice(2, None)),
        "OOD1Test/b: found a single example",
    ),
    "a pair beyond the base": (
        {"remid.responses": {"m": "LONG.jsonl"}},
        None,
        r"OOD3Test/b: the context of .* holds 128",
    ),
    "responses of a sample that is unknown": (
        {"remid.responses": {"m": "ODD.jsonl"}},
        None,
        "'nobody' is not in the data",
    ),
    "a file that is not there": (
        {"remid.responses": {"m": "no.jsonl"}},
        None,
        r"no\.jsonl: no such file",
    ),
}


def write_responses(tmp_path, data):
    ids = [one["sample_ID"] for split, rows in data.items() if split != TRAIN_SPLIT for one in rows]
    for name, texts in {
        "RESPONSES.jsonl": dict.fromkeys(ids, "I do."),
        "LONG.jsonl": dict.fromkeys(ids, "I do.") | {"OOD3Test-0": "I " * 60},
        "ODD.jsonl": dict.fromkeys(ids, "I do.") | {"nobody": "I do."},
    }.items():
        lines = [
            json.dumps({"sample_ID": key, "response": text}) + "\n" for key, text in texts.items()
        ]
        (tmp_path / name).write_text("".join(lines))


@pytest.mark.parametrize("what", STANDS_IN_THE_WAY)
def test_what_stands_in_the_way_is_named(draft, tmp_path, what):
    changes, change_data, message = STANDS_IN_THE_WAY[what]
    data = corpus()
    if change_data is not None:
        change_data(data)
    write_responses(tmp_path, data)
    if "remid.responses" in changes:
        files = {name: str(tmp_path / file) for name, file in changes["remid.responses"].items()}
        changes = {**changes, "remid.responses": files}
    with pytest.raises(CoevolveError, match=f"(?s){message}"):
        draft(changes, change_data)


FITS = {
    "traces of rows that are held out": {"traces": {"teacher": "file", "path": "TRACES"}},
    "no key where the teacher was asked": {
        "traces": {
            "teacher": "endpoint",
            "model": "m",
            "base_url": "http://h/v1",
            "api_key_env": "NOT_SET",
        }
    },
    "rows that are dropped": drop(),
    "no adapter": {"model.tuning": "full", "model.lora": {}},
}


@pytest.mark.parametrize("what", FITS)
def test_what_does_not_stand_in_the_way(draft, tmp_path, what):
    changes = copy.deepcopy(FITS[what])
    if changes.get("traces", {}).get("path"):
        changes["traces"]["path"] = str(tmp_path / "traces.jsonl")
        rows = [{"sample_ID": f"IDTrain-{number}", "trace": well_formed()} for number in range(8)]
        (tmp_path / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = draft(
        changes,
        lengthen("IDTrain", [0]) if "dropped" in what else None,
        asks_teacher="asked" not in what,
    )
    if "dropped" in what:
        assert [part.sample_ids for part in found.sifted.left_out] == [["IDTrain-0"]]


def test_layers_need_modules_by_name(draft):
    with pytest.raises(
        CoevolveError,
        match=r"layers_to_transform needs target_modules as a list; found 'all-linear'",
    ):
        draft({"model.lora": {"target_modules": "all-linear", "layers_to_transform": [0]}})


def test_all_is_said_at_once(draft):
    changes = {
        "model.lora.target_modules": ["nope"],
        "model.max_length": 4096,
        "traces.teacher": "dataset",
        "remid.responses": {"m": "no.jsonl"},
    }
    with pytest.raises(PreflightError) as error:
        draft(changes)
    assert len(error.value.problems) == 4
    for part in ("nope", "max_length", "no trace", "no.jsonl"):
        assert part in str(error.value)
