"""The reward is the estimator's likelihood, in whatever form TRL gives dialogues and completions,
in a real trainer.
"""

import json
import math
import shutil

import numpy as np
import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from coevolve.errors import ArtifactError, DataError, RecipeError, RewardError, TooLongError
from coevolve.estimator_reward import EstimatorReward
from coevolve.scoring.models import load_model, load_tokenizer

INPUTS = ("user_persona", "agent_character", "dialogue_context")


@pytest.fixture
def reward(imported):
    return EstimatorReward(imported, device="cpu")


@pytest.fixture
def examples(corpus):
    return corpus.examples[:4]


@pytest.fixture
def expected(estimator, examples):
    """Likelihoods of the golden responses."""
    golden = [example.golden_response for example in examples]
    return np.exp(estimator.log_prob(examples, golden, estimator.reason(examples)).mean)


def golden(examples):
    return [example.golden_response for example in examples]


def test_a_reward_is_the_likelihood_under_the_estimator(reward, examples, expected):
    found = reward(
        completions=golden(examples), example=[json.dumps(example.to_row()) for example in examples]
    )
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
    assert all(0 < value < 1 for value in found)


def test_every_form_of_the_columns_and_completions_gives_the_same(reward, examples, expected):
    rows = [example.to_row() for example in examples]
    texts = golden(examples)
    columns = {name: [row[name] for row in rows] for name in INPUTS}
    # Arrow gives all objects of a column the same keys, absent ones as null.
    arrow = {
        **columns,
        "dialogue_context": [
            [{"user_query": None, "agent_response": None} | turn for turn in turns]
            for turns in columns["dialogue_context"]
        ],
    }
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    forms = [
        {"completions": texts, **columns, "trainer_state": None, "prompts": texts},
        {"completions": messages, **arrow},
        {"completions": messages, "example": rows},
        {
            "completions": texts,
            "example": [json.dumps({name: row[name] for name in INPUTS}) for row in rows],
        },
    ]
    for form in forms:
        assert reward(**form) == pytest.approx(expected.tolist(), rel=1e-5)


def test_log_likelihood_is_its_logarithm_and_says_nothing_costs_most(imported, examples, expected):
    reward = EstimatorReward(imported, scale="log_likelihood", device="cpu")
    texts = [*golden(examples)[:2], " \n", ""]
    rows = [example.to_row() for example in examples]
    found = reward(completions=texts, example=rows)
    vocabulary = len(reward.estimator.renderer.tokenizer)
    assert found == pytest.approx([*np.log(expected[:2]), *[-math.log(vocabulary)] * 2], abs=1e-5)
    assert EstimatorReward(imported, device="cpu")(completions=["", " "], example=rows[:2]) == [
        0.0,
        0.0,
    ]


def test_a_dialogue_is_reasoned_about_once(reward, examples):
    reason, asked = reward.estimator.reason, []
    reward.estimator.reason = lambda batch, **options: (
        asked.extend(batch) or reason(batch, **options)
    )
    rows = [example.to_row() for example in examples[:2]] * 3
    first = reward(completions=["a", "b", "c", "d", "e", "f"], example=rows)
    assert len(asked) == 2
    assert reward(completions=["a", "b", "c", "d", "e", "f"], example=rows) == first
    assert len(asked) == 2


def test_a_training_step_with_it(imported, release, examples, tmp_path):
    """GRPO of a policy on the reward alone: the estimator stays as it is, and the rewards are the
    estimator's.
    """
    calls = []

    class Recorded(EstimatorReward):
        def __call__(self, completions, **columns):
            rewards = super().__call__(completions, **columns)
            calls.append((completions, columns["example"], rewards))
            return rewards

    reward = Recorded(imported, device="cpu")
    before = {role: reward.estimator.roles.weights(role) for role in ("connector", "estimator")}
    tokenizer = load_tokenizer(release.base)
    rows = [json.dumps(example.to_row()) for example in examples]
    dataset = Dataset.from_dict(
        {
            "prompt": [
                [{"role": "user", "content": example.dialogue[-1].text}] for example in examples
            ],
            "example": rows,
        }
    )
    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=8, learning_rate=1e-3, bf16=False, use_cpu=True, report_to="none",
        gradient_checkpointing=False, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    policy = load_model(release.base)
    trainer = GRPOTrainer(
        policy, reward_funcs=reward, args=config, train_dataset=dataset, processing_class=tokenizer
    )
    trainer.train()
    logged = [
        entry["rewards/Recorded/mean"]
        for entry in trainer.state.log_history
        if "rewards/Recorded/mean" in entry
    ]
    assert logged == pytest.approx([np.mean(rewards) for _, _, rewards in calls], abs=1e-6)
    assert len(calls) == 2 and all(len(rewards) == 8 for _, _, rewards in calls)
    completions, given, rewards = calls[-1]
    assert EstimatorReward(imported, device="cpu")(completions, example=given) == pytest.approx(
        rewards, rel=1e-4
    )
    for role, weights in before.items():
        after = reward.estimator.roles.weights(role)
        assert all((after[name] == weight).all() for name, weight in weights.items())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"neither a column 'example' nor 'user_persona'"),
        ({"user_persona": ["a"], "agent_character": ["b"]}, r"nor 'dialogue_context'"),
        ({"example": ["{"]}, r"example of completion 0: not JSON"),
        ({"example": ["[]"]}, r"example of completion 0: found \[\]"),
        (
            {"example": ['{"user_persona": "a"}']},
            r"completion 0 .*: field 'agent_character' is missing",
        ),
        ({"example": []}, r"0 dialogues for 1 completions"),
    ],
)
def test_columns_without_a_dialogue_are_refused(reward, columns, message):
    with pytest.raises(DataError, match=message):
        reward(completions=["a"], **columns)


def test_what_does_not_fit_is_an_error(reward, examples):
    with pytest.raises(TooLongError, match="its response needs 9001; the model holds 8192"):
        reward(completions=["x" * 9000], example=[examples[0].to_row()])


def test_an_unusable_estimator_is_refused_at_once(imported, tmp_path):
    with pytest.raises(
        RecipeError, match="scale is 'nats'; accepted are likelihood, log_likelihood"
    ):
        EstimatorReward(imported, scale="nats")
    with pytest.raises(ArtifactError, match=r"no manifest.json"):
        EstimatorReward(tmp_path)
    copy = shutil.copytree(imported, tmp_path / "copy")
    (copy / "estimator" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        EstimatorReward(copy)


def test_a_score_that_is_no_number_is_an_error(reward, examples):
    weights = reward.estimator.roles.weights("estimator")
    reward.estimator.roles.load_weights(
        "estimator", {name: weight * math.nan for name, weight in weights.items()}
    )
    with pytest.raises(RewardError, match="completion 0 the log-probability nan"):
        reward(completions=["a"], example=[examples[0].to_row()])
