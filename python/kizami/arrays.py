"""Block formats for NumPy: arrays into blocks, blocks into arrays, and products with blocks.

Blocks are uint8 arrays as they stand in GGUF files, `[..., bytes of a row]`. Nothing is copied on the way in
where arrays are contiguous, and the interpreter is free meanwhile. Knows neither files nor models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kizami import _core
from kizami.errors import UsageError
from kizami.formats import TYPES, parse_type


def dequantize(blocks: NDArray[np.uint8], type: str) -> NDArray[np.float32]:
    """The weights that blocks stand for.

    Args:
        blocks: uint8 `[..., bytes]`, whole rows; a `gguf.ReaderTensor.data` will do.
        type: name of the format, in any case: "Q4_K".

    Returns:
        float32 `[..., weights]`, exactly as the format defines them, each product rounded once.

    Raises:
        UsageError: the type is unknown, or the last axis is no whole number of blocks.
    """
    tensor, shape = _tensor(blocks, type)
    return tensor.dequantize().reshape(shape)


def quantize_array(weights: ArrayLike, type: str, importance: ArrayLike | None = None) -> NDArray[np.uint8]:
    """The blocks that stand for weights.

    Args:
        weights: `[..., cols]`, finite; taken as float32. `cols` must be whole blocks of the type.
        type: name of the format, in any case: "Q4_K".
        importance: `[cols]`, what a squared error in each column costs: the mean square of what the column is
            multiplied with. All alike when absent.

    Returns:
        uint8 `[..., bytes of a row]`, the same on every machine.

    Raises:
        UsageError: the type is unknown, there are no weights or their rows do not divide into its blocks, or
            there are not `cols` importances.
        FormatError: a weight is infinite or NaN, or an importance is negative.
    """
    values = np.ascontiguousarray(weights, np.float32)
    name, block, block_bytes = _format(type)
    if values.ndim == 0 or values.size == 0 or values.shape[-1] % block:
        raise UsageError(
            f"weights: found shape {list(values.shape)}, "
            f"expected at least one row of blocks of {block} for {name}"
        )
    cols = values.shape[-1]
    rows = values.size // cols
    if importance is not None and np.shape(importance) != (cols,):
        raise UsageError(f"importance: found shape {list(np.shape(importance))}, expected [{cols}]")
    plain = _core.Tensor("F32", (rows, cols), [values.reshape(-1).view(np.uint8)])
    costs = None if importance is None else np.ascontiguousarray(importance, np.float32).reshape(1, -1)
    encoded = np.asarray(plain.encode(name, costs), np.uint8)
    return encoded.reshape(*values.shape[:-1], cols // block * block_bytes)


def matmul(
    blocks: NDArray[np.uint8], type: str, x: ArrayLike, activations: str = "int8"
) -> NDArray[np.float32]:
    """`x @ dequantize(blocks).T`, without the weights in between.

    Args:
        blocks: uint8 `[rows, bytes]`, whole rows.
        type: name of the format, in any case: "Q4_K".
        x: `[n, cols]` or `[cols]`; taken as float32.
        activations: "int8" rounds `x` to 8 bits, the fast path of running models; "f32" does not.

    Returns:
        float32 `[n, rows]` or `[rows]`: the same bits on every instruction set, for any number of threads,
        and whatever the other rows of `x` are (docs/architecture.md).

    Raises:
        UsageError: the type or `activations` is unknown, or shapes do not agree.
    """
    tensor, shape = _tensor(blocks, type)
    if len(shape) != 2:
        raise UsageError(f"blocks: found shape {list(blocks.shape)}, expected [rows, bytes]")
    values = np.ascontiguousarray(x, np.float32)
    if values.ndim not in (1, 2) or values.shape[-1] != shape[-1]:
        raise UsageError(f"x: found shape {list(values.shape)}, expected [n, {shape[-1]}] or [{shape[-1]}]")
    out = tensor.matmul(values.reshape(-1, shape[-1]), activations)
    return out.reshape(*values.shape[:-1], shape[0])


def _format(type: str) -> tuple[str, int, int]:
    """Name, weights and bytes of a block."""
    name = parse_type(type)
    return name, TYPES[name]["block"], TYPES[name]["block_bytes"]


def _tensor(blocks: NDArray[np.uint8], type: str) -> tuple[_core.Tensor, tuple[int, ...]]:
    """The blocks as rows of one matrix, and the shape of the weights."""
    name, block, block_bytes = _format(type)
    data = np.asarray(blocks)
    if data.dtype != np.uint8 or data.ndim == 0 or data.size == 0 or data.shape[-1] % block_bytes:
        raise UsageError(
            f"blocks: found {data.dtype} {list(data.shape)}, expected uint8, at least one row of blocks of "
            f"{block_bytes} bytes for {name}"
        )
    cols = data.shape[-1] // block_bytes * block
    rows = math.prod(data.shape[:-1])
    tensor = _core.Tensor(name, (rows, cols), [np.ascontiguousarray(data).reshape(-1)])
    return tensor, (*data.shape[:-1], cols)
