"""Rewards: by hand, by their theory, as the registry hands them to TRL, and a user's own."""

import itertools
import json
import math
import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coevolve.errors import RecipeError, RewardError
from coevolve.preflight.dialogues import load_corpus
from coevolve.recipe import check_recipe
from coevolve.recipe.rl import ConnectorRewards, EstimatorRewards
from coevolve.scoring.roles import ESTIMATOR
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import Stop
from coevolve.training.rewards import functions as rewards
from coevolve.training.rewards.batches import ConnectorBatch, EstimatorBatch, of_groups
from coevolve.training.rewards.phase import PhaseRewards, checked
from coevolve.training.rewards.registry import (
    CONNECTOR_REWARDS,
    ESTIMATOR_REWARDS,
    check_rewards,
)
from coevolve.training.run import train
from coevolve.training.setup import build_estimator, build_renderers, prepare_origins

HALVES = np.log([0.5, 0.5])
UNEVEN = np.log([0.9, 0.1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (rewards.likelihood(UNEVEN), 0.3),
        (rewards.mean_probability(UNEVEN), 0.5),
        (rewards.log_likelihood(UNEVEN), math.log(0.3)),
        (rewards.gain(HALVES, UNEVEN), math.log(0.5 / 0.3)),
        (rewards.likelihood(UNEVEN, np.array([0.5, 1.5])), 0.9**0.25 * 0.1**0.75),
        (rewards.mean_probability(UNEVEN, np.array([0.5, 1.5])), (0.45 + 0.15) / 2),
        (rewards.gain(HALVES, UNEVEN, np.array([2.0, 0.0])), math.log(0.5 / 0.9)),
        (rewards.match_ratio(-3.0, -2.0), math.exp(-1)),
        (rewards.match_ratio(-1.0, -2.0), 1.0),
        (rewards.word_overlap("the cat sat", "The cat ran off"), 0.5),
        (rewards.word_overlap("cat cat", "cat"), 1.0),
        (rewards.features_length("one two", 4), 0.5),
        (rewards.features_length("one two three", 2), 1.0),
        (rewards.features_length("words: fish, fish, Fish, fish", 4, {"words"}), 0.25),
        (rewards.reasoning_format("[A] x [F] y", ("[A]", "[F]")), 1.0),
        (rewards.reasoning_format("[F] y", ("[A]", "[F]")), 0.5),
        (rewards.reasoning_format("none", ("[A]", "[F]")), 0.0),
        (rewards.reasoning_format("[A] x [F] the Tone", ("[A]", "[F]"), {"the", "tone"}), 0.0),
        (rewards.reasoning_format("[A] the [F] warm tone", ("[A]", "[F]"), {"the", "tone"}), 1.0),
        (rewards.response_format("hello"), 1.0),
        (rewards.response_format(" "), 0.0),
        (rewards.similarity([1, 2, 3], [1, 2, 3]), 1.0),
        (rewards.similarity([1, 2, 3], [3, 2, 1]), 3 / 5),  # the same tokens, no pair of neighbours
        (rewards.similarity([1, 1], [1]), 1 / math.sqrt(3)),
        (rewards.similarity([1], [2]), 0.0),
    ],
)
def test_by_hand(value, expected):
    assert value == pytest.approx(expected)


def test_a_kernel_score_by_hand():
    among = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    assert rewards.kernel_scores(np.array([1.0, 0.5, 0.0]), among) == pytest.approx(
        [0.5, -0.25, -0.25]
    )
    with pytest.raises(ValueError, match="G >= 3; found"):
        rewards.kernel_scores(np.zeros(2), np.zeros((2, 2)))


SEQUENCES = st.lists(st.integers(0, 4), min_size=1, max_size=7)


@given(st.lists(SEQUENCES, min_size=2, max_size=8))
def test_similarity_is_a_positive_definite_kernel(sequences):
    gram = np.array([[rewards.similarity(a, b) for b in sequences] for a in sequences])
    assert np.allclose(gram, gram.T) and gram.diagonal() == pytest.approx(1.0)
    assert gram.min() >= 0 and gram.max() <= 1 + 1e-12
    assert np.linalg.eigvalsh(gram).min() > -1e-9


