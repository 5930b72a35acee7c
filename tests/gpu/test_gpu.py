"""What the program found on a GPU; that it runs at all, on a CPU too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def report_of(*options):
    command = [sys.executable, "-m", "tests.gpu", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    return report


@pytest.fixture(scope="module")
def report():
    return report_of()


class TestOnAGpu:
    pytestmark = on_a_gpu

    def test_scores_are_as_near_to_float64_as_a_plain_pass(self, report):
        found = report["scoring"]
        assert found["nats_per_token_from_float64"] <= 2 * found["of_a_plain_pass"]
        assert found["fraction_of_matmul_rate"] > 0.3

    def test_no_phase_needs_more_than_the_table_says(self, report):
        found = report["round"]
        predicted = found["predicted_gb_without_vllm"]
        engine = sum(x for name, x in found["predicted_gb"].items() if name.startswith("vLLM"))
        most = max(phase["gb"] for phase in found["phases"].values())
        assert 0.3 * predicted < most < 1.1 * (predicted + engine)

    def test_vllm_samples_from_what_is_trained(self, report):
        assert report["round"]["nats_per_token_between_vllm_and_trainer"] < 0.1

    def test_a_step_takes_no_longer_than_trls(self, report):
        assert report["step"].get("step_ratio", {"wall_s": 0})["wall_s"] < 1.1

    def test_divided_or_not_a_round_ends_alike(self, report):
        found = report["launches"]
        for name in ("zero3", "fsdp2"):
            for split, value in found["one_gpu"]["perplexity"].items():
                assert found[name]["perplexity"][split] == pytest.approx(value, rel=0.02)


@pytest.mark.slow(seconds=150)
def test_every_part_runs_on_a_cpu():
    report = report_of("--size", "tiny")
    assert report["scoring"]["nats_per_token_from_float64"] < 1e-5
    assert report["round"]["predicted_gb"] and report["round"]["phases"]
    found = report["launches"]
    for split, value in found["one_gpu"]["perplexity"].items():
        assert found["zero3"]["perplexity"][split] == pytest.approx(value, rel=1e-4)
