"""A model's own weights as the reader of its responses, against plain forward passes."""

import json

import numpy as np
import pytest

from coevolve.chat.local import LocalChat, weight_fingerprints
from coevolve.chat.reading import OwnWeights, ServedWeights, parts_of, prompt_that_asked
from coevolve.errors import ChatError, TooLongError
from coevolve.prompts import prompt_set
from coevolve.prompts.play import PlayPrompt, play_messages
from coevolve.respond import collect_responses

TEXTS = ["Aye, captain.", "I know nothing of the user!", "A character"]


@pytest.fixture(scope="module")
def reader(model_folder):
    return OwnWeights.load(model_folder, device="cpu")


def plain(model, tokenizer, example, text, messages=None):
    """log p by one forward pass in float64 over the chat as the template renders it."""
    import torch

    chat = messages or play_messages(example, str)
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    whole = tokenizer(prompt + text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logits = model.double()(torch.tensor([whole])).logits[0].log_softmax(-1)
    model.float()
    return sum(float(logits[t - 1, whole[t]]) for t in range(start, len(whole)))


def test_own_scores_are_those_of_plain_forward_passes(reader, tiny_model, tokenizer, examples):
    pairs = np.array([(i, j) for i in range(len(examples)) for j in range(len(TEXTS))])
    scores = reader.log_prob_pairs(examples, TEXTS, [None] * len(examples), pairs)
    expected = [plain(tiny_model, tokenizer, examples[i], TEXTS[j]) for i, j in pairs]
    np.testing.assert_allclose(scores.sum, expected, atol=1e-4)
    assert np.ptp(scores.sum[pairs[:, 1] == 0]) > 1e-3  # the context is seen


def test_the_prompt_can_be_given(model_folder, tiny_model, tokenizer, examples):
    prompt = PlayPrompt(system="", user="Say something to {user_persona}.")
    reader = OwnWeights.load(model_folder, device="cpu", prompt=prompt)
    scores = reader.log_prob_pairs(examples[:1], TEXTS, [None], np.array([(0, 1)]))
    asked = [{"role": "user", "content": "Say something to I play the tuba.."}]
    expected = plain(tiny_model, tokenizer, examples[0], TEXTS[1], asked)
    assert scores.sum[0] == pytest.approx(expected, abs=1e-4)


def test_an_adapter_is_read_on_the_base_that_it_names(
    model_folder, tiny_model, tokenizer, examples, tmp_path
):
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    tuned = get_peft_model(
        copy.deepcopy(tiny_model), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    tuned.peft_config["default"].base_model_name_or_path = model_folder
    tuned.save_pretrained(tmp_path)
    reader = OwnWeights.load(str(tmp_path), device="cpu")
    scores = reader.log_prob_pairs(examples[:1], TEXTS, [None], np.array([(0, 0)]))
    expected = plain(tuned, tokenizer, examples[0], TEXTS[0])
    assert scores.sum[0] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - plain(tiny_model, tokenizer, examples[0], TEXTS[0])) > 1e-2

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": None})
    )
    with pytest.raises(ChatError, match="names no base_model_name_or_path"):
        parts_of(str(tmp_path))


def test_what_was_scored_is_not_scored_again(model_folder, examples, tmp_path):
    pairs = np.array([(0, 0), (0, 1)])
    found = []
    for _ in range(2):
        reader = OwnWeights.load(model_folder, device="cpu", cache=tmp_path)
        found.append(reader.log_prob_pairs(examples[:1], TEXTS, [None], pairs).sum)
    assert reader.cache.found["scores"] == 2
    np.testing.assert_array_equal(*found)


def test_a_text_without_room_is_named(reader, examples):
    with pytest.raises(TooLongError, match=f"sample_ID '{examples[0].sample_id}'"):
        reader.log_prob_pairs(examples[:1], ["word " * 2000], [None], np.array([(0, 0)]))