def kernel_score(q, kernel, y):
    """S(q, y) as it is defined."""
    return q @ kernel[:, y] - 0.5 * q @ kernel @ q


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("size", [3, 4])
def test_the_policy_gradient_of_the_kernel_reward_is_that_of_the_kernel_score(size):
    """Over all groups of `size` samples, by enumeration; the score's own gradient by finite
    differences.
    """
    rng = np.random.default_rng(0)
    outcomes = [[1, 2, 3], [1, 2, 4], [5, 2, 3]]
    kernel = np.array([[rewards.similarity(a, b) for b in outcomes] for a in outcomes])
    logits, y = rng.normal(size=3), 1
    q = softmax(logits)
    expected = np.zeros(3)
    for group in itertools.product(range(3), repeat=size):
        chosen = list(group)
        reward = rewards.kernel_scores(kernel[chosen, y], kernel[np.ix_(chosen, chosen)])
        advantage = reward - reward.mean()  # as TRL does with scale_rewards: none
        gradient = sum(a * (np.eye(3)[x] - q) for a, x in zip(advantage, chosen, strict=True))
        expected += q[chosen].prod() * gradient
    step = 1e-6
    slopes = [
        (
            kernel_score(softmax(logits + d), kernel, y)
            - kernel_score(softmax(logits - d), kernel, y)
        )
        / (2 * step)
        for d in step * np.eye(3)
    ]
    assert expected == pytest.approx((size - 1) * np.array(slopes), abs=1e-8)


def test_nothing_scores_better_than_the_truth():
    rng = np.random.default_rng(1)
    outcomes = [[1, 2], [1, 3], [3, 2], [2, 1]]
    kernel = np.array([[rewards.similarity(a, b) for b in outcomes] for a in outcomes])
    for _ in range(200):
        p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
        score_of = [
            sum(p[y] * kernel_score(answer, kernel, y) for y in range(4)) for answer in (p, q)
        ]
        assert score_of[0] > score_of[1]


@dataclass
class Given:
    """A batch whose log-probabilities are given."""

    golden: list
    unaided: list
    weights: list
    log_uniform: float = -math.log(50)
    figures: dict = field(default_factory=dict)


# log-probabilities down to far below a uniform guess; None where a completion cannot be judged
LOG_PROBS = st.lists(st.floats(-1000, 0), min_size=1, max_size=6).map(np.array)


@given(st.lists(st.tuples(st.none() | LOG_PROBS, LOG_PROBS), min_size=1, max_size=6))
def test_what_cannot_be_judged_never_wins(rows):
    golden, unaided = zip(*rows, strict=True)
    settings = ConnectorRewards(**ALL, format=0.0, length=0.0)
    batch = Given(golden, unaided, [1.0] * len(golden))
    values, logged = ask(
        PhaseRewards("x", settings, CONNECTOR_REWARDS, lambda ids, index: batch, alone()),
        [[0]] * len(rows),
        [],
    )
    for name, of_all in values.items():
        unjudged = [value for value, row in zip(of_all, golden, strict=True) if row is None]
        assert all(value <= min(of_all) for value in unjudged)
        assert logged[f"rewards/{name}/lowest"] == len(unjudged)


def test_token_weights_by_hand():
    group = np.log([[0.5, 0.25, 0.1], [0.5, 0.5, 0.4]])  # log 1, log 2 and log 4 apart
    assert rewards.change_weights(group) == pytest.approx([0, 1, 2])
    assert rewards.change_weights(group[:1]).tolist() == [1, 1, 1]  # nothing to compare with
    assert rewards.likelihood(group[1], rewards.change_weights(group)) == pytest.approx(
        (0.5 * 0.4**2) ** (1 / 3)
    )


