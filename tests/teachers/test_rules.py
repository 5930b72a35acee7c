"""The rule-based teacher: what it says about hand-made responses, about real ones, and about any
text at all.
"""

# ruff: noqa: RUF001  (letters of other scripts are what is tested)

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coevolve.data.example import Example, Turn
from coevolve.errors import RecipeError, TeacherError
from coevolve.prompts import core_features, missing_sections, prompt_set
from coevolve.teachers.features import (
    ACTS,
    LENGTHS,
    TONES,
    Rarity,
    length,
    rarest,
    speech_acts,
    tone,
)
from coevolve.teachers.languages import content_words, keys, language_of, words
from coevolve.teachers.rules import RuleTeacher

BRIEF, ROLEPLAY = prompt_set("brief"), prompt_set("roleplay")


def named_words(trace: str, prompts=BRIEF) -> list[str]:
    """The keywords that the features name. Fails if anything in the features is from outside the
    fixed vocabulary.
    """
    features = core_features(trace, prompts.sections)
    fields = [
        field.rstrip(".").strip() for field in features.split("; " if prompts is BRIEF else "\n")
    ]
    values = [field.partition(": ")[2] or field for field in fields]
    assert len(fields) == 5, features
    acts, named, mood, size, language = values
    assert set(acts.split(", ")) <= set(ACTS)
    assert mood in TONES
    assert size in [name for name, _ in LENGTHS]
    assert language and " " not in language.replace("Arabic script", "")
    return [] if named == "none" else named.split(", ")


def test_a_brief_trace_in_full(dialogues):
    assert RuleTeacher(BRIEF).trace(dialogues[0]) == (
        "[Connections]\ncharacter: bake, bread\n[Core Features of the Golden Response]\n"
        "act: about self; words: sourdough, bread, Sunday; tone: lively; length: short; English"
    )


def test_a_roleplay_trace_in_full(dialogues):
    assert RuleTeacher(ROLEPLAY).trace(dialogues[1]) == (
        "[User Persona]\nIn the user's persona (1 statement), the one on play bears on this turn. "
        "The user writes English.\n"
        "[Agent Character]\nNothing in the character's profile (3 statements) bears on this turn.\n"
        "[Dialogue Context]\nThere have been 3 turns. The user's last one: about self. Its topic: "
        "musician, hat.\n"
        "[Connections]\nThe response takes up play from the user's persona.\n"
        "[Core Features of the Golden Response]\nAct: thank, ask.\nWords: instrument, play.\nTone: "
        "enthusiastic.\n"
        "Length: short.\nLanguage: English."
    )


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("Hi! How are you today?", ("greet", "ask")),
        ("Yes, I'm a nurse.", ("agree", "about self")),
        ("No, not yet.", ("deny",)),
        ("Thank you so much!", ("thank",)),
        ("I'm so sorry to hear that.", ("apologise",)),
        ("You should try the soup.", ("advise",)),
        ("That's really cool! What do you paint?", ("react", "ask")),
        ("Good luck with your exam!", ("wish",)),
        ("The train leaves at nine.", ("state",)),
        ("Goodbye, see you on Monday.", ("take leave",)),
        ("Fire!", ("exclaim",)),
        ("Your hat suits you.", ("about user",)),
    ],
)
def test_speech_acts_of_english_sentences(text, acts):
    assert speech_acts(text, "English") == acts


@pytest.mark.parametrize(
    ("text", "language", "acts"),
    [
        ("Hallo! Ich bin Koch.", "German", ("greet", "about self")),
        ("merci. et toi, tu travailles ?", "French", ("thank", "ask")),
        ("sì, ho due figli.", "Italian", ("agree", "about self")),
        ("lo siento mucho.", "Spanish", ("apologise",)),
        ("terima kasih. apakah anda punya anjing?", "Indonesian", ("thank", "ask")),
        ("你好！你有宠物吗", "Chinese", ("greet", "ask")),
        ("ありがとう。ペットはいますか", "Japanese", ("thank", "ask")),
        ("아니, 나는 학생이야.", "Korean", ("deny", "about self")),
        ("Нет, я живу один.", "Russian", ("deny", "about self")),
        ("متى تصل؟", "Arabic", ("ask",)),
    ],
)
def test_speech_acts_in_other_languages(text, language, acts):
    assert speech_acts(text, language) == acts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I love it!", "enthusiastic"),
        ("Run!", "lively"),
        ("It is a wonderful place.", "warm"),
        ("My dog died last week.", "sad"),
        ("Where is the station?", "curious"),
        ("The station is on the left.", "plain"),
    ],
)
def test_tone(text, expected):
    assert tone(text, speech_acts(text, "English"), "English") == expected


