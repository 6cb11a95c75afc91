"""The qwen2 architecture on a small random GGUF, against a float64 forward pass written from the paper."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.errors import FormatError
from kizami.layers import Segment
from kizami.models import build
from synthetic_qwen2 import BASE, EPS, Shape, weights, write

SHAPE = Shape(n_layer=2, n_embd=144, n_ff=200, n_head=6, n_head_kv=2)


@pytest.fixture(scope="module", params=["tied", "separate"])
def case(request, tmp_path_factory, q4k):
    """A file and the weights it was made from."""
    vocab = kizami.GGUF(q4k)["token_embd.weight"].shape[0]
    tensors = weights(SHAPE, vocab, request.param == "tied")
    return write(tmp_path_factory.mktemp("qwen2") / "qwen2.gguf", SHAPE, tensors, q4k), tensors


def reference(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits in float64, as plainly as NumPy has it."""
    w = {name: value.astype(np.float64) for name, value in tensors.items()}
    n, dims = len(ids), SHAPE.head_dims

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * w[name]

    angles = np.arange(n)[:, None] * BASE ** (-2.0 * np.arange(dims // 2) / dims)
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(x: np.ndarray) -> np.ndarray:  # [heads, n, dims]
        a, b = x[..., : dims // 2], x[..., dims // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    x = w["token_embd.weight"][ids]
    for i in range(SHAPE.n_layer):
        blk = f"blk.{i}."
        h = norm(x, blk + "attn_norm.weight")
        q, k, v = (
            (h @ w[f"{blk}attn_{part}.weight"].T + w[f"{blk}attn_{part}.bias"])
            .reshape(n, -1, dims)
            .swapaxes(0, 1)
            for part in "qkv"
        )
        k, v = (np.repeat(each, SHAPE.n_head // SHAPE.n_head_kv, axis=0) for each in (rotate(k), v))
        scores = rotate(q) @ k.swapaxes(1, 2) / np.sqrt(dims)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        x = x + (p @ v).swapaxes(0, 1).reshape(n, SHAPE.n_embd) @ w[blk + "attn_output.weight"].T
        h = norm(x, blk + "ffn_norm.weight")
        gate, up = h @ w[blk + "ffn_gate.weight"].T, h @ w[blk + "ffn_up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[blk + "ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T


def sample_ids(count: int) -> list[int]:
    return np.random.default_rng(1).integers(0, 1000, count).tolist()


@pytest.mark.parametrize(("cache_type", "allowed"), [("f32", 1e-5), ("f16", 3e-3), ("q8_0", 0.1)])
@pytest.mark.parametrize("count", [20, 150])
def test_logits_agree_with_a_float64_forward(case, count, cache_type, allowed):
    path, tensors = case
    ids = sample_ids(count)
    found = kizami.load(path, activations="f32", cache_type=cache_type).logits(ids)
    expected = reference(tensors, ids)
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < allowed


def test_a_scale_beside_a_matrix_counts_before_its_bias(case, tmp_path):
    path, tensors = case
    rng, scaled = np.random.default_rng(6), {}
    for name, value in tensors.items():
        scaled[name] = value
        if value.ndim == 2:
            scale = rng.uniform(0.5, 2, 1).astype(np.float32)
            scaled |= {name: value / scale, name.replace(".weight", ".scale"): scale}
    write(tmp_path / "scaled.gguf", SHAPE, scaled, path)
    model = kizami.load(tmp_path / "scaled.gguf", activations="f32", cache_type="f32")
    expected = reference(tensors, sample_ids(40))
    assert np.sqrt(np.mean((model.logits(sample_ids(40)) - expected) ** 2) / np.mean(expected**2)) < 1e-5


@pytest.mark.parametrize("cache_type", _core.cache_types())
def test_same_bits_on_every_isa_thread_count_and_batch(case, cache_type, restore_settings):
    model = kizami.load(case[0], cache_type=cache_type)
    ids = sample_ids(330)
    expected = None
    for isa in _core.isa_available():
        for threads in (1, 3):
            _core.set_isa(isa)
            _core.set_threads(threads)
            cache, other = model.new_cache(), model.new_cache()
            first = model.step([Segment(ids[:200], cache, 200), Segment(ids[7:30], other)])[:200]
            second = model.step([Segment(ids[5:9], other), Segment(ids[200:300], cache, 100)])[1:]
            rest = [model.step([Segment([t], cache), Segment([3], other)])[:1] for t in ids[300:]]
            found = np.concatenate([first, second, *rest])
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(model.logits(ids[:300]), expected[:300])
    cache.truncate(300)
    np.testing.assert_array_equal(model.step([Segment(ids[300:], cache, 30)]), expected[300:])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_no_earlier_token(case, tmp_path, bad):
    path, tensors = case
    embedding = tensors["token_embd.weight"].copy()
    damaged = len(embedding) - 1
    embedding[damaged] = bad
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    bad_ends = {"token_embd.weight": embedding, "output.weight": output}
    path = write(tmp_path / "damaged.gguf", SHAPE, tensors | bad_ends, path)
    model, ids = kizami.load(path), sample_ids(150)
    for at in (5, 70):
        found = model.logits([*ids[:at], damaged, *ids[at + 1 :]])
        np.testing.assert_array_equal(found[:at], model.logits(ids)[:at])
        assert not np.isfinite(found[at:]).any()


def test_bad_files_are_named(case):
    source = kizami.GGUF(case[0])
    metadata, tensors = source.metadata, dict(source)
    for key, value in [
        ("attention.head_count_kv", 4),
        ("attention.head_count", 7),
        ("rope.scaling.type", "yarn"),
        ("attention.key_length", 25),
        ("rope.dimension_count", 3),
        ("feed_forward_length", None),
    ]:
        with pytest.raises(FormatError, match=key):
            build(metadata | {f"qwen2.{key}": value}, tensors, "test")
    without = {k: v for k, v in tensors.items() if k != "blk.1.attn_k.weight"}
    with pytest.raises(FormatError, match=r"blk\.1\.attn_k\.weight: missing"):
        build(metadata, without, "test")
    short = tensors | {"blk.0.attn_q.bias": tensors["blk.0.attn_k.bias"]}
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.bias: found shape"):
        build(metadata, short, "test")
    nobias = {k: v for k, v in tensors.items() if not k.endswith(".bias")}
    build(metadata, nobias, "test")
