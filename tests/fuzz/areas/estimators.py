"""Exported estimators: adapters and whole models, their manifests written anew as well, and the
cache of their work.

One that is accepted scores a probe as the original does, unless what was changed says what scoring
means (prompts, room for a reasoning), or a hash was put right with it. Even then it must not
contradict itself: an adapter has the fingerprint that the manifest gives it, and so have its base
model and its chat template.
"""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.areas.checkpoints import mutate_tensors
from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_bytes, mutate_file, mutate_folder, mutate_json, to_json

TEMPLATES = (
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ messages[7].content }}",
    "{% for m in messages %}",
    "{{ raise_exception('no') }}",
    "{{ messages.__class__.__mro__ }}",
    "",
)
ADAPTER: tuple[tuple[str, Any], ...] = (
    ("r", 1), ("r", 3), ("r", 0), ("lora_alpha", 1), ("lora_alpha", 0), ("lora_alpha", -4),
    ("use_rslora", True),
    ("use_dora", True), ("fan_in_fan_out", True), ("target_modules", ["q_proj"]),
    ("target_modules", []),
    ("target_modules", "all-linear"), ("target_modules", "(a+)+$"), ("layers_to_transform", [7]),
    ("bias", "all"),
    ("rank_pattern", {"q_proj": 1}), ("alpha_pattern", {"q_proj": 99}),
    ("modules_to_save", ["lm_head"]),
    ("peft_type", "IA3"), ("peft_type", "NOPE"), ("peft_type", None), ("task_type", "SEQ_CLS"),
    ("task_type", 3),
    ("base_model_name_or_path", "/nowhere"), ("base_model_name_or_path", None),
    ("inference_mode", False),
    ("init_lora_weights", "pissa"), ("lora_dropout", 0.9), ("unknown_option", 1),
    ("revision", "nope"),
    ("layer_replication", [[0, 1], [0, 1]]), ("exclude_modules", "q_proj"), ("megatron_config", {}),
    ("auto_mapping", {}),
)  # fmt: skip
FIELDS = (
    "{features:>9999999999}",
    "{context.__class__}",
    "{nothing}",
    "{",
    "{0}",
    "{features!r}",
    "{features[0]}",
    "{k:x^99999999}",
)


class Estimators:
    name = "estimators"
    share = 8

    def run(self, case: Case) -> None:
        source = case.valid.folder / case.rng.choice(("lora", "lora", "full")) / "estimator"
        folder = case.inputs / "estimator"
        if case.chance(0.08):
            _damaged_cache(case, source)
            return
        shutil.copytree(source, folder)
        rehashed = False if case.untouched else _damage(case, folder)
        by_command = case.chance(0.25)
        found = (
            _by_command(case, folder) if by_command else case.call(_scored, folder, case.valid.run)
        )
        _check(case, folder, source, found, rehashed)


def _scored(folder: Path, run: Path) -> list[tuple[float, int, str]]:
    """(log-probability, tokens, reasoning) of the probe's golden responses."""
    from coevolve.scoring.estimator import ProbabilityEstimator

    return _score(ProbabilityEstimator.from_pretrained(folder, device="cpu"), _probe(run))


def _score(estimator: Any, examples: Any) -> list[tuple[float, int, str]]:
    reasoning = estimator.reason(examples)
    scores = estimator.log_prob(
        examples, [example.golden_response for example in examples], reasoning
    )
    return [
        (float(total), int(tokens), text)
        for total, tokens, text in zip(scores.sum, scores.tokens, reasoning, strict=True)
    ]


def _by_command(case: Case, folder: Path) -> list[tuple[float, int, str]]:
    from coevolve.data.corpus import Corpus

    data, out = case.inputs / "probe.json", case.outputs / "scores.jsonl"
    Corpus({"IDTest": tuple(_probe(case.valid.run))}, "probe").to_json(data)
    case.command(
        "score",
        "--estimator",
        folder,
        "--data",
        data,
        "--device",
        "cpu",
        "--no-cache",
        "--out",
        out,
    )
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return [(row["log_prob"], row["tokens"], row["reasoning"]) for row in rows]


@cache
def _probe(run: Path) -> Any:
    from coevolve.data.corpus import read_corpus

    return list(read_corpus(run / "world" / "dialogues.json").require("IDTest"))[:3]


@cache
def _expected(source: Path, run: Path) -> list[tuple[float, int, str]]:
    return _scored(source, run)


