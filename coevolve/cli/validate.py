"""Say what `train` would do with a recipe, and all that stands in its way; nothing is trained.

The recipe with where each value comes from, the data and its lengths, one example as each model
sees it, and the run part by part.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders
from coevolve.shipped import launch_path, recipe_path

if TYPE_CHECKING:
    from coevolve.preflight.training import Training
    from coevolve.prompts import Renderer
    from coevolve.recipe import Recipe
    from coevolve.remid.grid import Grid
    from coevolve.training.timing import Pace

PERCENTILES = (50, 95, 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, _ = adders(parser)
    reads("recipe", "as train takes it", means=recipe_path)
    add("overrides", "dotted keys, for example data.path=FILE", nargs="*", metavar="key=value")
    add("--all", "show the values that nobody has set, too", action="store_true")
    what = "of accelerate, or a name (coevolve launch-file): the memory of each of its GPUs"
    reads("--launch", what, means=launch_path, metavar="FILE")
    add("--measure", "how long it takes, by some seconds of its work here", action="store_true")
    add("--num-processes", "other than the launch file says", type=int, metavar="N")


def run(options: argparse.Namespace) -> None:
    from coevolve.recipe.load import read_recipe

    recipe, origins = read_recipe(options.recipe, options.overrides)
    from coevolve.preflight.checks import preflight
    from coevolve.preflight.training import Training
    from coevolve.progress import make_console, quieten_libraries
    from coevolve.remid.grid import grid_table
    from coevolve.training.run import CHECKS

    quieten_libraries()
    draft = preflight(Training(recipe, os.environ), CHECKS)
    console = make_console(sys.stdout)
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    for text in _values(recipe, origins, options.all):
        console.print(text, **plain)
    pace = None
    if options.measure:
        from coevolve.training.timing import measure_pace

        pace = measure_pace(recipe, draft.data.train)
    for grid in (_data(draft), _run(draft, pace, options.num_processes or 1)):
        console.print(grid_table(grid))
    if options.launch:
        for grid in _memory(draft, options.launch, options.num_processes):
            console.print(grid_table(grid))
    for title, text in _example(draft):
        console.print(f"{title}:\n\n{text}\n", **plain)


def _values(recipe: "Recipe", origins: Mapping[str, str], show_all: bool) -> Iterator[str]:
    """The recipe's values, under the file or the command line that each comes from."""
    import yaml

    from coevolve.recipe.load import flat, recipe_values

    by_origin: dict[str, list[str]] = {}
    for key, value in flat(recipe_values(recipe)):
        parts = key.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        origin = next((origins[name] for name in above if name in origins), "nobody: the default")
        dumped = yaml.safe_dump(_short(value), default_flow_style=True, width=math.inf)
        text = dumped.removesuffix("\n").removesuffix("\n...")
        by_origin.setdefault(origin, []).append(f"  {key}: {text}")
    for origin, lines in by_origin.items():
        if show_all or not origin.startswith("nobody"):
            yield "\n".join((f"said by {origin}", *lines, ""))


