"""From an estimator directory to the public release's layout."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError
from coevolve.outputs import REFERENCE, claim, new_folder
from coevolve.reference.adapters import read_adapter, write_adapter
from coevolve.reference.layout import TRAINING, sft_mode
from coevolve.reference.templates import EXPORT, exported_constants, shows_the_same, write_templates
from coevolve.scoring.artifact import read_manifest, read_prompts
from coevolve.scoring.origins import BASE_OF_ADAPTER, write_parent
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES


@dataclass(frozen=True)
class ReferenceExport:
    """What `export_reference` wrote.

    Attributes:
        environment: the variables by which the public evaluation is pointed at the adapters.
        exact_prompts: whether the public scripts, which have a form of their own for dialogue,
            character and core features, show the models what they were trained to see.
        quantization: of the base that the adapters were trained on; the public evaluation loads it
            whole, so scores there differ a little.
    """

    environment: dict[str, str]
    exact_prompts: bool
    quantization: str | None


def export_reference(
    estimator: str | Path, checkout: str | Path, *, name: str | None = None
) -> ReferenceExport:
    """Write an estimator's adapters and prompts in the public release's layout.

    Both adapters take the place of the SFT ones, which the public evaluation loads onto the raw
    base model when it is pointed at them; there are no RL adapters. `import_reference` reads
    everything back exactly, whatever the prompts.

    `checkout` is a folder of its own; an older export is replaced. `name` is the base model's in
    the folders' names, by default the last part of where it came from.
    """
    estimator = Path(estimator)
    checkout = claim(
        checkout,
        REFERENCE,
        option="the layout's folder",
        inputs={f"the estimator {estimator}": estimator},
        overwrite=True,
    )
    manifest = read_manifest(estimator)
    require_adapters(manifest, estimator)
    base = manifest["roles"][ESTIMATOR]["base"]
    name = name or re.split(r"[/:]", base["source"].rstrip("/"))[-1]
    if not re.fullmatch(r"[^\[\]/#]+", name):
        raise ArtifactError(f"--name {name!r}: accepted is text without brackets, slashes and #.")
    prompts = read_prompts(manifest, estimator)
    constants = exported_constants(prompts)
    adapters = {role: read_adapter(estimator / role) for role in ROLES}
    export = {**{key: manifest[key] for key in ("coevolve", "prompts", "reasoning")}, "base": base}
    with new_folder(checkout, REFERENCE) as temporary:
        for role, adapter in adapters.items():
            place = temporary / TRAINING / sft_mode(role, name)
            # This layout is for the machine that it is on, whose public evaluation takes any path.
            named = str(estimator / base["folder"]) if base["folder"] else base["source"]
            named = os.path.abspath(named) if os.path.isdir(named) else named
            config = {**adapter.config, BASE_OF_ADAPTER: named}
            write_adapter(place, replace(adapter, config=config))
            entry = manifest["roles"][role]
            write_parent(place, {key: entry[key] for key in ("base", "continued_from")})
        write_templates(temporary, {**constants, EXPORT: json.dumps(export, ensure_ascii=False)})
    return ReferenceExport(
        environment={
            "LLM_NAME": name,
            "THOUGHT_LLM_MODE": sft_mode(CONNECTOR, name),
            "PXY_LLM_MODE": sft_mode(ESTIMATOR, name),
        },
        exact_prompts=shows_the_same(prompts, constants),
        quantization=base["quantization"],
    )


def require_adapters(manifest: Mapping[str, Any], source: Path) -> None:
    """Raise ArtifactError, naming `source`, unless it is two adapters of one base."""
    entries = manifest["roles"]
    whole = [role for role in ROLES if entries[role]["tuning"] != "lora"]
    if whole:
        tuning = "trained in full" if entries[whole[0]]["tuning"] == "full" else "not trained"
        raise ArtifactError(
            f"{source}: {' and '.join(whole)} was {tuning}, and the reference layout holds "
            "adapters of one base model. Export an estimator that was trained with "
            "model.tuning=lora."
        )
    first, second = (entries[role]["base"]["fingerprint"] for role in ROLES)
    if first != second:
        raise ArtifactError(
            f"{source}: its adapters are of two base models ({first} and {second}), and the "
            "reference layout has one. Export an estimator whose roles share their base model."
        )
