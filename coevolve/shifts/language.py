"""User shift: the user speaks another language. The character stays as it is.

Without a model, an example is paired with one of that language that the data has, and takes over
its user: the persona and what the user says, turn by turn. The agent's turns stay, so the golden
response answers no longer; none is written.

With a chat model, everything but the character is translated, the golden response too, which
therefore stays as good as the translation. Translations are on disk as they arrive
(`coevolve.data.ledger`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coevolve.chat.base import ChatModel, Completion, Question, Read, without_thinking
from coevolve.data.corpus import Corpus
from coevolve.data.example import Example, Turn, text_field
from coevolve.data.ledger import Ledger, digest
from coevolve.errors import ChatError, DataError
from coevolve.files import parse_json
from coevolve.shifts.build import generator, shift, shifted

Progress = Callable[[int, int], None]
"""Called with the number of examples done and their total."""

_DECIDES = ("translator", "language", "prompt")
_SYSTEM = (
    "You translate dialogues. You are given a JSON object. Translate every string in it into "
    "{language}, as a native speaker would put it in a conversation, and keep names. Answer with a "
    "JSON object of the same shape and nothing else."
)


def pair_with_language(
    examples: Sequence[Example], donors: Sequence[Example], *, language: str, seed: int, tag: str
) -> list[Example]:
    """The examples with the users of examples in another language, and no golden response.

    An example with n turns of the user takes the persona and the last n turns of the user from a
    donor, drawn uniformly from those that have so many.
    """
    said = {x.sample_id: [y.text for y in x.dialogue if y.speaker == "user"] for x in donors}
    rows = []
    for example in examples:
        count = sum(turn.speaker == "user" for turn in example.dialogue)
        eligible = [donor for donor in donors if len(said[donor.sample_id]) >= count]
        if not eligible:
            raise DataError(
                f"sample_ID {example.sample_id!r}: has {count} turns of the user; none of "
                f"{len(donors)} examples in {language} has so many. Draw from other data, or "
                "translate with a model."
            )
        donor = generator(seed, "language", example).choice(eligible)
        turns = _replaced(example.dialogue, "user", said[donor.sample_id][-count:])
        record = {"seed": seed, "language": language, "user_from": donor.sample_id}
        changes: dict[str, Any] = {"user_persona": donor.user_persona, "dialogue": turns}
        changes["golden_response"] = None
        rows.append(shifted(example, tag, "language", record=record, **changes))
    return rows


def translate(
    examples: Sequence[Example],
    translator: ChatModel,
    path: str | Path,
    *,
    language: str,
    tag: str,
    progress: Progress | None = None,
) -> list[Example]:
    """The examples with persona, turns and golden response in another language.

    Translations are kept in the JSONL file at `path` as they arrive; a second start asks only for
    what it lacks. DataError if another translator or language began it, or its examples have
    changed.
    """
    decide = zip(_DECIDES, (translator.settings, language, digest(_SYSTEM)), strict=True)
    header = {**dict(decide), "address": translator.address}
    ledger = Ledger(path, header, _DECIDES, examples, _read_row, _fingerprint)
    done, by_id = ledger.answers, ledger.by_id
    for sample_id, translation in done.items():
        name = f"the translation of {sample_id!r}"
        for problem in _differences(translation, _texts(by_id[sample_id]), name):
            raise DataError(f"{path}: {problem}. Remove its line to have it asked again.")
    questions = [_question(example, language, translator) for example in ledger.todo]
    with ledger.adding() as add:
        for reply in translator.replies(questions, _reader(by_id)):
            if reply.value is None:
                raise ChatError(
                    f"sample_ID {reply.id!r}: no usable translation after {reply.attempts} "
                    f"attempts: {reply.problem}. Translations that came before are kept. Use "
                    "another translator, or leave the example out."
                )
            done[reply.id] = reply.value
            add(reply.id, translation=reply.value)
            if progress is not None:
                progress(len(done), len(examples))
    by = {"address": translator.address, **translator.settings}
    return [_translated(x, done[x.sample_id], language, tag, by) for x in examples]


@shift("language", "OOD1Test")
def _language(
    sources: Sequence[Example],
    corpus: Corpus,
    seed: int,
    tag: str,
    language: str,
    translator: ChatModel | None = None,
    **options: Any,
) -> list[Example]:
    """By the translator, or with the users of the corpus's subset of that name."""
    if translator is not None:
        return translate(sources, translator, language=language, tag=tag, **options)
    donors = [example for example in corpus.examples if example.subset == language]
    if not donors:
        subsets = ", ".join(dict.fromkeys(example.subset for example in corpus.examples))
        raise DataError(f"--language {language!r} is no subset_tag of {corpus.source}: {subsets}.")
    return pair_with_language(sources, donors, language=language, seed=seed, tag=tag)


