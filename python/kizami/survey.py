"""The first pass over the calibration text: what each type would cost each tensor, before a plan is made.

All windows pass through one layer at a time (:func:`kizami.feedback.layers`). From a layer's moments follow
its part of the imatrix and, on sampled rows, what the final rounding would do to the layer's outputs in
every type. Knows how to measure; neither budgets nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kizami import _core
from kizami.distortion import Distortions, relative_error
from kizami.feedback import Moments
from kizami.formats import candidates, fitting, quantizable
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
        rounded: tensors in ``TYPICAL``, or what stands in for it, for :func:`kizami.probe.probe`; none unless
            asked for.
    """

    imatrix: Imatrix
    distortions: Distortions
    rounded: Mapping[str, _core.Tensor]


def survey(
    source: Mapping[str, _core.Tensor],
    layers: Iterable[tuple[str, Moments]],
    imatrix: Imatrix,
    probed: bool = False,
) -> Survey:
    """Measures all tensors that may lose bits.

    Args:
        source: an open model.
        layers: what :func:`kizami.feedback.layers` finds, which also reports progress.
        imatrix: says what text it will be of; its entries are filled here.
        probed: whether to round all tensors for probes.

    Raises:
        FormatError: a weight is not finite, or moments are not.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    names = [name for name, shape in shapes.items() if quantizable(name, shape)]
    errors: dict[str, dict[str, float]] = {}
    rounded: dict[str, _core.Tensor] = {}

    def measure(name: str, error: Callable[[str], float], curvatures: list[_core.Curvature] | None) -> None:
        tensor, shape = source[name], shapes[name]
        errors[name] = {type_name: error(type_name) for type_name in candidates(shape)}
        if probed:
            wanted = fitting(TYPICAL, shape)
            rounded[name] = _core.Tensor(wanted, shape, [tensor.encode(wanted, None, curvatures)])

    for prefix, moments in layers:
        imatrix.entries.update(moments.entries())
        for name in [name for name in names if name.startswith(prefix)]:
            if (curvatures := moments.curvatures(name)) is not None:
                measure(name, Sample(source[name], name, moments).error, curvatures)
    for name in [name for name in names if name not in errors]:
        # Without inputs, as the embedding, or without any that were seen.
        tensor = source[name]
        measure(name, lambda t, tensor=tensor, name=name: relative_error(tensor, t, name, imatrix), None)
    return Survey(imatrix, Distortions(errors), rounded)


class Sample:
    """Some rows of some matrices of a tensor, evenly spread; experts count by the tokens they saw."""

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
            self._parts.append((sampled, curvature, float(tokens[index % len(tokens)])))

    def error(self, type_name: str) -> float:
        """Mean square of what a type does to the outputs over that of the outputs, of the sampled rows."""
        output = wrong = 0.0
        for weights, curvature, tokens in self._parts:
            sums = weights.output_error(type_name, curvature)
            output, wrong = output + tokens * sums[0], wrong + tokens * sums[1]
        return wrong / output if output > 0 else 0.0
