"""What a disturbed run must have in common with one that was left alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TOLERANCE = 1e-6
OF_THE_SITTING = (".lock", "wandb", ".wandb-online-*", ".sent.json", "status.json", "oracle")


def lost(whole: Path, run: Path, *, exact: bool) -> Iterator[str]:
    """What is not as it was without faults, in words.

    Args:
        exact: weights, figures and samples to the bit; else weights within TOLERANCE, and the same
            figures under the same steps, whatever their values.
    """
    yield from _record(whole, run, exact)
    yield from _weights(whole, run, exact)
    results = [json.loads((place / "results.json").read_text()) for place in (whole, run)]
    for result in results:
        del result["seconds"]
    if exact and results[0] != results[1]:
        odd = [name for name in results[0] if results[0][name] != results[1].get(name)]
        yield f"results.json: {', '.join(odd)}"
    manifests = [(place / "estimator" / "manifest.json").read_text() for place in (whole, run)]
    if exact and manifests[0] != manifests[1]:
        yield "estimator/manifest.json: differs, and so another identity"
    names = [{*_names(place)} for place in (whole, run)]
    if names[0] != names[1]:
        yield f"files: {sorted(names[0] ^ names[1])}"
    there = [path.relative_to(run) for path in run.rglob("*")]
    left = [str(path) for path in there if path.parts[0] != "wandb" and _temporary(path.name)]
    if left:
        yield f"temporary files: {left}"


def largest_difference(whole: Path, run: Path) -> float:
    """Of any exported weight."""
    pairs = list(_pairs(whole, run))
    return max(float((one.double() - other.double()).abs().max()) for _, one, other in pairs)


def record(run: Path) -> list[dict[str, Any]]:
    """The lines of both files of the record, without what depends on the clock, by step."""
    lines = []
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines += [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]
    return sorted(
        ({key: value for key, value in line.items() if not _timed(key)} for line in lines),
        key=lambda line: line["step"],
    )


def _record(whole: Path, run: Path, exact: bool) -> Iterator[str]:
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    if steps != sorted(set(steps)):
        yield "metrics.jsonl: a step is there twice, or out of order"
    ours, theirs = record(run), record(whole)
    if not exact:
        ours, theirs = ([_without_values(line) for line in lines] for lines in (ours, theirs))
    if len(ours) != len(theirs):
        yield f"record: {len(ours)} lines, {len(theirs)} without faults"
    odd = [one["step"] for one, other in zip(ours, theirs, strict=False) if one != other]
    if odd:
        yield f"record: {len(odd)} lines differ, the first at step {odd[0]}"


def _without_values(line: dict[str, Any]) -> dict[str, Any]:
    """Which figures a line has; samples may be others, once a sum is rounded differently."""
    if "sample" in line:
        return {**line, "sample": sorted(line["sample"])}
    kept = ("step", "coevolve/round", "coevolve/phase")
    return {name: value if name in kept else None for name, value in line.items()}


def _timed(name: str) -> bool:
    ends = ("step_time", "_runtime", "_per_second")
    return name.endswith(ends) or name.startswith(
        ("seconds", "time/", "tokens_per_second/", "memory/")
    )


def _weights(whole: Path, run: Path, exact: bool) -> Iterator[str]:
    for name, one, other in _pairs(whole, run):
        if exact and not torch.equal(one, other):
            yield f"weights: {name} has other bits"
        elif not torch.allclose(one, other, rtol=0, atol=TOLERANCE):
            difference = float((one - other).abs().max())
            yield f"weights: {name} differs by {difference:.2g}"


def _pairs(whole: Path, run: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for role in ("connector", "estimator"):
        folders = [place / "estimator" / role for place in (whole, run)]
        one, other = (load_file(next(x.glob("*model.safetensors"))) for x in folders)
        assert set(one) == set(other) and one
        yield from ((f"{role}/{name}", one[name], other[name]) for name in one)


def _names(run: Path) -> Iterator[str]:
    """What lies in the run's folder; checkpoints have other numbers."""
    for path in run.rglob("*"):
        parts = path.relative_to(run).parts
        if not any(Path(parts[0]).match(pattern) for pattern in (*OF_THE_SITTING, "checkpoints")):
            yield "/".join(parts)


def _temporary(name: str) -> bool:
    return name.endswith((".tmp", ".part", ".new")) or name.startswith((".seen-", "tmp"))
