"""Perplexity of responses, and how sure one can be that one model's is lower than another's."""

from dataclasses import dataclass

import numpy as np

from coevolve.errors import DataError
from coevolve.information.log_probs import LogProbs, checked


def perplexity(log_probs: LogProbs) -> float:
    """exp(- sum of log-probabilities / number of tokens), both over all responses: each token
    weighs the same.
    """
    total, tokens = checked(log_probs)
    if total.size == 0:
        raise DataError("perplexity of no responses is undefined; give at least one.")
    return float(np.exp(-total.sum() / tokens.sum()))


@dataclass(frozen=True)
class PerplexityRatio:
    """Perplexity of a model over that of a baseline on the same responses, below 1 where the model
    is better, and its logarithm, nats per token, with standard errors.
    """

    ratio: float
    ratio_error: float
    log_ratio: float
    log_ratio_error: float
    examples: int


def compare_perplexities(model: LogProbs, baseline: LogProbs) -> PerplexityRatio:
    """The ratio of two models' perplexities on the same n >= 2 responses, with its paired error.

    Examples are the sampled units, since the tokens of one response are not independent. With d_i
    the baseline's minus the model's log-probability of response i and t_i its number of tokens, the
    log ratio L = sum d / sum t is a ratio estimator, and its variance by the delta method
    (linearisation: Cochran, Sampling Techniques, 1977, chapter 6) is that of the mean of e_i = (d_i
    - L t_i) / mean(t):

        error(L)^2 = sum_i e_i^2 / (n (n - 1)),    error(exp L) = exp(L) error(L).

    What both models find hard or easy cancels in d_i; so the paired error is the smaller one.
    """
    model_sum, model_tokens = (values.ravel() for values in checked(model))
    baseline_sum, tokens = (values.ravel() for values in checked(baseline))
    if model_sum.size != baseline_sum.size:
        found = f"the model has {model_sum.size} scores, the baseline {baseline_sum.size}"
        raise DataError(f"{found}; score the same responses.")
    if model_sum.size < 2:
        raise DataError(f"found {model_sum.size} responses; a standard error needs at least 2.")
    if not np.array_equal(model_tokens, tokens):
        first = int(np.argmax(model_tokens != tokens))
        raise DataError(
            f"response {first} has {model_tokens[first]:.0f} tokens for the model, "
            f"{tokens[first]:.0f} for the baseline; perplexities per token compare only under one "
            "tokeniser."
        )
    difference = baseline_sum - model_sum
    log_ratio = float(difference.sum() / tokens.sum())
    residual = (difference - log_ratio * tokens) / tokens.mean()
    error = float(np.sqrt(np.sum(residual**2) / (residual.size * (residual.size - 1))))
    ratio = float(np.exp(log_ratio))
    return PerplexityRatio(ratio, ratio * error, log_ratio, error, residual.size)
