"""Dialogues in other formats become a corpus, and all that is wrong with them is said at once."""

import csv
import datetime
import json
from pathlib import Path

import pytest

from coevolve.cli import main
from coevolve.data.corpus import read_corpus
from coevolve.data.formats import FORMATS

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "roleplay-shared.json"
TURNS = [("user", "Hi!"), ("agent", "Ahoy."), ("user", "Where to?"), ("agent", "To sea.")]
CONTEXT = [{"user_query": "Hi!"}, {"agent_response": "Ahoy."}, {"user_query": "Where to?"}]
CARD = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Ada",
        "description": "{{char}} sails.",
        "personality": "calm",
        "first_mes": "Well?",
        "mes_example": "<START>\n{{user}}: Hi!\n{{char}}: Ahoy.\n{{user}}: Where to?\nAda: To\nsea."
        "\n<START>\n{{user}}: Bye.\n{{char}}: Bye.",
    },
}
ROWS = {
    "sharegpt": {
        "system": "Ada, a sailor",
        "conversations": [
            {"from": "human" if who == "user" else "gpt", "value": x} for who, x in TURNS
        ],
    },
    "messages": {
        "messages": [
            {"role": "system", "content": "Ada, a sailor"},
            *({"role": who.replace("agent", "assistant"), "content": x} for who, x in TURNS[:3]),
            {"role": "assistant", "content": [{"type": "text", "text": "To sea."}]},
        ]
    },
    "charactereval": {
        "id": 3,
        "role": "Ada",
        "novel_name": "Waves",
        "context": "Bob\uff1aHi!\nAda\uff1aAhoy.\nBob\uff1aWhere to?\nAda\uff1aTo sea.",
    },
    "rolebench": {"role": "Ada", "question": "Where to?", "generated": ["To sea."]},
    "columns": {"agent_character": "Ada, a sailor", "dialogue_context": CONTEXT}
    | {"agent_golden_response": "To sea."},
}


@pytest.fixture
def convert(tmp_path, capsys):
    """Writes a file and converts it; gives the exit status, what was said, and the corpus."""

    def go(content, *options, name="in.jsonl", out="out.json"):
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        if content is not None:
            (tmp_path / name).write_text(content)
        words = [str(tmp_path / name), "--out", str(tmp_path / out), "--overwrite"]
        status = main(["convert", *words, *map(str, options)])
        printed = capsys.readouterr()
        if status:
            return status, printed.err, None
        assert not printed.err
        return 0, printed.out, read_corpus(tmp_path / out, require_golden=False)

    return go


def only(corpus):
    (example,) = corpus.examples
    return example


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format(convert, name):
    status, said, corpus = convert([ROWS[name]])
    assert status == 0 and f"1 rows, 1 of {name}" in said
    example = only(corpus)
    turns = 1 if name == "rolebench" else 3
    assert example.golden_response == "To sea."
    assert example.to_row()["dialogue_context"] == CONTEXT[-turns:]
    named = {"charactereval": {"name": "Ada", "novel": "Waves"}, "rolebench": {"name": "Ada"}}
    assert example.agent_character == named.get(name, "Ada, a sailor")
    assert example.user_persona == ("Bob" if name == "charactereval" else "")
    assert example.sample_id == ("3" if name == "charactereval" else "in-00000")
    assert ROWS.keys() | {"card"} == FORMATS.keys()


def test_a_card_is_an_example_for_each_of_its_dialogues(convert):
    _, said, corpus = convert(json.dumps(CARD, indent=1), name="ada.json")
    first, second = sorted(corpus.examples, key=lambda x: x.sample_id)
    assert first.to_row()["dialogue_context"] == CONTEXT
    assert (first.golden_response, second.golden_response) == ("To\nsea.", "Bye.")
    character = {"name": "Ada", "description": "{{char}} sails.", "personality": "calm"}
    assert first.agent_character == character
    assert "data.first_mes has no place" in said and "data.mes_example" not in said


