"""What `coevolve score`, `remid` and `bound` look at before the estimator is loaded.

Reasonings are not written yet, so only what fails whatever they say is a problem here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from coevolve.data.corpus import Corpus
from coevolve.data.example import Example
from coevolve.errors import CoevolveError, TooLongError
from coevolve.preflight.checks import Check
from coevolve.prompts import PromptSet, Renderer
from coevolve.remid.pairs import Negatives, negative_pairs
from coevolve.remid.score import distributions
from coevolve.scoring.artifact import base_folder, read_manifest
from coevolve.scoring.batching import positions_of
from coevolve.scoring.foreign import explained
from coevolve.scoring.models import choose_device, load_tokenizer
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role


@dataclass
class Judging:
    """Scoring that is about to begin.

    Attributes:
        estimator: its directory.
        device: as the user named it.
        groups: examples whose responses are scored in one another's contexts, by what to call them; one example
            alone is scored in its own.
        responses: sample_ID -> every response to it that will be scored.
        writes_reasoning: whether the connector will write, and needs room for it.
        manifest, renderers, positions: of the estimator, filled in by the checks; by role.
    """

    estimator: Path
    device: str
    groups: Sequence[tuple[str, Sequence[Example]]]
    responses: Mapping[str, Sequence[str]]
    writes_reasoning: bool = True
    manifest: Mapping[str, Any] | None = None
    renderers: Mapping[Role, Renderer] | None = None
    positions: dict[Role, int] = field(default_factory=dict)


def judging_pairs(
    corpus: Corpus, negatives: Negatives, *, seed: int, show_small: bool
) -> Iterator[tuple[str, Sequence[Example]]]:
    """The subsets of a corpus that will be scored, each after a look at its mismatched pairs.

    Raises:
        DataError: a subset has no pair.
    """
    for index, subset in enumerate(distributions(corpus)):
        if show_small and index and len(subset.examples) < 2:
            continue
        where = f"{corpus.source}: {subset.row}"
        negative_pairs([x.sample_id for x in subset.examples], negatives, seed=seed, where=where)
        yield where, subset.examples


def _device(draft: Judging) -> None:
    choose_device(draft.device)


def _estimator(draft: Judging) -> None:
    # The hashes are compared when it is loaded; here it is enough that it says what it is.
    manifest = read_manifest(draft.estimator, verify=False)
    prompts, renderers = PromptSet.from_dict(manifest["prompts"]), {}
    for role in ROLES:
        entry = manifest["roles"][role]
        renderers[role] = Renderer(prompts, load_tokenizer(str(draft.estimator / entry["tokenizer"])))
        folder = base_folder(draft.estimator, role, entry)
        with explained(
            f"The base model of {draft.estimator} cannot be loaded", "Put it back, or export the estimator again"
        ):
            draft.positions[role] = positions_of(AutoConfig.from_pretrained(folder))
    draft.manifest, draft.renderers = manifest, renderers


def _lengths(draft: Judging) -> Iterator[CoevolveError]:
    connector, estimator = draft.renderers[CONNECTOR], draft.renderers[ESTIMATOR]
    room = draft.manifest["reasoning"]["max_new_tokens"]
    for where, examples in draft.groups:
        sizes = {
            example.sample_id: (
                len(connector.prompt_ids(connector.connector(example))) if draft.writes_reasoning else 0,
                len(estimator.prompt_ids(estimator.estimator(example, ""))),
            )
            for example in examples
        }
        texts = {text for example in examples for text in draft.responses.get(example.sample_id, ())}
        longest = max((len(estimator.response_ids(text)) for text in texts), default=0)
        asked, what = max((size[0], name) for name, size in sizes.items())
        context, other = max((size[1], name) for name, size in sizes.items())
        for role, sample_id, needed, beside in (
            (CONNECTOR, what, asked, room if draft.writes_reasoning else 0),
            (ESTIMATOR, other, context, longest),
        ):
            if needed + beside > draft.positions[role]:
                kind = "a reasoning" if role == CONNECTOR else "the longest response"
                yield TooLongError(
                    f"{where}: sample_ID {sample_id!r}: its prompt has {needed} tokens and {kind} needs {beside}; the "
                    f"{role}'s base model holds {draft.positions[role]}. Shorten its dialogue or leave the example out."
                )


JUDGING: Sequence[Check[Judging]] = (
    Check("device", _device),
    Check("estimator", _estimator),
    Check("lengths", _lengths, ("manifest", "renderers")),
)
