"""A teacher by vLLM, on a CPU and for real: alone, and in a run of one and of two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coevolve.cli import main
from coevolve.libraries import vllm
from coevolve.teachers import LocalTeacher, RuleTeacher, collect_traces
from tests.teachers.test_local_teacher import teach

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(vllm.missing() is not None, reason=str(vllm.missing())),
]
SFT = {"steps": 1, "learning_rate": 1e-3, "train_batch_size": 2}
TURNS = ("bake bread", "play the tuba", "sail", "read", "dance", "swim", "paint", "cook", "sing")


@pytest.fixture(scope="module")
def taught(build_model, renderer, make, tmp_path_factory):
    """The folder of a model that writes traces of some examples; the examples, and their traces."""
    folder, rules = tmp_path_factory.mktemp("teacher"), RuleTeacher(renderer.prompts)
    examples = [
        make(f"Yes, I {turn}.", f"Do you {turn}?", sample_id=f"IDTrain-{turn.split()[0]}")
        for turn in TURNS
    ]
    traces = {example.sample_id: rules.trace(example) for example in examples}
    model = build_model()
    assert teach(model, renderer, examples, [*traces.values()], steps=150) < 0.02
    model.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
    return str(folder), examples, traces


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def test_its_replies_become_traces_and_only_those_that_lack_are_asked_for(
    taught, renderer, monkeypatch, tmp_path
):
    source, examples, traces = taught
    how = {"dtype": "float32", "max_new_tokens": 80, "vllm": {}}
    teacher = LocalTeacher.load(source, renderer.prompts, **how)
    assert teacher.settings["kind"] == "vllm"
    file = tmp_path / "traces.jsonl"
    assert collect_traces(examples, teacher, file) == traces
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:6]))
    asked, complete = [], vllm.Here.complete
    monkeypatch.setattr(
        vllm.Here,
        "complete",
        lambda self, ask, poll: asked.extend(ask) or complete(self, ask, poll),
    )
    assert collect_traces(examples, teacher, file) == traces and len(asked) == len(TURNS) - 5
    teacher.close()


def recipe(taught, folder):
    source, examples, _ = taught
    rows = [example.to_row() for example in examples]
    test = [{**row, "sample_ID": row["sample_ID"].replace("Train", "Test")} for row in rows[:2]]
    data = folder / "dialogues.json"
    data.write_text(json.dumps({"IDTrain": rows, "IDTest": test}))
    (folder / "recipe.yaml").write_text(
        json.dumps(
            {
                "name": "taught",
                "prompts": "brief",
                "data": {"path": str(data), "validation": 2},
                "model": {"base": source, "dtype": "float32", "device": "cpu", "max_length": 480}
                | {"max_reasoning_tokens": 32, "tuning": "lora", "lora": {"r": 4}},
                "traces": {"teacher": "local", "model": source, "max_new_tokens": 80}
                | {"use_vllm": True},
                "cold_start": {"connector": SFT, "estimator": SFT},
                "rounds": {"count": 0},
                # Evaluation before and behind the oracle's traces is by the run's own engine.
                "connector_rl": {**SFT, "num_generations": 2, "use_vllm": True},
                "baselines": {"without_corl": False, "without_reasoning": False, "oracle": True},
                "evaluation": {"marginal_samples": 2},
            }
        )
    )
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_has_its_traces_by_the_engine_and_gives_it_back(
    taught, processes, monkeypatch, tmp_path
):
    run, seen = tmp_path / "run", []
    command = ["train", recipe(taught, tmp_path), "--output-dir", str(run)]
    if processes == 1:
        for name in ("__init__", "close"):
            work = getattr(vllm.Here, name)
            noted = lambda *args, name=name, work=work: seen.append(name) or work(*args)  # noqa: E731
            monkeypatch.setattr(vllm.Here, name, noted)
        assert main(command) == 0
        assert (
            seen == ["__init__", "close"] * 3
        )  # the teacher's, the run's, the teacher's; one at once
    else:
        torchrun = str(Path(sys.executable).parent / "torchrun")
        words = [torchrun, "--standalone", "--nproc_per_node", "2", "-m", "coevolve", *command]
        subprocess.run(words, check=True, timeout=300, capture_output=True)
    lines = [json.loads(line) for line in (run / "traces.jsonl").read_text().splitlines()]
    assert lines[0]["teacher"]["kind"] == "vllm"
    found = {line["sample_ID"]: line["trace"] for line in lines[1:]}
    assert len(found) == len(TURNS) - 2 and found.items() <= taught[2].items()
    assert (run / "oracle" / "IDTest.jsonl").is_file()
