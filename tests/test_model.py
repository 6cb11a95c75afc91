"""The runner against transformers, and the promise that results have the same bits everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.demo import EMBEDDED
from kizami.errors import FormatError, UsageError
from kizami.layers import Segment

GOLDEN = Path(__file__).parent / "golden" / "tiny-deepseek.npz"


@pytest.fixture(scope="module")
def source_model():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def mixed_path(tmp_path_factory):
    """A file that holds every type a GGUF can hold, so that each kernel runs in the model."""
    from kizami.checkpoint import open_source
    from kizami.encode import write
    from kizami.formats import WRITABLE, nbytes, quantizable
    from kizami.plan import plan_from_types

    source = open_source(EMBEDDED)
    types, turn = {}, 0
    for name, tensor in source.items():
        shape = tuple(tensor.shape)
        fitting = [t for t in WRITABLE if nbytes(t, shape) is not None]
        types[name] = fitting[turn % len(fitting)] if quantizable(name, shape) else "F32"
        turn += 1
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    write(source, plan_from_types(source, types, "test"), path, None)
    assert set(types.values()) == set(WRITABLE)
    return path


@pytest.mark.parametrize("kind", ["prose", "chat"])
def test_logits_agree_with_transformers(source_model, kind):
    golden = np.load(GOLDEN)
    expected = golden[f"logits_{kind}"]
    found = source_model.logits(golden[f"ids_{kind}"])[-len(expected) :]
    rms = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert rms < 1e-5


def sample_ids(model, count):
    text = (EMBEDDED / "eval.txt").read_text(encoding="utf-8")[:8000]
    return model.tokenizer.encode(text)[:count]


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_same_bits_on_every_isa_and_thread_count(mixed_path, activations, restore_settings):
    model = kizami.load(mixed_path, activations=activations)
    ids = sample_ids(model, 40)
    results = {}
    for isa in _core.isa_available():
        for threads in (1, 2):
            _core.set_isa(isa)
            _core.set_threads(threads)
            results[isa, threads] = model.logits(ids)
    print("instruction sets compared:", *_core.isa_available())
    first, *others = results.values()
    for other in others:
        np.testing.assert_array_equal(first.view(np.uint32), other.view(np.uint32))


def test_a_sequence_is_the_same_alone_and_with_others(mixed_path):
    model = kizami.load(mixed_path)
    ids = sample_ids(model, 96)
    sequences = [ids[:33], ids[33:40], ids[40:96]]
    together = model.logits_many(sequences)
    for sequence, found in zip(sequences, together, strict=True):
        alone = model.logits(sequence)
        np.testing.assert_array_equal(alone.view(np.uint32), found.view(np.uint32))


def test_prefill_and_decode_are_the_same(mixed_path):
    """Up to 31 tokens at once; longer segments sum in another order."""
    model = kizami.load(mixed_path)
    ids = sample_ids(model, 31)
    whole = model.logits(ids)
    cache, other = model.new_cache(), model.new_cache()
    first = model.step([Segment(ids[:20], cache, 20)])
    model.step([Segment(ids[5:9], other)])
    rest = [model.step([Segment([t], cache), Segment([ids[0]], other)])[:1] for t in ids[20:]]
    np.testing.assert_array_equal(whole, np.concatenate([first, *rest]))


@pytest.mark.parametrize("cache_type", _core.cache_types())
def test_a_long_prompt_is_the_same_however_it_is_cut(mixed_path, cache_type, restore_settings):
    model = kizami.load(mixed_path, cache_type=cache_type)
    ids = sample_ids(model, 300)
    whole = model.logits(ids)
    for isa in _core.isa_available():
        _core.set_isa(isa)
        cache = model.new_cache()
        parts = [model.step([Segment(part, cache, len(part))]) for part in (ids[:173], ids[173:])]
        np.testing.assert_array_equal(whole.view(np.uint32), np.concatenate(parts).view(np.uint32))


def test_short_and_long_segments_agree(source_model):
    ids = sample_ids(source_model, 96)
    whole, cache = source_model.logits(ids), source_model.new_cache()
    single = np.concatenate([source_model.step([Segment([t], cache)]) for t in ids])
    assert np.sqrt(np.mean((whole - single) ** 2) / np.mean(whole**2)) < 1e-5


@pytest.mark.parametrize(
    ("cache_type", "row_bytes", "allowed"), [("f32", 4, 0), ("f16", 2, 3e-3), ("q8_0", 34 / 32, 0.1)]
)
def test_smaller_caches_are_close_and_count_their_bytes(source_model, cache_type, row_bytes, allowed):
    ids = sample_ids(source_model, 120)
    cache = source_model.new_cache(cache_type)
    found = source_model.step([Segment(ids, cache, len(ids))])
    expected = source_model.logits(ids)
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) <= allowed
    c = source_model.config
    groups = -(-(c.kv_lora_rank + c.rope_dims) // 32)
    assert cache.type == cache_type and cache.nbytes == len(ids) * c.n_layer * groups * 32 * row_bytes


def test_unknown_cache_types_are_named(source_model):
    with pytest.raises(UsageError, match="cache_type: found 'f8', expected one of f32, f16, q8_0"):
        kizami.load(EMBEDDED, cache_type="f8")
    with pytest.raises(UsageError, match="f8"):
        source_model.new_cache("f8")


def test_float_export_is_the_same_model(source_model, tmp_path):
    path = tmp_path / "tiny-f32.gguf"
    kizami.quantize(EMBEDDED, path, type="F32")
    ids = sample_ids(source_model, 64)
    exported = kizami.load(path, cache_type="f32")
    np.testing.assert_array_equal(source_model.logits(ids), exported.logits(ids))


def test_a_cut_step_leaves_the_sequence_usable(source_model):
    ids = sample_ids(source_model, 24)
    cache = source_model.new_cache()
    source_model.step([Segment(ids[:16], cache)])
    with pytest.raises(UsageError):
        source_model.step([Segment([4096 + 7], cache)])
    cache.truncate(8)
    again = source_model.step([Segment(ids[8:], cache, 16)])
    np.testing.assert_array_equal(source_model.logits(ids)[8:], again)


def test_generation_is_reproducible_and_bounded(source_model):
    greedy = source_model.generate("What is 7 + 15?", max_tokens=12)
    assert greedy == source_model.generate("What is 7 + 15?", max_tokens=12)
    assert source_model.timings.generated_tokens <= 12
    options = {"max_tokens": 24, "temperature": 1.2, "top_p": 0.9, "raw": True}
    seeded = [source_model.generate("The borrow checker", seed=s, **options) for s in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert "".join(
        source_model.stream("The borrow checker", max_tokens=8, raw=True)
    ) == source_model.generate("The borrow checker", max_tokens=8, raw=True)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"n_ctx": 3, "raw": True}]
)
def test_bad_generation_options_are_named(source_model, options):
    with pytest.raises(UsageError):
        source_model.generate("one two three four five six", **options)


def test_missing_and_misshapen_tensors_are_named(source_model):
    from kizami.models import build

    metadata, tensors = source_model.source.metadata, dict(source_model.source)
    without = {k: v for k, v in tensors.items() if k != "blk.3.attn_v_b.weight"}
    with pytest.raises(FormatError, match=r"blk\.3\.attn_v_b\.weight: missing"):
        build(metadata, without, "test")
    swapped = tensors | {"blk.2.attn_norm.weight": tensors["blk.2.attn_q_a.weight"]}
    with pytest.raises(FormatError, match=r"blk\.2\.attn_norm\.weight: found shape"):
        build(metadata, swapped, "test")
    for key, value in [
        ("deepseek2.block_count", 0),
        ("deepseek2.block_count", "six"),
        ("deepseek2.rope.dimension_count", 31),
        ("deepseek2.attention.layer_norm_rms_epsilon", float("nan")),
        ("deepseek2.expert_used_count", 9),
        ("general.architecture", "mamba"),
    ]:
        with pytest.raises(FormatError, match=key.split(".")[-1]):
            build(metadata | {key: value}, tensors, "test")


def test_ids_past_the_vocabulary_are_never_generated(source_model):
    """Real checkpoints pad their embedding; the padding's logits are as large as any."""

    class Shorter:
        vocab_size = 64

        def __getattr__(self, name):
            return getattr(source_model.tokenizer, name)

    model = kizami.engine.Model(
        source_model.source,
        source_model.decoder,
        Shorter(),
        tensors=source_model.source,
        activations="f32",
    )
    ids = list(model.stream_ids([5, 6, 7], max_tokens=8))
    assert ids and max(ids) < 64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes(source_model):
    ids = sample_ids(source_model, 64)
    expected = source_model.logits(ids)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(expected, source_model.logits(ids)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_tiny_temperature_is_greedy():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert kizami.sample.nucleus(1e-310, 0.9, seed=1)(logits) == 1


def test_a_foreign_cache_is_refused(source_model):
    with pytest.raises(UsageError, match="width"):
        source_model.step([Segment([5], _core.Cache(6, 100))])
    with pytest.raises(UsageError, match="twice"):
        cache = source_model.new_cache()
        source_model.step([Segment([5], cache), Segment([6], cache)])
