"""`coevolve rpm`: the stages of training a role-playing model theta(y | x), and what they end with.

The model stands in the connector's place, which writes a text for each x too; so samples, rows,
engines, checkpoints and the record are those of `coevolve train`. The estimator that judges is
another one, exported before, and is not trained.

    samples      K responses to each training dialogue     rejection_sft, dpo
    choice       what of them is trained on                rejection_sft, dpo
    training     by the method
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import yaml

from coevolve.errors import CoevolveError, RecipeError
from coevolve.files import write_json, write_text
from coevolve.outputs import Kind, new_folder
from coevolve.preflight.checks import Check
from coevolve.preflight.training import TRAINING, Training
from coevolve.prompts.play import PlayRenderer
from coevolve.recipe import Recipe
from coevolve.recipe.rpm import Rpm, RpmRecipe
from coevolve.recipe.schema import Writing
from coevolve.scoring.artifact import read_manifest
from coevolve.scoring.by_form import ByForm
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import CONNECTOR, REFERENCE
from coevolve.seeds import derive_seed
from coevolve.training.context import Context
from coevolve.training.distributed.processes import Processes
from coevolve.training.engines import run_dpo, steps_of
from coevolve.training.evaluation import golden_responses
from coevolve.training.loop import Stage
from coevolve.training.phases import connector_rows, last_turn, rl, sft, write_texts
from coevolve.training.plans import planned
from coevolve.training.rewards.phase import PhaseRewards
from coevolve.training.rewards.registry import RPM_REWARDS, check_rewards
from coevolve.training.rewards.responses import Others, ResponseBatch
from coevolve.training.rl.algorithms import ALGORITHMS
from coevolve.training.rows import Lazy
from coevolve.training.run import Job, Traced
from coevolve.training.schedule import Budget
from coevolve.training.state import RunState

SCHEMA = "coevolve.rpm/1"
MODEL, PROMPT, ABOUT = "model", "prompt.yaml", "rpm.json"
EXPORTED = Kind("a role-playing model", True, lambda folder: (folder / ABOUT).is_file())
JUDGED_AT_ONCE = 64
"""Dialogues whose samples are judged between two moments at which the run may be left."""


def stages(context: Context) -> list[Stage]:
    """The whole run, in order."""
    training = Stage("training", TRAINED_BY[_rpm(context).section])
    if not _rpm(context).writes_samples:
        return [training]
    return [Stage("samples", write_samples), Stage("choice", choose), training]


def write_samples(context: Context, state: RunState) -> None:
    """K responses of the model itself to each training dialogue."""
    rpm, seed = _rpm(context), partial(derive_seed, context.recipe.seed, "samples")
    state.where = {"coevolve/phase": "samples"}
    settings = Writing(temperature=rpm.temperature, samples=rpm.samples)
    rows = range(len(context.train))
    write_texts(context, state, rows, settings, seed, "{} responses of its own")
    assert context.engines is not None  # a run has them
    context.engines.close()  # what follows needs the memory, and generates nothing


def choose(context: Context, state: RunState) -> None:
    """Of each dialogue's samples the best by the estimator and, for DPO, a chosen one and the
    worst.

    Where there is no sample with a visible character, the golden response stands for the best, and
    a pair of which both are the same says nothing and is left out.
    """
    rpm, judge, golden = _rpm(context), context.judge, golden_responses(context.train)
    assert judge is not None  # since there are samples
    means: list[list[float]] = []
    with context.record.task("judging its samples", len(context.train)) as advance:
        for first in range(0, len(context.train), JUDGED_AT_ONCE):
            part = range(first, min(first + JUDGED_AT_ONCE, len(context.train)))

            def score(places: Sequence[int], part: range = part) -> list[list[float]]:
                return _means(context, state, [part[place] for place in places])

            means += context.processes.distribute([1.0] * len(part), score)
            advance(len(part))
    for index, of_samples in enumerate(means):
        said = [text for text in state.reasoning[index] if text.strip()]
        ranked = [text for _, text in sorted(zip(of_samples, said, strict=True))]
        best = ranked[-1] if ranked else golden[index]
        if rpm.method == "rejection_sft":
            state.reasoning[index] = best
        else:
            chosen = golden[index] if rpm.dpo and rpm.dpo.chosen == "golden" else best
            state.reasoning[index] = [chosen, ranked[0] if ranked else chosen]
    judged = [values for values in means if values]
    if judged:
        ends = {"best": sum(map(max, judged)), "worst": sum(map(min, judged))}
        log = {f"samples/{name}_log_prob": total / len(judged) for name, total in ends.items()}
        context.record.log({**state.where, **log})


def _means(context: Context, state: RunState, rows: Sequence[int]) -> list[list[float]]:
    """Of each row, the mean token log-probability, nats, of every sample that says anything."""
    assert context.judge is not None
    said = [[text for text in state.reasoning[row] if text.strip()] for row in rows]
    texts = [text for of_row in said for text in of_row]
    asked = [context.train[row] for row, of_row in zip(rows, said, strict=True) for _ in of_row]
    found = iter(context.judge.log_prob(asked, texts).mean.tolist() if texts else ())
    return [[next(found) for _ in of_row] for of_row in said]


def train_sft(context: Context, state: RunState) -> None:
    """On golden responses, or on the best of its own."""
    rpm = _rpm(context)
    assert rpm.sft is not None
    state.where = {"coevolve/phase": rpm.method}
    texts = [x if isinstance(x, str) else x[0] for x in state.reasoning]
    rows = connector_rows(context.estimator, context.train, texts)
    sft(context, state, CONNECTOR, "sft", f"{rpm.method}: SFT", rows, rpm.sft)


def train_dpo(context: Context, state: RunState) -> None:
    """On pairs, against the model as it began."""
    settings = _rpm(context).dpo
    assert settings is not None
    state.where = {"coevolve/phase": "dpo"}
    pairs = _pairs(context, state)
    if not pairs:
        raise RecipeError("rpm.dpo: no sample differs from what is chosen; raise rpm.temperature.")
    steps = steps_of(settings, len(pairs))
    budget = Budget(steps, schedule=steps)
    with planned(context, state, CONNECTOR, "dpo", "DPO", budget) as plan:
        state.segment = run_dpo(plan, pairs, settings)


def _pairs(context: Context, state: RunState) -> list[dict[str, Any]]:
    """Token ids, and what the model gave to them before it was trained, nats per response."""
    render = context.estimator.connector_renderer
    pairs: list[dict[str, Any]] = []
    prompts: list[list[int]] = []
    responses: list[list[int]] = []
    for example, texts in zip(context.train, state.reasoning, strict=True):
        if len(set(texts)) > 1:
            prompt = render.prompt_ids(render.connector(example))
            chosen, rejected = map(render.response_ids, texts)
            pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
            prompts += [prompt, prompt]
            responses += [chosen, rejected]
    # What is in the model may be halfway through.
    with (
        context.roles.frozen(CONNECTOR, state.pair[CONNECTOR]),
        context.roles.acting(REFERENCE) as model,
    ):
        scores = score_rows(
            model,
            prompts,
            responses,
            pad_id=render.tokenizer.pad_token_id,
            token_budget=context.estimator.token_budget,
            poll=context.estimator.poll,
        )
    sums = [float(tokens.sum()) for tokens in scores]
    for place, pair in enumerate(pairs):
        pair["ref_chosen_logps"], pair["ref_rejected_logps"] = sums[2 * place : 2 * place + 2]
    return pairs


def train_grpo(context: Context, state: RunState) -> None:
    """For the estimator's rewards."""
    rpm, train, judge = _rpm(context), context.train, context.judge
    settings, render = rpm.grpo, context.estimator.connector_renderer
    assert settings is not None and judge is not None
    state.where = {"coevolve/phase": "grpo"}
    others = Others(train, rpm.contexts, context.recipe.seed)
    read = partial(ResponseBatch, context.estimator, judge, train, others, thinking=rpm.thinking)
    prompts = Lazy(len(train), lambda index: render.connector(train[index]))

    def show(index: int, completion: str) -> dict[str, Any]:
        golden = train[index].golden_response
        return {"context": last_turn(train[index]), "response": completion, "golden": golden}

    field = "rpm.grpo.rewards"
    rewards = PhaseRewards(field, settings.rewards, RPM_REWARDS, read, context.processes)
    steps = steps_of(settings, len(prompts) * settings.num_generations)
    of = "grpo", Budget(steps, schedule=steps), prompts, rewards.functions(), settings, show
    rl(context, state, CONNECTOR, *of)


