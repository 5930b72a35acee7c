"""Who reads responses beside the estimator: the models' own weights."""

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders

if TYPE_CHECKING:
    from coevolve.chat.reading import AsAsked
    from coevolve.cli.scoring import Answered
    from coevolve.prompts.play import PlayPrompt
    from coevolve.remid.readers import ReaderKind
    from coevolve.remid.score import Reader


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    add, reads, _ = adders(parser)
    what = (
        "models' own weights, to read their responses by: a folder, hub id or PEFT adapter, or "
        "URL#MODEL of an endpoint that gives log-probabilities of prompts, as vLLM's does"
    )
    add("--own", what, nargs="+", default=(), metavar="NAME=PATH_OR_HUB")
    what = "environment variable that holds the key of endpoints of --own"
    add("--api-key-env", what, metavar="VAR")
    what = (
        "YAML: the prompt of the models of --own (default: that which --responses record, or ours)"
    )
    reads("--prompt", what, metavar="FILE")
    what = (
        "who reads responses: the estimator, the model's own weights, or for each model and subset "
        "the best of both, chosen on one half and used on the other (default: best with --own, "
        "else estimator)"
    )
    add("--reader", what, choices=("estimator", "own", "best"))


def chosen_reader(options: argparse.Namespace) -> "ReaderKind":
    """By which reader the results are."""
    reader: ReaderKind = options.reader or ("best" if options.own else "estimator")
    return reader


def chosen_readers(options: argparse.Namespace, answered: "Answered") -> "list[Reader]":
    """The readers that the options name, each of which reads its model's and the golden responses;
    what stands in the way is said before any model is loaded.
    """
    from coevolve.chat.reading import prompt_that_asked
    from coevolve.cli.scoring import named_files
    from coevolve.data.responses import record_of
    from coevolve.errors import DataError, RecipeError
    from coevolve.prompts.play import PlayPrompt
    from coevolve.recipe.load import read_section
    from coevolve.remid.score import Reader

    own = named_files(options.own, "--own", "NAME=PATH_OR_HUB")
    if not own:
        for name in ("prompt", "reader"):
            if getattr(options, name) not in (None, "estimator"):
                raise RecipeError(
                    f"--{name}: is for models that --own names. Give one, or leave it out."
                )
        return []
    files = named_files(options.responses)
    given = read_section(options.prompt, PlayPrompt) if options.prompt else None
    readers = []
    for name, source in own.items():
        if name not in files:
            known = ", ".join(files)
            raise RecipeError(f"--own: {name!r} has no responses; accepted are {known}.")
        header, cut = record_of(files[name])
        if ours := [x for x in cut if x in answered.responses[name]]:
            raise DataError(
                f"--own {name}: {len(ours)} of {len(answered.responses[name])} responses were cut "
                f"off (first {ours[0]!r}), and the weights did not end them. Ask for all again "
                "with more --max-new-tokens, or take these rows out and allow that (--missing "
                "drop)."
            )
        weights = None if _is_served(source) else source
        prompt = prompt_that_asked(name, files[name], weights, header, given)
        date = next((x["template_date"] for x in (header or {}).values() if _has_date(x)), None)
        opened = partial(_opened, options, answered, name, source, prompt, date)
        readers.append(Reader(opened, {None: f"own of {name}", name: "own"}))
    return readers


def _opened(
    options: argparse.Namespace,
    answered: "Answered",
    name: str,
    source: str,
    prompt: "PlayPrompt | None",
    date: str | None,
) -> "AsAsked":
    """The model, once it is known that the responses may be its own."""
    from coevolve.chat.reading import OwnWeights, ServedWeights
    from coevolve.cli.scoring import cache_folder
    from coevolve.remid.subsets import distributions

    common: dict[str, Any] = {
        "date": date,
        "cache": cache_folder(options),
        "prompt": prompt,
        "poll": options.stop.poll,
    }
    reader: AsAsked
    if _is_served(source):
        key = options.api_key_env
        reader = ServedWeights.load(source, api_key_env=key, environ=os.environ, **common)
    else:
        here = {name: getattr(options, name) for name in ("dtype", "device", "token_budget")}
        reader = OwnWeights.load(source, **here, **common)
    examples = distributions(answered.corpus)[0].examples
    texts = [answered.responses[name][example.sample_id] for example in examples]
    reader.require_fit(name, examples, texts)
    return reader


def _is_served(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _has_date(value: Any) -> bool:
    return isinstance(value, dict) and "template_date" in value
