"""Make an estimator directory from a checkpoint of a run or a base model, or the public layout from
an estimator.
"""

import argparse
from pathlib import Path

from coevolve.cli.paths import adders
from coevolve.outputs import ESTIMATOR, REFERENCE, Kind

LAYOUTS = ("coevolve", "reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, _, writes = adders(parser)
    _, reads, _ = adders(parser.add_mutually_exclusive_group(required=True))
    reads("source", "RUN/checkpoints/NAME; for the reference layout an estimator too", nargs="?")
    reads("--base", "make an estimator of this base model, without training", metavar="MODEL")

    def kind(options: argparse.Namespace) -> Kind:
        return REFERENCE if options.layout == "reference" else ESTIMATOR

    writes("--out", "the directory to write", kind=kind, required=True, metavar="DIR")
    add("--layout", "whose layout (default coevolve)", default="coevolve", choices=LAYOUTS)
    add("--name", "reference layout: the base model's name in the folders' names")
    add("--prompts", "with --base: the prompt set, such as brief (default) or roleplay")
    add("--max-new-tokens", "with --base: room for a reasoning (default 512)", type=int)


def run(options: argparse.Namespace) -> None:
    from coevolve.errors import RecipeError
    from coevolve.progress import quieten_libraries
    from coevolve.training.export import export_checkpoint

    quieten_libraries()
    if options.base is not None:
        return _export_base(options)
    if options.prompts is not None or options.max_new_tokens is not None:
        raise RecipeError("--prompts and --max-new-tokens belong to --base; leave them out.")
    source, out = Path(options.source), Path(options.out)
    if options.layout == "reference":
        _export_reference(source, out, options.name)
    elif options.name is not None:
        raise RecipeError("--name belongs to --layout reference; leave it out.")
    else:
        export_checkpoint(source, out)
    print(f"exported {source} to {out}")


def _export_base(options: argparse.Namespace) -> None:
    from coevolve.errors import RecipeError
    from coevolve.prompts import prompt_set
    from coevolve.scoring.untrained import export_base

    room = 512 if options.max_new_tokens is None else options.max_new_tokens
    if room < 1:
        raise RecipeError(f"--max-new-tokens {room}: accepted is a number from 1.")
    if options.layout != "coevolve" or options.name is not None:
        raise RecipeError("--layout reference and --name need adapters, which --base has not.")
    export_base(
        options.base, prompt_set(options.prompts or "brief"), options.out, max_new_tokens=room
    )
    print(f"exported {options.base} to {options.out}")


def _export_reference(source: Path, out: Path, name: str | None) -> None:
    import tempfile

    from coevolve.reference.exporting import export_reference, require_adapters
    from coevolve.training.export import export_checkpoint

    if ESTIMATOR.is_own(source):
        written = export_reference(source, out, name=name)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            require_adapters(export_checkpoint(source, Path(folder) / "estimator"), source)
            written = export_reference(Path(folder) / "estimator", out, name=name)
    print("the public evaluation finds it by:")
    for variable, value in written.environment.items():
        print(f'  export {variable}="{value}"')
    if written.quantization:
        held = f"a base model in {written.quantization}, which the public evaluation loads whole"
        print(f"note: it was trained on {held}, so its scores there differ a little.")
    if not written.exact_prompts:
        print(
            "note: it was trained on prompts that the public scripts cannot write (they have a "
            "form of their own for dialogue, character and core features), so its scores there "
            "differ from those here. Importing it back restores the prompts exactly."
        )
