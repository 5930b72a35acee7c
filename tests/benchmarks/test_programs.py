"""Each benchmark runs on a tiny model and prints JSON with finite ratios. What it measures there is
of no interest.
"""

import importlib
import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from coevolve.libraries import vllm
from tests.benchmarks import prompt_layout, workload

ROOT = Path(__file__).parents[2]
TINY = ("--base", "tiny", "--repeats", "1", "--context", "40", "--response", "6")
STEP = (*TINY, "--steps", "1", "--group", "4", "--completion", "6")
GROWTH = (
    "--n-sizes",
    "2",
    "4",
    "--context-sizes",
    "32",
    "64",
    "--response-sizes",
    "4",
    "8",
    "--models-sizes",
    "1",
    "2",
)

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs: pip install lm-eval"
)

PROGRAMS = [
    pytest.param(
        "matrix", (*TINY, "--n", "3", "--peer-pairs", "4"), "memory_ratio", marks=needs_lm_eval
    ),
    ("more_models", (*TINY, "--n", "3"), "cost_of_one_more"),
    ("group_reward", (*TINY, "--group", "3", "--reasoning", "5"), "memory_ratio"),
    ("connector_step", STEP, "step_time_ratio"),
    ("connector_step", (*STEP, "--peer", "reload"), "step_time_ratio"),
    ("coevolution_memory", STEP, "memory_ratio"),
    (
        "generation",
        (*TINY[:6], "--contexts", "2", "--group", "2", "--completion", "4"),
        "tokens_per_s",
    ),
    ("club_error", (*TINY, "--n", "6", "--peer-pairs", "4"), "error_ratio"),
    ("self_check", TINY[:6], "ratio"),
    (
        "connector_objectives",
        (
            *("--steps", "1", "--train", "40", "--test", "8", "--cold", "2", "--sft", "1"),
            *("--variants", "none", "bound + length"),
        ),
        "variants",
    ),
    ("growth", ("--base", "tiny", *GROWTH), "growth"),
    (
        "qwen3_8b",
        ("--shape", "tiny", *TINY[2:], "--n", "2", "--group", "2", "--completion", "4"),
        "scoring",
    ),
]


def numbers(value):
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def check(report, name, figure):
    assert report["benchmark"] == name
    assert report["machine"]["torch"]
    assert numbers(report[figure])
    assert all(math.isfinite(number) for number in numbers(report))
    assert report.get("largest_difference_nats", 0.0) < 1e-4


@pytest.mark.parametrize(("name", "arguments", "figure"), PROGRAMS)
def test_a_program_prints_its_ratios(name, arguments, figure, capsys):
    program = importlib.import_module(f"tests.benchmarks.{name}")
    capsys.readouterr()  # libraries print when they are imported
    program.main(arguments, isolate=False)
    check(json.loads(capsys.readouterr().out), name, figure)


@pytest.mark.slow(seconds=60)
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(vllm.missing() is not None, reason=str(vllm.missing()))
def test_the_engine_is_compared():
    sizes = ("--n", "2", "--group", "2", "--completion", "6", "--steps", "2", "--no-profile")
    command = [sys.executable, "-m", "tests.benchmarks.vllm_engine", *TINY, *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check(report, "vllm_engine", "step")
    assert report["scoring"]["largest_difference_nats"] < 1e-4
    assert report["generation"]["tokens"] == [24, 24]
    assert report["step"]["step_ratio"]["cpu_s"] > 0


def test_layouts_of_a_prompt_are_compared_on_dialogues(tmp_path, capsys):
    words = itertools.cycle(workload.WORDS)

    def row(name):
        persona, character, query, response = (
            " ".join(itertools.islice(words, 6)) for _ in range(4)
        )
        return {
            "sample_ID": name,
            "subset_tag": "made",
            "user_persona": persona,
            "agent_character": character,
            "dialogue_context": [{"user_query": query}],
            "agent_golden_response": response,
        }

    splits = {split: [row(f"{split}-{i}") for i in range(4)] for split in ("IDTrain", "IDTest")}
    (tmp_path / "dialogues.json").write_text(json.dumps(splits))
    data = ("--data", str(tmp_path / "dialogues.json"))
    prompt_layout.main(("--base", "tiny", *data, "--n", "3"), isolate=False)
    report = json.loads(capsys.readouterr().out)
    check(report, "prompt_layout", "layouts")
    assert all(
        layout[what]["ratio"] > 0 and layout[what]["error"] > 0
        for layout in report["layouts"].values()
        for what in ("true", "of another")
    )


def test_each_side_gets_a_process_of_its_own():
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.group_reward",
        *TINY,
        "--group",
        "2",
        "--reasoning",
        "5",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check(report, "group_reward", "speedup")
    assert report["own"]["peak_bytes"] > 0
