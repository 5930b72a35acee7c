"""What is counted on the device `meta` is what real tensors take, and follows from what a recipe
says.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from coevolve.errors import RecipeError
from coevolve.libraries.torch import CountedMemory
from coevolve.preflight.models import BaseFacts
from coevolve.scoring.roles import ROLES
from coevolve.training.distributed.launch import read_launch
from coevolve.training.memory import Longest, fits, memory_of, roles_on_meta, training_passes
from tests.benchmarks.memory_table import COLUMNS, counted, lines

ROOT = Path(__file__).parents[2]
LONGEST = Longest(40, 50, 10)
CONFIG = Qwen3Config(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=300, tie_word_embeddings=True,
)  # fmt: skip


@pytest.fixture
def parts_of(recipe_of):
    """A function from changes to a recipe to (bytes by part, parts)."""

    def parts(tuning="lora", kind="ddp", processes=1, **sections):
        recipe = recipe_of(tuning, **sections)
        bases = {role: BaseFacts("mine", copy.deepcopy(CONFIG), None) for role in ROLES}
        found, disk = memory_of(recipe, bases, LONGEST, kind, processes)
        return {part.what: part.bytes for part in (*found, *disk)}, found

    return parts


def test_memory_is_counted_as_it_comes_and_goes():
    with CountedMemory() as counted:
        one = torch.zeros(1000, device="meta")
        two = one * 2
        assert (counted.held, counted.peak) == (8000, 8000)
        view = two.view(10, 100)
        del two
        assert counted.held == 8000  # its storage lives in the view
        del view, one
        assert (counted.held, counted.peak) == (0, 8000)
    outside = torch.zeros(1000)
    with CountedMemory() as counted:
        outside.view(10, 100).t().sum()
    assert counted.peak == 4  # views of what was there are no memory


def test_a_backward_pass_takes_what_is_known_of_it():
    """Of y = relu(x W1) W2: the gradients that are under way, beside what was kept for them."""
    rows, width, inner = 100, 50, 400
    for device in ("meta", "cpu"):
        x = torch.zeros(rows, width, device=device)
        first = torch.zeros(width, inner, device=device, requires_grad=True)
        second = torch.zeros(inner, width, device=device, requires_grad=True)
        with CountedMemory() as counted:
            loss = ((x @ first).relu() @ second).sum()
            forward = counted.held
            loss.backward()
        # The inner product is gone as soon as relu has its own result.
        assert forward == 4 * (rows * inner + 1)
        # relu's result, the gradients behind and before it, and that of the second weights.
        assert counted.peak == 4 * (3 * rows * inner + inner * width + 2)


def test_parts_follow_from_the_recipe(parts_of):
    lora, listed = parts_of()
    frozen = sum(p.numel() for p in _model().parameters()) * 4
    assert lora["frozen base"] == frozen
    adapters = lora["weights of both roles"]
    assert lora["gradient and optimizer of one role"] == 3 * adapters / 2
    assert lora["the exported estimator"] == adapters
    assert (
        parts_of(kind="zero2", processes=2)[0]["gradient and optimizer of one role"]
        == 3 * adapters / 4
    )
    full, _ = parts_of("full", estimator_rl={"rewards": {"judge": "likelihood"}})
    assert full["weights of both roles"] == 2 * frozen and "frozen base" not in full
    assert "The largest part" in fits(listed)


def test_a_base_in_parts_is_a_part_of_each_layer_and_one_whole(parts_of):
    whole = parts_of(processes=2)[0]["frozen base"]
    layer = sum(p.numel() for p in _model().model.layers[0].parameters()) * 4
    for count in (2, 4):
        found = parts_of(processes=count, model={"sharded": True})[0]
        parts = found[f"frozen base, in {count} parts"]
        assert parts == whole - 4 * layer + 4 * layer / count + layer
    assert parts_of(model={"sharded": True})[0]["frozen base"] == whole


def test_what_lowers_the_backward_pass_lowers_it(recipe_of):
    def backward(**settings):
        wide = {
            "train_batch_size": 64,
            "num_generations": 4,
            "max_completion_length": 24,
            **settings,
        }
        recipe = recipe_of("lora", connector_rl=wide)
        roles = roles_on_meta(recipe, dict.fromkeys(ROLES, BaseFacts("mine", CONFIG, None)))
        passes = training_passes(recipe, roles, LONGEST, processes=1)
        (found,) = [x for x in passes if "connector_rl" in x.what]
        return found

    whole = backward()
    assert whole.remedy == "connector_rl.gradient_checkpointing=true"
    checkpointed = backward(gradient_checkpointing=True)
    one = backward(gradient_checkpointing=True, per_device_train_batch_size=1)
    assert checkpointed.remedy == "connector_rl.per_device_train_batch_size=1"
    assert whole.bytes > 1.5 * checkpointed.bytes
    assert checkpointed.bytes == pytest.approx(64 * one.bytes, rel=0.05)


def test_every_training_is_counted(recipe_of):
    """A phase that has more rows at once than all others is what decides."""
    sft = {"steps": 1, "learning_rate": 1e-3, "train_batch_size": 512}
    for name in ("connector_sft", "estimator_sft"):
        phases = ["connector_rl", "connector_sft", "refresh", "estimator_sft"]
        small = {"connector_sft": {**sft, "train_batch_size": 1}}
        recipe = recipe_of("lora", **{**small, name: sft, "rounds": {"count": 1, "phases": phases}})
        roles = roles_on_meta(recipe, dict.fromkeys(ROLES, BaseFacts("mine", CONFIG, None)))
        passes = list(training_passes(recipe, roles, LONGEST, processes=1))
        assert max(passes, key=lambda part: part.bytes).what.startswith(f"{name}: 512 rows")


def test_moments_in_8_bits_are_a_quarter(parts_of):
    name, small = "gradient and optimizer of one role", {"optim": "adamw_8bit"}
    of_all = ("cold_start", "connector_rl", "estimator_sft", "estimator_rl")
    sections = dict.fromkeys(of_all, small)
    sft = {"steps": 1, "learning_rate": 1e-3, **small}
    sections["cold_start"] = dict.fromkeys(ROLES, sft)
    assert parts_of(**sections)[0][name] == pytest.approx(parts_of()[0][name] * (1 + 2 / 4) / 3)


def test_vllm_has_room_for_the_base_and_a_sequence(parts_of):
    """Of a small base the rest decides, and a share that is too small needs a larger GPU."""

    def of(share):
        rl = {"use_vllm": True, "vllm_gpu_memory_utilization": share}
        found = parts_of(connector_rl=rl)[0]
        (engine,) = (value for name, value in found.items() if name.startswith("vLLM, in"))
        kept = ("checkpoints", "the exported", "vLLM")
        rest = sum(x for name, x in found.items() if not any(word in name for word in kept))
        return engine, rest

    engine, rest = of(0.6)
    assert engine / (engine + rest) == pytest.approx(0.6)
    weights = sum(p.numel() for p in _model().parameters()) * 4
    cache = 96 * 2 * 4 * 2 * 16 * 4  # tokens, keys and values, layers, heads, dimensions, bytes
    engine, rest = of(0.1)
    assert (engine + rest) * 0.1 == pytest.approx(weights + cache + 2e9)


@pytest.mark.slow(seconds=120)
@pytest.mark.parametrize("name", ["Qwen3-4B"])  # the others differ in sizes alone
def test_the_page_has_what_the_command_prints(name):
    page = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    table = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    place = next(row.index(name) for row in table if name in row)
    said = {row[0]: row[place] for row in table if len(row) == len(COLUMNS) + 1}
    found = {line.strip("*"): f"{value:.1f}" for line, value in lines(name).items()}
    assert found == {line: said.get(line) for line in found}


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("name", ["Qwen3-4B", "Qwen3-8B"])
def test_a_recipes_page_asks_for_the_gpu_that_is_counted(name):
    page = (ROOT / "recipes" / name.lower() / "README.md").read_text(encoding="utf-8")
    alone, beside = re.search(
        r"GPU with (\d+) GB, (?:or (\d+) )?with vLLM beside it", page
    ).groups()
    for size, overrides in ((alone, []), (beside or alone, ["connector_rl.use_vllm=true"])):
        assert f"of usual GPUs one of {size} GB holds it" in fits(counted(name, overrides))


def test_launch_files_say_kind_and_processes(tmp_path):
    from coevolve.shipped import launch_path

    found = {name: read_launch(launch_path(name)) for name in ("one_gpu", "ddp", "zero3", "fsdp2")}
    assert found == {
        "one_gpu": ("single", 1),
        "ddp": ("ddp", 2),
        "zero3": ("zero3", 2),
        "fsdp2": ("fsdp", 2),
    }
    (tmp_path / "odd.yaml").write_text("distributed_type: TPU\n")
    with pytest.raises(RecipeError, match=r"odd\.yaml: distributed_type is 'TPU'; accepted are NO"):
        read_launch(tmp_path / "odd.yaml")


def _model():
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG)