@given(
    st.integers(2, 6).flatmap(
        lambda size: st.lists(st.floats(-900, 0), min_size=size, max_size=size)
    )
)
def test_credits_of_the_bound_are_those_of_its_definition(log_probs):
    values, size = np.array(log_probs), len(log_probs)
    credits = rewards.bound_credits(values)
    assert credits.min() >= rewards.lowest_bound_credit(size) - 1e-9
    if values.min() > -300:  # below, probabilities themselves are no numbers
        p = np.exp(values)
        others = [np.delete(p, k).mean() for k in range(size)]
        assert credits == pytest.approx(np.log(p.mean()) - np.log(others), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_policy_gradient_of_the_credits_is_that_of_the_bound(size):
    """Over all groups, by enumeration: of the K-sample bound as they are, of K - 1 samples with the
    group's mean taken off.
    """
    rng = np.random.default_rng(0)
    logits, log_q2 = rng.normal(size=3), np.log([0.02, 0.3, 0.9])

    def groups(size, q):
        for group in itertools.product(range(3), repeat=size):
            yield q[list(group)].prod(), list(group)

    def bound(logits, size):
        q = softmax(logits)
        return sum(p * (np.logaddexp.reduce(log_q2[g]) - np.log(size)) for p, g in groups(size, q))

    def slope(size, step=1e-6):
        return [
            (bound(logits + d, size) - bound(logits - d, size)) / (2 * step)
            for d in step * np.eye(3)
        ]

    q = softmax(logits)
    plain, centred = np.zeros(3), np.zeros(3)
    for p, group in groups(size, q):
        credits = rewards.bound_credits(log_q2[group])
        scores = np.eye(3)[group] - q
        plain += p * credits @ scores
        centred += p * (credits - credits.mean()) @ scores
    assert plain == pytest.approx(slope(size), abs=1e-8)
    assert centred == pytest.approx(slope(size - 1), abs=1e-8)


@given(st.lists(SEQUENCES, min_size=3, max_size=6), SEQUENCES)
def test_no_kernel_score_is_below_the_lowest(sequences, golden):
    among = np.array([[rewards.similarity(a, b) for b in sequences] for a in sequences])
    to_golden = np.array([rewards.similarity(a, golden) for a in sequences])
    lowest = rewards.lowest_kernel_score(len(sequences))
    assert rewards.kernel_scores(to_golden, among).min() >= lowest - 1e-12


@pytest.mark.parametrize(
    ("settings", "named"),
    [(ConnectorRewards, CONNECTOR_REWARDS), (EstimatorRewards, ESTIMATOR_REWARDS)],
)
def test_the_recipe_names_the_registrys_rewards_and_no_others(settings, named):
    weights = [name for name, value in settings() if isinstance(value, float)]
    assert sorted(weights) == sorted(named)


# The registry with a resident model.


@pytest.fixture(scope="module", params=["full", "lora"])
def resident(request, recipe_of, tmp_path_factory):
    """(estimator, examples): untrained models, which give probabilities all the same."""
    recipe = recipe_of(request.param)
    origins = prepare_origins(recipe, tmp_path_factory.mktemp("base"))
    return build_estimator(recipe, origins, build_renderers(recipe, origins)), load_corpus(
        recipe
    ).require("IDTrain")


def ask(judging, ids, index, **columns):
    """(values by name, what was logged), asked as TRL asks."""
    logged = {}
    values = {
        name: function(
            completion_ids=ids,
            index=index,
            log_metric=lambda key, value: logged.update({key: value}),
            **columns,
        )
        for name, function, _ in judging.functions()
    }
    return values, logged


def alone():
    return Processes(torch.device("cpu"), Stop())


def connector_judging(estimator, examples, **weights):
    settings = ConnectorRewards(target_words=5, **weights)

    def read(ids, index):
        return ConnectorBatch(estimator, examples, ids, index, target_words=settings.target_words)

    return PhaseRewards("connector_rl.rewards", settings, CONNECTOR_REWARDS, read, alone())


def estimator_judging(estimator, examples, group, **settings):
    settings = EstimatorRewards(**settings)

    def read(ids, index):
        return EstimatorBatch(
            estimator,
            examples,
            [example.trace for example in examples],
            ids,
            index,
            judge=settings.judge,
            group=group,
            processes=alone(),
        )

    return PhaseRewards("estimator_rl.rewards", settings, ESTIMATOR_REWARDS, read, alone())


ALL = dict.fromkeys(["log_likelihood", "mean_probability", "gain"], 1.0)


def test_the_connectors_rewards_are_the_estimators_own_probabilities(resident):
    estimator, examples = resident
    render = estimator.renderer
    good = [render.response_ids(examples[place].trace) for place in (0, 1)]
    ids = [
        good[0],
        good[0][:-1],
        render.response_ids("[Connections]"),
        [render.end_of_turn_id],
        good[1],
    ]
    values, logged = ask(connector_judging(estimator, examples, **ALL), ids, [0, 0, 0, 0, 1])

    asked = [examples[0], examples[1]]
    golden = [example.golden_response for example in asked]
    with_reasoning = estimator.token_log_probs(asked, golden, [example.trace for example in asked])
    without = estimator.token_log_probs(asked, golden, [None] * 2)
    uniform = -math.log(len(render.tokenizer))
    means = [x.mean() for x in with_reasoning]
    gains = [mean - z.mean() for mean, z in zip(means, without, strict=True)]
    said = [len({*example.trace.partition("[Features] ")[2].split()}) for example in asked]
    expected = {
        "likelihood": (np.exp(means), 0.0),
        "log_likelihood": (means, min(uniform, *means)),
        "mean_probability": ([np.exp(x).mean() for x in with_reasoning], 0.0),
        "gain": (gains, min(uniform, *gains)),
        "length": ([distinct / 5 for distinct in said], 0.0),
    }
    for name, ((first, second), lowest) in expected.items():
        assert values[name] == pytest.approx([first, lowest, lowest, lowest, second], rel=1e-5), (
            name
        )
        assert logged[f"rewards/{name}/lowest"] == 3
    assert values["format"] == [1.0, 0.0, 0.0, 0.0, 1.0] and logged["rewards/format/lowest"] == 2
    assert logged["unparsable_completions"] == pytest.approx(3 / 5)


def test_rewards_that_compare_the_reasonings_of_a_group(resident):
    """Two groups of two, one with a reasoning that was cut off, another example's among them."""
    estimator, examples = resident
    render = estimator.renderer
    texts = [examples[place].trace for place in (0, 1, 1, 2)]
    ids = [render.response_ids(text) for text in texts]
    ids[1] = ids[1][:-1]
    index = [0, 0, 1, 1]
    settings = ConnectorRewards(bound=1.0, log_likelihood=1.0, token_weighting="change")

    def read(ids, index):
        return ConnectorBatch(
            *(estimator, examples, ids, index), target_words=5, token_weighting="change", group=2
        )

    judging = PhaseRewards("connector_rl.rewards", settings, CONNECTOR_REWARDS, read, alone())
    values, logged = ask(judging, ids, index)
    asked = [examples[i] for i in index]
    golden = [example.golden_response for example in asked]
    first, _, *second = estimator.token_log_probs(asked, golden, texts)
    uniform = -math.log(len(render.tokenizer)) * len(first)
    p, q = (np.exp(values.sum()) for values in second)
    expected = [
        np.log((np.exp(first.sum()) + np.exp(uniform)) / 2) - uniform,
        np.log(1 / 2),
        np.log((p + q) / 2) - np.log(q),
        np.log((p + q) / 2) - np.log(p),
    ]
    assert values["bound"] == pytest.approx(expected, rel=1e-5)
    assert logged["rewards/bound/lowest"] == logged["rewards/log_likelihood/lowest"] == 1
    spread = np.abs(second[0] - second[1])
    weighted = [float(x @ spread / spread.sum()) for x in second]
    assert values["log_likelihood"][0] == pytest.approx(first.mean(), rel=1e-5)
    assert values["log_likelihood"][2:] == pytest.approx(weighted, rel=1e-5)


class _Shares(Processes):
    """One of two processes, which is told what the other gathers."""

    def __init__(self, shares, rank):
        super().__init__(torch.device("cpu"), Stop())
        self.shares, self.rank = shares, rank

    def gather(self, value):
        assert value == self.shares[self.rank]
        return self.shares


def test_a_group_may_lie_on_two_processes():
    shares = [[1, 2, 3], [4, 5, 6, 7, 8]]

    def total(rows):
        return [(sum(rows), row) for row in rows]

    found = [of_groups(_Shares(shares, rank), 4, shares[rank], total) for rank in (0, 1)]
    assert found[0] + found[1] == [(10 if row <= 4 else 26, row) for row in range(1, 9)]


@pytest.mark.parametrize("asked", [{"bound": 1.0}, {"token_weighting": "change"}])
def test_comparing_needs_a_group(recipe_of, asked):
    ppo = {"algorithm": "ppo", "num_generations": 1, "rewards": {**asked, "target_words": 5}}
    with pytest.raises(RecipeError, match=f"rewards.{next(iter(asked))}.*num_generations to 2"):
        recipe_of(connector_rl=ppo)


def test_what_does_not_fit_the_estimator_gets_the_lowest_reward_too(resident):
    estimator, examples = resident
    render = estimator.renderer
    heading = render.prompts.sections[-1]
    good = render.response_ids(examples[0].trace)
    word = examples[0].golden_response.split()[0]
    endless = render.response_ids(f"{heading} " + " ".join([word] * 5000))
    values, logged = ask(
        connector_judging(estimator, examples, **ALL), [good, endless, good], [0, 0, 1]
    )
    assert values["likelihood"][1] == 0.0 < min(values["likelihood"][0], values["likelihood"][2])
    assert values["gain"][1] == -math.log(len(render.tokenizer)) < values["gain"][0]
    assert logged["rewards/likelihood/lowest"] == logged["rewards/gain/lowest"] == 1


def test_the_estimators_rewards_know_the_golden_response(resident):
    estimator, examples = resident
    render = estimator.renderer
    golden, other = (render.response_ids(examples[place].golden_response) for place in (0, 1))
    ids = [golden, other, golden[:-1], golden, other, [render.end_of_turn_id]]
    index = [0, 0, 0, 1, 1, 1]
    for judge in ("overlap", "likelihood"):
        weights = {"judge": judge, "reference_likelihood": 1.0, "kernel_score": 1.0}
        with estimator.roles.frozen(ESTIMATOR, estimator.roles.weights(ESTIMATOR)):
            values, logged = ask(estimator_judging(estimator, examples, 3, **weights), ids, index)
        assert [values["match"][place] for place in (0, 4)] == pytest.approx([1.0, 1.0])
        assert values["match"][2] == values["match"][5] == 0.0 <= min(values["match"])
        assert values["format"] == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
        scores = estimator.log_prob(
            examples[:1], [examples[0].golden_response], [examples[0].trace]
        )
        assert values["reference_likelihood"][0] == pytest.approx(
            math.exp(scores.mean[0]), rel=1e-5
        )
        # k(golden, golden) = 1, and a completion that is cut off is like no other.
        alike = rewards.similarity(golden[:-1], other[:-1])
        assert values["kernel_score"] == pytest.approx([1 - alike, 0.0, -2.0, 0.0, 1 - alike, -2.0])
        assert {logged[f"rewards/{name}/lowest"] for name in values} == {2}


def test_a_model_that_gives_no_numbers_is_named(resident):
    estimator, examples = resident
    weights = estimator.roles.weights(ESTIMATOR)
    broken = {name: torch.full_like(value, math.nan) for name, value in weights.items()}
    ids = [estimator.renderer.response_ids(examples[0].trace)]
    estimator.roles.load_weights(ESTIMATOR, broken)
    try:
        with pytest.raises(
            RewardError, match=r"^connector_rl.rewards.likelihood gave nan for completion 0"
        ):
            ask(connector_judging(estimator, examples), ids, [0])
    finally:
        estimator.roles.load_weights(ESTIMATOR, weights)


# A user's own.


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that makes a module importable, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def write(name, text):
        (tmp_path / "modules" / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return write


def test_a_users_reward_sees_the_dialogue_and_cannot_let_a_cut_off_completion_win(resident, module):
    module(
        "seen_rewards",
        """
        def brevity(completions, example, golden_response, **columns):
            golden = [row["agent_golden_response"] for row in example]
            assert golden == list(golden_response)
            return [None if "say nothing" in text else -len(text) for text in completions]
        """,
    )
    estimator, examples = resident
    render = estimator.renderer
    good = render.response_ids(examples[0].trace)
    judging = connector_judging(estimator, examples, custom={"seen_rewards:brevity": 0.5})
    assert [(name, weight) for name, _, weight in judging.functions()][-1] == ("brevity", 0.5)
    texts = [examples[0].trace, "short", "say nothing", examples[0].trace]
    values, logged = ask(judging, [good, good[:-1], good, good], [0, 0, 0, 1], completions=texts)
    longest = -float(len(examples[0].trace))
    # What is cut off, and None, get the lowest of the others.
    assert values["brevity"] == [longest] * 4
    assert logged["rewards/brevity/lowest"] == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[1.0]", "returned 1 values for 2 completions"),
        ("[1.0, float('nan')]", "gave nan for completion 1"),
        ("[float('-inf'), 1.0]", "gave -inf for completion 0"),
        ("['good', 1.0]", "gave 'good' (str) for completion 0"),
        ("[[1.0], [2.0]]", "gave [1.0] (list) for completion 0"),
        ("0.5", "returned float; accepted is a list of 2 numbers"),
        ("None", "returned NoneType"),
        ("'ab'", "returned str"),
        ("{0: 1.0, 1: 2.0}", "returned dict"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero ("),
    ],
)
def test_what_a_users_reward_must_not_return(resident, module, answer, message, request):
    name = module(
        f"bad_rewards_{abs(hash(request.node.name))}",
        f"def odd(completions, **_):\n    return {answer}\n",
    )
    estimator, examples = resident
    ids = [estimator.renderer.response_ids(examples[0].trace)] * 2
    judging = connector_judging(estimator, examples, custom={f"{name}:odd": 1.0})
    with pytest.raises(RewardError) as caught:
        ask(judging, ids, [0, 0], completions=["a", "b"])
    assert str(caught.value).startswith(
        f"connector_rl.rewards.custom '{name}:odd'"
    ) and message in str(caught.value)


def test_numbers_of_other_libraries_are_numbers():
    assert checked("it", np.array([1, 2]), 2) == [1.0, 2.0]
    assert checked("it", torch.tensor([0.5, 1.5]), 2) == [0.5, 1.5]
    assert checked("it", (True, None, np.float32(2)), 3) == [1.0, None, 2.0]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("no_such_module_of_mine:f", RecipeError, "there is no module 'no_such_module_of_mine'"),
        ("start_rewards.inner:f", RecipeError, "there is no module 'start_rewards.inner'"),
        ("start_rewards:missing", RecipeError, "has no 'missing'"),
        ("start_needs:f", RecipeError, "importing start_needs failed with ModuleNotFoundError"),
        ("start_broken:f", RecipeError, "importing start_broken failed with ZeroDivisionError"),
        (
            "start_rewards:number",
            RewardError,
            "is int; accepted is a function (prompts, completions",
        ),
        ("start_rewards:Class", RewardError, "is a class; accepted"),
        ("start_rewards:later", RewardError, "is asynchronous; accepted"),
        ("start_rewards:narrow", RewardError, "cannot be called with prompts, completions"),
        ("start_rewards:demanding", RewardError, "missing a required argument: 'target'"),
    ],
)
def test_a_users_reward_is_looked_at_before_anything_begins(
    recipe_of, module, tmp_path, path, error, message
):
    module("start_needs", "import no_such_library_of_theirs\ndef f(**_): return []\n")
    module("start_broken", "1 / 0\n")
    module(
        "start_rewards",
        """
        number = 1
        class Class: ...
        async def later(**columns): ...
        def narrow(completions): ...
        def demanding(completions, target, **columns): ...
        """,
    )
    recipe = recipe_of(connector_rl={"rewards": {"custom": {path: 1.0}}})
    with pytest.raises(error) as caught:
        train(recipe, tmp_path / "run")
    assert str(caught.value).startswith(f"connector_rl.rewards.custom '{path}'") and message in str(
        caught.value
    )
    assert not (tmp_path / "run").exists()


