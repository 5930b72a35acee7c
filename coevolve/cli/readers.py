"""Who reads responses beside the estimator: models' own weights, and readers fitted to them."""

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import adders
from coevolve.errors import DataError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from coevolve.chat.reading import AsAsked
    from coevolve.cli.scoring import Answered
    from coevolve.data.example import Example
    from coevolve.prompts.play import PlayPrompt
    from coevolve.remid.readers import ReaderKind
    from coevolve.remid.results import FittedReaders
    from coevolve.remid.score import PairScorer, Reader, Scoring
    from coevolve.scoring.estimator import ProbabilityEstimator


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
        "fit a reader to the responses of each model without --own, and to golden ones: to those "
        "for IDTrain contexts where --responses has them, else to each half of the test contexts, "
        "to read the other"
    )
    add("--fit-reader", what, action="store_true")
    what = (
        "who reads responses: the estimator, the model's own weights, one fitted to them, or for "
        "each model and subset the best of these, chosen on one half and used on the other "
        "(default: best with --own or --fit-reader, else estimator)"
    )
    add("--reader", what, choices=("estimator", "own", "fitted", "best"))


def chosen_reader(options: argparse.Namespace) -> "ReaderKind":
    """By which reader the results are."""
    others = options.own or options.fit_reader
    reader: ReaderKind = options.reader or ("best" if others else "estimator")
    return reader


def chosen_readers(options: argparse.Namespace, answered: "Answered") -> "list[Reader]":
    """The readers that the options name, each of which reads its model's and the golden responses;
    what stands in the way is said before any model is loaded.
    """
    from coevolve.chat.reading import prompt_that_asked
    from coevolve.cli.scoring import named_files
    from coevolve.data.responses import record_of
    from coevolve.prompts.play import PlayPrompt
    from coevolve.recipe.load import read_section
    from coevolve.remid.score import Reader

    own = named_files(options.own, "--own", "NAME=PATH_OR_HUB")
    if not own and options.prompt is not None:
        raise RecipeError("--prompt: is for models that --own names. Give one, or leave it out.")
    if not (own or options.fit_reader) and options.reader not in (None, "estimator"):
        raise RecipeError(
            "--reader: is for models that --own names, or with --fit-reader. Give one, or leave it "
            "out."
        )
    files = named_files(options.responses)
    given = read_section(options.prompt, PlayPrompt) if options.prompt else None
    readers = []
    for name, source in own.items():
        if name not in files:
            known = ", ".join(files)
            raise RecipeError(f"--own: {name!r} has no responses; accepted are {known}.")
        header, cut = record_of(files[name])
        _require_ended(f"--own {name}", cut, answered.responses[name])
        weights = None if _is_served(source) else source
        prompt = prompt_that_asked(name, files[name], weights, header, given)
        date = next((x["template_date"] for x in (header or {}).values() if _has_date(x)), None)
        opened = partial(_opened, options, answered, name, source, prompt, date)
        readers.append(Reader(opened, {None: f"own of {name}", name: "own"}))
    return readers


@dataclass(frozen=True)
class Fit:
    """A reader to be fitted to a model's responses (None: golden), before any model is loaded.

    `parts` are (examples, responses): those of IDTrain, or those of half 1 and of half 0, whose
    readers read half 0 and half 1.
    """

    model: str | None
    parts: "Sequence[tuple[Sequence[Example], Sequence[str]]]"

    @property
    def halved(self) -> bool:
        return len(self.parts) > 1


