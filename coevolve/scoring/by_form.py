"""Responses judged by an exported estimator, again and again to the same dialogues."""

import json

from coevolve.data.example import Example
from coevolve.scoring.estimator import Examples, ProbabilityEstimator, Texts
from coevolve.scoring.reasoning import Reasoning, combine
from coevolve.scoring.scores import Scores

INPUTS = ("user_persona", "agent_character", "dialogue_context")


class ByForm:
    """Scores by the estimator's own form, or another, whose reasonings are written once for each
    dialogue and kept.
    """

    def __init__(self, estimator: ProbabilityEstimator, form: Reasoning | None = None):
        self.estimator, self.form = estimator, form or estimator.form
        self._reasoning: dict[str, tuple[str | None, ...]] = {}

    def log_prob(self, examples: Examples, responses: Texts) -> Scores:
        """log p(y_i | x_i), (N,), nats per response."""
        keys = [_key(example) for example in examples]
        new = {k: x for k, x in zip(keys, examples, strict=True) if k not in self._reasoning}
        if new:
            written = self.form.write(self.estimator, list(new.values()))
            self._reasoning.update(zip(new, zip(*written, strict=True), strict=True))
        shown = [self._reasoning[key] for key in keys]
        weights = self.form.weights
        parts = [[of_one[part] for of_one in shown] for part in range(len(weights))]
        return combine(weights, [self.estimator.log_prob(examples, responses, x) for x in parts])


def _key(example: Example) -> str:
    row = example.to_row()
    return json.dumps([row[name] for name in INPUTS], ensure_ascii=False)
