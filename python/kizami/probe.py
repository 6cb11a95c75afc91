"""Probes: what an error in one part of a model does to its output, measured on the model itself.

The tensors of one class in one layer are rounded plainly to a coarse type, all others stay as they are,
and the KL divergence to the untouched model tells their sensitivity: KLD per unit of their layers' output
error. Worth it where the model is small enough to be run some dozen times. Knows how to run and compare;
neither plans nor files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kizami import _core
from kizami.engine import Model, from_source
from kizami.evaluate import log_softmax, scored_logits
from kizami.formats import fitting
from kizami.imatrix import Imatrix
from kizami.sensitivity import class_of, sensitivities

# Weights of the largest model that is probed.
MOST_WEIGHTS = 1 << 30
# Windows of the calibration text that a probe runs on.
WINDOWS = 16
# How far priors may be off, as a standard deviation of logarithms.
DOUBT = 0.7


class Replaced(Mapping[str, _core.Tensor]):
    """An open model with some of its tensors exchanged."""

    def __init__(self, source: Any, tensors: Mapping[str, _core.Tensor]) -> None:
        self._source, self._tensors = source, tensors

    def __getitem__(self, name: str) -> _core.Tensor:
        return self._tensors[name] if name in self._tensors else self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def probe(
    model: Model,
    ids: np.ndarray,
    type_name: str,
    errors: Mapping[str, float],
    imatrix: Imatrix | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Sensitivities of a model's tensors: predicted KLD per unit of relative output error.

    Args:
        model: the unquantized model, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]``, of which some are run, evenly spread.
        type_name: the type that tensors are rounded to (or what stands in for it).
        errors: the relative output error that plain rounding to it makes in each tensor.
        imatrix: importance of columns.
        progress: called with (stage, probes done, in total).

    Returns:
        By tensor, drawn to the shipped priors, the more the less certain they are; nothing for a model of
        more than ``MOST_WEIGHTS`` weights.
    """
    if sum(math.prod(tensor.shape) for tensor in model.source.values()) > MOST_WEIGHTS:
        return {}
    groups: dict[tuple[str, int], list[str]] = {}
    for name in errors:
        layer, _, _ = name.removeprefix("blk.").partition(".")
        groups.setdefault((layer, class_of(name)), []).append(name)
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), WINDOWS)).round().astype(int))]
    reference = list(scored_logits(model, ids))
    priors = sensitivities(errors)
    found: dict[str, float] = {}
    for done, names in enumerate(groups.values(), 1):
        tensors = {name: _rounded(model.source[name], type_name, name, imatrix) for name in names}
        probed = from_source(Replaced(model.source, tensors), activations="f32")
        windows = []
        for expected, logits in zip(reference, scored_logits(probed, ids), strict=True):
            p, q = log_softmax(expected), log_softmax(logits)
            windows.append(float((np.exp(p) * (p - q)).sum(axis=1).mean()))
        for name in names:
            total = sum(errors[n] for n in names)
            found[name] = _posterior(np.asarray(windows), total, priors[name])
        if progress:
            progress("probe", done, len(groups))
    return found


def _posterior(windows: np.ndarray, error: float, prior: float) -> float:
    """KLD per unit of error from the means of several windows, and a prior."""
    kld = windows.mean()
    if not (kld > 0 and error > 0):
        return prior
    variance = windows.var(ddof=1) / len(windows) / kld**2 if len(windows) > 1 else 1.0
    trust = DOUBT**2 / (DOUBT**2 + variance)
    return math.exp(trust * math.log(kld / error) + (1 - trust) * math.log(prior))


def _rounded(tensor: _core.Tensor, type_name: str, name: str, imatrix: Imatrix | None) -> _core.Tensor:
    """A tensor in another type, every weight rounded by itself."""
    shape = tuple(tensor.shape)
    wanted = fitting(type_name, shape)
    weights = imatrix.weights(name, shape[0] if len(shape) == 3 else 1, shape[-1]) if imatrix else None
    return _core.Tensor(wanted, shape, [tensor.encode(wanted, weights)])
