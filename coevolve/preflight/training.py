"""What `coevolve train` looks at before it begins."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coevolve.chat.endpoint import Endpoint
from coevolve.chat.local import load_renderer
from coevolve.data.corpus import TRAIN_SPLIT, Corpus
from coevolve.data.responses import read_responses
from coevolve.errors import CoevolveError, DataError, RecipeError, TooLongError
from coevolve.preflight.checks import Check
from coevolve.preflight.dialogues import (
    Dialogues,
    Needs,
    Renderers,
    Sifted,
    divide,
    load_corpus,
    make_renderer,
    sift,
)
from coevolve.preflight.models import BaseFacts, look_at_adapters, read_base
from coevolve.preflight.traces import fit_traces, given_traces
from coevolve.prompts import prompt_set
from coevolve.recipe import Recipe
from coevolve.registry import CUSTOM
from coevolve.remid.pairs import chosen_negatives, negative_pairs
from coevolve.remid.subsets import distributions
from coevolve.scoring.models import choose_device
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, Role
from coevolve.teachers import TEACHERS
from coevolve.teachers.chat import require_teacher_prompt

Responses = Mapping[str, Mapping[str, str]]

NOT_YET: Any = None
"""What a check is still to build; checks that need it wait for it."""


@dataclass
class Training:
    """A run that is about to begin: what is known of it, filled in check by check.

    Attributes:
        asks_teacher: whether the teacher may still have to be asked.
        corpus: the data as it was read.
        bases: by their name in the recipe.
        sifted: the splits after measuring and limits, with what was left out.
        data: the examples, divided.
        responses: of the models to be judged, by name and sample_ID.
    """

    recipe: Recipe
    environ: Mapping[str, str] = field(default_factory=dict)
    asks_teacher: bool = True
    corpus: Corpus = NOT_YET
    bases: Mapping[str, BaseFacts] = NOT_YET
    renderers: Renderers = NOT_YET
    sifted: Sifted = NOT_YET
    data: Dialogues = NOT_YET
    responses: dict[str, dict[str, str]] = field(default_factory=dict)

    def needs(self, sample_id: str) -> Needs:
        """Tokens that an example takes."""
        return self.sifted.needs[sample_id]

    def positions(self, role: Role) -> int:
        """How many tokens the role's base model holds."""
        return self.bases[getattr(self.recipe.model, role).base].positions


def _device(draft: Training) -> None:
    choose_device(draft.recipe.model.device)


def _corpus(draft: Training) -> Iterator[CoevolveError]:
    corpus = load_corpus(draft.recipe)
    wanted = dict.fromkeys((TRAIN_SPLIT, "IDTest", *draft.recipe.data.limit))
    for split in wanted:
        try:
            corpus.require(split)
        except DataError as problem:
            yield problem
    if all(split in corpus.splits for split in wanted):
        draft.corpus = corpus


def _bases(draft: Training) -> Iterator[CoevolveError]:
    recipe, found = draft.recipe, {}
    sources = dict.fromkeys(getattr(recipe.model, role).base for role in (CONNECTOR, ESTIMATOR))
    for source in sources:
        try:
            found[source] = read_base(recipe, source)
        except CoevolveError as problem:
            yield problem
    if len(found) == len(sources):
        draft.bases = found


def _renderers(draft: Training) -> None:
    bases = draft.bases.items()
    by_base = {source: make_renderer(draft.recipe, base.tokenizer) for source, base in bases}
    draft.renderers = {
        role: by_base[getattr(draft.recipe.model, role).base] for role in (CONNECTOR, ESTIMATOR)
    }


def _adapters(draft: Training) -> Iterator[CoevolveError]:
    return look_at_adapters(draft.recipe, draft.bases)


def _positions(draft: Training) -> Iterator[CoevolveError]:
    """The room that the recipe speaks of, against the room that the base models have."""
    model = draft.recipe.model
    for base in draft.bases.values():
        if model.max_length > base.positions:
            yield RecipeError(
                f"model.max_length: found {model.max_length}; the base model {base.source!r} holds "
                f"{base.positions} tokens. Lower it."
            )


