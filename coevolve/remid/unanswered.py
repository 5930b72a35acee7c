"""Test examples that not every model has answered, where the user allows that.

R-EMI compares models over the same (context, response) pairs, so an example that one model has not
answered is left out for all of them. It is counted by subset and by fault, and tables say so beside
the subset's name.
"""

from collections.abc import Mapping

from coevolve.data.corpus import Corpus
from coevolve.data.responses import PartialResponses
from coevolve.remid.results import Faults, LeftOut, Unanswered
from coevolve.remid.subsets import distributions


def count_unanswered(
    whole: Corpus, answered: Corpus, responses: Mapping[str, PartialResponses]
) -> Unanswered | None:
    """What was left out of the corpus by `coevolve.data.responses.answered_by_all`; None where
    nothing was.
    """
    left = {subset.row: len(subset.examples) for subset in distributions(answered)}
    rows = {
        subset.row: LeftOut(
            left_out=len(subset.examples) - left[subset.row], of=len(subset.examples)
        )
        for subset in distributions(whole)
        if left[subset.row] < len(subset.examples)
    }
    faults = {
        name: Faults(**{fault: list(getattr(given, fault)) for fault in Faults.model_fields})
        for name, given in responses.items()
    }
    return Unanswered(rows=rows, models=faults) if rows else None