def _damage(case: Case, folder: Path) -> bool:
    """Damage an estimator; returns whether its manifest was written anew to fit."""
    rng = case.rng
    how = rng.random()
    if how < 0.12:
        case.note(mutate_folder(rng, folder))
        return False
    if how < 0.4:
        _damage_manifest(case, folder / "manifest.json")
        return False
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    weights = [file for file in files if file.suffix == ".safetensors"]
    configs = [file for file in files if file.name in ("adapter_config.json", "config.json")]
    file = rng.choice(rng.choice((weights, configs, files)))
    if file.name == "adapter_config.json" and rng.random() < 0.5:
        config = json.loads(file.read_text("utf-8"))
        name, value = rng.choice(ADAPTER)
        file.write_text(json.dumps({**config, name: value}), "utf-8")
        case.note(f"{file.parent.name}/{file.name}: {name} -> {value!r}")
    elif file.suffix == ".safetensors":
        case.note(f"{file.parent.name}/{mutate_tensors(case, file)}")
    elif file.suffix == ".jinja" and rng.random() < 0.6:
        file.write_text(rng.choice(TEMPLATES))
        case.note(f"{file.parent.name}/{file.name} -> {file.read_text()!r}")
    else:
        case.note(f"{file.parent.name}/{mutate_file(rng, file, as_json=0.85)}")
    if rng.random() < 0.25:
        return False
    _rewrite_manifest(folder)
    case.note("the manifest fits")
    return True


def _damage_manifest(case: Case, path: Path) -> None:
    manifest = json.loads(path.read_text("utf-8"))
    if case.chance(0.25):
        name = case.rng.choice(
            [name for name, value in manifest["prompts"].items() if isinstance(value, str)]
        )
        manifest["prompts"][name] = case.rng.choice(
            (str(manifest["prompts"][name]), "")
        ) + case.rng.choice(FIELDS)
        case.note(f"prompts.{name} -> {manifest['prompts'][name][-40:]!r}")
        path.write_text(json.dumps(manifest), "utf-8")
    elif case.chance(0.8):
        part = case.rng.choice((None, "roles", "roles", "prompts", "reasoning", "files"))
        if part is None:
            manifest, did = mutate_json(case.rng, manifest)
        else:
            manifest[part], did = mutate_json(case.rng, manifest[part])
        case.note(f"manifest {part or ''}: {did}")
        path.write_text(to_json(manifest), "utf-8")
    else:
        content, did = mutate_bytes(case.rng, path.read_bytes())
        case.note(f"manifest: {did}")
        path.write_bytes(content)


def _rewrite_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest), "utf-8")


def _check(
    case: Case, folder: Path, source: Path, found: list[tuple[float, int, str]], rehashed: bool
) -> None:
    expected = _expected(source, case.valid.run)
    case.wrong_if(len(found) != len(expected), "more or fewer scores than examples", len(found))
    for total, tokens, text in found:
        ok = (
            isinstance(total, float)
            and np.isfinite(total)
            and total <= 0
            and tokens > 0
            and isinstance(text, str)
        )
        case.wrong_if(not ok, "a score that is no log-probability", (total, tokens))
    if _alike(found, expected):
        return
    detail = {"found": found, "expected": expected}
    if rehashed:
        for contradiction in _contradictions(folder):
            case.wrong_if(True, contradiction, detail)
        return
    before, after = (
        json.loads((place / "manifest.json").read_text("utf-8")) for place in (source, folder)
    )
    says_otherwise = any(before[name] != after.get(name) for name in ("prompts", "reasoning"))
    case.wrong_if(not says_otherwise, "other scores than the original's", detail)


def _alike(found: list[tuple[float, int, str]], expected: list[tuple[float, int, str]]) -> bool:
    return all(
        one[1:] == other[1:] and abs(one[0] - other[0]) < 1e-3
        for one, other in zip(found, expected, strict=True)
    )


def _contradictions(folder: Path) -> list[str]:
    """Where an estimator is not what its own manifest says."""
    from coevolve.scoring.models import base_fingerprint
    from coevolve.scoring.origins import adapter_fingerprint

    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    found = []
    for role, entry in manifest["roles"].items():
        if entry["tuning"] == "lora":
            if entry.get("fingerprint", "") != adapter_fingerprint(folder / role):
                found.append("an adapter has not the fingerprint that its manifest gives")
            base = entry["base"]
            if base["folder"] and base["fingerprint"] != base_fingerprint(
                str(folder / base["folder"])
            ):
                found.append("a base model has not the fingerprint that its manifest gives")
    return found


def _damaged_cache(case: Case, source: Path) -> None:
    """Scores kept by an earlier command, damaged: they are found, or computed again, and the same
    either way.
    """
    from coevolve.scoring.estimator import ProbabilityEstimator

    estimator = ProbabilityEstimator.from_pretrained(source, device="cpu")
    kept, probe = case.inputs / "kept", _probe(case.valid.run)
    estimator.use_cache(kept)
    _score(estimator, probe)
    if not case.untouched:
        damage_file = case.chance(0.8)
        did = (
            mutate_file(case.rng, kept / "work.sqlite")
            if damage_file
            else mutate_folder(case.rng, kept)
        )
        case.note(f"cache: {did}")
    case.may_change.append("kept/*")

    def again() -> Any:
        estimator.use_cache(kept)
        return _score(estimator, probe)

    found = case.call(again)
    case.wrong_if(
        not _alike(found, _expected(source, case.valid.run)),
        "other scores from a damaged cache",
        found,
    )


AREA = Estimators()
