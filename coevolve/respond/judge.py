"""A language model as a judge of responses: by a rubric, repeatedly, each answer on disk when it
arrives and none asked for twice.

By themselves or side by side, responses are shown without their models' names. In which order they
and the criteria stand is drawn anew for each repeat of each sample, so that a judge who prefers a
place shows as disagreement between repeats. An answer that is not a score on the scale for each
response and criterion is asked for again, then counted; nothing is guessed.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from coevolve.chat.base import ChatModel, Completion, Question, without_thinking
from coevolve.data.example import Example
from coevolve.data.judgements import HEADER, Scores, mean_score, read_judgement
from coevolve.data.ledger import Ledger, digest
from coevolve.errors import ChatError, DataError, RecipeError
from coevolve.information.agreement import krippendorff_alpha
from coevolve.prompts.render import character_text, turns_of
from coevolve.prompts.rubric import Rubric
from coevolve.prompts.template import message
from coevolve.respond.collect import Progress
from coevolve.seeds import derive_seed

Responses = Mapping[str, Mapping[str, str]]
"""Model -> sample_ID -> response."""


@dataclass(frozen=True)
class Judged:
    """A question to the judge: responses to an example, by model, as they are shown.

    Attributes:
        sample_id: of the question, which an error names.
        criteria: in the order shown.
    """

    sample_id: str
    example: Example
    repeat: int
    responses: Mapping[str, str]
    criteria: tuple[str, ...]


@dataclass(frozen=True)
class Judgements:
    """All answers there are: how many the file had `found` before, how many were `asked` for now,
    what was wrong with each that stayed `bad`.
    """

    answers: Sequence[tuple[str, int, Scores]]
    found: int
    asked: int
    bad: tuple[str, ...]

    def means(self) -> dict[str, dict[str, float]]:
        """Model -> criterion -> mean score over its responses and repeats; `score` is over all."""
        rows: dict[str, list[Mapping[str, float]]] = {}
        for _, _, scores in self.answers:
            for model, given in scores.items():
                rows.setdefault(model, []).append({**given, "score": mean_score(given)})
        return {
            model: {name: sum(row[name] for row in given) / len(given) for name in given[0]}
            for model, given in rows.items()
        }

    def agreement(self) -> dict[str, float | None]:
        """Krippendorff's alpha of the repeats' scores of one response, by criterion and of their
        mean (`score`); None where no response has two, or all scores are the same.
        """
        units: dict[str, dict[tuple[str, str], list[float]]] = {}
        for sample, _, scores in self.answers:
            for model, given in scores.items():
                for name, score in {**given, "score": mean_score(given)}.items():
                    units.setdefault(name, {}).setdefault((sample, model), []).append(score)
        return {name: krippendorff_alpha(list(found.values())) for name, found in units.items()}


def judge_responses(
    examples: Sequence[Example],
    responses: Responses,
    judge: ChatModel,
    path: str | Path,
    *,
    rubric: Rubric | None = None,
    repeats: int = 1,
    side_by_side: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Judgements:
    """Ask a judge for the scores that a file lacks, and append each answer to it as it arrives.

    ChatError for a judge out of order or without one usable answer, DataError for a file that
    another judge, rubric or seed began, or whose responses have changed since.

    Args:
        responses: of each model to the examples that it has one to.
        side_by_side: show the responses to a sample in one question, instead of each by itself.
        seed: of the order in which responses and criteria are shown.
    """
    rubric = rubric or Rubric()
    if repeats < 1:
        raise RecipeError(f"repeats is {repeats}; accepted are integers from 1.")
    if "{golden_response}" in rubric.user + rubric.system:
        lacking = [x.sample_id for x in examples if x.golden_response is None]
        if lacking:
            shows = "the rubric shows the golden response, which it lacks"
            raise DataError(f"sample_ID {lacking[0]!r}: {shows}. Use another rubric or data.")
    together = list(responses) if side_by_side else None
    asked = {"seed": seed, "side_by_side": together}
    values = (judge.settings, rubric.model_dump(), asked, judge.address)
    items = list(_items(examples, responses, rubric, repeats, side_by_side, seed))

    def read_row(row: Any, where: str) -> tuple[str, tuple[str, int, Scores]]:
        answer = read_judgement(row, where, rubric.low, rubric.high)
        return _key(answer[0], answer[1], answer[2] if not side_by_side else ()), answer

    header = dict(zip(HEADER, values, strict=True))
    ledger = Ledger(path, header, HEADER[:3], items, read_row, _fingerprint)
    answers, found, bad = list(ledger.answers.values()), len(ledger.answers), []
    by_id = {item.sample_id: item for item in ledger.todo}
    questions = [Question(x.sample_id, _messages(x, rubric, judge)) for x in ledger.todo]

    def read(question: Question, completion: Completion) -> tuple[Scores | None, str]:
        return read_answer(by_id[question.id], rubric, completion, judge.max_tokens)

    with ledger.adding() as add:
        for reply in judge.replies(questions, read):
            item = by_id[reply.id]
            if reply.value is None:
                bad.append(f"{reply.id}: {reply.problem}")
            else:
                answers.append((item.example.sample_id, item.repeat, reply.value))
                about = {"sample_ID": item.example.sample_id, "repeat": item.repeat}
                add(reply.id, **about, scores=reply.value)
            if progress is not None:
                progress(len(answers) + len(bad), len(items), f"{len(bad)} bad" if bad else "")
    if bad and not answers:
        raise ChatError(f"The judge gave no usable answer to {len(bad)} questions. {bad[0]}.")
    return Judgements(answers, found, len(questions), tuple(bad))


def read_answer(
    item: Judged, rubric: Rubric, completion: Completion, max_tokens: int
) -> tuple[Scores | None, str]:
    """A score for each response and criterion, or what is wrong with the answer."""
    if not completion.finished:
        return None, f"the answer was cut off after {max_tokens} tokens. Allow more of them"
    text = without_thinking(completion.text)
    labels = dict(zip(ascii_uppercase, item.responses, strict=False))
    scores: dict[str, dict[str, float]] = {model: {} for model in item.responses}
    names = {name.lower(): name for name in item.criteria}
    alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    # Markdown may stand around it, and the scale behind it; another number makes it no answer.
    line = re.compile(
        rf"^[^\w\n]*(?:response +)?([a-z]?)\b[^\w\n]*({alternatives})[^\w\n]*?[:=][^\w\n]*?"
        rf"(-?\d+(?:\.\d+)?)\**(?: *(?:/|out of) *{rubric.high}\b)?[^\d\n]*$",
        re.IGNORECASE | re.MULTILINE,
    )
    for found in line.finditer(text):
        label, name, number = (
            found[1].upper() or "A" * (len(labels) == 1),
            found[2],
            float(found[3]),
        )
        if label not in labels:
            return (
                None,
                f"found a response {label!r}, there are {', '.join(labels)}: {found[0]!r:.200}",
            )
        given = scores[labels[label]]
        if names[name.lower()] in given:
            return None, f"two scores for {label} {name}: {text!r:.200}"
        if not rubric.low <= number <= rubric.high:
            return None, f"{label} {name} is {number:g}, not on the scale: {text!r:.200}"
        given[names[name.lower()]] = number
    for label, model in labels.items():
        for name in item.criteria:
            if name not in scores[model]:
                return None, f"no score for {label} {name}: {text!r:.200}"
    return scores, ""


def _items(
    examples: Sequence[Example],
    responses: Responses,
    rubric: Rubric,
    repeats: int,
    side_by_side: bool,
    seed: int,
) -> Iterator[Judged]:
    if side_by_side and len(responses) > len(ascii_uppercase):
        most = len(ascii_uppercase)
        raise RecipeError(f"{len(responses)} models side by side; accepted are {most}.")
    for example in examples:
        given = {m: of[example.sample_id] for m, of in responses.items() if example.sample_id in of}
        groups = [given] if side_by_side else [{model: text} for model, text in given.items()]
        for shown in filter(None, groups):
            for repeat in range(1, repeats + 1):
                key = _key(example.sample_id, repeat, () if side_by_side else shown)
                draw = random.Random(derive_seed(seed, "judge", key))
                criteria, models = list(rubric.criteria), list(shown)
                draw.shuffle(criteria)
                draw.shuffle(models)
                placed = {model: shown[model] for model in models}
                yield Judged(key, example, repeat, placed, tuple(criteria))


def _key(sample_id: str, repeat: int, models: Any) -> str:
    return " ".join((sample_id, *models, f"repeat {repeat}"))


def _messages(item: Judged, rubric: Rubric, judge: ChatModel) -> list[dict[str, str]]:
    example, harmless = item.example, judge.harmless
    turns = turns_of(example, harmless, "User: {text}", "Character: {text}", "")
    labels = list(zip(ascii_uppercase, item.responses.values(), strict=False))
    words = {
        "agent_character": harmless(character_text(example.agent_character)),
        "user_persona": harmless(example.user_persona) or "(nothing is known)",
        "dialogue": "\n".join(turns),
        "golden_response": harmless(example.golden_response or ""),
        "low": rubric.low,
        "high": rubric.high,
        "responses": "\n\n".join(
            rubric.response.format(label=label, response=harmless(text)) for label, text in labels
        ),
        "criteria": "\n".join(
            rubric.criterion.format(name=name, question=rubric.criteria[name])
            for name in item.criteria
        ),
        "answer": "\n".join(f"{x} {name}: ..." for x, _ in labels for name in item.criteria),
    }
    system = [message("system", rubric.system.format(**words))] if rubric.system else []
    return [*system, message("user", rubric.user.format(**words))]


def _fingerprint(item: Judged) -> str:
    """Of what the judge is shown."""
    example = item.example
    dialogue = [[turn.speaker, turn.text] for turn in example.dialogue]
    shown = [example.user_persona, example.agent_character, dialogue, example.golden_response]
    return digest([*shown, sorted(item.responses.items())])[:16]