def test_characters_come_from_a_card_or_by_name(convert, tmp_path):
    path = tmp_path / "characters.json"
    path.write_text(json.dumps(CARD))
    bare = {"messages": ROWS["messages"]["messages"][1:]}
    _, _, corpus = convert([bare], "--characters", path)
    assert only(corpus).agent_character["name"] == "Ada"
    path.write_text(json.dumps({"Ada": {"job": "sailor"}}))
    _, _, corpus = convert([ROWS["charactereval"]], "--characters", path)
    assert only(corpus).agent_character == {"job": "sailor"}


def test_a_list_is_read_whatever_the_suffix(convert):
    rows = [ROWS["charactereval"] | {"id": n} for n in range(2000)]
    for indent in (None, 2):
        _, said, corpus = convert(json.dumps(rows, indent=indent))
        assert len(corpus.examples) == 2000 and "2,000 of charactereval" in said
    status, said, _ = convert(json.dumps(rows)[:-1])
    assert status == 2 and "not JSON" in said
    assert convert(json.dumps(rows) + "[]")[0] == 2


def as_sharegpt(row):
    names = {"user_query": "human", "agent_response": "gpt"}
    turns = [
        {"from": names[key], "value": text}
        for turn in row["dialogue_context"]
        for key, text in turn.items()
    ]
    kept = {key: row[key] for key in ("subset_tag", "user_persona", "agent_character", "split")}
    golden = [{"from": "gpt", "value": row["agent_golden_response"]}]
    return {**kept, "id": row["sample_ID"], "conversations": turns + golden}


def as_messages(row):
    row, names = as_sharegpt(row), {"human": "user", "gpt": "assistant"}
    turns = row.pop("conversations")
    return {**row, "messages": [{"role": names[x["from"]], "content": x["value"]} for x in turns]}


def as_script(row):
    turns = as_sharegpt(row)["conversations"]
    lines = [f"{'U' if x['from'] == 'human' else 'Ada'}\uff1a{x['value']}" for x in turns]
    kept = {key: row[key] for key in ("sample_ID", "subset_tag", "user_persona", "agent_character")}
    return {**kept, "split": row["split"], "role": "Ada", "context": "\n".join(lines)}


def as_question(row):
    kept = {key: row[key] for key in ("sample_ID", "subset_tag", "user_persona", "agent_character")}
    answer = [row["agent_golden_response"]]
    question = row["dialogue_context"][-1]["user_query"]
    return {**kept, "split": row["split"], "role": "A", "question": question, "generated": answer}


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            objects = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list | dict)}
            writer.writerow(row | objects)


def write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    characters = [{"agent_character": json.dumps(row["agent_character"])} for row in rows]
    pairs = zip(rows, characters, strict=True)
    pq.write_table(pa.Table.from_pylist([row | character for row, character in pairs]), path)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
@pytest.mark.parametrize("form", ["sharegpt", "messages", "script", "question", "csv", "parquet"])
def test_real_dialogues_there_and_back(convert, tmp_path, form):
    corpus = read_corpus(SHARED)
    rows = [
        {"split": name, **row} for name, rows in corpus.to_splits().items() for row in rows[:150]
    ]
    if form == "question":  # which holds one turn
        rows = [row | {"dialogue_context": row["dialogue_context"][-1:]} for row in rows]
    if form == "script":  # which holds no dialogue that begins with nothing but line breaks
        rows = [row for row in rows if "\n" not in json.dumps(row["dialogue_context"])]
    write = {"csv": write_csv, "parquet": write_parquet}.get(form)
    name = f"in.{form if write else 'jsonl'}"
    if write:
        write(tmp_path / name, rows)
    else:
        change = {"sharegpt": as_sharegpt, "messages": as_messages}
        change |= {"script": as_script, "question": as_question}
        (tmp_path / name).write_text("".join(json.dumps(change[form](x)) + "\n" for x in rows))
    status, said, found = convert(None, name=name, out="out.jsonl")
    assert status == 0, said
    expected = {}
    for row in rows:
        expected.setdefault(row["split"], []).append({k: row[k] for k in row if k != "split"})
    assert found.to_splits() == expected


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_our_own_layout_stays_as_it_is(convert):
    corpus = read_corpus(SHARED)
    _, _, found = convert(SHARED.read_text(), name="in.json")
    assert found.fingerprint == corpus.fingerprint