TRAINED_BY = {"sft": train_sft, "dpo": train_dpo, "grpo": train_grpo}


def finish(context: Context, state: RunState) -> dict[str, Any]:
    """Write the model and `results.json`."""
    rpm, folder = _rpm(context), context.folder.path
    judge = context.judge
    about = {
        "schema": SCHEMA,
        "recipe": context.recipe.name,
        "seed": context.recipe.seed,
        "method": rpm.method,
        "updates": state.updates[CONNECTOR],
        "data_fingerprint": context.data.fingerprint,
        "parent": context.origins[CONNECTOR].parent(),
        "estimator": None if judge is None else judge.estimator.manifest["identity"],
    }

    def write() -> None:
        with context.processes.stop.raising():
            _export(context, about)
        write_json(folder / "results.json", {**about, "seconds": round(context.record.seconds, 1)})

    context.processes.on_main(write)
    given = f"--prompt {folder / MODEL / PROMPT}"
    context.record.say(f"the role-playing model is in {folder / MODEL}: coevolve respond {given}")
    context.folder.say_status("finished", stage="", where={})
    return about


def _export(context: Context, about: dict[str, Any]) -> None:
    """The weights (an adapter, or all), the tokenizer, and the prompt to ask it with."""
    render = context.estimator.connector_renderer
    assert isinstance(render, PlayRenderer)
    prompt = render.play.model_dump()
    with new_folder(context.folder.path / MODEL, EXPORTED) as temporary:
        inner = temporary / CONNECTOR  # PEFT names a folder after the adapter
        context.roles.save(CONNECTOR, inner)
        for path in inner.iterdir():
            path.rename(temporary / path.name)
        inner.rmdir()
        render.tokenizer.save_pretrained(temporary)
        write_text(temporary / PROMPT, yaml.safe_dump(prompt, allow_unicode=True, sort_keys=False))
        write_json(temporary / ABOUT, about)


