"""A base in parts on two processes: the numbers of the whole one, whoever makes more passes, fails,
is asked to stop or is gone; half of the memory.
"""

import json
import re
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from coevolve.scoring import models
from coevolve.worlds.tiny import write_tiny_base

PROGRAM = """
import os, signal, sys, threading, time
import torch, torch.distributed as dist
from coevolve.scoring import models
from coevolve.scoring.generate import generate
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import ROLES, AdapterRoles, lora_config
from coevolve.training.distributed import processes
from coevolve.training.distributed.stopping import Stop

work, base, rank = sys.argv[1], sys.argv[2], int(os.environ["RANK"])
dist.init_process_group("gloo")
run = processes.Processes(torch.device("cpu:0"), Stop())

def roles(parts):
    config = lora_config({"r": 2, "target_modules": "all-linear"})
    model = models.load_model(base, parts=parts)
    made = AdapterRoles.create(model, dict.fromkeys(ROLES, config), seed=0)
    for name, value in made.model.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(len(name))
            torch.nn.init.normal_(value, std=0.1, generator=generator)
    return made

divided = run.together(lambda: roles(run.share_base()))
bare = divided.model.get_base_model()
layers = [p for name, p in bare.model.layers.named_parameters() if "lora_" not in name]

def written(model, new, poll=None):
    rows = [list(range(3, 8 + row)) for row in range(1 + 2 * rank)]
    options = {"max_new_tokens": new, "stop_ids": [], "pad_id": 0, "poll": poll}
    return [x.ids for x in generate(model, rows, **options)]

def passes(model):
    rows = [list(range(3, 9 + row)) for row in range(2 + 3 * rank)]
    scores = score_rows(model, rows, [[5, 9, 4]] * len(rows), pad_id=0, token_budget=24)
    return written(model, 2 + 9 * rank), [x.tolist() for x in scores]

def gradients(of, checkpointing):
    model = of.module("connector").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    ids = torch.arange(3, 33).view(2, 15)
    # The backward pass of two forward passes, the one made first after the other.
    losses = [model(input_ids=x, labels=x, use_cache=False).loss for x in (ids, ids + 1)]
    sum(losses).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.eval()
    return found

def held():
    storages = [p.untyped_storage() for p in layers]
    return sum({x.data_ptr(): x.nbytes() for x in storages}.values())

if work == "numbers":
    whole = roles(None)
    with divided.acting("connector") as one, whole.acting("connector") as other:
        assert run.together(lambda: passes(one)) == passes(other)
        alone = run.gather(run.on_main(lambda: passes(one)))[0]
        assert rank or alone == passes(other)
        size = sum(p.numel() * 4 for p in layers)
        assert 0 < held() <= 1.01 * size / 3, (held(), size)
        kept = sum(layer.part.numel() for layer in run.parts._layers.values())
        assert kept <= 1.01 * size / 2, (kept, size)
    for checkpointing in (False, True):
        pairs = zip(gradients(divided, checkpointing), gradients(whole, checkpointing), strict=True)
        assert all(torch.equal(a, b) and a.any() for a, b in pairs)
    assert held() <= 1.01 * size / 3
    names = run.parts.names(divided.model)
    assert len(names) == len(layers) and all(".layers." in name for name in names)
    assert not run.parts.names(whole.model)
elif work == "waits":
    # Process 0 has nothing to do; it alone is told.
    def share():
        if rank == 0:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        until = time.monotonic() + 30
        while rank == 1 and time.monotonic() < until:
            run.stop.poll()
            time.sleep(0.05)
    with run.stop.listening():
        began = time.monotonic()
        try:
            run.together(share)
        except processes.Interrupted:
            assert run.stop.reason == "SIGTERM" and time.monotonic() - began < 20
            run.stop.reason = None
            print("asked", flush=True)
elif work in ("fails", "asked", "killed"):
    # Process 1 leaves halfway through; the other would never end, and looks between tokens.
    def share():
        with divided.acting("connector") as model:
            while rank == 0:
                written(model, 100, run.stop.poll)
            written(model, 5)
            if work == "fails":
                1 / 0
            elif work == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            while True:
                written(model, 100, run.stop.poll)

    with run.stop.listening():
        try:
            run.together(share)
        except processes.Interrupted:
            assert work == "asked" and run.stop.reason == "SIGTERM"
            run.stop.reason = None
            print("asked", flush=True)
        except Exception as error:
            error = run.explain(error)
            run.close(error)
            raise error
print("fine", flush=True)
run.close()
"""


