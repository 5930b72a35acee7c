"""`coevolve shift` and `coevolve respond` as a user types them, one after the other."""

import argparse
import json

import pytest

from coevolve.cli import respond, shift
from coevolve.data.corpus import read_corpus
from coevolve.data.responses import read_partial_responses, read_responses
from coevolve.errors import CoevolveError
from coevolve.files import write_json, write_jsonl

FOLDED = {"IDTrain": 3, "IDTest": 3, "OOD1Test": 2, "OOD2Test": 2}


def row(split, index):
    turns = [
        {"user_query": f"{split} asks {index} now"},
        {"agent_response": "Ahoy"},
        {"user_query": "Where to go?"},
    ]
    return {
        "sample_ID": f"{split}-{index}",
        "subset_tag": "german" if split == "OOD1Test" else split,
        "user_persona": f"I am {split}.",
        "agent_character": f"A {split} sailor.",
        "dialogue_context": turns,
        "agent_golden_response": "To sea.",
    }


@pytest.fixture
def data(tmp_path):
    write_json(
        tmp_path / "data.json",
        {split: [row(split, i) for i in range(n)] for split, n in FOLDED.items()},
    )
    return tmp_path / "data.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random model and a tokenizer that knows the words above."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["<unk>", "<|end|>", "Ahoy", "sea", "To", "Where", "go", "?", "."]
    tokens = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|end|>", unk_token="<unk>", chat_template=template
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_shifts_add_up_and_are_answered(data, model, tmp_path, capsys):
    first, second, third = (tmp_path / f"{name}.json" for name in ("first", "second", "third"))
    run(shift, "word_order", "--data", data, "--out", first, "--seed", 1, "--strength", 0.5)
    run(
        shift,
        "longer_turns",
        "--data",
        first,
        "--out",
        second,
        "--turns",
        2,
        "--samples",
        2,
        "--tag",
        "long",
    )
    run(shift, "unseen_character", "--data", second, "--out", third)
    said = capsys.readouterr().err
    assert "3 of them have no golden response" in said and "--golden" in said
    corpus = read_corpus(third, require_golden=False)
    assert list(corpus.subsets("OOD3Test")) == ["word_order", "long"]
    made = corpus.subsets("OOD2Test")["unseen_character"]
    assert {row.agent_character for row in made} == {"A OOD2Test sailor."}
    rows = [
        {"sample_ID": f"unseen_character:IDTest-{index}", "response": f"Golden {index}"}
        for index in range(3)
    ]
    write_jsonl(tmp_path / "golden.jsonl", rows)
    run(
        shift,
        "unseen_character",
        "--data",
        second,
        "--out",
        third,
        "--golden",
        tmp_path / "golden.jsonl",
    )
    examples = [
        example for split in read_corpus(third).test_splits for example in corpus.splits[split]
    ]
    out = tmp_path / "responses.jsonl"
    answer = (
        "--model",
        model,
        "--device",
        "cpu",
        "--max-new-tokens",
        3,
        "--keep-cut-off",
        "--on-failure",
        "drop",
    )
    run(respond, "--data", second, "--out", out, *answer)
    run(respond, "--data", third, "--out", out, *answer)
    said = capsys.readouterr().err
    assert f"{len(examples)} samples" in said
    assert len(read_partial_responses(out, examples).by_id) > len(examples) / 2


def test_a_users_language_from_the_data(data, tmp_path):
    out = tmp_path / "out.json"
    run(shift, "language", "--language", "german", "--data", data, "--out", out, "--seed", 2)
    rows = read_corpus(out, require_golden=False).subsets("OOD1Test")["german_user"]
    assert {row.user_persona for row in rows} == {"I am OOD1Test."}
    drawn = [tmp_path / "first.json", tmp_path / "second.json"]
    for path in drawn:  # without a seed it is 0, not another one each time
        run(
            shift, "language", "--language", "german", "--data", data, "--out", path, "--samples", 1
        )
    assert drawn[0].read_text() == drawn[1].read_text()
    with pytest.raises(
        CoevolveError,
        match=r"--language 'dutch' is no subset_tag of .*: IDTrain, IDTest, g",
    ):
        run(shift, "language", "--language", "dutch", "--data", data, "--out", out)