def _lengths(draft: Training) -> None:
    draft.sifted = sift(draft.recipe, draft.corpus, draft.renderers)


def _division(draft: Training) -> None:
    draft.data = divide(draft.recipe, draft.corpus, draft.sifted)


def _cross_fitting(draft: Training) -> None:
    settings = draft.recipe.cold_start.refresh
    if problem := settings and settings.too_few(len(draft.data.train)):
        raise RecipeError(problem)


def _rl_room(draft: Training) -> Iterator[CoevolveError]:
    """Prompts, completions and what they are scored by, against the base models' room."""
    recipe, render = draft.recipe, draft.renderers[ESTIMATOR]
    phases = {phase.name for phase in recipe.rounds.phases} if recipe.rounds.count else set()
    reasoning = recipe.model.max_reasoning_tokens
    # (section, who reads it, what it is, its tokens without the completion)
    sequences: list[tuple[str, Role, str, Callable[[Needs], int]]] = []
    if "connector_rl" in phases:
        scored = "a response with its prompt and reasoning"
        sequences += [
            ("connector_rl", CONNECTOR, "a reasoning with its prompt", lambda need: need.connector),
            ("connector_rl", ESTIMATOR, scored, lambda need: need.estimator + need.response),
        ]
    if "estimator_rl" in phases:
        written = "a response with its prompt"
        sequences.append(
            ("estimator_rl", ESTIMATOR, written, lambda need: need.estimator + reasoning)
        )
        if recipe.estimator_rl is not None and recipe.estimator_rl.rewards.asks_base:
            answer = len(render.response_ids(render.prompts.judge_match))
            asked = len(render.prompt_ids(render.judge("", ""))) + answer + reasoning
            sequences.append(("estimator_rl", ESTIMATOR, "a judge's question", lambda need: asked))
    for section, role, what, tokens in sequences:
        room = getattr(recipe, section).max_completion_length
        ids = [example.sample_id for example in draft.data.train]
        sizes = {name: tokens(draft.needs(name)) + room for name in ids}
        worst = max(sizes, key=sizes.__getitem__)
        if sizes[worst] > draft.positions(role):
            yield RecipeError(
                f"{section}.max_completion_length: found {room}; with it, sample_ID {worst!r} "
                f"leads to {what} of {sizes[worst]} tokens, and the {role}'s base model holds "
                f"{draft.positions(role)}. Lower it."
            )


def _posterior(draft: Training) -> None:
    """A proposal that is shown the answer: the words for it, and the room."""
    recipe, render = draft.recipe, draft.renderers[CONNECTOR]
    used = recipe.rounds.count and any(phase.kind == "posterior" for phase in recipe.rounds.phases)
    field = f"posterior.proposal: found {recipe.posterior.proposal!r}, which shows the answer"
    if not used or recipe.posterior.proposal not in ("connector_with_answer", "mixture"):
        return
    if not render.prompts.teacher_user:
        raise RecipeError(
            f"{field} in a teacher's words, and the prompt set {render.prompts.name!r} has none. "
            "Use connector."
        )
    room = recipe.model.max_reasoning_tokens
    sizes = {
        example.sample_id: len(render.prompt_ids(render.chat(render.teacher(example)))) + room
        for example in draft.data.train
    }
    worst = max(sizes, key=sizes.__getitem__)
    if sizes[worst] > draft.positions(CONNECTOR):
        raise TooLongError(
            f"{field}; the prompt of sample_ID {worst!r} and its reasoning are {sizes[worst]} "
            f"tokens then, and the connector's base model holds {draft.positions(CONNECTOR)}. "
            "Lower model.max_reasoning_tokens."
        )


