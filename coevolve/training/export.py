"""Writing the exported estimator, at the end of a run or from one of its checkpoints."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coevolve import __version__
from coevolve.errors import ArtifactError
from coevolve.recipe import Recipe
from coevolve.scoring.artifact import replace_folder, write_manifest
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import ROLES
from coevolve.training.checkpoints import read_checkpoint
from coevolve.training.run_folder import read_run
from coevolve.training.setup import Base, build_estimator, build_renderer

NORMALISATION = (
    "log_prob sums are nats per response, over the response's own tokens and its end of turn; means are nats per "
    "token; a perplexity is exp(-sum of log-probabilities / number of tokens) over all responses together"
)


def export_estimator(
    folder: Path, estimator: ProbabilityEstimator, recipe: Recipe, base: Base, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a self-contained estimator directory and return its manifest.

    Args:
        folder: replaced, if it is there, once the new one is complete.
        facts: how it was trained and what it measured, for the manifest.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for role in ROLES:
        estimator.roles.save(role, temporary / role)
    tokenizer = estimator.renderer.tokenizer
    tokenizer.save_pretrained(temporary / "tokenizer")
    included = estimator.roles.tuning == "lora" and _includes_base(recipe, base)
    if included:
        copy_model(Path(base.path), temporary / "base")
    manifest = write_manifest(
        temporary,
        {
            "coevolve": __version__,
            "tuning": estimator.roles.tuning,
            "base": {"source": base.source, "fingerprint": base.fingerprint, "included": included},
            "normalisation": NORMALISATION,
            "reasoning": {
                "max_new_tokens": estimator.max_new_tokens,
                "decoding": "greedy unless a seed is given",
                "shown_to_the_estimator": "the core features only",
            },
            "prompts": estimator.renderer.prompts.to_dict(),
            "chat_template": tokenizer.chat_template,
            **facts,
        },
    )
    replace_folder(temporary, folder)
    return manifest


def export_checkpoint(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Make an estimator directory from a checkpoint of a run (`RUN/checkpoints/NAME`).

    In the middle of a phase it is the pair as it was when the phase began.

    Raises:
        ArtifactError: the checkpoint or its run is incomplete, or the base model has changed since.
    """
    found = read_checkpoint(checkpoint)
    recipe, base, run = read_run(checkpoint.parent.parent)
    from coevolve.scoring.models import base_fingerprint

    fingerprint = base_fingerprint(base.path)
    if fingerprint != base.fingerprint:
        raise ArtifactError(
            f"{base.path}: this base model's fingerprint is {fingerprint}; the run was trained on {base.fingerprint}. "
            "Put the original base model back."
        )
    estimator = build_estimator(recipe, base, build_renderer(recipe, base))
    for role in ROLES:
        estimator.roles.load_weights(role, found.tensors[role])
    facts = training_facts(recipe, run["data_fingerprint"], checkpoint.name, found.state["facts"])
    return export_estimator(folder, estimator, recipe, base, facts)


def training_facts(
    recipe: Recipe, data_fingerprint: str, checkpoint: str, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a manifest that says how the estimator came about."""
    return {
        "training": {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "checkpoint": checkpoint,
            "data_fingerprint": data_fingerprint,
            **measured,
        }
    }


def _includes_base(recipe: Recipe, base: Base) -> bool:
    if recipe.export.include_base == "auto":
        # A hub id is the one source that is not a path of its own and stays available to others.
        return base.path != base.source or Path(base.source).is_dir()
    return recipe.export.include_base == "always"


def copy_model(source: Path, target: Path) -> None:
    """Copy a base model (a folder, or a hub id's snapshot) with all that `from_pretrained` reads of it."""
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        source = Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json", "*.jinja"]))
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix in {".safetensors", ".json", ".jinja"}:
            shutil.copy2(file, target / file.name)