@pytest.fixture
def base(tmp_path):
    return write_tiny_base(tmp_path / "base", seed=0, hidden=32, layers=3, heads=2)


def run(launcher, tmp_path, base, work):
    """Exit statuses of two processes, and what they said."""
    (tmp_path / "program.py").write_text(PROGRAM)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launcher.free_port()}
    started = [
        launcher.start(
            "one",
            [tmp_path / "program.py", work, base],
            tmp_path / f"{rank}.log",
            **place,
            RANK=str(rank),
        )
        for rank in range(2)
    ]
    codes = [launcher.wait(process, 120) for process in started]
    return codes, [process.log.read_text() for process in started]


@pytest.mark.parametrize("read", ["by parts", "whole"])
def test_numbers_are_those_of_the_whole_base_and_its_layers_half_as_large(
    read, launcher, tmp_path, base
):
    if read == "whole":  # a head that is there, and tied
        config = base / "config.json"
        values = {**json.loads(config.read_text()), "tie_word_embeddings": True}
        config.write_text(json.dumps(values))
        assert models._unread(str(base), torch.float32, None, False) is None
    codes, said = run(launcher, tmp_path, base, "numbers")
    assert codes == [0, 0], said


@pytest.mark.parametrize("work", ["asked", "waits"])
def test_all_leave_where_one_is_asked_to(work, launcher, tmp_path, base):
    codes, said = run(launcher, tmp_path, base, work)
    assert codes == [0, 0] and all("asked\nfine" in text for text in said), said


def test_a_failure_ends_the_others_work(launcher, tmp_path, base):
    codes, said = run(launcher, tmp_path, base, "fails")
    assert 0 not in codes and "ZeroDivisionError" in said[1], said
    assert "ProcessError: process 1 of 2 failed: ZeroDivisionError" in said[0]


def test_nobody_waits_for_one_that_is_gone(launcher, tmp_path, base):
    began = time.monotonic()
    codes, said = run(launcher, tmp_path, base, "killed")
    assert 0 not in codes and "stopped answering" in said[0], said
    assert time.monotonic() - began < 60


def test_parts_that_one_process_cannot_read(launcher, tmp_path, base):
    """The last number of a layer, which is in the second part."""
    file = base / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"][-1, -1] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    codes, said = run(launcher, tmp_path, base, "numbers")
    assert 0 not in codes and all("down_proj.weight holds a value that" in text for text in said)
    assert "ProcessError: process 1 of 2 failed: ArtifactError" in said[0], said


