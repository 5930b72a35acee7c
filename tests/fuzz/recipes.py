"""Random valid recipes, each trained for a few steps: `python -m tests.fuzz.recipes --n 300 --seed
0`.

The schema is walked, so that a new field is in it: every field gets values that the schema accepts,
most often its own. A recipe trains to its end, or is refused by an error of the project's own
before the first optimizer step; anything else is a failure, and the recipe is shown as YAML.
"""

import argparse
import json
import math
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tests.fuzz.core import Case, FailedError, RefusedError
from tests.fuzz.valid import RECIPE

STARTED = "refused after training began"
UNFINISHED = "unfinished"

HINTS: dict[str, tuple[Any, ...]] = {
    "name": ("tiny", "a b", "[/b]", "x" * 80),
    "data.world.train": (8, 12, 16, 24),
    "data.world.test": (2, 3, 4),
    "data.world.seed": (None, 0, 3),
    "data.validation": (1, 2, 4, 6),
    "data.part": (None, "1/1", "1/1", "3/2", "half"),
    "data.limit": ({}, {"IDTest": 2}, {"IDTrain": 8}, {"IDTest": 1, "OOD1Test": 2}),
    "model.tiny.hidden_size": (8, 16, 32),
    "model.tiny.layers": (1, 2),
    "model.tiny.heads": (1, 2, 4),
    "model.tuning": ("lora", "full"),
    "model.lora.r": (1, 2, 8),
    "model.lora.lora_alpha": (1, 4, 16),
    "model.lora.lora_dropout": (0.0, 0.0, 0.1, 0.5),
    "model.lora.target_modules": (
        "all-linear",
        "all-linear",
        ["q_proj"],
        ["q_proj", "v_proj"],
        "q_proj",
        ["q_proj", "nope"],
        ["lm_head"],
        ["embed_tokens", "q_proj"],
        ["c_attn"],
        [],
    ),
    "model.lora.layers_to_transform": (None, None, [0], [1], [0, 1], [7], [-1], []),
    "model.connector": (
        {},
        {"lora": {"r": 1}},
        {"tuning": "full"},
        {"lora": {"target_modules": ["v_proj"]}},
        {"base": "tiny"},
    ),
    "model.estimator": (
        {},
        {"lora": {"r": 1}},
        {"tuning": "full"},
        {"lora": {"lora_dropout": 0.2}},
        {"base": "tiny"},
    ),
    "model.dtype": ("float32", "float32", "float32", "bfloat16", "float16"),
    "model.device": ("cpu", "cpu", "cpu", "auto", "cuda", "nope"),
    "model.quantization": (None, None, None, "4bit"),
    "model.max_length": (8, 48, 64, 96, 255, 256, 257, 1024),
    "model.max_reasoning_tokens": (1, 4, 12, 200, 256, 300),
    "traces.teacher": ("rules", "dataset", "rules", "dataset", "file", "local", "endpoint"),
    "traces.path": (None, "nowhere.jsonl"),
    "traces.model": (None, "nowhere"),
    "traces.base_url": (None, "http://127.0.0.1:9/v1"),
    "algorithm": ("grpo", "rloo", "ppo", "ppo"),
    "steps": (1, 2),
    "epochs": (0.1, 0.5),
    "tokens": (50, 300),
    "train_batch_size": (1, 2, 4, 4, 6, 8),
    "per_device_train_batch_size": (None, 1, 2, 3),
    "num_generations": (1, 2, 2, 3, 4),
    "updates_per_generation": (1, 2),
    "num_iterations": (1, 2),
    "learning_rate": (1e-5, 1e-3),
    "value_learning_rate": (None, 1e-3),
    "max_grad_norm": (0.3, 1.0, 100.0),
    "weight_decay": (0.0, 0.1),
    "adam_beta2": (0.98, 0.999, 0.0),
    "max_completion_length": (1, 2, 6, 8, 200, 256, 300),
    "temperature": (0.5, 1.0, 1.5),
    "top_p": (1.0, 0.9, 0.1),
    "top_k": (0, 1, 5, 1000),
    "min_p": (None, 0.0, 0.1, 1.0),
    "vllm_structured_outputs_regex": (None, "[a-z ]+", "[a-z ]+", "("),
    "optim": ("adamw_torch_fused", "adamw_torch_fused", "adamw_8bit"),
    "padding_free": (False, False, False, True),
    "activation_offloading": (False, False, False, True),
    "epsilon": (0.1, 0.2),
    "epsilon_high": (None, 0.3, 5.0),
    "target_words": (1, 5, 600),
    "rewards.custom": ({}, {}, {}, {"tests.fuzz.recipes:longer": 0.5}, {"nowhere.at_all:f": 1.0}),
    "use_vllm": (False, False, True),
    "async_generation": (0, 1),
    "vllm_max_model_length": (None, None, 4, 200),
    "vllm_importance_sampling_clip_max": (3.0, None, 1.5),
    "vllm_importance_sampling_clip_min": (None, 0.5),
    "rounds.count": (0, 1, 1, 2),
    "baselines.ensemble": (0, 2, 3),
    "evaluation.token_budget": (1, 64, 1024, 16384),
    "evaluation.marginal_samples": (0, 0, 1, 2),
    "remid.responses": ({}, {}, {"m": "nowhere.jsonl"}),
    "remid.negatives": ("all", 1, 4, 1000),
    "export.license": (None, "apache-2.0", "[x]: y\n- z"),
    "checkpoints.every_minutes": (5.0, 1e-4),
    "checkpoints.every_steps": (None, 1, 2),
    "logging.report_to": ([], [], [], ["tensorboard"], ["nope"]),
    "logging.every": (1, 10),
    "logging.project": ("coevolve", "mine"),
    "traces.api_key_env": (None, "NO_SUCH_KEY"),
    "vllm_server_base_url": (None, "http://127.0.0.1:9"),
}
"""Values of a field, by its full name or its last parts: what keeps a run small, and what is worth
trying.
"""

