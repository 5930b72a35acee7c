"""Reading a reasoning r: its sections, its core features, and whether they say anything."""

from collections.abc import Collection, Sequence

from coevolve.data.words import distinct_words
from coevolve.prompts.sets import PromptSet

NO_REASONING = ""
"""A reasoning without core features: the prompt says so in the words of the prompt set."""


def core_features(reasoning: str, sections: Sequence[str]) -> str | None:
    """The stripped text after the last features heading, the last of `sections`, without code
    fences and without a later section; None where the heading is missing or nothing stands after
    it.
    """
    heading = sections[-1]
    if heading not in reasoning:
        return None
    text = reasoning.rpartition(heading)[2]
    for other in sections[:-1]:
        text = text.partition(other)[0]
    text = (
        "\n".join(line for line in text.split("\n") if not line.strip().startswith("```"))
        .strip()
        .strip("`")
        .strip()
    )
    return text or None


def unfenced_features(reasoning: str, heading: str) -> str:
    """The core features as the paper's public code reads them: all that follows the last heading,
    unstripped and without backtick fences; the whole text where the heading is missing.
    """
    return reasoning.rpartition(heading)[2].replace("```", "")


def words_beyond(features: str, instruction: Collection[str]) -> list[str]:
    """The distinct words of core features, in lower case, without `PromptSet.instruction`."""
    return [word for word in distinct_words(features) if word not in instruction]


def content_share(reasonings: Sequence[str | None], prompts: PromptSet) -> float:
    """The share of reasonings whose core features say more than the instruction."""
    features = (core_features(text or "", prompts.sections) for text in reasonings)
    said = [bool(words_beyond(text or "", prompts.instruction)) for text in features]
    return sum(said) / len(said)


def missing_sections(reasoning: str, sections: Sequence[str]) -> list[str]:
    """The headings that are absent, doubled, out of order, or followed by nothing: none if well
    formed.
    """
    at = [reasoning.find(heading) for heading in sections]
    faulty = []
    for index, heading in enumerate(sections):
        following = [place for place in at if place > at[index]]
        body = reasoning[at[index] + len(heading) : min(following, default=len(reasoning))]
        in_order = all(place < at[index] for place in at[:index])
        if at[index] < 0 or reasoning.count(heading) > 1 or not in_order or not body.strip():
            faulty.append(heading)
    return faulty
