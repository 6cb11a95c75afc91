"""Distortion: the relative error that each type makes in each tensor that may lose bits.

Knows tensors, formats and the imatrix; neither budgets nor what an error does to the model's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kizami import _core
from kizami.formats import candidates, quantizable
from kizami.imatrix import Imatrix
from kizami.progress import Progress

# Weights encoded per tensor and type to measure its error: whole rows, spread over all experts.
SAMPLE = 1 << 16


@dataclass(frozen=True)
class Distortions:
    """What a plan chooses from: tensor name to type name to relative error.

    Every tensor that may lose bits is in it, with the types that it may have and that divide its rows.
    An error has no unit: 0 where nothing is lost, 1 where everything is.
    """

    errors: Mapping[str, Mapping[str, float]]


def measure(
    source: Mapping[str, _core.Tensor],
    imatrix: Imatrix | None = None,
    progress: Progress | None = None,
) -> Distortions:
    """The distortions of plain rounding, each on a sample of the tensor's rows.

    Args:
        source: an open model.
        imatrix: importance of columns; all alike without it.
        progress: called with (stage, tensors done, tensors in total).

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    names = [name for name, shape in shapes.items() if quantizable(name, shape)]
    errors = {}
    for done, name in enumerate(names, 1):
        tensor = source[name]
        errors[name] = {t: relative_error(tensor, t, name, imatrix) for t in candidates(shapes[name])}
        if progress:
            progress("plan", done, len(names))
    return Distortions(errors)


def relative_error(tensor: _core.Tensor, type_name: str, name: str, imatrix: Imatrix | None) -> float:
    """What a type does to a tensor: ``1 - rho**2`` plus the squared gain error, both imatrix-weighted.

    The two are kept apart because codes that minimize a plain squared error shrink a layer's output. Nothing
    where the type stays: the bytes are copied.
    """
    if tensor.type == type_name:
        return 0.0
    n_mat = tensor.shape[0] if len(tensor.shape) == 3 else 1
    weights = imatrix.weights(name, n_mat, tensor.shape[-1]) if imatrix else None
    if weights is not None and n_mat > 1 and imatrix is not None:
        # An expert counts as often as it is used.
        counts = np.maximum(imatrix.entries[name][1], 1.0)
        weights = weights * (counts / counts.mean()).astype(np.float32)[:, None]
    original, cross, encoded = tensor.distortion(type_name, weights, SAMPLE)
    if original <= 0.0:
        return 0.0
    if encoded <= 0.0:
        return 1.0
    gain = cross / original
    return max(0.0, 1.0 - cross * cross / (original * encoded)) + (1.0 - gain) ** 2