FIXED = ("prompts", "data.path", "data.hub", "model.base", "model.cache_dir")
"""What makes it the quickstart's world, on this machine alone."""
LISTS = ("rounds.phases",)
OFTEN = {
    ".algorithm": 0.6,
    ".ppo.": 0.35,
    "baselines.": 0.35,
    "rounds.phases": 0.5,
    "scale_rewards": 0.3,
    "normalize_advantages": 0.3,
    "kernel_score": 0.3,
    "vllm_structured_outputs_regex": 0.3,
    "async_generation": 0.3,
}
"""Shares of fields on which others depend, or that are refused more often than not."""
PHASE_FORMS = (
    "connector_rl",
    "connector_sft",
    "refresh",
    "estimator_sft",
    "estimator_rl",
    "posterior",
    "evaluate",
)


def longer(completions: list[str], **_: Any) -> list[float]:
    """A reward of a user's own."""
    return [float(len(text)) for text in completions]


def random_recipe(rng: random.Random) -> tuple[Any, dict[str, Any]]:
    """A valid recipe and its values: the tiny one with a share of its fields changed, as far as the
    schema goes along.

    Changes are tried in random order, twice, for one may need another before it.
    """
    from coevolve.errors import RecipeError
    from coevolve.recipe import Recipe, check_recipe

    values = json.loads(json.dumps(RECIPE))
    values["connector_sft"] = dict(values["estimator_sft"])
    if rng.random() < 0.5:
        values["cold_start"]["direct"] = dict(values["cold_start"]["estimator"])
    if rng.random() < 0.2:  # several of its options need others
        server = {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}
        weighed = {"vllm_importance_sampling_correction": rng.random() < 0.5}
        for name in ("connector_rl", "estimator_rl"):
            values[name] = {**values[name], "use_vllm": True, **server, **weighed}
    if rng.random() < 0.05:
        by_vllm = {"teacher": "local", "model": "nowhere", "use_vllm": True}
        values["traces"] = {**values["traces"], **by_vllm}
    recipe, share = check_recipe(values, "tiny"), rng.choice((0.05, 0.1, 0.2))
    changes = [
        (where, _value(rng, field, where))
        for where, field in fields(Recipe)
        if rng.random() < next((more for part, more in OFTEN.items() if part in where), share)
    ]
    rng.shuffle(changes)
    for _ in range(2):
        refused = []
        for where, value in changes:
            changed = _with(values, where.split("."), value)
            try:
                recipe, values = check_recipe(changed, "random"), changed
            except RecipeError:
                refused.append((where, value))
        changes = refused
    return recipe, values


