"""Say what an exported estimator is, and whether it is what it was when it was exported.

Every file is held against the manifest, and the examples of check.json are computed anew. Exit
status 0: all as it was; 1: ids or log-probabilities differ; 2: it cannot be loaded, which the
message explains.
"""

import argparse

from coevolve.cli.paths import adders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, _ = adders(parser)
    reads("folder", "an exported estimator, or its name on a hub", metavar="DIR")
    add("--device", "auto (default), cpu, cuda, cuda:1, ...", default="auto")
    add("--dtype", "float32, bfloat16 or float16; by default as it was exported")


def run(options: argparse.Namespace) -> int:
    from coevolve.progress import quieten_libraries
    from coevolve.scoring.artifact import read_manifest
    from coevolve.scoring.card import CARD, summary
    from coevolve.scoring.estimator import ProbabilityEstimator
    from coevolve.scoring.publish import differs, lacks, located
    from coevolve.scoring.vector import TOLERANCES, compare, read_vector

    quieten_libraries()
    folder = located(options.folder)
    manifest, vector = read_manifest(folder), read_vector(folder)
    for line in (*summary(manifest), f"identity {manifest['identity']}"):
        print(line)
    files = manifest["files"]
    print(f"files: {len(files)}, as manifest.json (version {manifest['version']}) has them")
    if differs(folder, CARD, files):
        print(f"note: {CARD} was edited or taken away since, which changes no score")
    for line in lacks(folder, manifest):
        print(f"lacks: {line}")
    dtype = options.dtype or (vector or {}).get("dtype", "float32")
    estimator = ProbabilityEstimator.from_pretrained(
        folder, device=options.device, dtype=dtype, verify=False
    )
    if vector is None:
        return 0
    vector["tolerance"] = max(vector["tolerance"], TOLERANCES.get(dtype, 0.0))
    problems, worst, count = compare(estimator, vector)
    for problem in problems:
        print(f"differs: {problem}")
    told = f"within {worst:.1g} nats per token of the export's, accepted is {vector['tolerance']}"
    print(f"examples: {count} texts, log-probabilities in {dtype} {told}")
    return 1 if problems else 0
