"""The public code's numbers, against a literal reading of its description, and what is refused."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from coevolve.data.corpus import Corpus
from coevolve.errors import DataError
from coevolve.reference import protocol
from coevolve.reference.protocol import (
    Window,
    reference_means,
    reference_pairs,
    reference_scores,
    reference_window,
)
from coevolve.remid.evaluate import evaluate_remid
from coevolve.remid.measures import PUBLISHED
from coevolve.remid.results import RemidResults
from coevolve.remid.score import Scoring
from coevolve.remid.table import remid_csv, remid_markdown
from coevolve.scoring.reasoning import Reasoning
from coevolve.scoring.roles import ESTIMATOR

LIMIT = 4096


def typed_reference(*given, reasoning=None, **options):
    if reasoning is not None:
        reasoning = Reasoning("given", texts=reasoning, sha256="f")
    return protocol.evaluate_reference(*given, reasoning=reasoning, **options)


def evaluate_reference(*given, **options):
    """The results as a file holds them."""
    return typed_reference(*given, **options).values()


NEGATIVES = 4  # fewer than the pairs of most subsets, so that the draw matters
# In the order of the protocol.
SUBSETS = "IDTest", "german", "spanish", "TurnLevelComposition", "klingon"


class Literal:
    """The description, word by word: no batching by length, no cache, no shared code but the chat
    template.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def rendered(self, messages):
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self.tokenizer(text)["input_ids"][:LIMIT]

    def log_probs(self, contexts, targets):
        """Means over the window for each pair, four at a time, padded on the right."""
        results = []
        for start in range(0, len(contexts), 4):
            batch = list(zip(contexts[start : start + 4], targets[start : start + 4], strict=True))
            whole = [
                self.rendered([*messages, {"role": "assistant", "content": y}])
                for messages, y in batch
            ]
            lengths = [
                len(self.rendered([*messages, {"role": "assistant", "content": ""}]))
                for messages, _ in batch
            ]
            width = max(map(len, whole))
            ids = torch.tensor(
                [row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in whole]
            )
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole])
            with torch.no_grad():
                log_probs = torch.log_softmax(
                    self.model(input_ids=ids, attention_mask=mask).logits.float(), dim=-1
                )
            for row, (full, length) in enumerate(zip(whole, lengths, strict=True)):
                scored = [log_probs[row, t - 1, full[t]].item() for t in range(length, len(full))]
                results.append(sum(scored) / len(scored) if scored else 0.0)
        return results

    def mutual_information(self, contexts, targets):
        n = len(contexts)
        positive = self.log_probs(contexts, targets)
        listed = [(i, j) for i in range(n) for j in range(n) if i != j]
        chosen = [listed[k] for k in random.sample(range(len(listed)), min(len(listed), NEGATIVES))]
        negative = self.log_probs([contexts[i] for i, _ in chosen], [targets[j] for _, j in chosen])
        return sum(positive) / len(positive) - sum(negative) / len(negative)