CASES = {
    "as the model has them": (True, lambda weights: None),
    "tied": (True, lambda weights: weights.pop("lm_head.weight")),
    "tied, and there twice": (False, lambda weights: None),
    "under another name": (
        False,
        lambda weights: weights.update(x=weights.pop("model.norm.weight")),
    ),
    "of another shape": (
        False,
        lambda weights: weights.update({"model.norm.weight": torch.ones(3)}),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_are_read_by_parts_where_they_have_what_the_model_has(case, base):
    by_parts, change = CASES[case]
    config, file = base / "config.json", base / "model.safetensors"
    values = {**json.loads(config.read_text()), "tie_word_embeddings": "tied" in case}
    config.write_text(json.dumps(values))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    found = models._unread(str(base), torch.bfloat16, None, False)
    assert (found is not None) == by_parts
    if found is not None:
        model, read = found
        whole = models.load_model(str(base), dtype="bfloat16")
        assert all(x.is_meta for x in model.parameters())
        for name, value in whole.named_parameters():
            flat, start = value.reshape(-1), value.numel() // 3
            assert torch.equal(read(name, start, value.numel()), flat[start:])
        for name, value in whole.named_buffers():
            assert torch.equal(model.get_buffer(name), value)
        known = model.generation_config.eos_token_id, model.name_or_path, model.dtype
        assert known == (whole.generation_config.eos_token_id, whole.name_or_path, whole.dtype)


@pytest.fixture(scope="module")
def recipes(recipe_of, build, values_of, tmp_path_factory):
    """Recipe files of a run of all phases over a base that can write already; whole and divided."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny = {"hidden_size": 32, "layers": 3, "heads": 2}
    build(recipe_of("lora", model={"tiny": tiny}), folder / "base")
    for name, sharded in {"whole": False, "divided": True}.items():
        # Without dropout, which each process draws for itself.
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
        model = {"base": str(folder / "base" / "base"), "sharded": sharded, "lora": lora}
        values = values_of("lora", model=model, **ALL)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


GRPO = {"steps": 2, "beta": 0.05, "gradient_checkpointing": True}
ALL = {
    "rounds": {"count": 1, "gate_tolerance": 1e9},
    "connector_rl": GRPO,
    "estimator_rl": {**GRPO, "rewards": {"judge": "base"}},
    "baselines": {"without_corl": False, "without_reasoning": False},
    "evaluation": {"marginal_samples": 0},
}


@pytest.mark.slow(seconds=80)
def test_a_run_of_all_phases_is_that_of_whole_bases(launcher, recipes, tmp_path):
    """To the bit beside two processes of which each has the base, and up to the order of sums
    beside one; also where it was killed, and where it goes on with a base that is whole.
    """

    def train(kind, recipe, folder):
        command = ["-m", "coevolve", "train", recipes / f"{recipe}.yaml", "--output-dir", folder]
        return launcher.start(kind, command, f"{folder}.log")

    for kind, recipe, name in (
        ("one", "whole", "one"),
        ("ddp", "whole", "two"),
        ("ddp", "divided", "parts"),
    ):
        process = train(kind, recipe, tmp_path / name)
        assert launcher.wait(process, 600) == 0, process.log.read_text()
    for phase in ("connector_rl", "estimator_rl"):
        process = train("ddp", "divided", tmp_path / "killed")
        while not list((tmp_path / "killed" / "checkpoints").glob(f"*round-1-{phase}*")):
            assert process.poll() is None, process.log.read_text()
            time.sleep(0.02)
        launcher.kill()
    process = train("ddp", "whole", tmp_path / "killed")
    assert launcher.wait(process, 600) == 0, process.log.read_text()
    expected = figures(tmp_path / "two")
    assert len(expected) > 8
    assert figures(tmp_path / "parts") == figures(tmp_path / "killed") == expected
    assert figures(tmp_path / "one") == pytest.approx(expected, rel=1e-5)


def figures(folder):
    """A run's results, and what its roles came to."""
    results = json.loads((folder / "results.json").read_text())
    found = {
        f"{name}/{split}": x
        for name, of in results["perplexity"].items()
        for split, x in of.items()
    }
    for role in ("connector", "estimator"):
        weights = load_file(folder / "estimator" / role / "adapter_model.safetensors")
        found |= {f"{role}/{name}": value.double().norm().item() for name, value in weights.items()}
    return found


MEMORY = """
import gc, os, sys, threading, time
import torch, torch.distributed as dist
from coevolve.scoring import models
from coevolve.scoring.logprob import score_rows
from coevolve.scoring.roles import ROLES, AdapterRoles, lora_config
from coevolve.training.distributed.processes import Processes
from coevolve.training.distributed.stopping import Stop

if "RANK" in os.environ:
    dist.init_process_group("gloo")
run = Processes(torch.device("cpu"), Stop())
parts = run.share_base()

def held():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["VmRSS"].split()[0]) / 1e3

def work(base):
    config = lora_config({"r": 2, "target_modules": "all-linear"})
    model = models.load_model(base, parts=parts)
    roles = AdapterRoles.create(model, dict.fromkeys(ROLES, config), seed=0)
    with roles.acting("connector") as model:
        score_rows(model, [list(range(3, 23))], [[7, 8, 9, 10]], pad_id=0)
    model = roles.module("estimator").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
    ids = torch.arange(3, 23)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

work(sys.argv[1])  # what is loaded but once
gc.collect()
before = peak = held()
ended = threading.Event()

def watch():
    global peak
    while not ended.wait(0.002):
        peak = max(peak, held())

watching = threading.Thread(target=watch)
watching.start()
work(sys.argv[2])
ended.set()
watching.join()
print("peak", peak - before, flush=True)
run.close()
"""


@pytest.mark.slow(seconds=30)
def test_the_peak_of_memory_is_that_of_a_part(launcher, tmp_path, base):
    """From loading through scoring to a backward pass, of a base of 340 MB: MB of each process,
    beside what it is before.
    """
    big = write_tiny_base(tmp_path / "big", seed=0, hidden=512, layers=32, heads=4)
    size = (big / "model.safetensors").stat().st_size / 1e6
    (tmp_path / "program.py").write_text(MEMORY)
    peaks = {}
    for kind in ("one", "ddp"):
        log = tmp_path / f"{kind}.log"
        launcher.run(kind, [tmp_path / "program.py", base, big], log)
        peaks[kind] = [float(x) for x in re.findall(r"peak (\S+)", log.read_text())]
    (whole,), parts = peaks["one"], peaks["ddp"]
    assert len(parts) == 2 and whole > 0.95 * size, (size, peaks)
    assert max(parts) < 0.65 * whole, (size, peaks)
