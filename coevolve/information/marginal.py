"""Mutual information as a difference of entropies, with a model of the responses alone: p(y).

    I = E log q(y | x) - E log m(y)

With m the true marginal p(y) this is Barber and Agakov's lower bound (The IM Algorithm, NeurIPS
2003), short of I by E KL(p(y | x) || q(y | x)). With a fitted m it is the difference of entropies
of McAllester and Stratos (AISTATS 2020): a poor m errs upwards by KL(p(y) || m), a poor q
downwards, and the sum may lie on either side. It has no ceiling.

m must be fitted to the responses that it scores: fitted on P and used on Q, its error differs
between the two, which inverted the ranking of shifts in trials. `bigram_log_probs` fits to each set
of responses, each response left out of what scores it, so that no held-out part is needed.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from coevolve.errors import DataError
from coevolve.information.contrast import Contrast
from coevolve.information.influence import Influence

KT = 0.5  # pseudo-count of each type of the vocabulary (Krichevsky & Trofimov, 1981)
BACK_OFF = 2.0  # of the unigram in a bigram's prediction (a Dirichlet prior: MacKay & Peto, 1995)


def difference_of_entropies(contrast: Contrast) -> tuple[float, Influence]:
    """(mean of log q(y_i | x_i) - log m(y_i), its influence without the error of m's fit)."""
    if contrast.marginal is None:
        raise DataError("difference_of_entropies needs the responses' log marginals.")
    terms = (contrast.matched - contrast.marginal) / contrast.divisors
    influence = Influence(terms - terms.mean(), np.zeros(contrast.mismatched.size), contrast.pairs)
    return float(terms.mean()), influence


def bigram_log_probs(responses: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """(N,) log m(y) of each response, nats, m being a bigram model of the other N - 1 responses.

    They are given as tokens, the end of turn among them where the scores include it; the vocabulary
    is what occurs.
    """
    if len(responses) < 2 or any(len(response) == 0 for response in responses):
        raise DataError(f"found {len(responses)} responses; accepted are 2 or more with tokens.")
    number = {
        token: index
        for index, token in enumerate(dict.fromkeys(t for response in responses for t in response))
    }
    coded = [np.array([number[token] for token in response]) for response in responses]
    size = len(number)
    before = [np.concatenate([[size], tokens[:-1]]) for tokens in coded]
    bigrams = [previous * size + tokens for previous, tokens in zip(before, coded, strict=True)]
    keys, counts = np.unique(np.concatenate(bigrams), return_counts=True)
    after = np.bincount(np.concatenate(before), minlength=size + 1)
    unigrams = np.bincount(np.concatenate(coded), minlength=size)
    log_probs = []
    for tokens, previous, pairs in zip(coded, before, bigrams, strict=True):
        others = unigrams.sum() - tokens.size
        unigram = (unigrams[tokens] - _occurrences(tokens) + KT) / (others + KT * size)
        seen = counts[np.searchsorted(keys, pairs)] - _occurrences(pairs)
        context = after[previous] - _occurrences(previous)
        log_probs.append(np.log((seen + BACK_OFF * unigram) / (context + BACK_OFF)).sum())
    return np.array(log_probs)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value occurs in the array, at each of its places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[place]