def test_a_phase_that_is_not_run_needs_no_rewards(recipe_of):
    unused = {"rewards": {"judge": "overlap", "custom": {"no_such_module_of_mine:f": 1.0}}}
    check_rewards(recipe_of(rounds={"phases": ["connector_rl"]}, estimator_rl=unused))


def test_a_run_logs_each_reward_by_name_and_stops_at_a_bad_one(recipe_of, module, tmp_path):
    """The step at which a reward goes wrong moves nothing, and the run says which reward it was."""
    module(
        "run_rewards",
        """
        class Counted:
            calls = 0
            def __call__(self, completions, **columns):
                self.calls += 1
                return [float(len(text)) for text in completions] if self.calls < 2 else [0.0]
        counted = Counted()
        """,
    )
    recipe = recipe_of(
        rounds={"phases": ["connector_rl"]},
        connector_rl={
            "rewards": {**ALL, "target_words": 5, "custom": {"run_rewards:counted": 0.01}}
        },
        logging={"every": 1},
    )
    with pytest.raises(
        RewardError,
        match=r"connector_rl.rewards.custom 'run_rewards:counted' returned 1 values for 8",
    ):
        train(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if "connector/reward" in line]
    assert step["connector/phase_step"] == 1
    for name in ["likelihood", "format", "length", "counted", *ALL]:
        assert {
            f"connector/rewards/{name}/{what}" for what in ("mean", "std", "lowest")
        } <= step.keys()
        assert 0 <= step[f"connector/rewards/{name}/lowest"] <= 8
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "run_rewards:counted" in status["error"]


def test_the_kernel_score_can_be_trained_on(recipe_of, tmp_path):
    recipe = recipe_of(
        rounds={"phases": ["estimator_rl"]},
        estimator_rl={"scale_rewards": "none", "rewards": {"match": 0, "kernel_score": 1.0}},
        logging={"every": 1},
    )
    train(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [
        line["estimator/rewards/kernel_score/mean"] for line in lines if "estimator/reward" in line
    ]
    assert len(found) == 2 and all(rewards.lowest_kernel_score(4) <= value <= 1 for value in found)
    assert (
        check_recipe(json.loads((tmp_path / "run.json").read_text())["recipe"], "run.json")
        == recipe
    )
