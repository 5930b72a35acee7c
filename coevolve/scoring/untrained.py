"""A base model as an estimator, without any training: what a trained one is to be compared with."""

from pathlib import Path
from typing import Any

from coevolve import __version__
from coevolve.outputs import ESTIMATOR, claim, new_folder
from coevolve.prompts import PromptSet, Renderer
from coevolve.scoring.artifact import (
    NORMALISATION,
    copy_model,
    reasoning_entry,
    rendering_entry,
    role_entry,
    write_manifest,
)
from coevolve.scoring.models import base_fingerprint, load_tokenizer, resolve_base
from coevolve.scoring.origins import Base, Origin, base_settings
from coevolve.scoring.roles import ROLES


def export_base(
    base: str,
    prompts: PromptSet,
    folder: str | Path,
    *,
    max_new_tokens: int,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write an estimator directory both of whose roles are the base model as it is (a folder or a
    packaged one is copied in, a hub id left where it is), and return its manifest.
    """
    path = resolve_base(base)
    folder = claim(folder, ESTIMATOR, option="--out", inputs={"--base": Path(path)}, overwrite=True)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    # Raises where the tokenizer has no usable chat template.
    renderer = Renderer(prompts, tokenizer)
    included = Path(path).is_dir()
    entry = role_entry(
        Origin(Base(base, path, base_fingerprint(path))).published(included=included),
        tuning="none",
        base_folder="base" if included else None,
        tokenizer="tokenizer",
        chat_template=tokenizer.chat_template,
        settings=base_settings(path),
    )
    with new_folder(folder, ESTIMATOR) as temporary:
        tokenizer.save_pretrained(temporary / "tokenizer")
        if included:
            copy_model(Path(path), temporary / "base")
        manifest = {
            "coevolve": __version__,
            "roles": dict.fromkeys(ROLES, entry),
            "normalisation": NORMALISATION,
            "reasoning": reasoning_entry(max_new_tokens),
            "prompts": prompts.to_dict(),
            "rendering": rendering_entry(dict.fromkeys(ROLES, renderer)),
        }
        return write_manifest(temporary, manifest | renderer.shown_date)
