"""The numbers that scoring gives: log-probabilities of responses with their token counts. NumPy
only.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of responses, each over the response's own tokens and its end-of-turn
    token.

    Attributes:
        sum: float64, any shape; nats per response.
        tokens: integers, broadcastable to the shape of `sum`; scored tokens per response, end of
            turn included.
    """

    sum: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Log-probabilities in nats per token, the shape of `sum`."""
        return self.sum / self.tokens
