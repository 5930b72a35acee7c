"""Test examples that not every model has answered, where the user allows that.

R-EMI compares models over the same (context, response) pairs, so such an example is left out for
all of them, counted by subset and fault.
"""

from collections.abc import Mapping

from coevolve.data.corpus import Corpus
from coevolve.data.responses import PartialResponses
from coevolve.remid.results import Faults, LeftOut, Unanswered
from coevolve.remid.subsets import distributions


def count_unanswered(
    whole: Corpus, answered: Corpus, responses: Mapping[str, PartialResponses]
) -> Unanswered | None:
    """What `answered_by_all` left out of the corpus; None where nothing was."""
    left = {subset.row: len(subset.examples) for subset in distributions(answered)}
    rows = {
        subset.row: LeftOut(left_out=count - left[subset.row], of=count)
        for subset in distributions(whole)
        if left[subset.row] < (count := len(subset.examples))
    }
    faults = {
        name: Faults(**{fault: list(getattr(given, fault)) for fault in Faults.model_fields})
        for name, given in responses.items()
    }
    return Unanswered(rows=rows, models=faults) if rows else None
