"""The estimator in EleutherAI's harness: its scores, its command, its task."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="needs: pip install lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from coevolve.errors import DataError  # noqa: E402
from coevolve.lm_eval import TASKS, EstimatorLM  # noqa: E402
from coevolve.lm_eval.model import greedy_rows  # noqa: E402
from coevolve.scoring.roles import ESTIMATOR  # noqa: E402


@pytest.fixture(scope="module")
def lm(imported):
    """As the harness makes it."""
    assert get_model("coevolve") is EstimatorLM
    return get_model("coevolve").create_from_arg_string(
        f"pretrained={imported},token_budget=2000",
        {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
    )


def requests(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def row(example):
    return json.dumps(
        {k: v for k, v in example.to_row().items() if k != "agent_golden_response"},
        ensure_ascii=False,
    )


@pytest.fixture(scope="module")
def expected(estimator, corpus):
    examples = corpus.examples[:6]
    reasoning = estimator.reason(examples)
    golden = [example.golden_response for example in examples]
    return examples, reasoning, estimator.log_prob(examples, golden, reasoning)


def test_dialogues_score_as_ours(lm, expected):
    examples, _, scores = expected
    found = lm.loglikelihood(
        requests("loglikelihood", [(row(x), x.golden_response) for x in examples])
    )
    assert [value for value, _ in found] == pytest.approx(scores.sum.tolist(), abs=1e-4)


def test_rendered_prompts_score_as_ours(lm, estimator, expected):
    examples, reasoning, scores = expected
    prompts = [
        estimator.renderer.estimator(x, text) for x, text in zip(examples, reasoning, strict=True)
    ]
    pairs = [(prompt, x.golden_response) for prompt, x in zip(prompts, examples, strict=True)]
    found = lm.loglikelihood(requests("loglikelihood", pairs))
    assert [value for value, _ in found] == pytest.approx(scores.sum.tolist(), abs=1e-4)


def test_the_estimators_own_response_is_greedy_and_no_other(lm, corpus):
    contexts = [row(x) for x in corpus.examples[:3]] + ["", "once upon"]
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}
    written = lm.generate_until(
        requests("generate_until", [(context, options) for context in contexts])
    )
    ids = [lm._prompts([context])[0] for context in contexts]
    with lm.estimator.roles.acting(ESTIMATOR) as model, torch.no_grad():
        for prompt, text in zip(ids, written, strict=True):
            greedy = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0][
                len(prompt) :
            ]
            assert lm.estimator.renderer.decode(greedy.tolist()) == text
    stopped = lm.generate_until(
        requests(
            "generate_until",
            [
                (context, {"until": [text[3:5]], "max_gen_toks": 12})
                for context, text in zip(contexts, written, strict=True)
                if len(text) > 5
            ],
        )
    )
    assert stopped == [text.partition(text[3:5])[0] for text in written if len(text) > 5]


def test_greedy_rows_against_argmax(estimator):
    """On targets that were continued greedily for some tokens, and then perhaps not."""
    rng = np.random.default_rng(0)
    prompts, targets, expected = [], [], []
    with estimator.roles.acting(ESTIMATOR) as model, torch.no_grad():
        for index in range(8):
            prompt = rng.integers(0, 256, 3 + index).tolist()
            row = list(prompt)
            for _ in range(1 + index % 4):
                row.append(model(input_ids=torch.tensor([row])).logits[0, -1].argmax().item())
            target = row[len(prompt) :]
            if index % 2:
                place = rng.integers(len(target))
                target[place] = (target[place] + 1) % 256
            prompts.append(prompt)
            targets.append(target)
            expected.append(index % 2 == 0)
        for budget in (1, 40, 1000):
            assert greedy_rows(model, prompts, targets, pad_id=0, token_budget=budget) == expected


def test_rolling_scores_predict_every_token_once(lm, estimator):
    """A text within the model's length, and one beyond it: there with all the context that fits."""
    renderer = estimator.renderer
    limit = 8192
    texts = ["", "a tale", "x y" * 3000]
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    assert found[0] == 0
    for text, value in zip(texts[1:], found[1:], strict=True):
        ids = [renderer.end_of_turn_id, *renderer.prompt_ids(text)]
        windows = [(ids[:limit], 1)] + (
            [(ids[-limit:], limit - (len(ids) - limit))] if len(ids) > limit else []
        )
        total = 0.0
        with estimator.roles.acting(ESTIMATOR) as model, torch.no_grad():
            for window, start in windows:
                log_probs = torch.log_softmax(
                    model(input_ids=torch.tensor([window])).logits[0].double(), dim=-1
                )
                total += sum(log_probs[t - 1, window[t]].item() for t in range(start, len(window)))
        assert value == pytest.approx(total, rel=1e-6)


