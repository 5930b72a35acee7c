"""An estimator's directory for others: whether they can use it, and how it gets to a hub."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coevolve.errors import ArtifactError
from coevolve.files import read_text, sha256_file
from coevolve.scoring.artifact import MANIFEST, listed_files, read_manifest
from coevolve.scoring.card import CARD, HUB_ID, hub_id
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import PACKAGED
from coevolve.scoring.origins import BASE_OF_ADAPTER, CONFIG, read_config
from coevolve.scoring.roles import ROLES
from coevolve.scoring.vector import VECTOR

OURS = (*ROLES, "base", "connector-base", "tokenizer")
"""Folders of an estimator: what an older one left there goes when a newer one comes."""


@dataclass(frozen=True)
class Parcel:
    """What goes to a hub: names of files with their bytes."""

    folder: Path
    files: Mapping[str, int]

    @property
    def card(self) -> str:
        """The head of its card: metadata, and what it is."""
        return read_text(self.folder / CARD).partition("\n## ")[0] if CARD in self.files else ""


def located(path: str | Path, revision: str | None = None) -> Path:
    """Where an estimator lies: in a folder, or in the hub's cache by its name there (`org/name`),
    downloaded if need be; `revision` is a branch, tag or commit.
    """
    if Path(path).is_dir() or "/" not in str(path) or not HUB_ID.fullmatch(str(path)):
        return Path(path)
    with explained(f"The estimator {str(path)!r} cannot be loaded", "Check the name"):
        folder = _download(str(path), revision, [MANIFEST])
        names = listed_files(folder)
        # Of the commit that the manifest is of; what else lies in the repository stays there.
        return _download(str(path), folder.name, [MANIFEST, *names])


def _download(repo: str, revision: str | None, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names)))


def lacks(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a directory of an earlier version does not have, in words."""
    if VECTOR not in manifest["files"]:
        yield f"no {VECTOR}, so nothing can be computed anew"
    if not manifest.get("rendering"):
        yield f"{MANIFEST} does not say how texts and ids are made of rows"
    if CARD not in manifest["files"]:
        yield f"no card ({CARD}) of its own"
    for role in ROLES:
        whole = manifest["roles"][role]["tuning"] == "none"
        if not whole and f"{role}/tokenizer_config.json" not in manifest["files"]:
            yield f"no tokenizer in {role}/, where other software looks for it"
    yield from obstacles(folder, manifest)


def differs(folder: Path, name: str, files: Mapping[str, str]) -> bool:
    """Whether a listed file that loading never reads is gone, or another one."""
    if name not in files:
        return False
    return not (folder / name).is_file() or sha256_file(folder / name) != files[name]


def obstacles(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What keeps others from using a directory that is what its manifest says."""
    for role in ROLES:
        entry = manifest["roles"][role]
        base, tuning = entry["base"], entry["tuning"]
        if tuning != "full" and not (base["folder"] or hub_id(base) or base["source"] in PACKAGED):
            found = f"{base['source']!r} is no name on a hub"
            yield (
                f"the base model of the {role} is not included, and {found}; export with "
                "export.include_base: always"
            )
        if tuning == "lora":
            named = read_config(folder / role).get(BASE_OF_ADAPTER)
            if (
                named not in (None, base["source"], f"./{base['folder']}")
                or Path(named or "").is_absolute()
            ):
                yield (
                    f"{role}/{CONFIG} names the base model {named!r}, which is on this machine "
                    "only; export it again"
                )


def pack(folder: str | Path) -> Parcel:
    """What would go to a hub; ArtifactError where the directory is not what its manifest says, or
    others could not use it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for problem in obstacles(folder, manifest):
        raise ArtifactError(f"{folder}: {problem}.")
    names = sorted(name for name in (MANIFEST, *manifest["files"]) if (folder / name).is_file())
    return Parcel(folder, {name: (folder / name).stat().st_size for name in names})


def push(parcel: Parcel, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Put it into the hub's model repository `repo`, made if it is not there, on the branch
    `revision`; returns the address of the commit. ArtifactError where the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    advice = (
        "Check name, connection and login (`hf auth login`), and that HF_HUB_OFFLINE is not set"
    )
    with explained(f"{parcel.folder} cannot be pushed to {repo!r}", advice, loads=False):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=parcel.folder,
            repo_id=repo,
            revision=revision,
            commit_message="Upload the estimator",
            allow_patterns=list(parcel.files),
            delete_patterns=[f"{name}/*" for name in OURS],
        )
    return commit.commit_url