def fields(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the schema by its full name, but for what is fixed. A section with hints is a
    field itself.
    """
    for name, field in section.model_fields.items():
        where, below = f"{place}{name}", _section_of(field)
        if below is not None and where not in HINTS and where not in LISTS:
            yield from fields(below, f"{where}.")
        elif where not in FIXED:
            yield where, field


def _with(values: dict[str, Any], where: list[str], value: Any) -> dict[str, Any]:
    """A copy of the values with one of them changed; of `steps` and `epochs` the last one given
    stays.
    """
    name, *below = where
    if below:
        return {**values, name: _with(values.get(name) or {}, below, value)}
    other = {"steps": "epochs", "epochs": "steps"}.get(name)
    return {key: old for key, old in values.items() if key != other} | {name: value}


def _value(rng: random.Random, field: FieldInfo, where: str) -> Any:
    """A value for a field: one of its hints, or whatever its type accepts."""
    parts = where.split(".")
    for start in range(len(parts)):
        hint = HINTS.get(".".join(parts[start:]))
        if hint is not None:
            return json.loads(json.dumps(rng.choice(hint)))
    if where in LISTS:
        return [_phase(rng) for _ in range(rng.choice((1, 2, 3, 4, 5)))]
    return _of_type(rng, field.annotation, field.metadata, field.default)


def _of_type(rng: random.Random, annotation: Any, metadata: list[Any], default: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _of_type(rng, inner, [*metadata, *_constraints(more)], default)
    if origin is Literal:
        return rng.choice(get_args(annotation))
    if origin in (Union, types.UnionType):
        return _of_type(rng, rng.choice(get_args(annotation)), metadata, default)
    if annotation is type(None):
        return None
    if annotation is bool:
        return rng.random() < 0.5
    if annotation in (int, float):
        return _number(rng, annotation, metadata)
    return default if isinstance(default, str | int | float | list | dict) else None


def _constraints(more: list[Any]) -> list[Any]:
    return [
        rule for one in more for rule in (one.metadata if isinstance(one, FieldInfo) else [one])
    ]


def _number(rng: random.Random, kind: type, rules: list[Any]) -> Any:
    candidates = (0, 1, 2, 3) if kind is int else (0.0, 0.05, 0.3, 0.5, 0.95, 1.0, 1.5)

    def fits(number: float) -> bool:
        above = all(number > rule.gt if isinstance(rule, Gt) else True for rule in rules)
        from_ = all(number >= rule.ge if isinstance(rule, Ge) else True for rule in rules)
        up_to = all(number <= rule.le if isinstance(rule, Le) else True for rule in rules)
        return above and from_ and up_to

    return rng.choice([number for number in candidates if fits(number)])


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = (field.annotation, *get_args(field.annotation))
    return next(
        (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
    )


def _phase(rng: random.Random) -> Any:
    """A phase in any of its forms."""
    name = rng.choice(PHASE_FORMS)
    role, _, kind = name.rpartition("_")
    if rng.random() < 0.5:
        return name
    phase: dict[str, Any] = {"kind": kind} | ({"role": role} if role else {})
    if role and rng.random() < 0.6:
        budgets = (
            {"steps": 1},
            {"tokens": 100},
            {"until": {"steps": 1, "patience": 1, "at_most": 2}},
            {"until": {"at_most": 2}},
        )
        phase |= rng.choice(budgets)
    if rng.random() < 0.2:
        phase["every"] = 2
    return phase


class RandomRecipes:
    name = "random recipes"
    share = 1

    def run(self, case: Case) -> None:
        from coevolve.recipe import check_recipe, recipe_values

        case.untouched = False  # none is meant to be taken: a device, a package may not be there
        recipe, values = random_recipe(case.rng)
        changes = _changes(recipe_values(recipe), recipe_values(check_recipe(RECIPE, "tiny")))
        case.note("\n" + yaml.safe_dump(changes, sort_keys=False, allow_unicode=True))
        path = case.inputs / "recipe.yaml"
        path.write_text(json.dumps(values, indent=1), "utf-8")
        run = case.outputs / "run"
        with counted_steps() as steps:
            try:
                case.command("train", path, "--output-dir", run)
            except RefusedError as error:
                if steps.count and "least_content" not in str(error):  # a gate of the recipe's own
                    raise FailedError(STARTED, str(error)[-80:], str(error)[-800:]) from None
                raise
        _check(case, run)


def _changes(values: Any, base: Any) -> Any:
    """What differs from the tiny recipe."""
    if not (isinstance(values, dict) and isinstance(base, dict)):
        return values
    return {
        key: _changes(value, base.get(key))
        for key, value in values.items()
        if value != base.get(key)
    }


def _check(case: Case, run: Path) -> None:
    from coevolve.scoring.artifact import read_manifest

    if not (run / "results.json").is_file():
        raise FailedError(UNFINISHED, "no results.json")
    case.call(read_manifest, run / "estimator")
    results = json.loads((run / "results.json").read_text("utf-8"))
    perplexities = [value for splits in results["perplexity"].values() for value in splits.values()]
    bad = [
        value
        for value in perplexities
        if not (isinstance(value, float) and math.isfinite(value) and value >= 1)
    ]
    case.wrong_if(not perplexities or bool(bad), "a perplexity that is none", results["perplexity"])


class counted_steps:
    """Counts the optimizer steps of this process."""

    def __enter__(self) -> "counted_steps":
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.count = 0
        self._hook = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()

    def _step(self, *_: Any) -> None:
        self.count += 1


AREA = RandomRecipes()


def main() -> int:
    from tests.fuzz import __main__ as harness
    from tests.fuzz import runner

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.recipes", description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="recipes (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="this recipe alone, told in full")
    parser.add_argument("--processes", type=int, default=1, help="at a time (default 1)")
    parser.add_argument("--keep", metavar="DIR", help="keep the folders of failed recipes here")
    parser.add_argument(
        "--shown", type=int, default=1500, help="characters of each failure's detail (default 1500)"
    )
    options = parser.parse_args()
    options.verbose, options.only = options.index is not None, None
    limits = runner.Limits(seconds=90.0, inputs=20)
    indices: Iterator[int] = range(options.n) if options.index is None else iter([options.index])
    return harness.run([AREA], [(index, AREA) for index in indices], options, limits)


if __name__ == "__main__":
    sys.exit(main())