def _short(value: Any) -> Any:
    """A list of sections without what they leave out."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _data(draft: "Training") -> "Grid":
    import numpy as np

    from coevolve.remid.grid import Block, Grid

    data, left = draft.data, {}
    for out in draft.sifted.left_out:
        left[out.split] = f"{len(out.sample_ids)} of {out.of} {out.why}"
    parts = {"IDTrain, to train": data.train, "IDTrain, held out": data.validation, **data.tests}
    rows = []
    for name, examples in parts.items():
        needs = [draft.needs(example.sample_id) for example in examples]
        cells = [
            " ".join(f"{x:.0f}" for x in np.percentile(sizes, PERCENTILES))
            for sizes in (
                [need.connector for need in needs],
                [need.estimator for need in needs],
                [need.response for need in needs],
            )
        ]
        rows.append((name, str(len(examples)), *cells, left.get(name.partition(",")[0], "")))
    columns = (
        "data",
        "examples",
        "connector's prompt",
        "estimator's prompt",
        "response",
        "left out",
    )
    told = "Tokens: median, 95th percentile, most; prompts without a reasoning."
    return Grid(columns, [Block("", rows)], [f"{draft.corpus.source}. {told}"])


def _run(draft: "Training", pace: "Pace | None", processes: int) -> "Grid":
    from coevolve.remid.grid import Block, Grid
    from coevolve.training.plan import plan

    data, traces = draft.data, draft.recipe.traces
    sizes = len(data.train), len(data.validation), len(data.test_examples)
    steps = plan(draft.recipe, *sizes)
    rows = [
        (
            step.what,
            f"{step.updates:,}" if step.updates else "",
            f"{step.rows:,}" if step.updates else "",
            f"{step.texts:,} of {step.tokens:,}" if step.texts else "",
            *([_duration(pace.seconds(step, processes))] if pace else []),
        )
        for step in steps
    ]
    updates, most = sum(x.updates for x in steps), sum(x.texts * x.tokens for x in steps)
    whole = [_duration(sum(pace.seconds(x, processes) for x in steps) + pace.load)] if pace else []
    rows.append(("in all", f"{updates:,}", "", f"{most:,} tokens at most", *whole))
    asked = len(data.train) + (len(data.test_examples) if draft.recipe.baselines.oracle else 0)
    by = (
        "asks nobody"
        if traces.teacher not in ("endpoint", "local")
        else f"is asked {asked:,} times"
    )
    caption = [f"The teacher ({traces.teacher}) {by}."]
    columns = ["run", "updates", "rows each", "texts written, tokens"]
    if pace:
        columns.append("time")
        caption.append(
            "Time: by the speed measured here, texts as long as the models write them now; scoring "
            "and R-EMID come on top."
        )
    return Grid(columns, [Block("", rows)], caption)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def _memory(draft: "Training", launch: str, given: int | None) -> "Iterator[Grid]":
    from coevolve.remid.grid import Block, Grid
    from coevolve.scoring.roles import ROLES
    from coevolve.training.distributed.launch import read_launch
    from coevolve.training.memory import Longest, fits, memory_of

    kind, processes = read_launch(launch_path(launch))
    processes = given or processes
    data = draft.data
    needs = [draft.needs(example.sample_id) for example in (*data.train, *data.validation)]
    longest = Longest(
        *(
            max(getattr(need, name) for need in needs)
            for name in ("connector", "estimator", "response")
        )
    )
    bases = {role: draft.bases[getattr(draft.recipe.model, role).base] for role in ROLES}
    memory, disk = memory_of(draft.recipe, bases, longest, kind, processes)
    for what, parts, told in (
        (f"memory of each of {processes} GPUs ({kind})", memory, [fits(memory)]),
        ("disk, beside the base", disk, []),
    ):
        rows = [(part.what, f"{part.bytes / 1e9:.2f}") for part in parts]
        rows.append(("in all", f"{sum(part.bytes for part in parts) / 1e9:.2f}"))
        yield Grid((what, "GB"), [Block("", rows)], told)


def _example(draft: "Training") -> Iterator[tuple[str, str]]:
    from coevolve.scoring.roles import CONNECTOR, ESTIMATOR

    example = draft.data.train[0]
    name = f"IDTrain, sample_ID {example.sample_id!r}"
    connector, estimator = draft.renderers[CONNECTOR], draft.renderers[ESTIMATOR]
    yield f"The connector's prompt, {name}", connector.connector(example)
    prompt = estimator.estimator(example, example.trace or "")
    scored = _token_by_token(estimator, example.golden_response or "")
    shown = "the reasoning of its row" if example.trace else "no features"
    yield (
        f"The estimator's prompt, with {shown}, and between the arrows what is scored, token by "
        "token",
        f"{prompt}\u2192{scored}\u2190",
    )


def _token_by_token(renderer: "Renderer", response: str) -> str:
    tokenizer: Any = renderer.tokenizer
    return "\u00b7".join(tokenizer.decode([token]) for token in renderer.response_ids(response))