def _teacher(draft: Training) -> None:
    traces, prompts = draft.recipe.traces, prompt_set(draft.recipe.prompts)
    if draft.asks_teacher and traces.teacher.startswith(CUSTOM):
        TEACHERS.get(traces.teacher, "traces.teacher")
    if not draft.asks_teacher or traces.teacher not in ("endpoint", "local"):
        return
    require_teacher_prompt(prompts)
    assert traces.model is not None  # as the recipe requires of both
    if traces.teacher == "endpoint":
        assert traces.base_url is not None
        Endpoint(
            traces.base_url, traces.model, api_key_env=traces.api_key_env, environ=draft.environ
        )
    else:
        load_renderer(traces.model, prompts)


def _traces(draft: Training) -> None:
    """Traces that are there already: complete, well formed, and of a length that fits."""
    prompts = draft.renderers[ESTIMATOR].prompts
    traces = given_traces(draft.recipe, draft.data.train, prompts, draft.corpus)
    if traces is not None:
        ordered = [traces[example.sample_id] for example in draft.data.train]
        fit_traces(draft.recipe, draft.data.train, ordered, draft.renderers, draft.sifted.needs)
    if draft.recipe.baselines.oracle:
        try:
            given_traces(draft.recipe, draft.data.test_examples, prompts, draft.corpus)
        except DataError as problem:
            raise DataError(
                "baselines.oracle shows the estimator the teacher's traces of the test examples: "
                f"{problem} Or set baselines.oracle=false."
            ) from None


def _responses(draft: Training) -> Iterator[CoevolveError]:
    data = draft.data
    for name, path in draft.recipe.remid.responses.items():
        try:
            texts = read_responses(path, data.corpus_test_examples)
        except DataError as problem:
            yield problem
            continue
        ids = [example.sample_id for example in data.corpus_test_examples]
        by_id = dict(zip(ids, texts, strict=True))
        draft.responses[name] = {x.sample_id: by_id[x.sample_id] for x in data.test_examples}


def _pairs(draft: Training) -> Iterator[CoevolveError]:
    """The mismatched pairs of every subset, the longest against the estimator's room."""
    recipe = draft.recipe
    if not draft.responses and recipe.data.world is None:
        return
    tests = {split: tuple(rows) for split, rows in draft.data.tests.items()}
    render, reasoning = draft.renderers[ESTIMATOR], recipe.model.max_reasoning_tokens
    chosen = chosen_negatives(recipe.remid.negatives, recipe.remid.negatives_per_context)
    for subset in distributions(Corpus(tests, draft.corpus.source)):
        ids = [example.sample_id for example in subset.examples]
        where = f"{draft.corpus.source}: {subset.row}"
        try:
            negative_pairs(ids, chosen, seed=recipe.seed, where=where)
        except DataError as problem:
            yield problem
            continue
        context = max(ids, key=lambda name: draft.needs(name).estimator)
        texts = [responses[name] for responses in draft.responses.values() for name in ids]
        sizes = [len(render.response_ids(text)) for text in texts]
        sizes += [draft.needs(name).response for name in ids]
        tokens = draft.needs(context).estimator + reasoning + max(sizes)
        if tokens > draft.positions(ESTIMATOR):
            yield TooLongError(
                f"{where}: the context of sample_ID {context!r} with a reasoning and the longest "
                f"response of the subset ({max(sizes)} tokens) is {tokens} tokens, the base model "
                f"holds {draft.positions(ESTIMATOR)}. Lower model.max_reasoning_tokens, or shorten "
                "them."
            )


TRAINING: Sequence[Check[Training]] = (
    Check("device", _device),
    Check("data", _corpus),
    Check("base models", _bases),
    Check("room of the base models", _positions, ("bases",)),
    Check("adapters", _adapters, ("bases",)),
    Check("prompts", _renderers, ("bases",)),
    Check("teacher", _teacher),
    Check("lengths", _lengths, ("corpus", "renderers")),
    Check("division of the data", _division, ("sifted",)),
    Check("cross-fitting", _cross_fitting, ("data",)),
    Check("room for reinforcement learning", _rl_room, ("data",)),
    Check("posterior", _posterior, ("data",)),
    Check("traces", _traces, ("data",)),
    Check("responses", _responses, ("data",)),
    Check("pairs", _pairs, ("data",)),
)
"""In the order in which one needs what another has built."""
