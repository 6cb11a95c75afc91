"""Block formats for NumPy: shapes, errors, and agreement of the three functions."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kizami
from kizami.errors import FormatError, UsageError
from kizami.formats import TYPES, WRITABLE
from oracle import read_by_gguf, same_weights


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


LEADING = st.lists(st.integers(1, 4), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**31)


def drawn(name: str, leading: tuple[int, ...], blocks: int, exponent: int, seed: int) -> np.ndarray:
    """Weights of an ordinary size but for some blocks: zero, all alike, or with an outlier."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((*leading, blocks, max(TYPES[name]["block"], 8))).astype(np.float32)
    kind = rng.integers(0, 8, values.shape[:-1])
    values[kind == 0] = 0
    values[kind == 1] = values[kind == 1][..., :1]
    values[kind == 2, 0] *= 100
    return (values * np.float32(2.0**exponent)).reshape(*leading, -1)


@pytest.mark.parametrize("name", WRITABLE)
@settings(max_examples=8, deadline=None)
@given(leading=LEADING, blocks=st.integers(1, 3), exponent=st.integers(-8, 8), seed=SEEDS)
def test_rows_are_quantized_each_by_itself(name, leading, blocks, exponent, seed):
    weights = drawn(name, leading, blocks, exponent, seed)
    found = kizami.quantize_array(weights, name)
    assert found.shape[:-1] == leading
    row = np.unravel_index(seed % max(1, int(np.prod(leading))), leading)
    np.testing.assert_array_equal(found[row], kizami.quantize_array(weights[row].astype(np.float64), name))
    decoded = kizami.dequantize(found, name)
    assert decoded.shape == weights.shape and np.isfinite(decoded).all()
    # Zeros would lose a block's whole square. To keep its gain where one weight outgrows all others may cost
    # more, but not twice as much.
    size = weights.astype(np.float64).reshape(-1, TYPES[name]["block"])
    error = decoded.astype(np.float64).reshape(size.shape) - size
    assert ((error**2).sum(axis=1) <= (size**2).sum(axis=1) * 2).all()


@pytest.mark.parametrize("name", WRITABLE)
@settings(max_examples=8, deadline=None)
@given(leading=LEADING, blocks=st.integers(1, 3), seed=SEEDS)
def test_any_bytes_are_blocks(name, leading, blocks, seed):
    size = blocks * TYPES[name]["block_bytes"]
    data = np.random.default_rng(seed).integers(0, 256, (*leading, size), dtype=np.uint8)
    found = kizami.dequantize(data, name)
    assert found.dtype == np.float32 and found.shape == (*leading, blocks * TYPES[name]["block"])
    # As many rows, laid out otherwise in memory.
    turned = kizami.dequantize(np.asfortranarray(data), name)
    one = kizami.dequantize(data.reshape(-1), name).reshape(found.shape)
    for other in (turned, one):
        assert same_weights(found, other).all()


@pytest.mark.parametrize("name", WRITABLE)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 3),
    n=st.integers(1, 20),
    exponents=st.tuples(st.integers(-8, 8), st.integers(-20, 20)),
    seed=SEEDS,
)
def test_products_are_those_of_the_decoded_weights(name, rows, blocks, n, exponents, seed):
    weights = kizami.quantize_array(drawn(name, (rows,), blocks, exponents[0], seed), name)
    decoded = kizami.dequantize(weights, name).astype(np.float64)
    x = drawn("F32", (n,), -(-decoded.shape[1] // 8), exponents[1], seed + 1)[:, : decoded.shape[1]]
    exact, gross = x.astype(np.float64) @ decoded.T, np.abs(x).astype(np.float64) @ np.abs(decoded).T
    assert (np.abs(kizami.matmul(weights, name, x, "f32") - exact) <= 1e-6 * gross).all()
    fast = kizami.matmul(weights, name, np.asfortranarray(x))
    # Half a code of each activation, whose scale is at most the largest over 127.
    largest = np.abs(x).max(axis=1, keepdims=True)
    step = largest * (0.51 / 127 if TYPES[name]["quantized"] else 0)
    # Minimums have products of their own, of the size of the row's largest weight.
    rounding = 2e-6 * decoded.shape[1] * largest * np.abs(decoded).max(axis=1)
    assert (np.abs(fast - exact) <= step * np.abs(decoded).sum(axis=1) + rounding).all()
    np.testing.assert_array_equal(kizami.matmul(weights, name, x[-1]), fast[-1])


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
        UsageError, match=r"found uint8 \[2, 143\], expected uint8, at least one row of blocks of 144"
    ):
        kizami.dequantize(blocks[:, :143], "Q4_K")
    with pytest.raises(UsageError, match=r"found float32 \[2, 288\]"):
        kizami.dequantize(np.ones((2, 288), np.float32), "Q4_K")
    with pytest.raises(
        UsageError, match=r"weights: found shape \[255\], expected at least one row of blocks of 256"
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


def test_importance_of_another_shape_is_named():
    weights = np.ones((2, 256), np.float32)
    for wrong in (np.ones(255), np.ones((2, 256)), 1.0):
        with pytest.raises(UsageError, match=r"importance: found shape .*expected \[256\]"):
            kizami.quantize_array(weights, "Q4_K", wrong)
