"""What `coevolve score`, `remid` and `bound` look at before the estimator is loaded.

Reasonings are not written yet, so only what fails whatever they say is a problem here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from coevolve.data.example import Example
from coevolve.errors import CoevolveError, TooLongError
from coevolve.preflight.checks import Check
from coevolve.preflight.dialogues import Needs
from coevolve.prompts import Renderer
from coevolve.scoring.artifact import read_manifest, read_prompts
from coevolve.scoring.batching import positions_of
from coevolve.scoring.foreign import explained
from coevolve.scoring.loading import load_renderers, locate_base
from coevolve.scoring.models import choose_device
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR, ROLES, Role

Group = tuple[str, Sequence[Example]]
"""What to call them in an error, and examples whose responses meet one another's contexts."""


@dataclass
class PlannedScoring:
    """Scoring that is about to begin; the checks fill in what comes last.

    Attributes:
        offered: the groups, each after a look at its pairs; an example alone is a group.
        responses: of each sample_ID, every one that will be scored.
        writes_reasoning: whether the connector will write, and needs room for it.
    """

    estimator: Path
    device: str
    offered: Iterable[Group]
    responses: Mapping[str, Iterable[str]]
    writes_reasoning: bool = True
    groups: Sequence[Group] | None = None
    manifest: Mapping[str, Any] | None = None
    renderers: Mapping[Role, Renderer] | None = None
    positions: dict[Role, int] = field(default_factory=dict)


def _device(draft: PlannedScoring) -> None:
    choose_device(draft.device)


def _pairs(draft: PlannedScoring) -> None:
    draft.groups = list(draft.offered)


def _estimator(draft: PlannedScoring) -> None:
    # The hashes are compared when it is loaded; here it is enough that it says what it is.
    manifest = read_manifest(draft.estimator, verify=False)
    entries, prompts = manifest["roles"], read_prompts(manifest, draft.estimator)
    date = manifest.get("template_date")
    draft.renderers = load_renderers(
        draft.estimator, entries, prompts, date=date, trust_remote_code=False
    )
    for role in ROLES:
        folder = locate_base(draft.estimator, role, entries[role])
        what_to_do = "Put the base model back, or export the estimator again"
        with explained(f"{folder}: cannot be loaded", what_to_do):
            draft.positions[role] = positions_of(AutoConfig.from_pretrained(folder))
    draft.manifest = manifest


def _lengths(draft: PlannedScoring) -> Iterator[CoevolveError]:
    assert draft.groups is not None and draft.manifest and draft.renderers  # Check.needs
    estimator = draft.renderers[ESTIMATOR]
    reasoning = draft.manifest["reasoning"]["max_new_tokens"]
    for where, examples in draft.groups:
        of = {x.sample_id: list(draft.responses.get(x.sample_id, ())) for x in examples}
        for x in examples:
            estimator.require_known(x, where, of[x.sample_id])
        texts = {text for given in of.values() for text in given}
        response = max((len(estimator.response_ids(text)) for text in texts), default=0)
        needs = {x.sample_id: Needs.of(x, draft.renderers) for x in examples}
        shown = {name: need.estimator for name, need in needs.items()}
        asked = {name: need.connector for name, need in needs.items()}
        if draft.writes_reasoning:
            yield from _beyond(draft, where, CONNECTOR, asked, reasoning, "a reasoning")
        yield from _beyond(draft, where, ESTIMATOR, shown, response, "the longest response to it")


def _beyond(
    draft: PlannedScoring,
    where: str,
    role: Role,
    prompts: Mapping[str, int],
    beside: int,
    what: str,
) -> Iterator[CoevolveError]:
    longest = max(prompts, key=prompts.__getitem__)
    if prompts[longest] + beside > draft.positions[role]:
        yield TooLongError(
            f"{where}: sample_ID {longest!r}: its prompt has {prompts[longest]} tokens and {what} "
            f"needs {beside}; the {role}'s base model holds {draft.positions[role]}. Shorten its "
            "dialogue or leave the example out."
        )


SCORING: Sequence[Check[PlannedScoring]] = (
    Check("device", _device),
    Check("estimator", _estimator),
    Check("pairs", _pairs),
    Check("lengths", _lengths, ("groups", "manifest", "renderers")),
)
