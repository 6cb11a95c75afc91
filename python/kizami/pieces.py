"""The bytes of a tensor, as it is or in another type: a piece at a time, as whole ones need not be in memory.

Knows how a tensor is parted. Knows neither which types tensors get nor where their curvatures come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kizami import _core
from kizami.memory import PIECE
from kizami.moments import Curvatures

# Rows that share scales in FP8 checkpoints are not parted.
ROWS = 128


def pieces(
    tensor: _core.Tensor, type_name: str, weights: np.ndarray | None, curvatures: Curvatures | None
) -> Iterator[np.ndarray]:
    """The bytes of a tensor in another type, piece by piece: with error feedback where there are curvatures.

    Args:
        weights: importance of columns, float32 ``[n_mat, cols]``; where there are curvatures, not used.

    Yields:
        uint8, in order.

    Raises:
        FormatError: a weight is not finite, or moments are not.
    """
    n_mat, rows, cols = [1, 1, *tensor.shape][-3:]
    if n_mat * rows * cols <= PIECE and (curvatures is None or len(curvatures) == 1):
        yield tensor.encode(type_name, weights, None if curvatures is None else [curvatures[0]])
        return
    for index, parts in _parts(tensor):
        own = None if weights is None else weights[index : index + 1]
        curvature = None if curvatures is None else [curvatures[index % len(curvatures)]]
        for part in parts:
            yield part.encode(type_name, own, curvature)


def copies(tensor: _core.Tensor) -> Iterator[np.ndarray]:
    """The bytes of a tensor as they are, piece by piece."""
    for _, parts in _parts(tensor):
        yield from (part.bytes() for part in parts)


def _parts(tensor: _core.Tensor) -> Iterator[tuple[int, Iterator[_core.Tensor]]]:
    """The number of every matrix, and its rows as many together as a piece may have."""
    n_mat, rows, cols = [1, 1, *tensor.shape][-3:]
    together = max(PIECE // cols // ROWS, 1) * ROWS
    for index in range(n_mat):
        starts = range(0, rows, together)
        yield index, (tensor.part(index, i, min(together, rows - i)) for i in starts)


def encode(
    tensor: _core.Tensor, type_name: str, weights: np.ndarray | None, curvatures: Curvatures | None
) -> np.ndarray:
    """All :func:`pieces` together."""
    return np.concatenate(list(pieces(tensor, type_name, weights, curvatures)))
