"""Log-probabilities of responses with their token counts. NumPy only."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of responses (nats, any shape), each over the response's own tokens and its
    end of turn, and how many `tokens` those are, broadcastable to the shape of `sum`.
    """

    sum: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Log-probabilities in nats per token, the shape of `sum`."""
        return self.sum / self.tokens
