"""Block formats for NumPy: shapes, errors, and agreement of the three functions."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import kizami
from kizami.errors import FormatError, UsageError
from kizami.plan import WRITABLE
from oracle import read_by_gguf


@pytest.mark.parametrize("name", WRITABLE)
def test_there_and_back(name):
    weights = np.random.default_rng(1).standard_normal((2, 3, 256)).astype(np.float32)
    blocks = kizami.quantize_array(weights, name.lower())
    assert blocks.dtype == np.uint8 and blocks.shape[:2] == (2, 3)
    decoded = kizami.dequantize(blocks, name)
    assert decoded.dtype == np.float32 and decoded.shape == weights.shape
    assert np.corrcoef(decoded.ravel(), weights.ravel())[0, 1] > 0.75
    if read_by_gguf(name):
        theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(decoded, theirs.reshape(decoded.shape))
    x = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    exact = kizami.matmul(blocks[0], name, x, "f32")
    assert exact.shape == (4, 3)
    np.testing.assert_allclose(exact, x @ decoded[0].T, rtol=1e-4, atol=1e-4)
    fast = kizami.matmul(blocks[0], name, x)
    np.testing.assert_allclose(fast, exact, atol=0.6)
    np.testing.assert_array_equal(kizami.matmul(blocks[0], name, x[1]), fast[1])


def test_importance_says_where_errors_cost():
    weights = np.random.default_rng(3).standard_normal((16, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 2, 100.0, 1.0)
    even = kizami.dequantize(kizami.quantize_array(weights, "Q4_K"), "Q4_K")
    told = kizami.dequantize(kizami.quantize_array(weights, "Q4_K", importance), "Q4_K")
    cost = lambda found: (importance * (found - weights) ** 2).sum()  # noqa: E731
    assert cost(told) < 0.95 * cost(even)


def test_arrays_that_are_not_contiguous_or_not_float32():
    weights = np.random.default_rng(4).standard_normal((256, 6))
    blocks = kizami.quantize_array(weights.T, "Q8_0")
    np.testing.assert_array_equal(blocks, kizami.quantize_array(weights.T.astype(np.float32).copy(), "Q8_0"))
    np.testing.assert_array_equal(
        kizami.dequantize(blocks[::2], "Q8_0"), kizami.dequantize(blocks, "Q8_0")[::2]
    )


def test_what_does_not_fit_is_named():
    blocks = kizami.quantize_array(np.ones((2, 256)), "Q4_K")
    with pytest.raises(UsageError, match=r"type: found 'Q9', expected one of F32"):
        kizami.dequantize(blocks, "Q9")
    with pytest.raises(UsageError, match=r"F8_E4M3"):
        kizami.quantize_array(np.ones(256), "F8_E4M3")
    with pytest.raises(
        UsageError, match=r"found uint8 \[2, 143\], expected uint8 with a last axis of blocks of 144"
    ):
        kizami.dequantize(blocks[:, :143], "Q4_K")
    with pytest.raises(UsageError, match=r"found float32 \[2, 288\]"):
        kizami.dequantize(np.ones((2, 288), np.float32), "Q4_K")
    with pytest.raises(
        UsageError, match=r"weights: found shape \[255\], expected a last axis of blocks of 256"
    ):
        kizami.quantize_array(np.ones(255), "Q4_K")
    with pytest.raises(UsageError, match=r"x: found shape \[1, 255\], expected \[n, 256\] or \[256\]"):
        kizami.matmul(blocks, "Q4_K", np.ones((1, 255)))
    with pytest.raises(UsageError, match="activations"):
        kizami.matmul(blocks, "Q4_K", np.ones(256), "int4")
    with pytest.raises(UsageError, match=r"blocks: found shape \[1, 2, 144\], expected \[rows, bytes\]"):
        kizami.matmul(blocks[None], "Q4_K", np.ones(256))
    with pytest.raises(FormatError, match="row 0.*column 3|weight"):
        kizami.quantize_array(np.where(np.arange(256) == 3, np.nan, 1.0), "Q4_K")
    with pytest.raises(FormatError, match="imatrix"):
        kizami.quantize_array(np.ones(256), "Q4_K", np.ones(255))
