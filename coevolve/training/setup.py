"""From a recipe to the models of a run: what they start from, both in memory, their prompts."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from coevolve.files import writing
from coevolve.preflight.dialogues import Renderers, make_renderer
from coevolve.preflight.models import adapter_config
from coevolve.recipe import Recipe
from coevolve.recipe.model import RoleModel
from coevolve.scoring.divided import Parts
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.models import (
    base_fingerprint,
    choose_device,
    load_model,
    load_tokenizer,
    resolve_base,
)
from coevolve.scoring.origins import Base, Origin, adapter_fingerprint, check_adapter, read_weights
from coevolve.scoring.roles import (
    CONNECTOR,
    ESTIMATOR,
    ROLES,
    AdapterRoles,
    Role,
    Roles,
    SeparateRoles,
    WholeRole,
)
from coevolve.seeds import derive_seed

logger = logging.getLogger(__name__)

Origins = Mapping[Role, Origin]


def prepare_origins(
    recipe: Recipe, folder: Path, *, say: Callable[[str], None] = logger.warning
) -> Origins:
    """Base models and adapters of both roles, made available and checked against each other."""
    settings = role_settings(recipe)
    sources = {own.base for own in settings.values()}
    bases = {source: _prepare_base(recipe, source, folder) for source in sources}
    origins = {}
    for role, own in settings.items():
        quantization = recipe.model.quantization if own.tuning == "lora" else None
        origin = Origin(bases[own.base], quantization)
        if own.adapter is not None:
            for note in check_adapter(Path(own.adapter), origin.base, quantization):
                say(note)
            # Likewise: the run may be gone on with, or exported, from another folder.
            path = os.path.abspath(own.adapter)
            fingerprint = adapter_fingerprint(Path(path))
            origin = replace(origin, adapter=path, adapter_fingerprint=fingerprint)
        origins[role] = origin
    return origins


def role_settings(recipe: Recipe) -> dict[Role, RoleModel]:
    """The model settings of each role."""
    return {CONNECTOR: recipe.model.connector, ESTIMATOR: recipe.model.estimator}


def _prepare_base(recipe: Recipe, source: str, folder: Path) -> Base:
    """Written (tiny), converted (packaged), or wherever it is."""
    if source == "tiny":
        from coevolve.worlds.tiny import write_tiny_base

        tiny = recipe.model.tiny
        path = folder / "base"
        if not path.exists():
            temporary = folder / ".base.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                size = {"hidden": tiny.hidden_size, "layers": tiny.layers, "heads": tiny.heads}
                with writing(path):
                    write_tiny_base(temporary, recipe.seed, **size)
                temporary.rename(path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return Base("tiny", str(path), base_fingerprint(str(path)))
    resolved = resolve_base(source, recipe.model.cache_dir)
    # The run may be gone on with, or exported, from another folder.
    base = os.path.abspath(resolved) if Path(resolved).is_dir() else resolved
    return Base(source, base, base_fingerprint(base))


def build_renderers(recipe: Recipe, origins: Origins, date: str | None = None) -> Renderers:
    """The recipe's prompts with each role's tokenizer; one renderer where that is the same."""
    trust = recipe.model.trust_remote_code
    by_path = {
        path: make_renderer(recipe, load_tokenizer(path, trust_remote_code=trust), date)
        for path in {origin.base.path for origin in origins.values()}
    }
    return {role: by_path[origin.base.path] for role, origin in origins.items()}


def build_estimator(
    recipe: Recipe,
    origins: Origins,
    renderers: Renderers,
    device: torch.device | None = None,
    poll: Callable[[], None] | None = None,
    parts: Parts | None = None,
) -> ProbabilityEstimator:
    """Both roles in memory as they start, behind the interface of the exported estimator; their
    bases divided, where `parts` are given.
    """
    device = choose_device(recipe.model.device) if device is None else device
    return ProbabilityEstimator(
        build_roles(recipe, origins, device, parts),
        renderers[ESTIMATOR],
        connector_renderer=renderers[CONNECTOR],
        max_new_tokens=recipe.model.max_reasoning_tokens,
        no_repeat_ngram=recipe.model.no_repeat_ngram,
        token_budget=recipe.evaluation.token_budget,
        poll=poll,
    )


def build_roles(
    recipe: Recipe, origins: Origins, device: torch.device, parts: Parts | None = None
) -> Roles:
    """Two adapters on one base, where both roles have one and share it; else a model for each."""

    def load(role: Role) -> PreTrainedModel:
        return load_model(
            origins[role].base.path,
            dtype=recipe.model.dtype,
            device=device,
            attention=recipe.model.attention,
            quantization=origins[role].quantization,
            trust_remote_code=recipe.model.trust_remote_code,
            parts=parts,
        )

    settings = {
        role: one.model_copy(update={"adapter": origins[role].adapter})
        for role, one in role_settings(recipe).items()
    }
    same_base = origins[CONNECTOR].base == origins[ESTIMATOR].base
    roles = compose_roles(recipe, settings, load, same_base=same_base)
    for role, origin in origins.items():
        if origin.adapter is not None:
            roles.load_weights(role, read_weights(Path(origin.adapter)))
    return roles


def compose_roles(
    recipe: Recipe,
    settings: Mapping[Role, RoleModel],
    load: Callable[[Role], PreTrainedModel],
    *,
    same_base: bool,
) -> Roles:
    """The roles as the recipe has them, of bases that `load` gives."""
    tuned = [role for role in ROLES if settings[role].tuning == "lora"]
    configs = {role: adapter_config(settings[role]) for role in tuned}
    seed = derive_seed(recipe.seed, "adapters")
    judged_by_base = recipe.estimator_rl is not None and recipe.estimator_rl.rewards.asks_base
    if same_base and len(configs) == len(ROLES):
        return AdapterRoles.create(load(ESTIMATOR), configs, seed=seed)
    if same_base and not configs:
        return SeparateRoles.create(load(ESTIMATOR), keep_base=judged_by_base)
    parts = {
        role: AdapterRoles.create(load(role), {role: config}, seed=seed)
        for role, config in configs.items()
    }
    models = {role: parts[role].model if role in parts else load(role) for role in ROLES}
    base: AdapterRoles | WholeRole | None = parts.get(CONNECTOR) if same_base else None
    if judged_by_base and base is None and ESTIMATOR not in parts:
        base = WholeRole(None, load(ESTIMATOR).requires_grad_(False))
    return SeparateRoles(models, base)
