"""Where the public release keeps what.

CHECKOUT/
  templates.py                                    the prompts
  estimator_training/
    ckpt_SFT/
      METHOD[thought_completion]-BASED[NAME]#ProbLLM            the connector after SFT
      METHOD[RLMid_SFT_model_pxy]-BASED[NAME]#ProbLLM           the estimator after SFT
    ckpt_GRPO_CoEvolve/
      PolicyType[thought_policy]-ITER[K]-BASED[NAME]#ProbLLM    the connector after round K of RL
      PolicyType[pxy_policy]-ITER[K]-BASED[NAME]#ProbLLM        the estimator after round K of RL

Each of the four is a PEFT adapter; NAME is the base model's.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from coevolve.errors import ArtifactError
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role

TRAINING = "estimator_training"
SFT, GRPO = "ckpt_SFT", "ckpt_GRPO_CoEvolve"
METHOD: dict[Role, str] = {CONNECTOR: "thought_completion", ESTIMATOR: "RLMid_SFT_model_pxy"}
POLICY: dict[Role, str] = {CONNECTOR: "thought_policy", ESTIMATOR: "pxy_policy"}

_SFT_FOLDER = re.compile(r"METHOD\[(?P<kind>.+)\]-BASED\[(?P<name>.+)\]#ProbLLM")
_GRPO_FOLDER = re.compile(
    r"PolicyType\[(?P<kind>.+)\]-ITER\[(?P<round>\d+)\]-BASED\[(?P<name>.+)\]#ProbLLM"
)


@dataclass(frozen=True)
class Release:
    """One estimator of a checkout: the base model's name in the folders' names, the round of RL (0
    is SFT alone), and each role's folders, in the order in which they add up.
    """

    name: str
    round: int
    adapters: dict[Role, tuple[Path, ...]]


def sft_mode(role: Role, name: str) -> str:
    """A role's SFT adapter as the public scripts are told of it, below `estimator_training`."""
    return f"{SFT}/METHOD[{METHOD[role]}]-BASED[{name}]#ProbLLM"


def grpo_mode(role: Role, name: str, number: int) -> str:
    """A role's RL adapter of a round, likewise."""
    return f"{GRPO}/PolicyType[{POLICY[role]}]-ITER[{number}]-BASED[{name}]#ProbLLM"


def find_release(checkout: Path, *, name: str | None = None, number: int | None = None) -> Release:
    """The adapters of the last round of RL, or those of SFT where there was no RL, unless `number`
    is given. `name` is the base model's, needed where the checkout has adapters of several.
    """
    training = checkout / TRAINING
    if not training.is_dir():
        raise ArtifactError(
            f"{training}: no such folder. Give the folder of the public code that holds "
            f"templates.py and {TRAINING}/."
        )
    name = _chosen_name(training / SFT, name)
    rounds = {role: _rounds(training / GRPO, role, name) for role in ROLES}
    if number is None:
        number = max((0, *rounds[CONNECTOR], *rounds[ESTIMATOR]))
    adapters: dict[Role, tuple[Path, ...]] = {}
    for role in ROLES:
        modes = [sft_mode(role, name)] + ([grpo_mode(role, name, number)] if number else [])
        adapters[role] = tuple(training / mode for mode in modes)
        for folder in adapters[role]:
            if not folder.is_dir():
                found = ", ".join(f"{POLICY[each]} {rounds[each] or 'none'}" for each in ROLES)
                raise ArtifactError(
                    f"{folder}: no such folder. Both roles need theirs; rounds of RL on {name} "
                    f"are: {found}. Copy the release again, or choose a round with --round (0 is "
                    "SFT alone)."
                )
    return Release(name, number, adapters)


def _chosen_name(folder: Path, name: str | None) -> str:
    """`name`, or the only one that the SFT folders have."""
    matches = _matching(_SFT_FOLDER, folder)
    names = sorted({match["name"] for match in matches if match["kind"] in METHOD.values()})
    if name is None and len(names) == 1:
        return names[0]
    if not names:
        wanted = f"METHOD[{METHOD[CONNECTOR]}]-BASED[NAME]#ProbLLM"
        raise ArtifactError(f"{folder}: holds no {wanted}. Copy it again.")
    if name is None or name not in names:
        found = "no --name was given" if name is None else f"--name is {name!r}"
        raise ArtifactError(f"{folder}: {found}; adapters are there for {', '.join(names)}.")
    return name


def _rounds(folder: Path, role: Role, name: str) -> list[int]:
    matches, wanted = _matching(_GRPO_FOLDER, folder), (POLICY[role], name)
    return sorted(int(match["round"]) for match in matches if match.group("kind", "name") == wanted)


def _matching(pattern: re.Pattern[str], folder: Path) -> list[re.Match[str]]:
    """The names of the folder's folders that match."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    matches = [pattern.fullmatch(path.name) for path in paths if path.is_dir()]
    return [match for match in matches if match]