def planned_fits(
    options: argparse.Namespace, answered: "Answered", scoring: "Scoring"
) -> list[Fit]:
    """What `--fit-reader` is to fit; DataError: responses that were cut off, or too few."""
    from coevolve.cli.scoring import named_files
    from coevolve.data.corpus import TRAIN_SPLIT
    from coevolve.data.responses import record_of, responses_to_some
    from coevolve.remid.readers import LEAST_FITTED
    from coevolve.remid.subsets import evaluated_examples, golden_by_id

    if not options.fit_reader:
        return []
    own = named_files(options.own, "--own", "NAME=PATH_OR_HUB")
    files = {name: x for name, x in named_files(options.responses).items() if name not in own}
    if not files:
        raise RecipeError("--fit-reader: every model has its --own. Leave it out.")
    tests, train = evaluated_examples(answered.corpus), answered.whole.splits.get(TRAIN_SPLIT, ())
    half_of, fits = scoring.half_of(answered.corpus), []
    halves: list[Sequence[Example]] = [
        [x for x in tests if half_of[x.sample_id] == number] for number in (1, 0)
    ]
    golden: list[Sequence[Example]] = []
    for name, path in files.items():
        learned = responses_to_some(path, train, evaluated_examples(answered.whole))
        given = {**answered.responses[name], **learned}
        some = [example for example in train if example.sample_id in learned]
        places: list[Sequence[Example]] = [some] if len(some) >= LEAST_FITTED else halves
        if (least := min(map(len, places))) < LEAST_FITTED:
            also = f" (and {len(some)} for IDTrain contexts)" if some else ""
            raise DataError(
                f"--fit-reader: {name} has {least} responses in half of the test contexts{also}; a "
                f"reader is fitted to {LEAST_FITTED} or more. Let it answer {LEAST_FITTED} IDTrain "
                "contexts (respond --splits IDTrain), or leave --fit-reader out."
            )
        read = {x.sample_id for x in (some if places is not halves else tests)}
        _require_ended(f"--fit-reader: {name}", record_of(path)[1], read)
        fits.append(Fit(name, [(part, [given[x.sample_id] for x in part]) for part in places]))
        golden = halves if places is halves else golden or places
    said = golden_by_id([x for part in golden for x in part], answered.corpus.source)
    parts = [(part, [said[x.sample_id] for x in part]) for part in golden]
    return [Fit(None, parts), *fits]


def fit_readers(
    options: argparse.Namespace,
    fits: Sequence[Fit],
    answered: "Answered",
    scoring: "Scoring",
    estimator: "ProbabilityEstimator",
    console: "Console",
) -> "tuple[list[Reader], FittedReaders | None]":
    """The fitted readers, and what results say of them."""
    from coevolve.cli.scoring import cache_folder
    from coevolve.progress import task
    from coevolve.remid.results import Fitted, FittedReaders
    from coevolve.remid.score import Reader
    from coevolve.training.reader import CrossFitted, Fitting, settings

    if not fits:
        return [], None
    poll, folder = options.stop.poll, cache_folder(options)
    fitting = Fitting(estimator, scoring.reasoning, options.seed, folder, poll)
    half_of, readers, told = scoring.half_of(answered.corpus), [], []
    with task(console, "fitting readers", sum(len(fit.parts) for fit in fits)) as advance:
        for fit in fits:
            found = []
            for examples, texts in fit.parts:
                found.append(fitting.reader(examples, texts))
                advance(1)
            one = CrossFitted(found, half_of) if fit.halved else found[0]
            readers.append(Reader(partial(_same, one), {fit.model: "fitted"}, reasoned=True))
            told.append(
                Fitted(
                    model=fit.model,
                    contexts="halves of the test contexts" if fit.halved else "IDTrain",
                    responses=[reader.fitted_to for reader in found],
                    held_out=[reader.held_out for reader in found],
                    epochs=[reader.epochs for reader in found],
                )
            )
    return readers, FittedReaders(settings=settings(), readers=told)


def _same(reader: "PairScorer") -> "PairScorer":
    return reader


def _require_ended(what: str, cut: Sequence[str], used: Collection[str]) -> None:
    """DataError where responses that are used were cut off."""
    if ours := [name for name in cut if name in used]:
        raise DataError(
            f"{what}: {len(ours)} of {len(used)} responses were cut off (first {ours[0]!r}), and "
            "the model did not end them. Ask for all again with more --max-new-tokens, or take "
            "these rows out and allow that (--missing drop)."
        )


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