def _texts(example: Example) -> dict[str, Any]:
    """What is translated."""
    turns = [{turn.speaker: turn.text} for turn in example.dialogue]
    texts: dict[str, Any] = {"user_persona": example.user_persona, "turns": turns}
    if example.golden_response is not None:
        texts["response"] = example.golden_response
    return texts


def _question(example: Example, language: str, translator: ChatModel) -> Question:
    system = {"role": "system", "content": _SYSTEM.format(language=language)}
    texts = json.dumps(_texts(example), ensure_ascii=False, indent=1)
    user = {"role": "user", "content": translator.harmless(texts)}
    return Question(example.sample_id, [system, user])


def _reader(by_id: Mapping[str, Example]) -> Read[dict[str, Any]]:
    def read(question: Question, completion: Completion) -> tuple[dict[str, Any] | None, str]:
        text = without_thinking(completion.text)
        if not completion.finished:
            return None, f"the translation was cut off: {text[-80:]!r}"
        try:
            value = parse_json(text[text.index("{") : text.rindex("}") + 1], "the reply")
        except ValueError:
            return None, f"the reply is no JSON object: {text[:200]!r}"
        problem = "; ".join(_differences(value, _texts(by_id[question.id]), "the reply"))
        return (None, problem) if problem else (value, "")

    return read


def _differences(value: Any, model: Any, where: str) -> Iterator[str]:
    """Where a translation's shape is not that of the original."""
    if isinstance(model, dict):
        if not isinstance(value, dict) or set(value) != set(model):
            yield f"{where} is not an object with {', '.join(model)}"
            return
        for name in model:
            yield from _differences(value[name], model[name], f"{where}.{name}")
    elif isinstance(model, list):
        if not isinstance(value, list) or len(value) != len(model):
            yield f"{where} is not a list of {len(model)}"
            return
        for index, item in enumerate(model):
            yield from _differences(value[index], item, f"{where}[{index}]")
    else:
        try:
            text_field({"text": value}, "text", where, empty=not model.strip())
        except DataError as error:
            yield str(error).removesuffix(".")


def _read_row(row: Any, where: str) -> tuple[str, dict[str, Any]]:
    whole = isinstance(row, Mapping) and "sample_ID" in row
    if not whole or not isinstance(row.get("translation"), dict):
        accepted = "accepted is an object with sample_ID and translation"
        raise DataError(f"{where}: {accepted}. Remove the line.")
    return text_field(row, "sample_ID", where), row["translation"]


def _translated(
    example: Example, texts: Mapping[str, Any], language: str, tag: str, by: dict[str, Any]
) -> Example:
    pairs = zip(example.dialogue, texts["turns"], strict=True)
    turns = tuple(Turn(turn.speaker, said[turn.speaker]) for turn, said in pairs)
    record = {"language": language, "translator": by}
    changes = {"user_persona": texts["user_persona"], "golden_response": texts.get("response")}
    changes["dialogue"] = turns
    return shifted(example, tag, "language", record=record, golden="translated", **changes)


def _replaced(dialogue: Sequence[Turn], speaker: str, texts: Sequence[str]) -> tuple[Turn, ...]:
    """The dialogue with this speaker's turns replaced one by one."""
    following = iter(texts)
    return tuple(Turn(x.speaker, next(following)) if x.speaker == speaker else x for x in dialogue)


def _fingerprint(example: Example) -> str:
    return digest(_texts(example))[:16]
