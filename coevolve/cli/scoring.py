"""What the commands that score have in common; what stands in the way is said before loading."""

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coevolve.cli.paths import add_input, adders
from coevolve.outputs import CACHE

if TYPE_CHECKING:
    from rich.console import Console

    from coevolve.data.corpus import Corpus
    from coevolve.data.example import Example
    from coevolve.preflight.scoring import Group
    from coevolve.remid.measures import Measure
    from coevolve.remid.pairs import Negatives
    from coevolve.remid.results import Unanswered
    from coevolve.remid.score import OnStep, Reader, ScoredCorpus, Scoring, SmallSubsets
    from coevolve.scoring.estimator import ProbabilityEstimator
    from coevolve.scoring.reasoning import Reasoning

EXAMPLES = "examples, in any layout that train reads"
CORPUS = "a corpus with IDTest and shifted test splits"


@dataclass(frozen=True)
class Answered:
    """The models' responses (model -> sample_ID -> response), and the corpus without the test
    examples that not all of them have answered, beside the whole one.
    """

    corpus: "Corpus"
    responses: Mapping[str, Mapping[str, str]]
    whole: "Corpus"
    unanswered: "Unanswered | None"


def add_estimator_arguments(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """An estimator and how it works; `named` unless the command finds it by itself."""
    add, reads, _ = adders(parser)
    if named:
        what = "an exported estimator, or its name on a hub"
        reads("--estimator", what, required=True, metavar="DIR", fetched=_located)
    add("--device", "auto (default), cpu, cuda, cuda:1, ...", default="auto")
    add("--dtype", None, default="float32", choices=("float32", "bfloat16", "float16"))
    held = {"default": "as trained", "choices": ("as trained", "none", "4bit", "8bit")}
    what = "of the base under adapters; other than as trained (default) changes scores a little"
    add("--quantization", what, **held)
    add("--token-budget", "tokens of one forward pass (default 16384)", type=int, default=16384)
    one, _, writes = adders(parser.add_mutually_exclusive_group())
    what = (
        "where reasonings and scores are kept, for any number of commands; it may be deleted at "
        "any time (default $XDG_CACHE_HOME/coevolve/work, or ~/.cache/coevolve/work)"
    )
    writes("--cache", what, kind=CACHE, metavar="DIR")
    one("--no-cache", "compute everything anew and keep nothing", action="store_true")


def _located(estimator: str) -> Path:
    from coevolve.scoring.publish import located

    return folder if (folder := Path(estimator)).is_dir() else located(estimator)


def add_data_argument(parser: argparse.ArgumentParser, what: str = EXAMPLES) -> None:
    add_input(parser, "--data", what, required=True, metavar="FILE")


def add_responses_arguments(parser: argparse.ArgumentParser, *, of_models: bool = True) -> None:
    """The responses of named models, or of one that has no name and may be the golden ones."""
    add, reads, _ = adders(parser)
    rows = "JSONL of {sample_ID, response}"
    if of_models:
        reads("--responses", rows, required=True, nargs="+", metavar="NAME=FILE")
    else:
        reads("--responses", f"{rows}; default: golden responses", metavar="FILE")
    what = "those missing, empty or there twice: an error (default), or left out for all models"
    add("--missing", what, default="error", choices=("error", "drop"))


def add_reasoning_arguments(parser: argparse.ArgumentParser, *, from_file: bool = True) -> None:
    """How reasonings are chosen; `from_file` where they may have been written elsewhere."""
    one, reads, _ = adders(parser.add_mutually_exclusive_group())
    kinds = "greedy|sampled|marginal:K|mixture[:W]"
    what = (
        "how it is chosen (default: as the manifest says); marginal:K is the log mean over K "
        "sampled ones, mixture:W is W times the probability with a greedy one plus the rest "
        "times that without any, by default with the W of the manifest"
    )
    if from_file:
        kinds += "|FILE"
        what += "; FILE: JSONL of {sample_ID, reasoning}, or a JSON object (SThought_dict.json)"
    reads("--reasoning", what, metavar=kinds)
    what = "score q2(y | x); EMI and EMID instead of R-EMI and R-EMID"
    one("--without-reasoning", what, action="store_true")


def add_pairs_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Which mismatched pairs of which subsets are scored."""
    add, *_ = adders(parser)
    one, *_ = adders(parser.add_mutually_exclusive_group())
    what = f"mismatched pairs per subset, a number (published: 1000) or all (default {default})"
    one("--negatives", what, default=default)
    one("--negatives-per-context", "so many for each context instead", type=int, metavar="K")
    what = (
        "also score every response in so many contexts, at most, that are not evaluated: rows of "
        "its subset without agent_golden_response, or left out by --missing drop (default 0)"
    )
    add("--contexts", what, type=int, default=0, metavar="N")
    add("--show-small-subsets", "list them without numbers, as no error", action="store_true")
    add("--seed", "of pairs, reasonings and all else drawn (default 0)", type=int, default=0)


def read_answered(options: argparse.Namespace) -> Answered:
    """Data and responses that the options name."""
    from coevolve.data.corpus import TRAIN_SPLIT, read_corpus
    from coevolve.data.responses import answered_by_all, read_partial_responses, read_responses
    from coevolve.remid.subsets import evaluated_examples, with_golden
    from coevolve.remid.unanswered import count_unanswered

    whole = read_corpus(options.data)
    corpus = with_golden(whole) if options.contexts else whole
    examples, train = evaluated_examples(corpus), whole.splits.get(TRAIN_SPLIT, ())
    files = named_files(options.responses)
    if options.missing == "error":
        ids, given = [x.sample_id for x in examples], {}
        for name, path in files.items():
            given[name] = dict(zip(ids, read_responses(path, examples, train), strict=True))
        return Answered(corpus, given, whole, None)
    partial = {name: read_partial_responses(path, examples, train) for name, path in files.items()}
    answered = answered_by_all(corpus, partial)
    ids = [example.sample_id for example in evaluated_examples(answered)]
    common = {name: {x: usable.by_id[x] for x in ids} for name, usable in partial.items()}
    return Answered(answered, common, whole, count_unanswered(corpus, answered, partial))


def chosen_reasoning(
    options: argparse.Namespace,
    examples: "Sequence[Example] | None" = None,
    every: "Sequence[Example]" = (),
) -> "Reasoning":
    """The protocol by which reasonings are chosen; `examples` are those for which a file's are
    read, None where no file is accepted, and `every` all of the data.
    """
    from coevolve.data.reasonings import read_reasonings
    from coevolve.errors import RecipeError
    from coevolve.files import sha256_file
    from coevolve.scoring.reasoning import Reasoning

    if options.without_reasoning:
        return Reasoning("none")
    text, seed = options.reasoning, options.seed or 0
    if text is None:
        return _own_form(options.estimator)
    name, colon, samples = text.partition(":")
    if text in ("greedy", "sampled"):
        return Reasoning("greedy" if text == "greedy" else "sampled", seed=seed)
    if name == "marginal" and samples.isdigit():
        return Reasoning("marginal", samples=int(samples), seed=seed)
    if name == "mixture":
        return Reasoning("mixture", weight=_weight(options, samples if colon else None))
    if examples is None or not Path(text).is_file():
        kinds = "greedy, sampled, marginal:K, mixture, mixture:W"
        also = "" if examples is None else ", and a file that is there"
        raise RecipeError(f"--reasoning {text!r}: accepted are {kinds}{also}.")
    texts = read_reasonings(text, examples, every)
    return Reasoning("given", texts=texts, sha256=sha256_file(text))


def _own_form(folder: str | Path) -> "Reasoning":
    from coevolve.errors import ArtifactError
    from coevolve.scoring.artifact import form_of, read_manifest

    try:
        return form_of(read_manifest(folder, verify=False))
    except ArtifactError:
        return form_of({})  # what is wrong with it is said later, with the rest


def _weight(options: argparse.Namespace, given: str | None) -> float:
    """Of reasoning in a mixture: as given, or as it was fitted."""
    from coevolve.errors import RecipeError
    from coevolve.scoring.artifact import read_manifest

    text = f"--reasoning {options.reasoning!r}"
    if given is not None:
        try:
            return float(given)
        except ValueError:
            raise RecipeError(f"{text}: accepted is a weight from 0 to 1.") from None
    if getattr(options, "estimator", None) is None:
        raise RecipeError(f"{text}: needs a weight here, as mixture:0.5.")
    fitted = (read_manifest(options.estimator, verify=False).get("held_out") or {}).get("mixture")
    if not isinstance(fitted, dict) or "weight" not in fitted:
        none = f"{options.estimator} has no weight that was fitted on held-out rows"
        raise RecipeError(f"{text}: {none}. Give one, as mixture:0.5.")
    return fitted["weight"]


def chosen_scoring(options: argparse.Namespace, answered: Answered) -> "Scoring":
    """Pairs, subsets and reasonings that the options name."""
    from coevolve.errors import RecipeError
    from coevolve.remid.score import Scoring
    from coevolve.remid.subsets import evaluated_examples, further_contexts

    negatives, count, further = chosen_negatives(options), options.contexts, {}
    if count < 0:
        raise RecipeError(f"--contexts {count}: accepted is a number from 0 up.")
    if count:
        further = further_contexts(answered.whole, answered.corpus, count, options.seed)
    examples = [*evaluated_examples(answered.corpus), *chain.from_iterable(further.values())]
    form = chosen_reasoning(options, examples, answered.whole.examples)
    small: SmallSubsets = "show" if options.show_small_subsets else "error"
    return Scoring(negatives, options.seed, form, small, further=further)


def chosen_negatives(options: argparse.Namespace) -> "Negatives":
    from coevolve.errors import RecipeError
    from coevolve.remid.pairs import PerContext

    if options.negatives_per_context is not None:
        return PerContext(options.negatives_per_context)
    text = options.negatives
    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise RecipeError(f"--negatives {text!r}: accepted is a number from 1, or all.")
    return int(text)


def look_at_examples(
    options: argparse.Namespace,
    groups: "Iterable[Group]",
    responses: Iterable[Mapping[str, str]],
    reasoning: "Reasoning",
) -> None:
    """Raise CoevolveError for whatever stands in the way of scoring, before the estimator is
    loaded.

    `groups` are as in `coevolve.preflight.scoring.PlannedScoring`, and may raise as they are looked
    at.
    """
    from coevolve.preflight.checks import preflight
    from coevolve.preflight.scoring import SCORING, PlannedScoring
    from coevolve.progress import quieten_libraries

    quieten_libraries()
    by_id: dict[str, list[str]] = {}
    for given in responses:
        for sample_id, text in given.items():
            by_id.setdefault(sample_id, []).append(text)
    folder, writes = Path(options.estimator), reasoning.is_written
    preflight(PlannedScoring(folder, options.device, groups, by_id, writes), SCORING)


def look_at_corpus(options: argparse.Namespace, answered: Answered, scoring: "Scoring") -> None:
    """As `look_at_examples`, for all that will be scored of a corpus."""
    from coevolve.remid.subsets import evaluated_examples, golden_by_id

    corpus = answered.corpus

    def groups() -> "Iterator[Group]":
        for subset, _ in scoring.subsets_with_pairs(corpus)[0]:
            yield f"{corpus.source}: {subset.row}", scoring.contexts(subset)

    golden = golden_by_id(evaluated_examples(corpus), corpus.source)
    look_at_examples(options, groups(), [golden, *answered.responses.values()], scoring.reasoning)


def load_estimator(options: argparse.Namespace, path: Path | None = None) -> "ProbabilityEstimator":
    """The estimator that the options name, or that in the folder, with the cache they name."""
    from coevolve.progress import quieten_libraries
    from coevolve.scoring.estimator import ProbabilityEstimator

    quieten_libraries()
    estimator = ProbabilityEstimator.from_pretrained(
        path or options.estimator,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        token_budget=options.token_budget,
    )
    # A signal that was raised where Python drops what is raised (`__del__`) is heeded here.
    estimator.poll = options.stop.poll
    if (folder := cache_folder(options)) is not None:
        estimator.use_cache(folder)
    return estimator


def cache_folder(options: argparse.Namespace) -> Path | None:
    """Where what is computed is kept, if it is."""
    if options.no_cache:
        return None
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(options.cache or kept / "coevolve" / "work")


def score_answered(
    answered: Answered,
    scoring: "Scoring",
    estimator: "ProbabilityEstimator",
    console: "Console",
    measures: "Sequence[Measure]" = (),
    readers: "Sequence[Reader]" = (),
) -> "ScoredCorpus":
    """The scores of all models' responses."""
    from coevolve.remid.score import score_corpus

    corpus, responses = answered.corpus, answered.responses
    total = sum(len(corpus.splits[split]) for split in corpus.test_splits)
    total += sum(map(len, scoring.further.values()))
    title = f"scoring {len(responses)} models, {total} contexts"
    if readers:
        title += f", by the estimator and {len(readers)} more"
    more: dict[str, Any] = {"measures": measures, "readers": readers}
    with steps_of(console, title, total * (1 + len(readers))) as progress:
        return score_corpus(estimator, corpus, responses, scoring, progress=progress, **more)


@contextmanager
def steps_of(console: "Console", title: str, total: int) -> "Iterator[OnStep]":
    """A display of work that tells how much is done in all."""
    from coevolve.progress import from_totals, task

    with task(console, title, total) as advance:
        report = from_totals(advance)
        yield lambda what, done, total: report(done)


def origin(
    options: argparse.Namespace, answered: Answered, estimator: "ProbabilityEstimator"
) -> dict[str, Any]:
    """What results say of where they come from: fields of `coevolve.remid.results.Evaluation`."""
    return {
        "estimator": str(options.estimator),
        "estimator_identity": estimator.manifest["identity"],
        "data_fingerprint": answered.whole.fingerprint,
        "unanswered": answered.unanswered,
    }


def report_cache(console: "Console", estimator: "ProbabilityEstimator") -> None:
    """Say how much of the work was there already."""
    from coevolve.scoring.cache import taken

    if estimator.caches:
        console.print(f"cache: {taken(list(estimator.caches.values()))}")


def named_files(
    arguments: Sequence[str], option: str = "--responses", accepted: str = "NAME=FILE"
) -> dict[str, str]:
    """Name -> path."""
    from coevolve.errors import DataError

    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise DataError(f"{option} {argument!r}: accepted is {accepted}.")
        if name in files:
            raise DataError(f"{option}: the name {name!r} is given more than once.")
        files[name] = path
    return files
