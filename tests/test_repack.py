"""Repacked weights: the same results, from other memory, when the choice and the memory say so."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from commandline import kizami as command
from kizami import _core, engine, repack, system
from kizami.demo import EMBEDDED
from kizami.errors import FormatError, UsageError
from kizami.models import build

TYPES = [entry["name"] for entry in _core.types() if entry["block"] > 1]


def tensor(name: str, shape: tuple[int, ...]) -> _core.Tensor:
    values = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    plain = _core.Tensor("F32", shape, [values.reshape(-1).view(np.uint8)])
    return _core.Tensor(name, shape, [plain.encode(name)])


@pytest.mark.parametrize("name", TYPES)
def test_a_stack_keeps_its_values_and_products(name):
    rows = tensor(name, (3, 21, 512))
    other = rows.repack()
    assert other.repacked and not rows.repacked
    assert (other.type, other.shape, other.nbytes) == (name, (3, 21, 512), rows.repacked_nbytes)
    np.testing.assert_array_equal(rows.dequantize(), other.dequantize())
    matrix = tensor(name, (21, 512))
    x = np.random.default_rng(4).normal(0, 1, (5, 512)).astype(np.float32)
    for activations in ("int8", "f32"):
        expected, found = matrix.matmul(x, activations), matrix.repack().matmul(x, activations)
        np.testing.assert_array_equal(expected.view(np.uint32), found.view(np.uint32))


def test_what_cannot_be_repacked_is_named():
    rows = tensor("Q4_K", (4, 256))
    packed = rows.repack()
    floats = _core.Tensor("F32", (1, 4), [np.zeros(16, np.uint8)])
    assert floats.repacked_nbytes is None and "repacked" in repr(packed)
    with pytest.raises(UsageError, match=r"repack: found Tensor\(F32.*expected quantized rows"):
        floats.repack()
    with pytest.raises(UsageError, match=r"repack: found Tensor\(Q4_K.*repacked\), expected quantized rows"):
        packed.repack()
    with pytest.raises(UsageError, match="bytes: found repacked weights"):
        packed.bytes()


def test_a_model_is_the_same_either_way(q4k, restore_settings):
    ids = list(range(40, 100))
    plain = kizami.load(q4k, repack="never")
    packed = kizami.load(q4k, repack="always")
    assert not any(plain.tensors[name].repacked for name in plain.source)
    assert packed.tensors["blk.0.attn_output.weight"].repacked
    for part in packed.decoder.as_rows:
        assert not any(packed.tensors[name].repacked for name in packed.source if f"{part}." in name)
    for isa in _core.isa_available():
        _core.set_isa(isa)
        np.testing.assert_array_equal(plain.logits(ids).view(np.uint32), packed.logits(ids).view(np.uint32))
        one = [model.logits(ids[:1]).view(np.uint32) for model in (plain, packed)]
        np.testing.assert_array_equal(*one)


def test_auto_asks_for_free_memory(q4k, monkeypatch):
    name = "blk.0.attn_output.weight"
    assert kizami.load(q4k).tensors[name].repacked
    monkeypatch.setattr(system, "free_memory", lambda: 1000)
    assert not kizami.load(q4k).tensors[name].repacked
    assert kizami.load(q4k, repack="always").tensors[name].repacked
    with pytest.raises(UsageError, match="repack: found 'some', expected one of auto, always, never"):
        kizami.load(q4k, repack="some")


def test_always_refuses_what_the_machine_cannot_hold(q4k, monkeypatch):
    monkeypatch.setattr(system, "memory", lambda: 1000)
    refused = command("run", q4k, "Hi", "--repack", "always", code=2)
    assert "expected no more than the memory of 1000" in refused.stderr and "--repack never" in refused.stderr


def test_no_memory_ends_in_one_line(q4k, monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError("5 bytes for weights")

    monkeypatch.setattr(repack, "ChainMap", full)
    refused = command("run", q4k, "Hi", code=74)
    assert "not enough memory: 5 bytes for weights" in refused.stderr and "--repack never" in refused.stderr


def test_a_model_is_built_again_only_if_something_was_repacked(q4k, monkeypatch):
    built: list[str] = []

    def counting(*args: object) -> object:
        built.append("once")
        return build(*args)

    monkeypatch.setattr(engine, "build", counting)
    for path, choice, expected in ((q4k, "never", 1), (q4k, "always", 2), (EMBEDDED, "always", 1)):
        built.clear()
        kizami.load(path, repack=choice)
        assert len(built) == expected


def test_vectors_are_not_repacked():
    norm = tensor("Q8_0", (64,))
    reads = repack.Reads({"token_embd.weight": tensor("Q8_0", (32, 64)), "output_norm.weight": norm})
    assert all(reads[name] is not None for name in reads)
    found = repack.repacked(reads, ("token_embd",), "always")
    assert found["output_norm.weight"] is norm and found["output.weight"].repacked


def test_float_activations_leave_weights_alone(q4k):
    model = kizami.load(q4k, activations="f32", repack="always")
    assert not any(model.tensors[name].repacked for name in model.source)


def test_a_damaged_model_is_refused_before_anything_is_repacked(q4k):
    source = kizami.load(q4k, repack="never").source
    reads = repack.Reads({name: source[name] for name in source if name != "blk.1.attn_output.weight"})
    with pytest.raises(FormatError, match="blk.1.attn_output.weight: missing"):
        build(source.metadata, reads, "here")
    assert not any(reads[name].repacked for name in reads)


def test_an_embedding_that_is_the_output_is_repacked_as_output_only():
    embedding = tensor("Q8_0", (32, 64))
    reads = repack.Reads({"token_embd.weight": embedding})
    assert reads["token_embd.weight"] is embedding
    calls: list[tuple[str, int, int]] = []
    found = repack.repacked(reads, ("token_embd",), "always", lambda *call: calls.append(call))
    assert found["output.weight"].repacked and not found["token_embd.weight"].repacked
    assert calls == []  # what takes no second is not reported


def test_free_memory_respects_the_control_group(monkeypatch, tmp_path):
    machine = system.free_memory()
    assert 0 < machine <= system.memory()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr(system, "_CGROUP", tmp_path)
    assert system.free_memory() == 3000
    (tmp_path / "memory.stat").write_text("anon 7\nactive_file 100\ninactive_file 20\n")
    assert system.free_memory() == 3120
    (tmp_path / "memory.max").write_text("max\n")
    assert system.free_memory() > 3000


def test_the_command_line_takes_a_choice(q4k):
    answers = [command("run", q4k, "Hi", "-n", 4, "--repack", choice).stdout for choice in repack.CHOICES]
    assert len(set(answers)) == 1
    refused = command("run", q4k, "Hi", "--repack", "some", code=2)
    assert "some" in refused.stderr


def test_too_large_a_buffer_for_the_bandwidth_is_refused():
    with pytest.raises(UsageError, match="bandwidth: no memory for a buffer of"):
        _core.read_bandwidth(1 << 60)


def test_published_checkpoints_have_nothing_to_repack():
    model = kizami.load(EMBEDDED, repack="always")
    assert not any(model.tensors[name].repacked for name in model.source)