def test_chat_templates(lm, estimator, expected):
    chat = [{"role": "user", "content": "hi"}]
    assert lm.apply_chat_template(chat) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    begun = lm.apply_chat_template(
        [*chat, {"role": "assistant", "content": "so"}], add_generation_prompt=False
    )
    assert begun.endswith("<|im_start|>assistant\nso")
    dialogue = row(expected[0][0])
    assert lm.apply_chat_template([{"role": "user", "content": dialogue}]) == dialogue
    assert lm.chat_template(True) == estimator.renderer.tokenizer.chat_template


def test_what_cannot_be_scored_is_refused(lm):
    with pytest.raises(DataError, match="request 0: the continuation is empty"):
        lm.loglikelihood(requests("loglikelihood", [("a", " ")]))
    with pytest.raises(DataError, match=r"request 1.*: field 'sample_ID' is missing"):
        lm.loglikelihood(requests("loglikelihood", [("a", "b"), ('{"dialogue_context": []}', "b")]))
    with pytest.raises(DataError, match="request 0: asks for sampling"):
        lm.generate_until(
            requests("generate_until", [("a", {"do_sample": True, "temperature": 0.7})])
        )
    assert lm.loglikelihood(requests("loglikelihood", [("{no dialogue", "b")]))[0][0] < 0


def check_results(found, estimator, examples):
    golden = [example.golden_response for example in examples]
    scores = estimator.log_prob(examples, golden, estimator.reason(examples)).sum
    bits = -scores.sum() / sum(len(text.encode()) for text in golden) / math.log(2)
    assert found["log_prob,none"] == pytest.approx(scores.mean(), abs=1e-4)
    assert found["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)


def test_the_task(lm, estimator, corpus, tmp_path):
    corpus.to_json(tmp_path / "data.json")
    metadata = {"data": str(tmp_path / "data.json")}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(
        lm,
        tasks=["coevolve_roleplay"],
        task_manager=manager,
        bootstrap_iters=0,
        apply_chat_template=True,
    )
    check_results(results["results"]["coevolve_roleplay"], estimator, corpus.splits["IDTest"])
    with pytest.raises(DataError, match="coevolve_roleplay: no data"):
        TaskManager(include_path=str(TASKS), include_defaults=False).load(["coevolve_roleplay"])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ours", "theirs"])
def test_the_command(imported, estimator, corpus, tmp_path, way):
    """`python -m coevolve.lm_eval`, and the harness's own command with the task as a file."""
    corpus.to_json(tmp_path / "data.json")
    if way == "ours":
        command = ["-m", "coevolve.lm_eval", "--tasks", "coevolve_roleplay"]
    else:
        command = ["-m", "lm_eval", "--tasks", str(TASKS / "roleplay.yaml")]
    metadata = {"data": str(tmp_path / "data.json"), "split": "OOD1Test"}
    command += ["--model", "coevolve", "--model_args", f"pretrained={imported}"]
    command += ["--metadata", json.dumps(metadata), "--output_path", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    written = next((tmp_path / "out").rglob("results_*.json"))
    found = json.loads(written.read_text())["results"]["coevolve_roleplay"]
    check_results(found, estimator, corpus.splits["OOD1Test"])
