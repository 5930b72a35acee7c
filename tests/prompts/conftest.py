"""What holds a scored response against the conversation that it is in."""

import copy

import pytest
import torch


@pytest.fixture(scope="session")
def conversation():
    """The text of a conversation with its answer, as the template alone has it, and where the
    answer stands in it.
    """

    def rendered(tokenizer, chat, answer, *, own_system=True, unthought="", amid=False):
        if not own_system and chat[0]["role"] == "system":
            system, user, *rest = chat
            chat = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        answered = [*chat, {"role": "assistant", "content": unthought + answer}]
        if amid:
            answered.append({"role": "user", "content": "Why?"})
        text = tokenizer.apply_chat_template(answered, tokenize=False, enable_thinking=False)
        begin = text.rindex(answer)
        return text, begin, begin + len(answer)

    return rendered


@pytest.fixture(scope="session")
def cut():
    """The ids of a text before an answer, and the answer's with the tokens that close it, cut by
    characters.

    A space before the answer is its own: it is in the answer's first token, or a model writes it as
    its first.
    """

    def cut(tokenizer, text, begin, end, closing):
        begin = len(text[:begin].rstrip(" "))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        first = next(place for place, (_, stop) in enumerate(offsets) if stop > begin)
        last = next(place for place, (start, _) in enumerate(offsets) if start >= end)
        assert tokenizer.convert_ids_to_tokens(ids[last : last + len(closing)]) == list(closing)
        return ids[:first], ids[first : last + len(closing)]

    return cut


@pytest.fixture(scope="session")
def plain_score():
    """Nats of a response by one forward pass in float64."""

    @torch.no_grad()
    def score(model, prompt, response):
        logits = (
            copy.deepcopy(model).double()(input_ids=torch.tensor([prompt + response])).logits[0]
        )
        log_probs = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
        return log_probs[range(len(response)), response].sum().item()

    return score


@pytest.fixture(scope="session")
def chats():
    """With and without a system message and turns before."""
    system = {"role": "system", "content": "You are a sailor, and brief."}
    hi, aye, where = (
        {"role": role, "content": text}
        for role, text in (("user", "Hi!"), ("assistant", "Aye."), ("user", "Where to?"))
    )
    return (
        [system, {"role": "user", "content": "What would you do there?"}],
        [where],
        [system, hi, aye, where],
    )


@pytest.fixture(scope="session")
def answers():
    return (
        *(
            "Lisbon, at dawn.",
            '"Aye"',
            "12 days",
            "(two) harbours",
            "I",
            "\u4f60\u597d",
            "\U0001f600!",
            "one\ntwo",
        ),
    )