def test_length_counts_words_and_half_the_characters_of_unspaced_scripts():
    assert [length(" ".join(["word"] * n), "English") for n in (4, 5, 8, 9, 14, 15, 24, 25)] == [
        *("very short", "short", "short", "medium", "medium", "long", "long", "very long")
    ]
    assert length("我" * 9, "Chinese") == "short"


def test_rare_words_are_the_telling_ones(make):
    training = [make("We ate pizza with Bob", "pizza?", sample_id=str(n)) for n in range(5)]
    rarity = Rarity([*training, make("An owl ate here", "pizza?", sample_id="owl")])
    assert rarity("owl") > rarity("ate") > rarity("pizza")
    assert rarest(["pizza", "ate", "owl"], rarity, 2) == ("ate", "owl")
    trace = RuleTeacher(BRIEF, training, max_keywords=1).trace(
        make("Bob ate a zebra with pizza", "Well?")
    )
    assert named_words(trace) == ["zebra"]


def test_keywords_are_named_in_the_order_of_the_response(make):
    trace = RuleTeacher(BRIEF).trace(
        make("Cabbages annoy elephants, obviously, in Zanzibar.", "Well?")
    )
    assert named_words(trace) == ["Cabbages", "elephants", "obviously"]


def test_context_keywords_stand_in_x_too(make):
    example = make(
        "My parrots adore chess.", "Tell me.", character={"persona": ["I own a parrot."]}
    )
    assert named_words(RuleTeacher(BRIEF, keywords="context").trace(example)) == ["parrots"]
    assert named_words(RuleTeacher(BRIEF, keywords="telling").trace(example)) == [
        "parrots",
        "adore",
        "chess",
    ]
    assert (
        named_words(RuleTeacher(BRIEF, keywords="context").trace(make("Chess.", "Tell me."))) == []
    )


def test_keywords_are_never_the_whole_response(make):
    assert named_words(RuleTeacher(BRIEF).trace(make("Pizza.", "Your favourite?"))) == []
    assert (
        len(named_words(RuleTeacher(BRIEF).trace(make("Pizza, spaghetti.", "Your favourite?"))))
        == 1
    )


def test_a_response_that_repeats_a_fact_is_not_copied_with_it(make):
    fact = "I produce records for obscure jazz singers."
    for prompts in (BRIEF, ROLEPLAY):
        trace = RuleTeacher(prompts).trace(make(fact, "Your job?", character={"persona": [fact]}))
        assert fact.rstrip(".") not in trace


@pytest.mark.parametrize("prompts", [BRIEF, ROLEPLAY], ids=["brief", "roleplay"])
def test_real_dialogues(corpus, prompts):
    """Rows of every subset: well formed, keywords at most three and from y, y never copied."""
    teacher = RuleTeacher(prompts, corpus.splits["IDTrain"])
    for example in corpus.examples[:: 2 if prompts is BRIEF else 5]:
        trace, response = teacher.trace(example), example.golden_response
        assert not missing_sections(trace, prompts.sections)
        named = named_words(trace, prompts)
        assert len(named) <= 3
        assert all(word in response for word in named)
        assert response.strip(" .!?") not in trace


def test_traces_are_the_same_from_a_teacher_made_again(corpus):
    rows = corpus.examples[::40]
    one, other = (RuleTeacher(BRIEF, corpus.splits["IDTest"]) for _ in range(2))
    assert one.settings == other.settings
    assert [one.trace(row) for row in rows] == [other.trace(row) for row in reversed(rows)][::-1]


def test_what_else_of_a_real_response_a_trace_holds_stands_in_the_context(corpus):
    teacher = RuleTeacher(BRIEF, corpus.splits["IDTrain"])
    vocabulary = {
        word
        for phrase in (*ACTS, *TONES, *(name for name, _ in LENGTHS))
        for word in phrase.split()
    }
    labels = {
        "Connections",
        "Core",
        "Features",
        "Golden",
        "Response",
        "act",
        "words",
        "tone",
        "length",
        "something",
    }
    ours = {
        key
        for word in vocabulary | labels | {"new", "user", "persona", "character", "turn"}
        for key in keys(word)
    }
    for example in corpus.examples[::4]:
        language = language_of(
            example.golden_response, " ".join(turn.text for turn in example.dialogue)
        )
        trace = teacher.trace(example)
        x = f"{example.user_persona}\n{example.agent_character}\n" + "\n".join(
            t.text for t in example.dialogue
        )
        allowed = ours | {key for word in [*named_words(trace), language] for key in keys(word)}
        allowed |= {key for word in content_words(x, language) for key in keys(word)}
        held = {key for word in content_words(trace, language) for key in keys(word)}
        leaked = [
            word
            for word in content_words(example.golden_response, language)
            if keys(word) & held - allowed
        ]
        assert not leaked, (leaked, trace)


