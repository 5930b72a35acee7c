"""The steps of `coevolve compare`, each another command with options that the grid gives it.

Every step goes on with what it finds, so that whatever ended the comparison, the same steps come to
its end, and nothing is trained, asked or scored twice.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from coevolve.chat.local import LocalChat
from coevolve.cli import remid
from coevolve.cli.calls import options_of
from coevolve.cli.chat_model import load_chat
from coevolve.cli.readers import chosen_reader
from coevolve.compare.evaluate import compare_models
from coevolve.compare.exact import Kept, exact_rows, keep_exact
from coevolve.compare.plan import Member, Plan, Trained
from coevolve.compare.results import Compared, CompareResults
from coevolve.compare.tables import RENDERED
from coevolve.data.responses import read_responses, record_of
from coevolve.documents import read_document
from coevolve.errors import OutputError, RecipeError
from coevolve.files import json_text, read_json, write_file, write_json
from coevolve.outputs import REMID, REPORT, claim, remove
from coevolve.prompts.play import PlayPrompt
from coevolve.recipe import Recipe
from coevolve.recipe.load import read_section
from coevolve.remid.bound_results import BoundResults
from coevolve.remid.judge import JudgeComparison, read_judge_scores
from coevolve.remid.measures import Measure
from coevolve.remid.results import RemidResults
from coevolve.remid.score import ScoredCorpus
from coevolve.remid.subsets import distributions, evaluated_examples
from coevolve.training.run_folder import read_run
from coevolve.training.status import read_status

SHARED = ("device", "dtype", "quantization", "token_budget", "cache", "no_cache")
"""Options of the comparison that are those of the commands that score."""
OWN = (
    *SHARED,
    *("data", "out", "overwrite", "model", "adapter", "prompt", "responses", "estimator", "own"),
    *("judge", "protocol", "renderer", "seed", "limit", "splits", "subsets"),
)
"""Options for which a grid has another place, or none."""
AGAIN = "Delete it and start again."
Step = Callable[[], int | None]


def give_back_memory() -> None:
    """What a run held and no longer needs; glibc would keep it, 10 GB after runs of SmolLM2."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # other libraries of C do not have it
        ctypes.CDLL(None).malloc_trim(0)