def _rpm(context: Context) -> Rpm:
    assert isinstance(context.recipe, RpmRecipe)  # `coevolve rpm` reads no other
    return context.recipe.rpm


def _estimator(draft: Training) -> None:
    assert isinstance(draft.recipe, RpmRecipe)
    if draft.recipe.rpm.method != "sft":
        read_manifest(draft.recipe.rpm.estimator or "")


def _room(draft: Training) -> Iterator[CoevolveError]:
    """Prompts and completions against the base model's room."""
    assert isinstance(draft.recipe, RpmRecipe)
    rpm = draft.recipe.rpm
    if rpm.method != "grpo" or rpm.grpo is None:
        return
    room = rpm.grpo.max_completion_length
    longest = max(draft.needs(example.sample_id).connector for example in draft.data.train)
    if longest + room > draft.positions(CONNECTOR):
        yield RecipeError(
            f"rpm.grpo.max_completion_length: found {room}; the longest prompt has {longest} "
            f"tokens and the base model holds {draft.positions(CONNECTOR)}. Lower it."
        )


def _algorithm(draft: Training) -> None:
    assert isinstance(draft.recipe, RpmRecipe)
    if draft.recipe.rpm.method == "grpo" and draft.recipe.rpm.grpo is not None:
        ALGORITHMS.get(draft.recipe.rpm.grpo.algorithm, "rpm.grpo.algorithm")


_SHARED: tuple[str, ...] = (
    "device",
    "data",
    "base models",
    "room of the base models",
    "adapters",
    "prompts",
)
_SHARED += ("lengths", "division of the data")
CHECKS: Sequence[Check[Training]] = (
    Check("rewards", lambda draft: check_rewards(draft.recipe)),
    Check("algorithm", _algorithm),
    Check("estimator", _estimator),
    *(check for check in TRAINING if check.name in _SHARED),
    Check("room for reinforcement learning", _room, ("data",)),
)


def _golden(inputs: Training, *_: object) -> Traced:
    return list(inputs.data.train), golden_responses(inputs.data.train)


def _judge(recipe: Recipe, processes: Processes) -> ByForm | None:
    """The estimator that judges the responses."""
    assert isinstance(recipe, RpmRecipe)
    if recipe.rpm.estimator is None or recipe.rpm.method == "sft":
        return None
    estimator = ProbabilityEstimator.from_pretrained(
        recipe.rpm.estimator,
        device=str(processes.device),
        token_budget=recipe.evaluation.token_budget,
    )
    estimator.poll = processes.stop.poll
    return ByForm(estimator)


RPM = Job(CHECKS, stages, finish, traces=_golden, judge=_judge, judges=False)
