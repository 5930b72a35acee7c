"""Put an exported estimator on a hub, once it is seen that others can use it.

Only files that the manifest lists go. Who you are, the hub learns from `hf auth login` or HF_TOKEN.
"""

import argparse

from coevolve.cli.paths import adders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, _ = adders(parser)
    reads("folder", "an exported estimator", metavar="DIR")
    add("--repo", "the model repository; made if it is not there", required=True, metavar="NAME")
    add("--private", "make it a private one", action="store_true")
    add("--revision", "to this branch", metavar="BRANCH")
    add("--dry-run", "show what would go, and ask no network", action="store_true")


def run(options: argparse.Namespace) -> None:
    from coevolve.progress import quieten_libraries
    from coevolve.scoring.publish import pack, push

    quieten_libraries()
    parcel = pack(options.folder)
    for name, size in parcel.files.items():
        print(f"{size:>15,}  {name}")
    total = f"{len(parcel.files)} files, {sum(parcel.files.values()):,} bytes"
    if options.dry_run:
        print(f"{total} would go to {options.repo}. The card:\n\n{parcel.card}")
        return
    how = {"private": options.private, "revision": options.revision}
    print(f"{total} went to {options.repo}: {push(parcel, options.repo, **how)}")
