"""Tensors in parts, and what encoding does to their outputs."""

from __future__ import annotations

import numpy as np
import pytest

from kizami import _core
from kizami.checkpoint import open_source
from kizami.demo import EMBEDDED
from kizami.errors import FormatError, UsageError


def test_matrices_of_a_stack():
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(3, 8, 256)).astype(np.float32)
    whole = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
    parts = _core.Tensor("F32", weights.shape, [matrix.reshape(-1).view(np.uint8) for matrix in weights])
    packed = _core.Tensor("Q4_K", weights.shape, [whole.encode("Q4_K")])
    for i in range(3):
        for stack in (whole, parts):
            np.testing.assert_array_equal(stack.at(i).dequantize(), weights[i])
        one = packed.at(i)
        assert one.shape == (8, 256) and one.type == "Q4_K"
        np.testing.assert_array_equal(one.dequantize(), packed.dequantize()[i])
    for stack in (whole, parts, packed):
        with pytest.raises(UsageError, match="found 3, expected less than 3"):
            stack.at(3)
    with pytest.raises(UsageError, match="found 1, expected less than 1"):
        packed.at(0).at(1)
    scaled = _core.Tensor(
        "NVFP4", (2, 8, 64), [packed.bytes()[: 2 * 8 * 36]], [np.full((1, 1), s, "f4") for s in (2, 3)]
    )
    np.testing.assert_array_equal(scaled.at(1).scale, [3])


def test_rows_of_a_stack():
    weights = np.random.default_rng(7).normal(size=(3, 8, 256)).astype(np.float32)
    whole = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
    packed = _core.Tensor("Q4_K", weights.shape, [whole.encode("Q4_K")])
    rows = packed.rows(2, [5, 0, 7])
    assert rows.type == "F32"
    np.testing.assert_array_equal(rows.dequantize(), packed.dequantize()[2][[5, 0, 7]])
    for wrong in ((3, [0]), (0, [8])):
        with pytest.raises(UsageError, match=r"expected less than"):
            packed.rows(*wrong)


def test_parts_of_a_matrix():
    weights = np.random.default_rng(8).normal(size=(2, 300, 256)).astype(np.float32)
    whole = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
    for type_name in ("F16", "Q4_K", "IQ2_XXS", "Q8_0"):
        tensor = _core.Tensor(type_name, weights.shape, [whole.encode(type_name)])
        expected = tensor.dequantize()
        for start, count in ((0, 300), (7, 1), (128, 172)):
            part = tensor.part(1, start, count)
            assert part.shape == (count, 256) and part.type == type_name
            np.testing.assert_array_equal(part.dequantize(), expected[1, start : start + count])
        for start, count in ((0, 0), (0, 301), (300, 1), (1 << 63, 1 << 63)):
            with pytest.raises(UsageError, match="rows: found"):
                tensor.part(0, start, count)
        with pytest.raises(UsageError, match="matrix: found 2"):
            tensor.part(2, 0, 1)
    with pytest.raises(UsageError, match="rows: found"):
        _core.Tensor("Q4_K", (16, 256), [whole.part(0, 0, 16).encode("Q4_K")]).repack().part(0, 0, 8)


def test_parts_of_a_published_matrix_have_their_scales():
    """FP8 with a scale for 128 x 128: rows of one block are not parted."""
    source = open_source(EMBEDDED)
    for name in ("blk.0.ffn_down.weight", "blk.1.ffn_gate_exps.weight"):
        tensor = source[name]
        assert tensor.type == "F8_E4M3"
        rows = tensor.shape[-2]
        expected = tensor.dequantize().reshape(-1, *tensor.shape[-2:])[-1]
        last = len(tensor.dequantize().reshape(-1, *tensor.shape[-2:])) - 1
        for start in range(0, rows, 128):
            count = min(128, rows - start)
            part = tensor.part(last, start, count)
            np.testing.assert_array_equal(part.dequantize(), expected[start : start + count])
        with pytest.raises(UsageError, match="whole blocks of 128"):
            tensor.part(0, 64, 64)


def test_many_errors_at_once_are_those_one_by_one():
    rng = np.random.default_rng(9)
    types, parts = ["Q4_0", "Q8_0", "IQ4_NL"], []
    for seed in range(3):
        x = rng.normal(size=(200, 64)) @ np.random.default_rng(seed).normal(size=(64, 64))
        weights = rng.normal(size=(20, 64)).astype(np.float32)
        tensor = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
        parts.append((tensor, _core.Curvature(x.T @ x / len(x))))
    found = _core.output_errors([t for t, _ in parts], [c for _, c in parts], types)
    assert found == [[t.output_error(name, c) for t, c in parts] for name in types]
    with pytest.raises(UsageError, match="curvatures: found 1, expected one for each of 3"):
        _core.output_errors([t for t, _ in parts], [parts[0][1]], types)
    with pytest.raises(UsageError, match='type: found "Q9"'):
        _core.output_errors([parts[0][0]], [parts[0][1]], ["Q9"])


def test_losses_are_those_of_the_moments():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64))
    moments = x.T @ x / len(x)
    curvature = _core.Curvature(moments)
    full = moments + curvature.damping * np.diag(moments).mean() * np.eye(64)
    weights = rng.normal(size=(40, 64)).astype(np.float32)
    tensor = _core.Tensor("F32", weights.shape, [weights.reshape(-1).view(np.uint8)])
    assert tensor.output_power(curvature) == pytest.approx(((weights @ full) * weights).sum(), rel=1e-4)
    for feedback_, blocks in ((True, tensor.encode("Q4_0", None, [curvature])), (False, None)):
        if blocks is None:
            blocks = tensor.encode("Q4_0", np.diag(moments).astype(np.float32)[None])
        error = _core.Tensor("Q4_0", weights.shape, [blocks]).dequantize().astype(float) - weights
        expected = ((error @ full) * error).sum()
        assert tensor.output_error("Q4_0", curvature, feedback_) == pytest.approx(expected, rel=1e-4)
    narrow = _core.Tensor("F32", (1, 32), [np.zeros(128, np.uint8)])
    with pytest.raises(FormatError, match="columns"):
        narrow.output_error("Q8_0", curvature)
    with pytest.raises(FormatError, match="columns"):
        narrow.output_power(curvature)