def test_fields_are_mapped(convert):
    rows = [
        {
            "chat": {"turns": ["Hi"]},
            "reply": "Yes.",
            "who": {"facts": ["I row.", "I sing."]},
            "n": n,
        }
        for n in range(3)
    ]
    where = ["dialogue_context=chat.turns.0", "agent_golden_response=reply", "sample_ID=n"]
    _, _, corpus = convert(rows, "--map", *where, "user_persona=who.facts")
    assert {x.sample_id for x in corpus.examples} == {"0", "1", "2"}
    assert {x.user_persona for x in corpus.examples} == {"I row.\nI sing."}
    assert {(x.dialogue[0].text, x.golden_response) for x in corpus.examples} == {("Hi", "Yes.")}


def chats(count=100):
    """Some in German, some long, of ten characters."""
    for n in range(count):
        turns = TURNS[:2] * (8 if n % 10 == 9 else 1)
        yield {
            "id": f"c{n}",
            "language": "de" if n % 5 == 0 else "en",
            "agent_character": {"name": f"name {n % 7}"},
            "messages": [{"role": who, "content": text} for who, text in turns],
        }


def test_splits_by_rule_and_by_lot(convert):
    rules = ["--split", "OOD1Test: language != en", "--split", "OOD3Test: turns > 12"]
    rules += ["--split", "OOD2Test: agent_character.name ~ 0.3"]
    _, said, corpus = convert(list(chats()), *rules, "--test", 0.2, "--seed", 3)
    ids = {name: [x.sample_id for x in rows] for name, rows in corpus.splits.items()}
    assert ids["OOD1Test"] == [f"c{n}" for n in range(0, 100, 5)]
    assert ids["OOD3Test"] == [f"c{n}" for n in range(9, 100, 10)]
    assert {x.subset for x in corpus.splits["OOD1Test"]} == {"de"}
    names = [
        {x.agent_character["name"] for x in corpus.splits[name]} for name in ("IDTrain", "OOD2Test")
    ]
    assert len(names[1]) == 2 and not names[0] & names[1]
    free = len(ids["IDTrain"]) + len(ids["IDTest"])
    assert len(ids["IDTest"]) == round(free * 0.2)
    for name, rows in ids.items():
        assert f"{len(rows)} {name}" in said
    # The same by the same seed, whatever the order of the rows; another by another.
    _, _, again = convert(list(chats())[::-1], *rules, "--test", 0.2, "--seed", 3)
    assert {name: {*rows} for name, rows in ids.items()} == {
        name: {x.sample_id for x in rows} for name, rows in again.splits.items()
    }
    _, _, other = convert(list(chats()), *rules, "--test", 0.2, "--seed", 4)
    assert {x.sample_id for x in other.splits["IDTest"]} != {*ids["IDTest"]}


def test_train_and_test_are_the_splits_in_distribution(convert):
    rows = [ROWS["rolebench"] | {"split": split} for split in ("train", "test", "OOD2Test")]
    _, _, corpus = convert(rows)
    assert set(corpus.splits) == {"IDTrain", "IDTest", "OOD2Test"}


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


