"""One count of words for texts in any script."""

# ruff: noqa: RUF001  (letters of other scripts are what is tested)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coevolve.data.words import pieces, words
from coevolve.training.rewards.functions import features_length, word_overlap


@given(st.text(st.characters(max_codepoint=0xDFF)))
def test_in_scripts_with_spaces_words_are_what_stands_between_them(text):
    assert words(text) == text.split()
    assert [piece[0] for piece in pieces(text)] == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，我喜欢狗。", ["你", "好", "我", "喜", "欢", "狗"]),
        ("私はコーヒーを飲む！", ["私", "は", "コ", "ー", "ヒ", "ー", "を", "飲", "む"]),
        ("나는 커피를 마셔.", ["나는", "커피를", "마셔."]),
        ("ฉันดื่ม กาแฟ", ["ฉั", "น", "ดื่", "ม", "ก", "า", "แ", "ฟ"]),
        ("ຂ້ອຍ", ["ຂ້", "อ".replace("อ", "ອ"), "ຍ"]),
        ("មេឃ", ["មេ", "ឃ"]),
        ("လမ်း", ["လ", "မ်း"]),
        ("我用 Python 3.12, 好吗?", ["我", "用", "Python", "3.12,", "好", "吗"]),
        ("well - yes ...", ["well", "-", "yes", "..."]),
        ("", []),
    ],
)
def test_where_there_are_no_spaces_a_character_is_a_word(text, expected):
    assert words(text) == expected


@given(st.text(st.sampled_from("你好狗ไทยกำ่ .a，-")))
def test_nothing_but_space_and_cut_off_punctuation_is_lost(text):
    assert "".join(piece[0] for piece in pieces(text)) == "".join(text.split())
    assert [letter for word in words(text) for letter in word if letter.isalnum()] == [
        letter for letter in text if letter.isalnum()
    ]


def test_rewards_count_them():
    features = "语气温暖，提到用户的狗，简短。"
    assert features_length(features, 24) == features_length(features * 2, 24) == 0.5
    assert features_length("warm, about the user's dog, Warm, brief", 12) == 0.5
    assert word_overlap("你好，我喜欢狗", "你好，我喜欢狗。") == 1
    assert word_overlap("回答应当提到狗。并且简短", "我喜欢狗。") == 0.25
    assert word_overlap("Hello, I like dogs.", "I like cats.") == 2 / 3