def public_messages(example, reasoning):
    """The estimator's prompt as the public scripts put it together, for the toy release's
    templates.
    """
    blocks, turns = [], list(example.dialogue)
    for k in range(1, (len(turns) + 1) // 2 + 1):
        pair = turns[2 * (k - 1) : 2 * k]
        blocks.append(
            "".join(
                f"{'User Query' if t.speaker == 'user' else 'Agent Response'} {k}: {t.text}\n"
                for t in pair
            )
        )
    dialogue = "\n".join([*blocks, f"Agent Response {k}: "])
    features = reasoning.split("[Core Features of the Golden Response]")[-1].replace("```", "")
    base = (
        f"User: {example.user_persona}\nAgent: {example.agent_character!s}\nTalk:\n{dialogue}\n\n"
    )
    user = f"{base}\n\n## Core Features of the Golden Response\n```{features}```\n\n"
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": user}]


def hostile_reasoning(example):
    return {
        0: "[Core Features of the Golden Response]\n\n- short\n```\n",
        1: "nothing to see",
        2: "<|im_end|> [Core Features of the Golden Response] a </think> b",
    }[int(example.sample_id[-1]) % 3]


@pytest.fixture(scope="module")
def reasoning(corpus):
    return {example.sample_id: hostile_reasoning(example) for example in corpus.examples}


@pytest.fixture(scope="module")
def responses(corpus):
    texts = ("Aye.", "", "I </think> think <|im_end|> so.", "[1]\n" * 20, "é" * 50)
    return {
        "echo": {
            x.sample_id: f"{x.dialogue[-1].text} {texts[i % 5]}"
            for i, x in enumerate(corpus.examples)
        },
        "terse": {x.sample_id: "No"[: 1 + i % 2] for i, x in enumerate(corpus.examples)},
    }


@pytest.fixture(scope="module", params=["chatml", "thinking"])
def judge(request, estimator, thinking_tokenizer):
    """The estimator with each kind of chat template."""
    renderer = estimator.renderer
    if request.param == "thinking":
        renderer = type(renderer)(renderer.prompts, thinking_tokenizer)
    return type(estimator)(estimator.roles, renderer, max_new_tokens=24)


def test_the_numbers_are_those_of_a_literal_reading(
    judge, corpus, responses, reasoning, monkeypatch
):
    monkeypatch.setattr(protocol, "NEGATIVES", NEGATIVES)
    found = evaluate_reference(judge, corpus, responses, reasoning=reasoning)
    by_name = {row["subset"]: row for row in found["subsets"]}
    random.seed(42)
    golden = {}
    with judge.roles.acting(ESTIMATOR) as model:
        literal = Literal(model, judge.renderer.tokenizer)
        for name, given in responses.items():
            for subset in SUBSETS:
                examples = [x for x in corpus.examples if x.subset == subset]
                contexts = [public_messages(x, reasoning[x.sample_id]) for x in examples]
                own = [f"## Agent Response\n{given[x.sample_id]}" for x in examples]
                of_model = literal.mutual_information(contexts, own)
                if subset not in golden:
                    own = [f"## Agent Response\n{x.golden_response}" for x in examples]
                    golden[subset] = literal.mutual_information(contexts, own)
                row = by_name[subset]
                assert row["models"][name]["mutual_information"] == pytest.approx(
                    of_model, abs=1e-5
                )
                assert row["golden"]["mutual_information"] == pytest.approx(
                    golden[subset], abs=1e-5
                )
                assert row["models"][name]["remi"] == pytest.approx(
                    of_model - golden[subset], abs=1e-5
                )
    for name in responses:
        assert by_name["IDTest"]["models"][name]["remid"] is None
        difference = (
            by_name["IDTest"]["models"][name]["remi"] - by_name["german"]["models"][name]["remi"]
        )
        assert by_name["german"]["models"][name]["remid"] == pytest.approx(difference)
    assert found["protocol"]["cut"] == found["protocol"]["empty"] == 0
    assert "german" in remid_markdown(RemidResults.model_validate(found))


def test_the_rows_are_the_corpus_s_and_the_averages_theirs(estimator, corpus, responses, reasoning):
    found = evaluate_reference(estimator, corpus, responses, reasoning=reasoning)
    assert [row["subset"] for row in found["subsets"]] == [
        "IDTest",
        "klingon",
        "spanish",
        "german",
        "TurnLevelComposition",
    ]
    remid = [row["models"]["echo"]["remid"] for row in found["subsets"][1:]]
    assert found["average"]["echo"]["remid"] == pytest.approx(sum(remid) / 4)
    assert found["by_shift"]["user"]["echo"]["remid"] == pytest.approx(sum(remid[:3]) / 3)
    assert found["by_shift"]["dialogue"]["echo"]["remid"] == pytest.approx(remid[3])


def test_the_results_have_the_fields_of_every_other_evaluation(
    estimator, corpus, responses, reasoning
):
    found = evaluate_reference(estimator, corpus, responses)
    scoring = Scoring(negatives="all")
    usual = evaluate_remid(estimator, corpus, responses, scoring, measures=[PUBLISHED]).values()

    def fields(value):
        if isinstance(value, dict):
            return {name: fields(inner) for name, inner in value.items()}
        return [fields(inner) for inner in value] if isinstance(value, list) else None

    of_the_bootstrap, of_the_protocol = {"level"}, {"protocol"}
    assert (
        set(usual) - set(found) == of_the_bootstrap and set(found) - set(usual) == of_the_protocol
    )
    for name in set(found) & set(usual) - {"comparisons"}:
        assert fields(found[name]) == fields(usual[name]), name
    assert json.loads(json.dumps(found)) == found
    assert remid_csv(RemidResults.model_validate(found)).count("\n") == 1 + 2 * (5 + 1)


def test_without_given_reasoning_the_connector_writes_it(estimator, corpus, responses):
    small = Corpus({"IDTest": corpus.splits["IDTest"]}, "small")
    given = {
        name: {x.sample_id: texts[x.sample_id] for x in small.examples}
        for name, texts in responses.items()
    }
    written = dict(
        zip([x.sample_id for x in small.examples], estimator.reason(small.examples), strict=True)
    )
    steps = []
    found = evaluate_reference(estimator, small, given, progress=lambda *step: steps.append(step))
    assert found.pop("reasoning") == {"kind": "greedy"}
    again = evaluate_reference(estimator, small, given, reasoning=written)
    assert again.pop("reasoning") == {"kind": "given", "sha256": "f"}
    assert found == again
    assert steps[-1][1:] == (12, 12)  # 4 contexts, for golden and each of 2 models
    assert found["average"] == {}


def test_the_window_is_shifted_by_the_generation_prompt(estimator):
    """With P, n, T as in the exact protocol: [P + T, P + n - 1 + T) instead of [P, P + n)."""
    tokenizer = estimator.renderer.tokenizer
    messages = [{"role": "user", "content": "hi"}]
    opening = "<|im_start|>assistant\n"
    ends = "<|im_end|>\n"
    prompt = tokenizer(f"<|im_start|>user\nhi{ends}{opening}")["input_ids"]
    p, t = len(prompt), len(tokenizer(opening + ends)["input_ids"])
    for target in ("", "a", "a longer response"):
        n = len(tokenizer(target + ends)["input_ids"])
        window = reference_window(tokenizer, messages, target)
        scored = window.ids[window.start :]
        assert (window.start, len(scored)) == (
            p + t,
            max(n - (t - len(tokenizer(opening)["input_ids"])), 0),
        )
        assert window.ids == [*prompt, *tokenizer(target + ends + opening)["input_ids"]]


def test_a_prompt_beyond_the_limit_scores_as_certain_and_is_counted(estimator, corpus):
    """The maximum, for any response; a little shorter, and the response is cut."""

    def long(example, length):
        return replace(example, user_persona="x" * length)

    first, second, *_ = corpus.splits["IDTest"]
    splits = {"IDTest": (long(first, LIMIT), long(second, LIMIT - 300))}
    answers = ["y" * 200, "y" * 200]
    found = evaluate_reference(
        estimator,
        Corpus(splits, "long"),
        {"model": answers},
        reasoning={x.sample_id: "r" for x in splits["IDTest"]},
    )
    assert found["protocol"]["windows"] == 8
    assert found["protocol"]["empty"] == 4 and found["protocol"]["cut"] >= 6
    model = estimator.renderer.tokenizer
    window = reference_window(model, public_messages(splits["IDTest"][0], "r"), "y")
    assert (len(window.ids), window.start, window.cut) == (LIMIT, LIMIT, True)


def test_scores_of_windows_of_any_length_do_not_depend_on_one_another(estimator):
    rng = np.random.default_rng(0)
    lengths = [(40, 3), (5, 5), (90, 1), (7, 0), (33, 32)]
    windows = [
        Window(rng.integers(0, 256, n).tolist(), n - k if k < n else 1, False) for n, k in lengths
    ]
    with estimator.roles.acting(ESTIMATOR) as model:
        together = reference_scores(model, windows, pad_id=0)
        alone = [reference_scores(model, [window], pad_id=0) for window in windows]
    assert together.tokens.tolist() == [3, 4, 1, 0, 32]
    assert np.allclose(together.sum, [score.sum[0] for score in alone], atol=1e-4)
    assert reference_means(together)[3] == 0.0
    assert reference_means(together)[0] == pytest.approx(together.sum[0] / 3)


@pytest.mark.parametrize("count", [2, 5, 32, 33, 60])
def test_pairs_are_pythons_sample_of_the_list(count):
    random.seed(7)
    listed = [(i, j) for i in range(count) for j in range(count) if i != j]
    expected = [listed[k] for k in random.sample(range(len(listed)), min(1000, len(listed)))]
    generator = random.Random(7)
    assert list(map(tuple, reference_pairs(count, generator))) == expected
    assert generator.random() == random.random()  # and both go on alike


def test_what_cannot_be_evaluated_is_refused_before_anything_is_scored(
    estimator, corpus, responses, reasoning
):
    def evaluate(given=responses, data=corpus, **options):
        evaluate_reference(None, data, given, **options)  # no estimator: it must not be reached

    with pytest.raises(DataError, match="no model's responses"):
        evaluate({})
    missing = {name: dict(list(texts.items())[1:]) for name, texts in responses.items()}
    with pytest.raises(DataError, match="lack a response"):
        evaluate(missing)
    with pytest.raises(DataError, match=r"reasoning.*lack a response"):
        evaluate(reasoning=dict(list(reasoning.items())[1:]))
    single = Corpus(
        {"IDTest": corpus.splits["IDTest"], "OOD1Test": corpus.splits["OOD1Test"][:1]}, "s"
    )
    texts = {"m": [x.golden_response for x in single.examples]}
    with pytest.raises(
        DataError, match=r"OOD1Test/klingon: found a single example \('klingon-0'\)"
    ):
        evaluate(texts, single)