def test_responses_of_others_are_named_and_not_scored(model_folder, examples):
    import torch

    reader = OwnWeights.load(model_folder, device="cpu")
    others = ["Qz!~ 73 %% xyzzy" for _ in examples]
    reader.require_fit("mine", examples, others)  # its own text is as random as this
    with torch.no_grad():
        reader.model.lm_head.weight.mul_(60)  # now it says little but its own
    with pytest.raises(
        ChatError, match=r"--own mine: the responses have -.* nats per token .*--prompt"
    ):
        reader.require_fit("mine", examples, others)


def completions(model):
    """What a server with this model answers to /completions."""
    import torch

    def answer(number, request):
        ids = request["prompt"]
        assert request["echo"] is True and request["logprobs"] == 1
        for _ in range(request["max_tokens"]):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            ids = [*ids, int(logits[-1].argmax())]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        values = [None, *(float(logs[t - 1, ids[t]]) for t in range(1, len(ids)))]
        return {"body": json.dumps({"choices": [{"logprobs": {"token_logprobs": values}}]})}

    return answer


def test_an_endpoint_gives_the_scores_of_its_weights(
    serve, reader, tiny_model, model_folder, examples, tmp_path
):
    server = serve(completions(tiny_model))
    pairs = np.array([(i, j) for i in range(len(examples)) for j in range(len(TEXTS))])
    expected = reader.log_prob_pairs(examples, TEXTS, [None] * len(examples), pairs)
    for asked in (len(pairs), 0):  # the second time nothing
        before = len(server.requests)
        served = ServedWeights.load(f"{server.url}#{model_folder}", cache=tmp_path)
        scores = served.log_prob_pairs(examples, TEXTS, [None] * len(examples), pairs)
        np.testing.assert_allclose(scores.sum, expected.sum, atol=1e-4)
        np.testing.assert_array_equal(scores.tokens, expected.tokens)
        assert len(server.requests) - before == asked
    served.require_fit("mine", examples, [TEXTS[0]] * len(examples))
    assert server.requests[-1]["max_tokens"] == 32


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"body": json.dumps({"choices": [{"text": "aye", "logprobs": None}]})}, "of all"),
        ({"body": json.dumps({"choices": [{"logprobs": {"token_logprobs": [-1.0]}}]})}, "of all"),
        ({"status": 404, "body": "{}"}, "404"),
        ({"status": 400, "body": '{"error": {"message": "no echo"}}'}, "no echo"),
    ],
)
def test_an_endpoint_without_log_probabilities_of_prompts_is_named(
    serve, model_folder, examples, answer, found
):
    server = serve(lambda number, request: answer)
    served = ServedWeights.load(f"{server.url}#{model_folder}", retries=1)
    with pytest.raises(ChatError, match=r"gives no log-probabilities of prompts .*by vLLM") as told:
        served.log_prob_pairs(examples, TEXTS, [None], np.array([(0, 0), (1, 1)]))
    assert found in str(told.value)


def test_the_record_of_the_responses_says_what_wrote_them(model_folder, examples, tmp_path):
    model = LocalChat.load(
        model_folder, prompt_set("roleplay"), dtype="float32", device="cpu", max_new_tokens=4
    )
    path = tmp_path / "mine.jsonl"
    collect_responses(examples, model, path, keep_cut_off=True, on_failure="drop")
    header = json.loads(path.read_text().splitlines()[0])
    assert prompt_that_asked("mine", str(path), model_folder, header, None) is None
    own = PlayPrompt(user="Speak.")
    assert prompt_that_asked("mine", str(path), model_folder, None, own) == own
    other = {**header, "model": {**header["model"], "weights": "0" * 64}}
    with pytest.raises(ChatError, match="other weights wrote these responses"):
        prompt_that_asked("mine", str(path), model_folder, other, None)
    assert prompt_that_asked("mine", "f", None, other, None) is None  # a server's are not known
    recorded = {**header, "prompt": own.recorded()}
    assert prompt_that_asked("mine", str(path), model_folder, recorded, None) == own
    unknown = {**header, "prompt": "0" * 64}
    with pytest.raises(ChatError, match="a prompt that is not known here"):
        prompt_that_asked("mine", str(path), model_folder, unknown, None)
    assert prompt_that_asked("mine", str(path), model_folder, unknown, own) == own
    assert weight_fingerprints(model_folder, None)["weights"] == header["model"]["weights"]
