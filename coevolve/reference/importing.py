"""From the public release to an estimator directory.

The public evaluation merges the SFT adapter into the base model and puts the RL adapter on top,
whatever the round. Here both become one adapter of the one base model, without approximation. (From
the second round on, that code trains the RL adapter on another sum, without the SFT adapter. What
it evaluates, and what is published, is the one described.)
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from coevolve import __version__
from coevolve.outputs import ESTIMATOR as AN_ESTIMATOR
from coevolve.outputs import claim, new_folder
from coevolve.prompts import Renderer
from coevolve.reference.adapters import add_adapters, check_fit, read_adapter, write_adapter
from coevolve.reference.layout import Release, find_release
from coevolve.reference.templates import (
    FILE,
    EmbeddedExport,
    embedded_export,
    imported_prompts,
    read_templates,
)
from coevolve.scoring.artifact import (
    NORMALISATION,
    copy_model,
    reasoning_entry,
    rendering_entry,
    role_entry,
    write_manifest,
)
from coevolve.scoring.models import base_fingerprint, load_tokenizer, resolve_base
from coevolve.scoring.origins import (
    BASE_OF_ADAPTER,
    Base,
    Origin,
    adapter_fingerprint,
    base_settings,
    read_parent,
    require_base,
    write_parent,
)
from coevolve.scoring.roles import ESTIMATOR, ROLES, Role

PUBLISHED_MAX_NEW_TOKENS = 2048
"""The longest reasoning in the published training."""


def import_reference(
    checkout: str | Path,
    base: str,
    folder: str | Path,
    *,
    name: str | None = None,
    number: int | None = None,
    max_new_tokens: int | None = None,
    copy_base: bool = True,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write an estimator directory from a checkout of the public release, and return its manifest.

    Args:
        base: the base model that the adapters were trained on: a folder, a hub id or a packaged
            model.
        folder: to write; an estimator that is there already is replaced.
        name: of the base model in the folders' names, needed where there are several.
        number: of the round of RL, the last one by default; 0 is SFT alone.
        max_new_tokens: room for a reasoning; by default 2,048, or what an export of coevolve says.
        copy_base: copy a base model that is a folder into the estimator; otherwise it has to stay.
    """
    checkout = Path(checkout)
    where, read = "the estimator's folder", {f"the checkout {checkout}": checkout}
    folder = claim(folder, AN_ESTIMATOR, option=where, inputs=read, overwrite=True)
    constants = read_templates(checkout)
    export = embedded_export(constants, str(checkout / FILE))
    prompts = export.prompts if export else imported_prompts(constants, str(checkout / FILE))
    release = find_release(checkout, name=name, number=number)
    parts = {role: [read_adapter(path) for path in release.adapters[role]] for role in ROLES}
    path = resolve_base(base)
    check_fit(itertools.chain(*parts.values()), path, trust_remote_code=trust_remote_code)
    origin = Base(base, path, base_fingerprint(path))
    included = copy_base and Path(path).is_dir()
    parents = _parents(release, origin, export, included=included)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    # Raises where the tokenizer has no usable chat template.
    renderer = Renderer(prompts, tokenizer)
    entry = partial(
        role_entry,
        tuning="lora",
        base_folder="base" if included else None,
        tokenizer=ESTIMATOR,
        chat_template=tokenizer.chat_template,
        settings=base_settings(path),
    )
    room = max_new_tokens or (export.max_new_tokens if export else PUBLISHED_MAX_NEW_TOKENS)
    with new_folder(folder, AN_ESTIMATOR) as temporary:
        for role in ROLES:
            adapter = add_adapters(parts[role])
            named = origin.portable("base" if included else None)
            config = {**adapter.config, BASE_OF_ADAPTER: named}
            write_adapter(temporary / role, replace(adapter, config=config))
            tokenizer.save_pretrained(temporary / role)
            write_parent(temporary / role, parents[role])
        if included:
            copy_model(Path(path), temporary / "base")
        return write_manifest(
            temporary,
            {
                "coevolve": __version__,
                "roles": {
                    role: entry(parents[role], fingerprint=adapter_fingerprint(temporary / role))
                    for role in ROLES
                },
                "normalisation": NORMALISATION,
                "reasoning": reasoning_entry(room, export.no_repeat_ngram if export else 0),
                "prompts": prompts.to_dict(),
                "rendering": rendering_entry(dict.fromkeys(ROLES, renderer)),
                **renderer.shown_date,
                "imported": _origin(checkout, release),
            },
        )


def _parents(
    release: Release, base: Base, export: EmbeddedExport | None, *, included: bool
) -> dict[Role, dict[str, Any]]:
    """What each role's adapter was trained on, held against all that was recorded of it."""
    if export is not None:
        said = {"base": {"source": export.base_source, "fingerprint": export.base_fingerprint}}
        require_base("the adapters", said, base.fingerprint, base.path)
    parents = {}
    for role in ROLES:
        parents[role] = Origin(base).published(included=included)
        for folder in release.adapters[role]:
            recorded = read_parent(folder)
            if recorded is not None:
                require_base(f"the adapter {folder}", recorded, base.fingerprint, base.path)
                # It is an export of our own, one adapter for each role.
                source = parents[role]["base"]["source"]
                parents[role] = {**recorded, "base": {**recorded["base"], "source": source}}
    return parents


def _origin(checkout: Path, release: Release) -> Mapping[str, Any]:
    """The part of a manifest that says what was imported."""
    return {
        "layout": "reference",
        "name": release.name,
        "round": release.round,
        "adapters": {
            role: [str(path.relative_to(checkout)) for path in paths]
            for role, paths in release.adapters.items()
        },
    }