def test_splits_and_limits_choose_what_is_answered(data, model, tmp_path):
    answer = ("--model", model, "--device", "cpu", "--max-new-tokens", 3, "--keep-cut-off")
    run(
        respond,
        "--data",
        data,
        "--out",
        tmp_path / "a.jsonl",
        "--splits",
        "IDTrain",
        "OOD1Test",
        "--limit",
        1,
        *answer,
    )
    corpus = read_corpus(data)
    chosen = [corpus.splits["IDTrain"][0], corpus.splits["OOD1Test"][0]]
    assert len(read_responses(tmp_path / "a.jsonl", chosen)) == 2
    run(respond, "--data", data, "--out", tmp_path / "g.jsonl", "--subsets", "german", *answer)
    assert len(read_responses(tmp_path / "g.jsonl", corpus.splits["OOD1Test"])) == 2
    with pytest.raises(CoevolveError, match=r"--subsets: found 'dutch'; .* IDTest, german"):
        run(
            respond,
            "--data",
            data,
            "--out",
            tmp_path / "b.jsonl",
            "--subsets",
            "german",
            "dutch",
            *answer,
        )
    flat = tmp_path / "flat.jsonl"
    write_jsonl(flat, [example.to_row() for example in chosen])
    run(respond, "--data", flat, "--out", tmp_path / "a.jsonl", *answer)
    with pytest.raises(CoevolveError, match=r"--splits, --subsets: .* has no splits"):
        run(respond, "--data", flat, "--out", tmp_path / "b.jsonl", "--splits", "IDTest", *answer)
    with pytest.raises(CoevolveError, match="split 'OOD3Test' is needed"):
        run(respond, "--data", data, "--out", tmp_path / "b.jsonl", "--splits", "OOD3Test", *answer)
    with pytest.raises(CoevolveError, match="--limit: found 0"):
        run(respond, "--data", data, "--out", tmp_path / "b.jsonl", "--limit", 0, *answer)
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--concurrency", "3"],
            "--concurrency: of no use with this model, which is local; it is for endpoint",
        ),
        (
            ["--endpoint", "http://h/v1", "--adapter", "x"],
            "--adapter: .* which is endpoint; it is for local and vllm",
        ),
        (["--vllm", "--device", "cpu"], "--device: .* which is vllm; it is for local"),
        (
            ["--endpoint", "http://h/v1", "--extra", "[1]"],
            r"--extra: found '\[1\]'; accepted is a JSON object",
        ),
        (["--endpoint", "http://h/v1", "--extra", "{x"], "--extra: found '{x', which is not JSON"),
        (["--endpoint", "h:80"], "base_url: found 'h:80'"),
        (
            ["--endpoint", "http://h/v1", "--api-key-env", "NOT_SET_ANYWHERE"],
            "'NOT_SET_ANYWHERE' is not set",
        ),
        (["--endpoint", "http://h/v1", "--rate-limit", "0"], "rate_limit: found 0.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, tmp_path, arguments, message):
    with pytest.raises(CoevolveError, match=message):
        run(respond, "--data", data, "--out", tmp_path / "r.jsonl", "--model", "m", *arguments)
    assert not (tmp_path / "r.jsonl").exists()


def test_the_settings_are_in_the_file(data, model, tmp_path):
    answer = (
        "--model",
        model,
        "--device",
        "cpu",
        "--max-new-tokens",
        2,
        "--keep-cut-off",
        "--limit",
        1,
    )
    run(respond, "--data", data, "--out", tmp_path / "r.jsonl", *answer)
    header = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert header["address"] == model and len(header["model"]["weights"]) == 64
    assert (header["model"]["dtype"], header["model"]["temperature"], header["model"]["seed"]) == (
        "float32",
        0.0,
        0,
    )
    with pytest.raises(CoevolveError, match="max_new_tokens was 2 and is now 3"):
        run(respond, "--data", data, "--out", tmp_path / "r.jsonl", *answer, "--max-new-tokens", 3)
