"""Who reads responses beside the estimator: the models' own weights."""

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coevolve.chat.base import Message
    from coevolve.chat.reading import AsAsked
    from coevolve.cli.scoring import Answered
    from coevolve.data.example import Example
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
        "what the models of --own were asked, where coevolve respond did not ask: JSONL of "
        "{sample_ID, messages}"
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
    from coevolve.chat.reading import require_written_by
    from coevolve.cli.scoring import named_files
    from coevolve.data.responses import record_of
    from coevolve.errors import DataError, RecipeError
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
    asked = None if options.prompt is None else _asked(options.prompt, answered)
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
                "with more --max-new-tokens, or take these rows out and allow that (--missing drop)."
            )
        weights = None if _is_served(source) else source
        require_written_by(name, files[name], weights, header, own_prompt=asked is not None)
        date = next((x["template_date"] for x in (header or {}).values() if _has_date(x)), None)
        opened = partial(_opened, options, answered, name, source, asked, date)
        readers.append(Reader(opened, {None: f"own of {name}", name: "own"}))
    return readers


def _opened(
    options: argparse.Namespace,
    answered: "Answered",
    name: str,
    source: str,
    asked: "Mapping[str, list[Message]] | None",
    date: str | None,
) -> "AsAsked":
    """The model, once it is known that the responses may be its own."""
    from coevolve.chat.reading import OwnWeights, ServedWeights
    from coevolve.cli.scoring import cache_folder
    from coevolve.remid.subsets import distributions

    common: dict[str, Any] = {
        "date": date,
        "cache": cache_folder(options),
        "asked": None if asked is None else lambda example: asked[example.sample_id],
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


def _asked(path: str, answered: "Answered") -> "dict[str, list[Message]]":
    """sample_ID -> the chat messages in a file, for every test example."""
    from coevolve.data.corpus import read_rows
    from coevolve.data.example import id_field, listed
    from coevolve.errors import DataError
    from coevolve.remid.subsets import evaluated_examples

    found = {}
    accepted = (
        "an object with sample_ID and messages, a list of {role, content} that ends with a user's"
    )
    for where, row in read_rows(path):
        messages: Any = row.get("messages") if isinstance(row, dict) else None
        whole = isinstance(messages, list) and messages and all(map(_is_message, messages))
        if not whole or messages[-1]["role"] != "user":
            raise DataError(f"{where}: accepted is {accepted}.")
        found[id_field(row, where)] = messages
    examples: list[Example] = evaluated_examples(answered.corpus)
    missing = [x.sample_id for x in examples if x.sample_id not in found]
    if missing:
        raise DataError(
            f"{path}: lacks what was asked for {len(missing)} samples: {listed(missing)}."
        )
    return found


def _is_served(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(x), str) for x in ("role", "content")
    )


def _has_date(value: Any) -> bool:
    return isinstance(value, dict) and "template_date" in value