class Comparison:
    """A plan that is carried out; `options` are those of the command."""

    def __init__(self, plan: Plan, options: argparse.Namespace) -> None:
        self.plan, self.options, self.out = plan, options, plan.out
        self.data, self.measured = plan.out / "dialogues.json", plan.out / "measured"
        self._flags: list[str] = []
        self._found: tuple[RemidResults, ScoredCorpus] | None = None
        self._exact: dict[str, Kept] = {}

    def look(self) -> list[str]:
        """What to mind; raises CoevolveError for whatever can be known to be wrong by now."""
        plan, grid = self.plan, self.plan.grid
        claim(self.out, REPORT, option="--out")
        before = self.out / "grid.json"
        if before.is_file() and (name := read_json(before).get("name")) != grid.name:
            raise OutputError(
                f"--out {self.out}: holds the comparison {name!r}. Give another path."
            )
        for member in plan.members:
            if member.grid.responses is not None:
                self._read(member)
            else:
                self._options(
                    "respond", f"models.{member.name}.ask", {**grid.ask, **member.grid.ask}
                )
        if grid.judge is not None and grid.judge.scores is None:
            self._options("judge", "judge.ask", grid.judge.ask)
            rubric = self._judge_options()["rubric"]
            if rubric is not None and not Path(rubric).is_file():
                raise RecipeError(f"judge.ask: rubric: {rubric}: no such file. Check the path.")
        elif grid.judge is not None:
            self._read_scores()
        self._options("remid", "measure", grid.measure)
        if grid.measure.get("negatives", "all") != "all" and grid.own:
            raise RecipeError(
                "measure.negatives: models' own weights read as well, and a reader is chosen by a "
                "bound for which each response is in equally many pairs. Accepted here are all and "
                "negatives_per_context; or say own: false."
            )
        if grid.bound is not None:
            self._options("bound", "bound", grid.bound)
        return plan.flags()

    def steps(self) -> Iterator[tuple[str, Step]]:
        """(what is done, what does it and gives an exit status), in order."""
        plan = self.plan
        write_json(self.out / "grid.json", {"schema": "coevolve.grid/1", **plan.grid.model_dump()})
        plan.corpus.to_json(self.data)
        for known in filter(None, (plan.estimator, plan.reward)):
            if known.run is not None:
                yield f"training the {known.called}", partial(self._train, known.run)
        self._flags = plan.flags()  # more is known of them
        for member in plan.members:
            if member.run is not None:
                yield f"training {member.name}", partial(self._train, member.run)
        for member in plan.members:
            if member.grid.responses is None:
                yield f"responses of {member.name}", partial(self._respond, member)
        if plan.grid.judge is not None and plan.grid.judge.scores is None:
            yield "judging", partial(self._call, "judge", self._judge_options())
        yield "scoring", self._score
        for member in plan.members if _can_be_enumerated(plan.world) else ():
            asked = {**plan.grid.ask, **member.grid.ask}
            if member.grid.responses is None and not (asked.get("endpoint") or asked.get("vllm")):
                yield f"exact values of {member.name}", partial(self._keep_exact, member)
        if plan.grid.bound is not None:
            yield "bound", partial(self._call, "bound", self._bound_options(plan.grid.bound))

    def write(self) -> CompareResults:
        """Write what came of it; all steps are done."""
        from coevolve.report.contents import read_contents
        from coevolve.report.page import write_report

        results = self._results()
        texts = {f"results.{name}": render(results) for name, render in RENDERED.items()}
        for name, text in {**texts, "results.json": json_text(results.values())}.items():
            write_file(self.out / name, text)
        write_report(read_contents(self.out), self.out)
        return results

    def _results(self) -> CompareResults:
        plan = self.plan
        assert self._found is not None  # scoring is one of the steps
        remid, scored = self._found
        bound, judged = self.measured / "bound.json", self.measured / "judge.json"
        rewards = {name: reward.identity for name, reward in plan.rewards()}
        models = [
            Compared(
                name=x.name,
                remedy=x.remedy,
                start=x.grid.start,
                reward=rewards.get(x.name),
                responses=str(x.responses),
            )
            for x in sorted(plan.members, key=lambda x: list(plan.grid.models).index(x.name))
        ]
        kind = chosen_reader(options_of("remid", self._remid_options(), claimed=False))
        measure = Measure(remid.form, remid.normalisation)
        exact, within = exact_rows(self._exact, distributions(plan.corpus), remid.unit)
        bounded = None
        if plan.grid.bound is not None:
            bounded = read_document(bound, BoundResults, remedy=AGAIN)
        known: dict[str, Any] = {"exact": exact, "within": within, "bound": bounded}
        found = compare_models(scored, measure, kind, models, **known)
        return CompareResults(
            schema="coevolve.compare/1",
            name=plan.grid.name,
            seed=plan.seed,
            estimator=str(plan.estimator.folder),
            estimator_identity=remid.estimator_identity,
            data_fingerprint=remid.data_fingerprint,
            flags=[*self._flags, *self._cut_off().values()],
            form=remid.form,
            normalisation=remid.normalisation,
            unit=remid.unit,
            reader=kind,
            reasoning=remid.reasoning,
            level=remid.level or 0.95,
            models=models,
            judge=read_document(judged, JudgeComparison, remedy=AGAIN)
            if judged.is_file()
            else None,
            **found,
        )

    def _train(self, run: Trained) -> int | None:
        said = read_status(run.folder) if (run.folder / "run.json").is_file() else {}
        # One of another recipe says so itself.
        if said.get("state") == "finished" and read_run(run.folder)[0] == run.recipe:
            return 0
        given = {"recipe": run.source, "overrides": run.overrides, "output_dir": run.folder}
        code = self._call(run.command, given)
        give_back_memory()
        return code

    def _keep_exact(self, member: Member) -> None:
        """What the model says, exactly; it is asked as for its responses."""
        options = options_of("respond", self._asked(member), claimed=False, stop=self.options.stop)
        chat = load_chat(options, os.environ, ledger=str(member.responses))
        assert isinstance(chat, LocalChat) and self.plan.world is not None  # or it is no step
        chat.poll = self.options.stop.poll
        prompt = read_section(options.prompt, PlayPrompt) if options.prompt else None
        path = self.out / "exact" / f"{member.name}.json"
        self._exact[member.name] = keep_exact(chat, prompt, self.plan.world, path)

    def _respond(self, member: Member) -> int | None:
        return self._call("respond", self._asked(member))

    def _asked(self, member: Member) -> dict[str, Any]:
        """Options of `coevolve respond`."""
        model, adapter, prompt = self._weights(member)
        given: dict[str, Any] = {**self.plan.grid.ask, **member.grid.ask}
        given |= {"data": self.data, "out": member.responses, "model": model}
        given |= {"adapter": adapter} if adapter else {}
        given |= {"prompt": prompt} if prompt else {}
        return given | self._seed()

    def _weights(self, member: Member) -> tuple[str, str | None, str | None]:
        """(model, adapter, prompt) with which it is asked."""
        from coevolve.chat.reading import parts_of

        if member.run is not None:
            folder = member.run.folder / "model"
            return *parts_of(str(folder)), str(folder / "prompt.yaml")
        grid, found = member.grid, self.plan.found
        assert grid.model is not None  # there are no responses
        adapter = found(grid.adapter) if grid.adapter else None
        beside = Path(adapter or found(grid.model)) / "prompt.yaml"
        prompt = found(grid.prompt) if grid.prompt else str(beside) if beside.is_file() else None
        return found(grid.model), adapter, prompt

    def _score(self) -> None:
        if not REMID.is_own(self.measured):  # it was killed while it wrote them
            remove(self.measured)
        options = options_of("remid", self._remid_options(), stop=self.options.stop)
        with contextlib.redirect_stdout(io.StringIO()):
            results, scored = remid.evaluated(options)
        assert scored is not None  # by the exact protocol
        self._found = results, scored

    def _call(self, command: str, given: Mapping[str, Any]) -> int | None:
        options = options_of(command, given, stop=self.options.stop)
        with contextlib.redirect_stdout(io.StringIO()):
            code: int | None = import_module(f"coevolve.cli.{command}").run(options)
        return code

    def _remid_options(self) -> dict[str, Any]:
        return {
            **self._scoring_options(),
            **self._judged(),
            "own": self._own(),
            **self.plan.grid.measure,
        }

    def _judged(self) -> dict[str, Any]:
        judge = self.plan.grid.judge
        if judge is None:
            return {}
        return {
            "judge": self.plan.found(judge.scores) if judge.scores else self.out / "judged.jsonl"
        }

    def _bound_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = vars(options_of("bound", self._scoring_options(), claimed=False))
        of_both = {name: x for name, x in self.plan.grid.measure.items() if name in known}
        # Trained in full, the estimator does not hold it, and the run beside it may.
        beside = self.plan.estimator.folder.parent / "base"
        whole = not (self.plan.estimator.folder / "base").is_dir()
        base = {"base": beside} if whole and beside.is_dir() else {}
        return {**self._scoring_options(), **of_both, **base, **given}

    def _scoring_options(self) -> dict[str, Any]:
        shared = {name: getattr(self.options, name) for name in SHARED}
        responses = {x.name: x.responses for x in self.plan.members}
        return {
            **shared,
            **self._seed(),
            "estimator": self.plan.estimator.folder,
            "data": self.data,
            "responses": {name: responses[name] for name in self.plan.grid.models},
            "out": self.measured,
            "overwrite": True,
        }

    def _judge_options(self) -> dict[str, Any]:
        judge = self.plan.grid.judge
        assert judge is not None
        rubric = judge.ask.get("rubric")
        return {
            **judge.ask,
            **self._seed(),
            "rubric": self.plan.found(str(rubric)) if rubric else None,
            "data": self.data,
            "responses": {x.name: x.responses for x in self.plan.members},
            "out": self.out / "judged.jsonl",
        }

    def _seed(self) -> dict[str, int]:
        return {} if self.plan.grid.seed is None else {"seed": self.plan.grid.seed}

    def _own(self) -> dict[str, str]:
        """Model -> weights that read its responses, where they are here."""
        found, cut_off = {}, self._cut_off()
        for member in self.plan.members if self.plan.grid.own else ():
            asked = {**self.plan.grid.ask, **member.grid.ask}
            if member.name in cut_off or asked.get("endpoint"):
                continue
            if member.run is not None:
                found[member.name] = str(member.run.folder / "model")
            elif member.grid.adapter or member.grid.model:
                found[member.name] = self.plan.found(member.grid.adapter or member.grid.model or "")
        return found

    def _cut_off(self) -> dict[str, str]:
        """Model -> what is said of those whose responses were cut off."""
        found = {}
        for member in self.plan.members if self.plan.grid.own else ():
            of_weights = member.grid.model or member.run
            cut = record_of(member.responses)[1] if of_weights else ()
            if cut:
                found[member.name] = (
                    f"{member.name}: {len(cut)} responses were cut off, so its own weights, which "
                    "did not end them, do not read them."
                )
        return found

    def _options(self, command: str, field: str, given: Mapping[str, Any]) -> None:
        """Raise RecipeError unless the options of a field of the grid are the command's."""
        if odd := [
            name for name in given if name in OWN and not (name == "model" and command == "judge")
        ]:
            raise RecipeError(f"{field}: {odd[0]}: is not for the grid to say here. Leave it out.")
        needed: dict[str, Any] = (
            {"data": "-", "out": "-", "model": "-"} if command in ("respond", "judge") else {}
        )
        needed |= {"responses": {"m": "-"}} if command != "respond" else {}
        needed |= (
            {"estimator": "-", "data": "-", "out": "-"} if command in ("remid", "bound") else {}
        )
        try:
            options_of(command, {**needed, **given}, claimed=False)
        except TypeError as error:
            raise RecipeError(f"{field}: {error}.") from None

    def _read(self, member: Member) -> None:
        """Raise DataError unless the responses are to the test rows."""
        examples = evaluated_examples(self.plan.corpus)
        if self.plan.grid.measure.get("missing") != "drop":
            read_responses(member.responses, examples)

    def _read_scores(self) -> None:
        judge, subsets = self.plan.grid.judge, distributions(self.plan.corpus)
        assert judge is not None and judge.scores is not None
        rows = {x.sample_id: subset.row for subset in subsets for x in subset.examples}
        about = list(self.plan.grid.models), [subset.row for subset in subsets], rows
        ends: dict[str, Any] = {"scale": tuple(judge.scale)} if judge.scale else {}
        read_judge_scores(self.plan.found(judge.scores), *about, **ends)


def _can_be_enumerated(world: Recipe | None) -> bool:
    return world is not None and world.data.world is not None and world.data.world.hops == "one"