def said_by(*turns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


BAD = {
    "an unknown role": (said_by(("narrator", "Hi"), ("gpt", "Yes")), "speaker is not known",
        "'narrator'"),
    "an empty turn": (said_by(("human", " "), ("gpt", "Yes")), "text is empty", "'human'"),
    "a turn without text": (said_by(("human", None), ("gpt", "x")), "text is null", ""),
    "a turn that is none": ({"conversations": [1, {"from": "gpt", "value": "x"}]},
        "has no speaker by", ""),
    "only the agent": (said_by(("gpt", "Yes")), "no turn of the user", ""),
    "the agent twice": (said_by(("human", "a"), ("gpt", "b"), ("gpt", "c")), "ends with the agent",
        ""),
    "a late system": (said_by(("human", "a"), ("system", "b"), ("gpt", "c")), "is a system's",
        "'b'"),
    "a strange object": ({"text": "once"}, "is not of the formats", "text"),
    "no object": ([1], "is no object", "[1]"),
    "an id twice": (ROWS["rolebench"] | {"id": "first"}, "--new-ids", "'first'"),
    "a strange split": (ROWS["rolebench"] | {"split": "dev"}, "split is unknown", "'dev'"),
    "two responses": (ROWS["sharegpt"] | {"agent_golden_response": "No."}, "last turn", "'No.'"),
    "a persona that is none": (ROWS["sharegpt"] | {"user_persona": {"a": 1}},
        "user_persona is an object", ""),
    "half a character": (said_by(("human", "\ud83d"), ("gpt", "x")), "half of a surrogate pair",
        ""),
    "an empty card": ({**CARD, "data": {"name": "Ada"}}, "no example dialogue", "'Ada'"),
    "a card without data": (without(CARD, "data"), "data is null", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_with_their_count(convert, tmp_path, case):
    row, problem, found = BAD[case]
    good = ROWS["rolebench"] | {"id": "first"}
    text = json.dumps(good) + "\n" + f"{json.dumps(row)}\n" * 4
    status, said, _ = convert(text)
    assert status == 2 and not (tmp_path / "out.json").exists()
    (line,) = [line for line in said.splitlines() if problem in line]
    assert line.startswith("  4 x ") and "in.jsonl:2" in line and "in.jsonl:5" not in line
    assert found in line and "4 cannot be converted; nothing is written" in said
    status, said, corpus = convert(text, "--problems", "drop")
    assert status == 0 and line in said and "left out, 4 rows" in said
    assert only(corpus).sample_id == "first"


def test_all_problems_are_said_at_once(convert):
    rows = [row for row, _, _ in BAD.values()]
    rows.insert(0, ROWS["rolebench"] | {"id": "first"})
    _, said, _ = convert(
        "".join(f"{json.dumps(row)}\n" for row in rows) + "{no\n" + '{"a": 1, "a": 2}'
    )
    for _, problem, _ in BAD.values():
        assert problem in said
    assert "not JSON" in said and "is there twice" in said


def test_as_many_kinds_as_rows_are_listed_in_short(convert):
    rows = [ROWS["rolebench"] | {f"key {n}": n} for n in range(500)]
    status, said, _ = convert(rows)
    assert status == 0 and len(said.splitlines()) < 60
    assert "x other fields other problems" in said


def test_bytes_that_are_no_text_are_named(convert, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(json.dumps(ROWS["rolebench"]).encode() + b"\n\xff\xfe\n")
    status, said, _ = convert(None)
    assert status == 2 and "is not UTF-8" in said and "in.jsonl:2" in said
    (tmp_path / "in.csv").write_bytes(b"dialogue_context\n\xff\n")
    assert "is not UTF-8" in convert(None, name="in.csv")[1]


def test_two_formats_in_one_file_are_both_read(convert):
    rows = [ROWS["sharegpt"], ROWS["messages"], ROWS["messages"]]
    _, said, corpus = convert(rows)
    assert "3 rows, 2 of messages, 1 of sharegpt" in said and len(corpus.examples) == 3
    status, said, _ = convert(rows, "--format", "messages")
    assert status == 2 and "1 x row is not of the formats" in said


def test_a_dialogue_that_ends_with_the_user_has_no_golden_response(convert):
    status, said, corpus = convert([said_by(("human", "Hi"), ("gpt", "Yes"), ("human", "So?"))])
    assert status == 0 and only(corpus).golden_response is None
    assert "1 x conversations ends with the user, without a golden response" in said


def test_whatever_is_left_out_has_its_line(convert):
    row = json.loads(json.dumps(ROWS["sharegpt"])) | {"agent_character": "Bob", "source": "reddit"}
    row["conversations"][0]["weight"] = 1
    status, said, corpus = convert([row])
    assert status == 0 and only(corpus).agent_character == "Bob"
    for line in (
        "1 x agent_character is given; the dialogue's own, a system's text or a role, is left out",
        "1 x source has no place in an example and is left out (in.jsonl:1 'reddit')",
        "1 x conversations[].weight has no place in an example and is left out (in.jsonl:1 '1')",
    ):
        assert line in said


def test_roles_can_be_said(convert):
    rows = [said_by(("Narrator", "Hi"), ("ADA", "Ahoy."))]
    assert convert(rows)[0] == 2
    _, _, corpus = convert(rows, "--role", "narrator=user", "Ada=agent")
    assert only(corpus).golden_response == "Ahoy."


def test_a_column_that_some_rows_lack_is_counted(convert):
    text = "dialogue_context,agent_golden_response,mood\nHi,Yes,\nHo,No,sad\n"
    status, said, _ = convert(text, "--map", "user_persona=mood", name="in.csv")
    assert status == 2 and "1 x mood is missing" in said
    status, said, _ = convert(text, "--split", "OOD1Test: mood = sad", name="in.csv")
    assert status == 2 and "1 x mood is missing, which --split looks at" in said
    row = json.dumps(ROWS["rolebench"] | {"mood": "\ud83d"})
    assert "mood has half of a surrogate pair" in convert(row, "--split", "IDTest: mood != a")[1]
    row = json.dumps(ROWS["rolebench"] | {"agent_character": '{"a": 1, "a": 2}'})
    assert "is there twice" in convert(row)[1]
    assert convert(text, name="in.csv")[0] == 0
    status, said, _ = convert(text + "a,b,c,d\n", name="in.csv")
    assert status == 2 and "4 cells under 3 columns" in said and "in.csv:4" in said
    assert "not CSV" in convert('a,b\n"c', name="in.csv")[1]


def test_a_parquet_of_structs(convert, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = {"on": datetime.date(2024, 1, 2)}
    rows = [ROWS["sharegpt"] | {"meta": {"user": {"name": x}}, **day} for x in ("Bob", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    where = ["--map", "user_persona=meta.user.name"]
    status, said, _ = convert(None, *where, name="in.parquet")
    assert status == 2 and "1 x meta.user.name is missing" in said and "in.parquet[1]" in said
    _, said, corpus = convert(None, *where, "--problems", "drop", name="in.parquet")
    assert "1 x on has no place in an example and is left out" in said and "2024-01-02" in said
    assert only(corpus).user_persona == "Bob"
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read as Parquet" in convert(None, name="in.parquet")[1]


@pytest.mark.parametrize(
    "options",
    [
        ("--map", "mood=x"), ("--map", "user_persona"), ("--role", "x=boss"), ("--format", "x"),
        ("--split", "x: a = b"), ("--split", "IDTest: a > b"), ("--split", "IDTest: a ~ 2"),
        ("--test", "1"), ("--test", "nan"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_in_a_line(convert, options):
    status, said, _ = convert([ROWS["rolebench"]], *options)
    assert status == 2 and len(said.splitlines()) == 1 and "accepted" in said


def test_nothing_but_a_converted_file_is_replaced(convert, tmp_path):
    (tmp_path / "out.json").write_text('{"mine": 1}')
    assert "is not a converted or shifted corpus" in convert([ROWS["rolebench"]])[1]
    assert (tmp_path / "out.json").read_text() == '{"mine": 1}'
    for out in ("new.json", "new.jsonl"):
        for _ in range(2):
            assert convert([ROWS["rolebench"]] * 3, out=out)[0] == 0
    words = [str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "new.json")]
    assert main(["convert", *words]) == 2


def test_a_row_says_where_it_was_found(convert, tmp_path):
    convert([ROWS["rolebench"]] * 2, out="out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"in.jsonl:1", "in.jsonl:2"}
