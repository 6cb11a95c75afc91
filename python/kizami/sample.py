"""Choosing the next token: callables from logits to a token id. Knows no models and no text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kizami.errors import UsageError

Sampler = Callable[[np.ndarray], int]


def greedy(logits: np.ndarray) -> int:
    """The most likely token; the lowest id among equals."""
    return int(np.argmax(logits))


def nucleus(temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None) -> Sampler:
    """Samples from the smallest set of tokens that holds ``top_p`` of the probability.

    Holtzman et al., arXiv 1904.09751. A temperature of 0 is :func:`greedy`. The same seed gives the
    same tokens for the same logits.

    Raises:
        UsageError: the temperature is negative, or ``top_p`` is not within (0, 1].
    """
    if not 0.0 <= temperature < float("inf"):
        raise UsageError(f"temperature: found {temperature}, expected 0 or more")
    if not 0.0 < top_p <= 1.0:
        raise UsageError(f"top_p: found {top_p}, expected more than 0, at most 1")
    if temperature == 0.0:
        return greedy
    random = np.random.default_rng(seed)

    def sample(logits: np.ndarray) -> int:
        order = np.argsort(-logits, kind="stable")
        ranked = logits[order].astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to minus infinity
            p = np.exp((ranked - ranked[0]) / temperature)
        p /= p.sum()
        before = np.cumsum(p) - p
        kept = int(np.count_nonzero(before < top_p))
        p = p[:kept] / p[:kept].sum()
        return int(
            order[:kept][min(int(np.searchsorted(np.cumsum(p), random.random(), side="right")), kept - 1)]
        )

    return sample
