"""`python -m tests.fuzz`: see the package."""

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false"
)
os.environ.update(OMP_NUM_THREADS="1", NO_PROXY="127.0.0.1", HF_DATASETS_OFFLINE="1")

from tests.fuzz import runner, valid
from tests.fuzz.areas import AREAS, warm_up
from tests.fuzz.core import CRASH, HANG, KINDS, Area, Result


def main() -> int:
    options = _options()
    # A failure may be about text that cannot be printed.
    sys.stdout.reconfigure(errors="backslashreplace")
    if options.index is not None:
        places = runner.schedule(AREAS)
        area = next(
            area
            for area in AREAS
            if area.name == (options.only or places[options.index % len(places)].name)
        )
        todo = [(options.index, area)]
    else:
        todo = list(runner.indices(AREAS, options.n, options.only))
    return run(AREAS, todo, options, runner.Limits())


def run(
    areas: Sequence[Area],
    todo: Sequence[tuple[int, Area]],
    options: argparse.Namespace,
    limits: runner.Limits,
) -> int:
    """Run the inputs and print what came of them; exit status 1 where anything failed."""
    began = time.monotonic()
    warm_up()
    found = _valid_inputs()
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        if options.index is not None or options.verbose:
            _tell(result)
        elif len(results) % 100 == 0:
            print(
                f"{len(results)} of {len(todo)}, {time.monotonic() - began:.0f} s", file=sys.stderr
            )

    runner.run_all(
        areas,
        todo,
        options.seed,
        found,
        limits=limits,
        processes=options.processes,
        keep=Path(options.keep) if options.keep else None,
        report=report,
    )
    failed = [result for result in results if result.kind]
    _print_failures(failed, options.shown)
    _print_table([area.name for area in areas], results)
    print(
        f"{len(results)} inputs, seed {options.seed}, {time.monotonic() - began:.0f} s, "
        f"{len(failed)} failures"
    )
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="inputs (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[area.name for area in AREAS], help="inputs of one area")
    parser.add_argument("--index", type=int, help="this input alone, told in full")
    parser.add_argument("--processes", type=int, default=1, help="at a time (default 1)")
    parser.add_argument("--keep", metavar="DIR", help="keep the folders of failed inputs here")
    parser.add_argument(
        "--shown", type=int, default=1500, help="characters of each failure's detail (default 1500)"
    )
    parser.add_argument("--verbose", action="store_true", help="tell of every input")
    return parser.parse_args()


def _valid_inputs() -> valid.Valid:
    found = valid.find()
    if found is None:
        print("making the valid inputs (a tiny run) ...", file=sys.stderr)
        runner.in_a_process(valid.make)
        found = valid.find()
    if found is None:
        sys.exit("the valid inputs could not be made; see above")
    return found


def _tell(result: Result) -> None:
    verdict = result.kind or ("accepted" if result.accepted else "refused")
    print(
        f"{result.area} {result.index}: {verdict} {result.signature} ({result.did}; "
        f"{result.seconds:.2f} s)"
    )
    if result.detail:
        print("    " + result.detail.strip().replace("\n", "\n    "))


def _print_failures(failed: list[Result], shown: int) -> None:
    """One of each kind, the one with the least damage, and how many there are."""
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in failed:
        groups[result.area, result.kind or "", result.signature].append(result)
    for (area, kind, mark), group in sorted(
        groups.items(), key=lambda item: (item[0][0], -len(item[1]))
    ):
        first = min(group, key=lambda result: (len(result.did), result.index))
        print(
            f"\n[{area}] {len(group)} x {kind}: {mark}\n    --only {area!r} --index {first.index}: "
            f"{first.did[:1500]}"
        )
        if first.detail and shown:
            print("    " + _end(first, shown).replace("\n", "\n    "))


def _end(result: Result, shown: int) -> str:
    """The part of a detail that says most: a traceback's end, but the beginning of what
    faulthandler writes.
    """
    detail = result.detail.strip()
    return detail[:shown] if result.kind in (HANG, CRASH) else detail[-shown:]


def _print_table(areas: list[str], results: list[Result]) -> None:
    counted: dict[str, Counter[str]] = {area: Counter() for area in areas}
    seconds: Counter[str] = Counter()
    for result in results:
        counted[result.area][result.kind or ("accepted" if result.accepted else "refused")] += 1
        seconds[result.area] += result.seconds
    others = {result.kind for result in results if result.kind} - set(KINDS)
    names = ("accepted", "refused", *KINDS, *sorted(others))
    print(
        f"\n{'area':14}{'inputs':>8}"
        + "".join(f"{name:>{max(len(name) + 2, 9)}}" for name in names)
        + "    s/input"
    )
    for area, counts in [*counted.items(), ("all", sum(counted.values(), Counter()))]:
        inputs = counts.total()
        if inputs:
            each = (sum(seconds.values()) if area == "all" else seconds[area]) / inputs
            row = "".join(f"{counts[name]:>{max(len(name) + 2, 9)}}" for name in names)
            print(f"{area:14}{inputs:>8}{row}{each:>11.3f}")


if __name__ == "__main__":
    sys.exit(main())
