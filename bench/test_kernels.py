"""Speed of the kernels and of the embedded model, under pytest-benchmark. Not part of `make test`.

    make bench
    .venv/bin/python -m pytest bench -k Q4_K --benchmark-json=record.json

Each benchmark checks its result; none asserts a time. `extra_info` says what a round moved, so that tokens/s
and GB/s can be computed from the record.
"""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.demo import EMBEDDED
from kizami.encode import write
from kizami.formats import WRITABLE
from kizami.layers import Segment
from kizami.plan import uniform_plan

ROWS, COLS = 2048, 4096


@pytest.fixture(scope="module")
def floats():
    values = np.random.default_rng(0).standard_normal((ROWS, COLS), dtype=np.float32)
    return _core.Tensor("F32", values.shape, [values.reshape(-1).view(np.uint8)])


@pytest.fixture(scope="module", params=WRITABLE)
def weights(request, floats):
    """The same matrix in every format."""
    return _core.Tensor(request.param, floats.shape, [floats.encode(request.param)])


@pytest.fixture(autouse=True)
def describe(benchmark):
    benchmark.extra_info |= {"isa": _core.isa(), "threads": _core.threads()}


@pytest.mark.parametrize("columns", [1, 32])
def test_matmul(benchmark, weights, columns):
    x = np.random.default_rng(1).standard_normal((columns, COLS), dtype=np.float32)
    benchmark.group = f"matmul, {columns} columns"
    benchmark.extra_info |= {"bytes": weights.nbytes, "multiply_adds": columns * ROWS * COLS}
    out = benchmark(weights.matmul, x)
    # One column of many is the same as that column alone, to the last bit.
    assert np.array_equal(out[:1], weights.matmul(x[:1]))


def test_dequantize(benchmark, weights):
    benchmark.group = "dequantize"
    benchmark.extra_info |= {"bytes": weights.nbytes}
    assert np.isfinite(benchmark(weights.dequantize)).all()


@pytest.mark.parametrize("name", [n for n in WRITABLE if n not in ("F32", "F16", "BF16")])
def test_encode(benchmark, floats, name):
    benchmark.group = "encode"
    benchmark.extra_info |= {"weights": ROWS * COLS}
    encoded = benchmark.pedantic(floats.encode, (name,), rounds=2)
    assert len(encoded) == _core.Tensor(name, floats.shape, [encoded]).nbytes


@pytest.fixture(scope="module", params=["F8_E4M3", "Q8_0", "Q4_K", "IQ2_XXS", "IQ1_S"])
def model(request, tmp_path_factory):
    """The embedded model: as published, and with one type throughout."""
    if request.param == "F8_E4M3":
        return kizami.load(EMBEDDED)
    source = kizami.load(EMBEDDED).source
    path = tmp_path_factory.mktemp("bench") / f"{request.param}.gguf"
    write(source, uniform_plan(source, request.param), path, None)
    return kizami.load(path)


def test_prompt(benchmark, model):
    ids = np.random.default_rng(2).integers(0, model.tokenizer.vocab_size, 512)
    benchmark.group = "prompt of 512 tokens"
    benchmark.extra_info |= {"tokens": 512}
    logits = benchmark(lambda: model.step([Segment(ids, model.new_cache())]))
    assert logits.shape == (1, model.tokenizer.vocab_size) and np.isfinite(logits).all()


def test_generation(benchmark, model):
    def generate():
        cache = model.new_cache()
        for token in range(32):
            logits = model.step([Segment([token], cache)])
        return logits

    benchmark.group = "generation of 32 tokens"
    benchmark.extra_info |= {"tokens": 32}
    assert np.isfinite(benchmark(generate)).all()
