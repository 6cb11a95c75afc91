"""The qwen2 architecture on a small random GGUF, against a float64 forward pass written from the paper."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.errors import FormatError
from kizami.layers import Segment
from kizami.models import build

LAYERS, EMBD, FF, HEADS, GROUPS, BASE, EPS = 2, 144, 200, 6, 2, 1e6, 1e-6
DIMS = EMBD // HEADS

KEYS = [
    ("general.architecture", "str", "qwen2"),
    ("qwen2.block_count", "u32", LAYERS),
    ("qwen2.context_length", "u32", 512),
    ("qwen2.embedding_length", "u32", EMBD),
    ("qwen2.feed_forward_length", "u32", FF),
    ("qwen2.attention.head_count", "u32", HEADS),
    ("qwen2.attention.head_count_kv", "u32", GROUPS),
    ("qwen2.attention.layer_norm_rms_epsilon", "f32", EPS),
    ("qwen2.rope.freq_base", "f32", BASE),
]


def random_weights(vocab: int, tied: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    kv = GROUPS * DIMS

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    tensors = {"token_embd.weight": normal(vocab, EMBD), "output_norm.weight": 1 + normal(EMBD)}
    if not tied:
        tensors["output.weight"] = normal(vocab, EMBD)
    for i in range(LAYERS):
        block = {
            "attn_norm.weight": 1 + normal(EMBD),
            "ffn_norm.weight": 1 + normal(EMBD),
            "attn_output.weight": normal(EMBD, EMBD),
            "ffn_gate.weight": normal(FF, EMBD),
            "ffn_up.weight": normal(FF, EMBD),
            "ffn_down.weight": normal(EMBD, FF),
        }
        for part, rows in (("q", EMBD), ("k", kv), ("v", kv)):
            block |= {f"attn_{part}.weight": normal(rows, EMBD), f"attn_{part}.bias": normal(rows)}
        tensors |= {f"blk.{i}.{name}": value for name, value in block.items()}
    return tensors


def write(path, tensors, tokenizer_keys):
    planned = [(name, "F32", value.shape) for name, value in tensors.items()]
    writer = _core.GgufWriter(path, KEYS + tokenizer_keys, planned)
    for name, value in tensors.items():
        writer.write(name, value.reshape(-1).view(np.uint8))
    writer.finish()
    return path


@pytest.fixture(scope="module", params=["tied", "separate"])
def case(request, tmp_path_factory, q4k):
    """A file and the weights it was made from."""
    keys = [entry for entry in kizami.GGUF(q4k).typed_metadata if entry[0].startswith("tokenizer.")]
    vocab = kizami.GGUF(q4k)["token_embd.weight"].shape[0]
    tensors = random_weights(vocab, request.param == "tied")
    return write(tmp_path_factory.mktemp("qwen2") / "qwen2.gguf", tensors, keys), tensors


def reference(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits in float64, as plainly as NumPy has it."""
    w = {name: value.astype(np.float64) for name, value in tensors.items()}
    n = len(ids)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * w[name]

    angles = np.arange(n)[:, None] * BASE ** (-2.0 * np.arange(DIMS // 2) / DIMS)
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(x: np.ndarray) -> np.ndarray:  # [heads, n, dims]
        a, b = x[..., : DIMS // 2], x[..., DIMS // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    x = w["token_embd.weight"][ids]
    for i in range(LAYERS):
        blk = f"blk.{i}."
        h = norm(x, blk + "attn_norm.weight")
        q, k, v = (
            (h @ w[f"{blk}attn_{part}.weight"].T + w[f"{blk}attn_{part}.bias"])
            .reshape(n, -1, DIMS)
            .swapaxes(0, 1)
            for part in "qkv"
        )
        k, v = (np.repeat(each, HEADS // GROUPS, axis=0) for each in (rotate(k), v))
        scores = rotate(q) @ k.swapaxes(1, 2) / np.sqrt(DIMS)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        x = x + (p @ v).swapaxes(0, 1).reshape(n, EMBD) @ w[blk + "attn_output.weight"].T
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
    keys = [entry for entry in kizami.GGUF(path).typed_metadata if entry[0].startswith("tokenizer.")]
    rng, scaled = np.random.default_rng(6), {}
    for name, value in tensors.items():
        scaled[name] = value
        if value.ndim == 2:
            scale = rng.uniform(0.5, 2, 1).astype(np.float32)
            scaled |= {name: value / scale, name.replace(".weight", ".scale"): scale}
    model = kizami.load(write(tmp_path / "scaled.gguf", scaled, keys), activations="f32", cache_type="f32")
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
    keys = [entry for entry in kizami.GGUF(path).typed_metadata if entry[0].startswith("tokenizer.")]
    path = write(
        tmp_path / "damaged.gguf", tensors | {"token_embd.weight": embedding, "output.weight": output}, keys
    )
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
