"""Encoding: every tensor of a model in its planned type, piece by piece, to whoever writes it.

Knows how a tensor is rounded, and in which order they come. Does not know how types are chosen, nor how files
are written: a job's (job.py) over hours, and small ones in one go (:func:`write`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from kizami import _core
from kizami.errors import naming
from kizami.formats import TYPES
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.memory import UNLIMITED, Cut
from kizami.moments import Statistics
from kizami.pieces import copies, pieces
from kizami.plan import Plan, PlannedTensor, file_layout, output_metadata, types_of
from kizami.progress import Progress

# What feedback.layers finds.
Layers = Iterable[tuple[list[str], Statistics]]


class Writer(Protocol):
    """Where the bytes of a tensor go."""

    def write(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """Takes all bytes of a tensor, in order."""


class InOneGo:
    """What wants the bytes of a tensor all at once, as a :class:`Writer`."""

    def __init__(self, writer: _core.GgufWriter) -> None:
        self._writer = writer

    def write(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """Puts the pieces together."""
        self._writer.write(name, np.concatenate(list(pieces)))


def write(
    source: Any,
    plan: Plan,
    out: str | os.PathLike[str],
    imatrix: Imatrix | None = None,
    progress: Progress | None = None,
    layers: Layers = (),
    calibration: str | None = None,
) -> None:
    """Encodes every tensor of ``source`` as planned and writes the file, in one go.

    Args:
        source: an open model.
        plan: the type of each of its tensors.
        out: the file to write.
        imatrix: importance of columns.
        progress: called with (stage, tensors done, tensors in total).
        layers: as in :func:`encode`.
        calibration: hash of the text that ``layers`` saw, for the file to name.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    metadata = output_metadata(source, types_of(plan), imatrix, calibration)
    writer = _core.GgufWriter(os.fspath(out), metadata, file_layout(plan.tensors))
    try:
        encode(source, plan, InOneGo(writer), imatrix, progress, layers)
        writer.finish()
    finally:
        writer.abort()


def encode(
    source: Any,
    plan: Plan,
    writer: Writer,
    imatrix: Imatrix | None = None,
    progress: Progress | None = None,
    layers: Layers = (),
    done: Collection[str] = (),
    cut: Cut = UNLIMITED,
) -> None:
    """Encodes the tensors of ``source`` as planned, one at a time.

    Args:
        source: an open model.
        plan: the type of each of its tensors.
        writer: gets their bytes.
        imatrix: importance of columns.
        progress: called with (stage, tensors done, tensors in total).
        layers: what :func:`kizami.feedback.layers` finds, for rounding with error feedback; in tensors of no
            layer, and in all without it, each weight is rounded by itself.
        done: tensors that ``writer`` has already.
        cut: whether weights leave memory when they are encoded.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    if imatrix is not None:
        imatrix.check({t.name: t.shape for t in plan.tensors})
    there = finished(plan, done)
    left = {t.name: t for t in plan.tensors if t.name not in there}

    def put(planned: PlannedTensor, moments: Statistics | None) -> None:
        tensor = source[planned.name]
        made = encoded(source, tensor, planned, imatrix, moments)
        writer.write(planned.name, releasing(made, source, cut))
        if planned.scales and tensor.scale is not None:
            writer.write(scale_name(planned.name), [tensor.scale.view(np.uint8)])
        if progress:
            progress("encode", len(plan.tensors) - len(left), len(plan.tensors))

    for names, moments in layers:
        for name in [name for name in names if name in left]:
            put(left.pop(name), moments)
        del moments  # not to be held while the next layer's are gathered
    for name in list(left):
        put(left.pop(name), None)


def releasing(pieces: Iterable[np.ndarray], source: Any, cut: Cut) -> Iterator[np.ndarray]:
    """The pieces; after each of them memory is told that weights were used."""
    for piece in pieces:
        yield piece
        cut.release(source)


def finished(plan: Plan, done: Collection[str]) -> set[str]:
    """Names of the tensors of a plan that are ``done``, with the scales beside them."""
    return {t.name for t in plan.tensors if {t.name, *scales_of(t)} <= set(done)}


def scales_of(planned: PlannedTensor) -> list[str]:
    """Name of the tensor that a tensor's scales are in, where they stay beside it."""
    return [scale_name(planned.name)] if planned.scales else []


def encoded(
    source: Any,
    tensor: _core.Tensor,
    planned: PlannedTensor,
    imatrix: Imatrix | None,
    moments: Statistics | None,
) -> Iterator[np.ndarray]:
    """The bytes of one tensor in its planned type, piece by piece; with error feedback where there are
    moments of its inputs.

    Raises:
        FormatError: a weight is not finite, its inputs are not, or the imatrix does not fit.
    """
    if tensor.type == planned.type:
        yield from copies(tensor)  # no new rounding
        return
    n_mat = planned.shape[0] if len(planned.shape) == 3 else 1
    with naming(source.path, planned.name):
        weights = imatrix.weights(planned.name, n_mat, planned.shape[-1]) if imatrix else None
        curvatures = None
        if moments is not None and TYPES[planned.type]["quantized"]:
            curvatures = moments.curvatures(planned.name)
        yield from pieces(tensor, planned.type, weights, curvatures)
