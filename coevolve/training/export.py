"""Writing the exported estimator, at the end of a run or from one of its checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coevolve import __version__
from coevolve.data.corpus import TRAIN_SPLIT
from coevolve.data.example import Example
from coevolve.errors import ArtifactError
from coevolve.files import write_json
from coevolve.outputs import ESTIMATOR as AN_ESTIMATOR
from coevolve.outputs import claim, new_folder
from coevolve.recipe import Recipe
from coevolve.recipe.rpm import RpmRecipe
from coevolve.scoring.artifact import (
    NORMALISATION,
    copy_model,
    reasoning_entry,
    rendering_entry,
    role_entry,
    write_manifest,
)
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import base_fingerprint
from coevolve.scoring.origins import (
    BASE_OF_ADAPTER,
    CONFIG,
    Base,
    adapter_fingerprint,
    base_settings,
    read_config,
    require_parent,
    write_parent,
)
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role
from coevolve.scoring.vector import write_vector
from coevolve.training.checkpoints import Checkpoint, read_checkpoint
from coevolve.training.outcome import Outcome
from coevolve.training.run_folder import read_run
from coevolve.training.setup import Origins, build_estimator, build_renderers
from coevolve.worlds.corpus import world_corpus


def export_estimator(
    folder: Path,
    estimator: ProbabilityEstimator,
    recipe: Recipe,
    origins: Origins,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a self-contained estimator directory, once complete in the place of `folder`, and
    return its manifest, `facts` (how it was trained, what it measured) included.
    """
    with new_folder(folder, AN_ESTIMATOR) as temporary:
        of = estimator, recipe, origins
        manifest = {
            "coevolve": __version__,
            "roles": {role: _export_role(temporary, role, *of) for role in ROLES},
            "normalisation": NORMALISATION,
            "scoring": estimator.scoring_ways,
            "reasoning": reasoning_entry(estimator.max_new_tokens, estimator.no_repeat_ngram),
            "prompts": estimator.renderer.prompts.to_dict(),
            "rendering": rendering_entry({role: estimator.renderer_of(role) for role in ROLES}),
            **estimator.renderer.shown_date,
            **estimator.connector_renderer.shown_date,
            "license": recipe.export.license,
            "datasets": [recipe.data.hub] if recipe.data.hub else [],
            **facts,
        }
        quantized = any(origin.quantization for origin in origins.values())
        write_vector(temporary, estimator, _rows_of_world(recipe), quantized=quantized)
        return write_manifest(temporary, manifest)


def _rows_of_world(recipe: Recipe) -> Sequence[Example]:
    """Rows for the test vector in the world's few words; none where dialogues are of real words."""
    if recipe.data.world is None:
        return ()
    return world_corpus(recipe.seed, train=3, test=1).splits[TRAIN_SPLIT]


def _export_role(
    folder: Path,
    role: Role,
    estimator: ProbabilityEstimator,
    recipe: Recipe,
    origins: Origins,
) -> dict[str, Any]:
    """Write a role's weights and tokenizer, and its base model unless the other role's is the same;
    its manifest entry.
    """
    tuning, origin = estimator.roles.tuning[role], origins[role]
    tokenizer = estimator.renderer_of(role).tokenizer
    other_base = origins[CONNECTOR].base != origins[ESTIMATOR].base
    estimator.roles.save(role, folder / role)
    tokenizer.save_pretrained(folder / role)
    base, settings, parent = None, None, origin.published()
    if tuning == "lora":
        fingerprint, settings = adapter_fingerprint(folder / role), base_settings(origin.base.path)
        if _includes_base(recipe, origin.base):
            base = "connector-base" if role == CONNECTOR and other_base else "base"
            if not (folder / base).exists():
                copy_model(Path(origin.base.path), folder / base)
        config = read_config(folder / role)
        config[BASE_OF_ADAPTER] = origin.base.portable(base)
        write_json(folder / role / CONFIG, config)
        parent = origin.published(included=base is not None)
        write_parent(folder / role, parent)
    else:
        fingerprint = base_fingerprint(str(folder / role))
    return role_entry(
        parent,
        tuning=tuning,
        base_folder=base,
        # Both folders have one, for software that knows nothing of the other; it is read once.
        tokenizer=role if other_base else ESTIMATOR,
        chat_template=tokenizer.chat_template,
        settings=settings,
        fingerprint=fingerprint,
    )


def export_checkpoint(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Make an estimator directory from a checkpoint of a run (`RUN/checkpoints/NAME`).

    In the middle of a phase it is the pair as it was when the phase began. Raises ArtifactError
    where checkpoint or run are incomplete, or a base model has changed since.
    """
    inputs = {f"the checkpoint {checkpoint}": checkpoint}
    folder = claim(folder, AN_ESTIMATOR, option="--out", inputs=inputs, overwrite=True)
    saved = read_checkpoint(checkpoint)
    recipe, origins, run = read_run(checkpoint.parent.parent)
    if isinstance(recipe, RpmRecipe):
        raise ArtifactError(
            f"{checkpoint}: is of a role-playing model, and no estimator can be made of it. Let "
            "its run end, which writes the model."
        )
    for base in {origin.base for origin in origins.values()}:
        fingerprint = base_fingerprint(base.path)
        if fingerprint != base.fingerprint:
            raise ArtifactError(
                f"{base.path}: this base model's fingerprint is {fingerprint}; the run was trained "
                f"on {base.fingerprint}. Put the original base model back."
            )
    require_parents(saved, origins)
    renderers = build_renderers(recipe, origins, run.get("template_date"))
    estimator = build_estimator(recipe, origins, renderers)
    for role in ROLES:
        estimator.roles.load_weights(role, saved.tensors[role])
    measured = saved.state.facts.values()
    facts = training_facts(recipe, run["data_fingerprint"], checkpoint.name, measured)
    facts |= saved.state.form.values() if saved.state.form else {}
    facts |= results_facts(Outcome.read(saved.state.outcome, saved.state.outcome.subsets))
    return export_estimator(folder, estimator, recipe, origins, facts)


def require_parents(checkpoint: Checkpoint, origins: Origins) -> None:
    """Raise ArtifactError unless a checkpoint's weights started from `origins`."""
    # Before version 0.3 only run.json said what a checkpoint's weights belong to.
    for role, parent in (checkpoint.state.parents or {}).items():
        require_parent(f"{checkpoint.folder}: {role}", parent.values(), origins[role])


def training_facts(
    recipe: Recipe, data_fingerprint: str, checkpoint: str, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a manifest that says how the estimator came about."""
    about = {"recipe": recipe.name, "seed": recipe.seed, "checkpoint": checkpoint}
    return {"training": {**about, "data_fingerprint": data_fingerprint, **measured}}


def results_facts(outcome: Outcome) -> dict[str, Any]:
    """The part that says what was measured on test splits by then."""
    found = {"perplexity": outcome.perplexities(), "ratio": outcome.ratios()}
    return {"results": found} if found["perplexity"] else {}


def _includes_base(recipe: Recipe, base: Base) -> bool:
    if recipe.export.include_base == "auto":
        # A hub id is the one source that is not a path of its own and stays available to others.
        return base.path != base.source or Path(base.source).is_dir()
    return recipe.export.include_base == "always"
