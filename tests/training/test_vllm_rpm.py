"""Role-playing models whose texts are written by vLLM: on a CPU, for real."""

import pytest
import torch

from coevolve.files import write_json
from coevolve.libraries import vllm
from coevolve.recipe.load import check_recipe
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.rpm import RPM
from coevolve.training.run import train
from tests.training.test_rpm import MODEL, last_state, logged, results, values, weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(vllm.missing() is not None, reason=str(vllm.missing())),
]


def by_vllm(judge, method, section):
    changed = values(judge, method)
    tiny = {"hidden_size": 64, "layers": 2, "heads": 2}
    changed["model"] = {**MODEL, "tiny": tiny, "lora": {**MODEL["lora"], "lora_dropout": 0.0}}
    rpm = changed["rpm"]
    rpm |= {"use_vllm": True} if section == "rpm" else {"grpo": {**rpm["grpo"], "use_vllm": True}}
    return changed


def test_vllm_writes_the_completions(judge, tmp_path):
    recipe, folder = check_recipe(by_vllm(judge, "information", "grpo"), "rpm"), tmp_path / "run"
    train(recipe, folder, job=RPM)
    assert results(folder)["updates"] == 4
    assert any(x.any() for name, x in weights(folder).items() if "lora_B" in name)


@pytest.mark.parametrize("method", ["rejection_sft", "dpo"])
def test_vllm_writes_the_samples_and_is_gone_before_training(
    judge, method, monkeypatch, stop_after, stop_at_checkpoint, tmp_path
):
    recipe, folder = check_recipe(by_vllm(judge, method, "rpm"), "rpm"), tmp_path / "run"
    asked, complete, close = [], vllm.Here.complete, vllm.Here.close
    monkeypatch.setattr(
        vllm.Here,
        "complete",
        lambda self, ask, poll: asked.extend(ask) or complete(self, ask, poll),
    )
    monkeypatch.setattr(vllm.Here, "close", lambda self: asked.append("closed") or close(self))
    train(recipe, tmp_path / "whole", job=RPM)
    assert len(asked) == 3 * 18 + 1 and asked[-1] == "closed"
    assert len({ask.seed for ask in asked[:-1]}) == 3 * 18
    for stop in (stop_after(8), stop_at_checkpoint(folder, "training-step-2")):
        with pytest.raises(Interrupted):
            train(recipe, folder, job=RPM, stop=stop)
    asked.clear()
    train(recipe, folder, job=RPM)
    assert not asked and results(folder) == results(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(x, expected[name]) for name, x in weights(folder).items())


@pytest.mark.slow(seconds=90)
def test_two_processes_have_vllm_write_what_one_has(judge, launcher, tmp_path):
    recipe = tmp_path / "recipe.json"
    write_json(recipe, by_vllm(judge, "dpo", "rpm"))
    for name, processes in (("one", "one"), ("two", "ddp")):
        words = ["-m", "coevolve", "rpm", recipe, "--output-dir", tmp_path / name]
        launcher.run(processes, words, tmp_path / f"{name}.log", fresh=True)
    one, two = (logged(tmp_path / name) for name in ("one", "two"))
    assert len(one) > 3
    assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    first, second = (last_state(tmp_path / name)["reasoning"] for name in ("one", "two"))
    assert first == second
