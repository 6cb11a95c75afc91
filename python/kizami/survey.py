"""The first pass over the calibration text: what each type would cost each tensor, before a plan is made.

All windows pass through one layer at a time (:func:`kizami.feedback.layers`). From a layer's moments follow
its part of the imatrix and, on sampled rows, what the final rounding would do to the layer's outputs in
every type. Knows how to measure; neither budgets nor files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kizami import _core
from kizami.distortion import Distortions, relative_error
from kizami.feedback import Moments
from kizami.formats import TYPES, candidates, fitting, quantizable
from kizami.imatrix import Imatrix

# Rows sampled of a tensor, in how many of its matrices at most.
ROWS, MATRICES = 96, 12
# The coarse type of probes (:mod:`kizami.probe`).
TYPICAL = "IQ2_XXS"


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    Attributes:
        imatrix: importance of columns.
        distortions: with the final rounding, relative to the mean square of the layer's outputs.
        plain: the same of each tensor in ``TYPICAL``, or what stands in for it, with plain rounding.
    """

    imatrix: Imatrix
    distortions: Distortions
    plain: Mapping[str, float]


def survey(
    source: Mapping[str, _core.Tensor],
    layers: Iterable[tuple[str, Moments]],
    imatrix: Imatrix,
) -> Survey:
    """Measures all tensors that may lose bits.

    Args:
        source: an open model.
        layers: what :func:`kizami.feedback.layers` finds, which also reports progress.
        imatrix: says what text it will be of; its entries are filled here.

    Raises:
        FormatError: a weight is not finite, or moments are not.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    names = [name for name, shape in shapes.items() if quantizable(name, shape)]
    errors: dict[str, dict[str, float]] = {}
    plain: dict[str, float] = {}

    for prefix, moments in layers:
        imatrix.entries.update(moments.entries())
        for name in [name for name in names if name.startswith(prefix)]:
            loses = any(TYPES[t]["quantized"] for t in candidates(shapes[name]))
            if not loses or moments.curvatures(name) is None:
                continue
            sample = Sample(source[name], name, moments)
            own = source[name].type  # in which the bytes are copied
            errors[name] = {t: 0.0 if t == own else sample.error(t) for t in candidates(shapes[name])}
            plain[name] = sample.error(fitting(TYPICAL, shapes[name]), feedback=False)
    for name in [name for name in names if name not in errors]:
        errors[name] = {t: relative_error(source[name], t, name, imatrix) for t in candidates(shapes[name])}
        plain[name] = relative_error(source[name], fitting(TYPICAL, shapes[name]), name, imatrix)
    return Survey(imatrix, Distortions(errors), plain)


class Sample:
    """Some rows of some matrices of a tensor, evenly spread; experts count by the tokens they saw, or one."""

    def __init__(self, tensor: _core.Tensor, name: str, moments: Moments) -> None:
        shape = tuple(tensor.shape)
        n_mat = shape[0] if len(shape) == 3 else 1
        curvatures = moments.curvatures(name)
        assert curvatures is not None
        self._parts: list[tuple[_core.Tensor, _core.Curvature, float]] = []
        tokens = moments.tokens(name)
        picked = np.unique(np.linspace(0, n_mat - 1, min(n_mat, MATRICES)).round().astype(int))
        per_matrix = -(-ROWS // len(picked) // 16) * 16
        rows = np.unique(np.linspace(0, shape[-2] - 1, min(shape[-2], per_matrix)).round().astype(int))
        for index in map(int, picked):
            weights = tensor.at(index).dequantize()[rows]
            sampled = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
            curvature = curvatures[index % len(curvatures)]
            self._parts.append((sampled, curvature, max(1.0, float(tokens[index % len(tokens)]))))

    def error(self, type_name: str, feedback: bool = True) -> float:
        """Mean square of what a type does to the outputs over that of the outputs, of the sampled rows."""
        output = wrong = 0.0
        for weights, curvature, tokens in self._parts:
            sums = weights.output_error(type_name, curvature, feedback)
            output, wrong = output + tokens * sums[0], wrong + tokens * sums[1]
        return wrong / output if output > 0 else 0.0
