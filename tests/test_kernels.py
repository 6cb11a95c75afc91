"""Every format's kernels through NumPy: against the gguf package, a float64 product, and themselves."""

from __future__ import annotations

import sys
import threading
import time

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizami import _core
from oracle import read_by_gguf, same_weights

FORMATS = {t["name"]: t for t in _core.types()}
QUANTIZED = [name for name, t in FORMATS.items() if t["quantized"]]
IN_GGUF = [name for name, t in FORMATS.items() if t["ggml_id"] is not None]
# The package reads all but the newest; `rust/kernels/tests/formats.rs` holds those against llama.cpp.
READ_BY_GGUF = [name for name in IN_GGUF if read_by_gguf(name)]

pytestmark = pytest.mark.usefixtures("restore_settings")


def tensor(name: str, rows: int, cols: int, seed: int, scale: float = 1.0) -> _core.Tensor:
    """Random weights, encoded."""
    x = (np.random.default_rng(seed).standard_normal((rows, cols)) * scale).astype(np.float32)
    plain = _core.Tensor("F32", (rows, cols), [x.reshape(-1).view(np.uint8)])
    return _core.Tensor(name, (rows, cols), [plain.encode(name)])


# Any two of them are an f16, or an end of one: zero, the smallest, the largest, infinity, NaN, of both signs.
HOSTILE = np.array([0x00, 0x01, 0x7B, 0x7C, 0x7E, 0x80, 0x83, 0xFB, 0xFC, 0xFF], np.uint8)


@pytest.mark.parametrize("name", READ_BY_GGUF)
def test_random_blocks_decode_as_in_gguf(name):
    t = FORMATS[name]
    rng, size = np.random.default_rng(7), t["block_bytes"]
    ordinary = rng.integers(0, 256, (4096, size), dtype=np.uint8)
    hostile = np.where(rng.random((4096, size)) < 0.5, rng.choice(HOSTILE, (4096, size)), ordinary)
    constant = np.repeat(np.arange(256, dtype=np.uint8)[:, None], size, axis=1)
    data = np.concatenate([ordinary, hostile, constant])
    ours = _core.Tensor(name, (len(data), t["block"]), [data.reshape(-1)]).dequantize()
    kind = gguf.GGMLQuantizationType(t["ggml_id"])
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(data, kind).reshape(ours.shape)
    same = same_weights(ours, theirs.astype(np.float32))
    assert same.all(), f"{(~same).sum()} of {same.size} differ"


@pytest.mark.parametrize("name", IN_GGUF)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 70),
    blocks=st.integers(1, 9),
    n=st.integers(1, 70),
    exponent=st.integers(-12, 8),
    seed=st.integers(0, 2**31),
)
def test_matmul_has_the_same_bits_everywhere_and_the_right_value(name, rows, blocks, n, exponent, seed):
    block = FORMATS[name]["block"]
    cols = blocks * (32 if block == 1 else block) if block != 256 else min(blocks, 3) * 256
    w = tensor(name, rows, cols, seed, 2.0**exponent)
    x = np.random.default_rng(seed + 1).standard_normal((n, cols)).astype(np.float32)
    results = []
    for isa in _core.isa_available():
        for threads in (1, 2):
            _core.set_isa(isa)
            _core.set_threads(threads)
            results.append(w.matmul(x))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.uint32), other.view(np.uint32))
    alone = np.concatenate([w.matmul(x[i : i + 1]) for i in range(n)])
    np.testing.assert_array_equal(results[0].view(np.uint32), alone.view(np.uint32))

    # The float path differs from float64 by accumulated rounding only; the 8-bit path by at most half
    # a code of each activation, whose scale is the largest activation over 127.
    dense = w.dequantize().astype(np.float64)
    exact = x.astype(np.float64) @ dense.T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(dense).T
    rounding = 1e-6 * magnitude + 1e-30
    assert (np.abs(w.matmul(x, "f32") - exact) <= rounding).all()
    step = np.abs(x).max(axis=1, keepdims=True) / 127 * 0.51 if name in QUANTIZED else 0.0
    assert (np.abs(results[0] - exact) <= rounding + step * np.abs(dense).sum(axis=1)).all()


def test_fp8_weights_carry_their_block_scales():
    rng = np.random.default_rng(3)
    rows, cols = 200, 320
    codes = rng.integers(0, 256, (rows, cols), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    scales = rng.random((2, 3), dtype=np.float32)
    w = _core.Tensor("F8_E4M3", (rows, cols), [codes.reshape(-1)], [scales])
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7) / 8  # OCP 8-bit floats, E4M3
    magnitude = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    values = np.where(codes >> 7, -magnitude, magnitude).astype(np.float32)
    expected = values * np.repeat(np.repeat(scales, 128, 0), 128, 1)[:rows, :cols]
    np.testing.assert_array_equal(w.dequantize(), expected)
    x = rng.standard_normal((5, cols)).astype(np.float32)
    np.testing.assert_allclose(w.matmul(x), x @ expected.T, rtol=1e-4, atol=1e-2)


def test_bad_tensors_are_refused():
    data = np.zeros(144, np.uint8)
    with pytest.raises(ValueError, match="expected 144|bytes"):
        _core.Tensor("Q4_K", (2, 256), [data])
    with pytest.raises(ValueError, match="blocks of 256"):
        _core.Tensor("Q4_K", (1, 255), [data])
    with pytest.raises(ValueError, match="Q5_9"):
        _core.Tensor("Q5_9", (1, 256), [data])
    with pytest.raises(ValueError, match="no zero"):
        _core.Tensor("Q4_K", (0, 256), [data])
    with pytest.raises(ValueError, match="fit memory"):
        _core.Tensor("F32", (2**40, 2**40), [data])
    with pytest.raises(ValueError, match=r"\[n, 256\]"):
        _core.Tensor("Q4_K", (1, 256), [data]).matmul(np.zeros((1, 128), np.float32))


def test_nan_stays_visible():
    w = tensor("Q4_K", 4, 256, 1)
    x = np.zeros((2, 256), np.float32)
    x[1, 77] = np.nan
    out = w.matmul(x)
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


def test_the_interpreter_is_free_during_a_matmul():
    """With switching all but off, another thread can only move while the matmul lets it."""
    w = tensor("F32", 512, 1024, 1)
    x = np.ones((2048, 1024), np.float32)
    count, stop = [0], threading.Event()

    def spin():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        sys.setswitchinterval(100.0)
        before = count[0]
        w.matmul(x)
        after = count[0]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert after > before
