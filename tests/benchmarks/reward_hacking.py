"""Where the reward of a role-playing model and the truth part: reward against exact EMI over GRPO
steps.

    python -m tests.benchmarks.reward_hacking --reward runs/quickstart-rpms/reward/estimator \\
        --start runs/quickstart-rpms/start/model --steps 160 --every 20 --beta 0 0.05

Models of quickstart-rpms, trained for `likelihood` and for `information` under that estimator, with
each weight of the KL to the start. At every so many steps: the mean reward of the step's batch, and
the model's exact EMI in distribution and with all shifted (`coevolve.worlds.enumeration`), and the
probability of what is no response. A line is printed for
each as it is known, on the standard error.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from coevolve.chat.local import LocalChat
from coevolve.preflight.dialogues import world_seed
from coevolve.prompts import prompt_set
from coevolve.prompts.play import WORLD
from coevolve.recipe import load_recipe
from coevolve.recipe.rpm import RpmRecipe
from coevolve.training.rpm import RPM
from coevolve.training.run import train
from coevolve.worlds.corpus import worlds_by_split
from coevolve.worlds.enumeration import conditional
from tests.benchmarks.harness import Settings, arguments, print_report

REWARDS = ("likelihood", "information")
SPLITS = {"in distribution": "IDTest", "all shifted": "OOD4Test"}


def recipe_of(reward: str, beta: float, settings: Settings) -> RpmRecipe:
    values = {
        "seed": settings["seed"],
        "data.world.seed": settings["seed"],
        "model.base": settings["start"],
        "rpm.estimator": settings["reward"],
        "rpm.grpo.steps": settings["steps"],
        "rpm.grpo.train_batch_size": settings["completions"],
        "rpm.grpo.beta": beta,
        "checkpoints": {"every_steps": settings["every"], "keep": settings["steps"]},
        "logging.every": settings["every"],
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    recipe = load_recipe(f"quickstart-rpms/{reward}", overrides, kind=RpmRecipe)
    assert isinstance(recipe, RpmRecipe)
    return recipe


def rows(reward: str, beta: float, settings: Settings) -> Iterator[dict[str, Any]]:
    """The start, and what has become of it after so many steps."""
    recipe = recipe_of(reward, beta, settings)
    assert recipe.data.world is not None
    worlds = worlds_by_split(world_seed(recipe), **recipe.data.world.kind)
    chat = LocalChat.load(
        settings["start"],
        prompt_set("world"),
        dtype="float32",
        device="cpu",
        max_new_tokens=recipe.rpm.max_response_tokens,
        batch_size=1,
        temperature=1.0,
    )

    def exact() -> dict[str, Any]:
        theta = conditional(chat, WORLD, worlds["IDTest"], least=settings["least"])
        found = {name: theta.exact(worlds[split]) for name, split in SPLITS.items()}
        home = found["in distribution"]
        return {
            **{f"EMI {name}": one.emi for name, one in found.items()},
            "no response": home.outside,
            "not followed": home.missed,
            "within": home.within,
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with open(Path(folder) / "log", "w") as log, contextlib.redirect_stderr(log):
            train(recipe, path, job=RPM)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        name = f"connector/rewards/{reward}/mean"
        rewards = [line[name] for line in lines if name in line]
        yield {"reward": reward, "beta": beta, "step": 0, "mean reward": None, **exact()}
        for step in range(settings["every"], settings["steps"] + 1, settings["every"]):
            (checkpoint,) = _of_step(path, step, settings["steps"])
            # In the middle of a phase the role itself is still as the phase began.
            under_way = checkpoint / "segment-weights.safetensors"
            last = checkpoint / "connector.safetensors"
            chat.model.load_state_dict(load_file(under_way if under_way.exists() else last))
            known = {"reward": reward, "beta": beta, "step": step}
            yield {**known, "mean reward": rewards[step - 1], **exact()}


def _of_step(run: Path, step: int, last: int) -> Sequence[Path]:
    ending = "-training" if step == last else f"-training-step-{step}"
    return [x for x in (run / "checkpoints").iterdir() if x.name.endswith(ending)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(
        __doc__ or "",
        start="",
        reward="",
        steps=160,
        every=20,
        completions=256,
        beta=[0.0, 0.05],
        least=1e-3,
    )
    settings = vars(parser.parse_args(argv))
    found = []
    for reward in REWARDS:
        for beta in settings["beta"]:
            for row in rows(reward, beta, settings):
                print(json.dumps(row), file=sys.stderr, flush=True)
                found.append(row)
    print_report("reward_hacking", settings, rows=found)


if __name__ == "__main__":
    sys.exit(main())