def test_brief_traces_of_real_dialogues_are_short(corpus):
    teacher = RuleTeacher(BRIEF, corpus.splits["IDTrain"])
    sizes = sorted(
        len(words(teacher.trace(example), "English")) for example in corpus.splits["IDTest"]
    )
    assert sizes[len(sizes) // 2] <= 24
    assert sizes[-1] <= 30


def test_acts_of_real_english_responses_are_sensible(corpus):
    for example in (*corpus.splits["IDTrain"], *corpus.splits["OOD2Test"]):
        response = example.golden_response
        acts = speech_acts(response, language_of(response))
        if response.startswith(("Thanks", "Thank you")):
            assert "thank" in acts
        if response.endswith("?") and len(acts) < 3:
            assert "ask" in acts
        if "?" not in response:
            assert "ask" not in acts
        if response.startswith(("Yes,", "Yeah,")):
            assert acts[0] == "agree"


def test_most_real_responses_have_a_telling_act(corpus):
    """`state` is what is left; if it were common, the acts would say little."""
    rows = corpus.examples
    vague = 0
    for row in rows:
        language = language_of(row.golden_response, " ".join(turn.text for turn in row.dialogue))
        vague += speech_acts(row.golden_response, language) == ("state",)
    assert vague <= 0.06 * len(rows)


def test_settings_tell_teachers_apart(dialogues):
    teachers = [
        RuleTeacher(BRIEF),
        RuleTeacher(BRIEF, dialogues),
        RuleTeacher(BRIEF, max_keywords=2),
        RuleTeacher(BRIEF, keywords="context"),
    ]
    assert len({str(teacher.settings) for teacher in teachers}) == len(teachers)


def test_a_missing_response_is_named(make):
    with pytest.raises(TeacherError, match="'a-1': agent_golden_response is missing"):
        RuleTeacher(BRIEF).trace(make(None, "Hi"))


@pytest.mark.parametrize("options", [{"keywords": "all"}, {"max_keywords": -1}])
def test_unusable_options_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        RuleTeacher(BRIEF, **options)


def test_a_heading_that_the_rules_do_not_know_is_refused():
    with pytest.raises(RecipeError, match=r"\[Plot\]"):
        RuleTeacher(replace(BRIEF, sections=("[Plot]", "[Features]")))


def test_a_heading_that_the_text_can_hold_is_an_error(make):
    teacher = RuleTeacher(replace(BRIEF, sections=("[Connections]", "turnips")))
    with pytest.raises(TeacherError, match="'turnips' stands in the trace"):
        teacher.trace(make("We grow turnips here.", "Where?"))


texts = st.text(max_size=60) | st.sampled_from(
    ["[Connections]", "<|im_end|>", "```", "Agent Response 1:", "你好，世界！"]
)
visible = texts.filter(lambda text: text.strip())


@st.composite
def any_example(draw) -> Example:
    turns = draw(st.lists(texts, min_size=1, max_size=4))
    dialogue = [Turn("agent", text) for text in turns[:-1]] + [Turn("user", turns[-1])]
    character = draw(
        texts | st.dictionaries(texts, texts | st.lists(texts, max_size=3), max_size=3)
    )
    return Example("any", "any", draw(texts), character, tuple(dialogue), draw(visible))


@settings(deadline=None)
@given(any_example(), st.integers(0, 4), st.sampled_from(["telling", "context"]))
def test_any_text_gives_a_well_formed_trace_that_is_not_the_response(example, most, mode):
    for prompts in (BRIEF, ROLEPLAY):
        teacher = RuleTeacher(prompts, [example], max_keywords=most, keywords=mode)
        trace = teacher.trace(example)
        assert not missing_sections(trace, prompts.sections)
        assert trace == teacher.trace(example)
        named = named_words(trace, prompts)
        assert len(named) <= most
        assert all(word in example.golden_response for word in named)
        language = language_of(
            example.golden_response, " ".join(turn.text for turn in example.dialogue)
        )
        assert len(named) < max(1, len(words(example.golden_response, language)))
