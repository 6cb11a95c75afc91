"""Scales in tensors of their own, as NVFP4 files have them: one f32 for each matrix, beside the weight.

The oracle is the same model with the scales multiplied into float weights by NumPy.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import kizami
import synthetic
from commandline import json_of, one_error
from commandline import kizami as command
from kizami import _core, job
from kizami.allocation import make_plan
from kizami.calibrate import calibrate
from kizami.checkpoint import open_source
from kizami.demo import EMBEDDED
from kizami.errors import FormatError
from kizami.formats import quantizable
from kizami.gguf import scale_name
from kizami.layers import Segment
from kizami.models import build
from kizami.tokenizer import Tokenizer
from kizami.verify import Verification

# Rows of every matrix divide into blocks of 64.
SHAPE = {"q_lora_rank": 128, "qk_nope_head_dim": 64, "v_head_dim": 64}
# What the largest weight of a matrix is under its scale: the largest code times the largest scale of a block.
LARGEST = 6 * 448

Tensors = dict[str, tuple[str, tuple[int, ...], np.ndarray]]


def quantized(name: str, values: np.ndarray) -> Tensors:
    """A weight in NVFP4 and its scales, as NVIDIA's ModelOpt chooses them."""
    matrices = values.reshape(-1, *values.shape[-2:])
    scales = np.abs(matrices).max(axis=(1, 2)) / np.float32(LARGEST)
    blocks = kizami.quantize_array(matrices / scales[:, None, None], "NVFP4")
    return {name: ("NVFP4", values.shape, blocks), scale_name(name): ("F32", scales.shape, scales)}


def write(path: Path, metadata: list, tensors: Tensors) -> Path:
    layout = [(name, kind, shape) for name, (kind, shape, _) in tensors.items()]
    writer = _core.GgufWriter(path, metadata, layout)
    for name, (*_, data) in tensors.items():
        writer.write(name, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    writer.finish()
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Metadata and tensors of a file in NVFP4 with a scale beside every weight that has one."""
    path = tmp_path_factory.mktemp("scales")
    synthetic.train_tokenizer(path)
    vocab = Tokenizer.from_file(path / "tokenizer.json", {}).vocab_size
    source = open_source(synthetic.write_model(path, synthetic.CONFIG | SHAPE | {"vocab_size": vocab}))
    tensors: Tensors = {}
    for name, tensor in source.items():
        values = tensor.dequantize()
        if quantizable(name, values.shape):
            tensors |= quantized(name, values)
        else:
            tensors[name] = ("F32", values.shape, values)
    return source.typed_metadata, tensors


@pytest.fixture(scope="module")
def scaled(original, tmp_path_factory):
    return write(tmp_path_factory.mktemp("scaled") / "scaled.gguf", *original)


@pytest.fixture(scope="module")
def folded(scaled, tmp_path_factory):
    path = tmp_path_factory.mktemp("folded") / "folded.gguf"
    kizami.quantize(scaled, path, type="F32")
    return path


def ids(count: int) -> list[int]:
    return np.random.default_rng(2).integers(0, 300, count).tolist()


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative root of the mean square of the difference."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_weight_is_its_blocks_times_its_scale(original, scaled, folded):
    _, tensors = original
    file, floats = kizami.GGUF(scaled), kizami.GGUF(folded)
    assert list(file) == list(floats) == [name for name in tensors if not name.endswith(".scale")]
    stacks = 0
    for name in file:
        kind, shape, data = tensors[name]
        if kind == "F32":
            assert file[name].scale is None
            continue
        scale = tensors[scale_name(name)][2]
        same_bits(file[name].scale, scale)
        stacks += len(scale) > 1
        plain = kizami.dequantize(data, "NVFP4").reshape(len(scale), -1)
        expected = (plain * scale[:, None]).reshape(shape)
        same_bits(file[name].dequantize(), expected)
        same_bits(floats[name].dequantize(), expected)
        assert file[name].nbytes == data.nbytes + 4 * len(scale)
        assert file[name].repack().scale is not None
        same_bits(file[name].repack().dequantize(), expected)
    assert stacks == 2 * 2 + 3  # k_b and v_b of two layers, gate, up and down of the one with experts


@pytest.mark.parametrize("count", [20, 80])  # absorbed, expanded
def test_logits_are_those_of_the_folded_weights(scaled, folded, count):
    expected = kizami.load(folded, activations="f32").logits(ids(count))
    assert off(kizami.load(scaled, activations="f32").logits(ids(count)), expected) < 1e-5
    # Activations of 8 bits, and some tokens with another one of these random experts.
    assert off(kizami.load(scaled).logits(ids(count)), expected) < 0.3


def test_same_bits_on_every_isa_thread_count_batch_and_order_of_rows(scaled, restore_settings):
    expected = kizami.load(scaled, repack="never").logits(ids(31))
    for repack in ("never", "always"):
        model = kizami.load(scaled, repack=repack)
        assert model.tensors["blk.1.ffn_up_exps.weight"].repacked == (repack == "always")
        for isa in _core.isa_available():
            for threads in (1, 3):
                _core.set_isa(isa)
                _core.set_threads(threads)
                same_bits(model.logits(ids(31)), expected)
                cache, other = model.new_cache(), model.new_cache()
                parts = [model.step([Segment([t], cache), Segment([7], other)])[:1] for t in ids(31)]
                same_bits(np.concatenate(parts), expected)


def test_what_keeps_its_type_keeps_its_scale(scaled, tmp_path):
    report = kizami.quantize(scaled, tmp_path / "again.gguf", type="NVFP4")
    found, expected = kizami.GGUF(tmp_path / "again.gguf"), kizami.GGUF(scaled)
    assert {t["name"]: t["bytes"] for t in report.tensors} == {name: found[name].nbytes for name in expected}
    for name in expected:
        np.testing.assert_array_equal(found[name].bytes(), expected[name].bytes())
        if expected[name].scale is not None:
            same_bits(found[name].scale, expected[name].scale)


@pytest.mark.parametrize("options", [{}, {"pins": {"attn_.*|ffn_down.*": "Q8_0"}, "split_size": 1_000_000}])
def test_verification_reads_scales_beside_what_is_written(scaled, tmp_path, monkeypatch, options):
    """While the job runs, every tensor is the one of the finished file; where all stay, nothing is lost."""
    text, seen = tmp_path / "text.txt", {}
    text.write_text((EMBEDDED / "calibration.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")

    class Watched(Verification):
        def result(self):
            for name, tensor in self._output.tensors.items():
                scale = None if tensor.scale is None else np.array(tensor.scale)
                seen[name] = tensor.type, tensor.dequantize(), scale
            return super().result()

    monkeypatch.setattr(sys.modules["kizami.quantize"], "Verification", Watched)
    out = tmp_path / "out.gguf"
    report = kizami.quantize(scaled, out, type="NVFP4", calibration=text, ctx=64, **options)
    file = kizami.GGUF(report.path)
    assert seen.keys() == set(file)
    for name, (kind, values, scale) in seen.items():
        assert kind == file[name].type and (scale is None) == (file[name].scale is None) == (kind != "NVFP4")
        same_bits(values, file[name].dequantize())
        if scale is not None:
            same_bits(scale, file[name].scale)
    kinds = {kind for kind, *_ in seen.values()}
    assert kinds == {"F32", "NVFP4"} | ({"Q8_0"} if options else set())
    assert max(scale.size for _, _, scale in seen.values() if scale is not None) == 4, "one for each expert"
    assert 0 < report.kld < 0.1 if options else report.kld == 0


def test_other_types_take_the_scale_in(scaled, folded, tmp_path):
    for source, out in ((scaled, "a.gguf"), (folded, "b.gguf")):
        kizami.quantize(source, tmp_path / out, type="Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.fixture
def few_types(monkeypatch):
    """Planning encodes samples in every type there is; these are enough."""
    monkeypatch.setattr("kizami.formats.CANDIDATES", ["Q2_0", "NVFP4", "Q8_0"])


@pytest.mark.parametrize("spare", [0, -1, -40, -2000])
def test_a_plan_knows_what_a_kept_scale_takes(scaled, tmp_path, spare, few_types):
    source, out = kizami.GGUF(scaled), tmp_path / "out.gguf"
    kizami.quantize(scaled, out, type="NVFP4")
    size = out.stat().st_size + spare
    plan = make_plan(source, size=size)
    kept = [t.name for t in plan.tensors if t.type == "NVFP4"]
    assert kept and plan.file_bytes <= size
    plan.save(tmp_path / "plan.json")
    report = kizami.quantize(scaled, out, plan=tmp_path / "plan.json")
    assert report.bytes == out.stat().st_size == plan.file_bytes
    written = kizami.GGUF(out)
    assert all(written[name].scale is not None for name in kept)
    assert all(t.bytes == written[t.name].nbytes for t in plan.tensors)


def test_what_is_kept_loses_nothing(scaled, few_types):
    plan = make_plan(kizami.GGUF(scaled), bpw=6.0)
    assert plan.predicted_kld == 0 and plan.bpw <= 6


def test_the_imatrix_is_that_of_the_folded_weights(scaled, folded):
    text = (EMBEDDED / "calibration.txt").read_text(encoding="utf-8")[:4000]
    models = [kizami.load(path, activations="f32") for path in (scaled, folded)]
    found, expected = (calibrate(model, text, n_ctx=64, max_tokens=256) for model in models)
    assert found.entries.keys() == expected.entries.keys()
    for name, (sums, counts) in expected.entries.items():
        np.testing.assert_allclose(found.entries[name][0], sums, rtol=1e-3, atol=1e-6 * sums.max())
        np.testing.assert_array_equal(found.entries[name][1], counts)


def test_show_lists_what_the_file_holds(original, scaled):
    found = json_of(command("show", scaled, "--json"))
    assert [t["name"] for t in found["tensors"]] == list(original[1])
    scale = next(t for t in found["tensors"] if t["name"] == "blk.1.ffn_up_exps.scale")
    assert (scale["type"], scale["shape"], scale["bytes"]) == ("F32", [4], 16)


GATE, EXPERTS, OUTPUT = "blk.0.ffn_gate.scale", "blk.1.ffn_up_exps.scale", "output.scale"
ALONE = "expected F32 beside the weight of that name, one for each of its matrices"


def refused(path, *fragments: str) -> None:
    """Loading names the file and what is wrong with it; so does the command line, in one line."""
    with pytest.raises(FormatError) as error:
        kizami.load(path)
    for fragment in (path.name, *fragments):
        assert fragment in str(error.value)
    one_error(command("run", path, "Hi", code=65), path.name, *fragments)


@pytest.mark.parametrize(
    ("name", "kind", "shape", "expected"),
    [
        (GATE, "F32", (2,), "expected F32 [1], one for each matrix of blk.0.ffn_gate.weight"),
        (GATE, "F16", (1,), "expected F32 [1]"),
        (EXPERTS, "F32", (1,), "expected F32 [4], one for each matrix of blk.1.ffn_up_exps.weight"),
        (EXPERTS, "F32", (4, 1), "expected F32 [4]"),
        (OUTPUT, "NVFP4", (64,), "expected F32 [1]"),
        ("blk.0.ffn_gate.weight.scale", "F32", (1,), ALONE),
        ("blk.0.ffn_norm.scale", "F32", (1,), ALONE),
    ],
)
def test_scales_that_do_not_fit_are_named(original, tmp_path, name, kind, shape, expected):
    metadata, tensors = original
    size = math.prod(shape) * {"F32": 32, "F16": 16, "NVFP4": 4.5}[kind] / 8
    wrong = (kind, shape, np.zeros(int(size), np.uint8))
    path = write(tmp_path / "bad.gguf", metadata, tensors | {name: wrong})
    refused(path, f"tensor {name}: found {kind} {list(shape)}, {expected}")
    command("show", path)


def test_a_scale_without_its_weight_is_named(original, tmp_path):
    """Without an output matrix the embedding is multiplied, whose scale this is not."""
    metadata, tensors = original
    tied = {name: value for name, value in tensors.items() if name != "output.weight"}
    refused(write(tmp_path / "bad.gguf", metadata, tied), f"tensor {OUTPUT}: found F32 [1], {ALONE}")
    del tied[OUTPUT]
    model = kizami.load(write(tmp_path / "tied.gguf", metadata, tied), repack="always")
    same_bits(model.tensors["output.weight"].scale, tensors["token_embd.scale"][2])


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.5, 1e-42, 3e38])
@pytest.mark.parametrize("name", [GATE, EXPERTS, "blk.0.attn_k_b.scale", "token_embd.scale"])
def test_any_number_is_a_scale(original, folded, tmp_path, name, scale):
    metadata, tensors = original
    values = tensors[name][2].copy()
    values[-1] *= np.float32(scale)
    path = write(tmp_path / "hostile.gguf", metadata, tensors | {name: ("F32", values.shape, values)})
    weight = name.removesuffix("scale") + "weight"
    blocks = tensors[weight][2]
    found = kizami.GGUF(path)[weight].dequantize()
    with np.errstate(all="ignore"):
        expected = kizami.dequantize(blocks, "NVFP4").reshape(len(values), -1) * values[:, None]
    np.testing.assert_array_equal(found.reshape(len(values), -1), expected)
    logits = kizami.load(path).logits(ids(40))
    if np.isfinite(scale) and abs(scale) <= 1:
        assert np.isfinite(logits).all()
        command("run", path, "Hi", "-n", 2)
    if not np.isfinite(scale):
        with pytest.raises(FormatError, match=re.escape(f"hostile.gguf: tensor {weight}: ")):
            kizami.quantize(path, tmp_path / "out.gguf", type="Q8_0")


def test_scales_beside_other_types(original, scaled, tmp_path):
    """llama-quantize leaves them there. What does not fit is something else, which no model here has."""
    metadata, tensors = original
    name = "blk.0.ffn_gate.weight"
    kind, shape, blocks = tensors[name]
    other = kizami.quantize_array(kizami.dequantize(blocks, kind), "Q8_0")
    changed = tensors | {name: ("Q8_0", shape, other)}
    file = kizami.GGUF(write(tmp_path / "q8_0.gguf", metadata, changed))
    expected = kizami.dequantize(other, "Q8_0").reshape(shape) * tensors[GATE][2]
    same_bits(file[name].dequantize(), expected)
    assert off(kizami.load(file.path).logits(ids(9)), kizami.load(scaled).logits(ids(9))) < 0.3
    changed[GATE] = ("F32", (256,), np.ones(256, np.float32))
    file = kizami.GGUF(write(tmp_path / "vector.gguf", metadata, changed))
    assert file[name].scale is None and file[GATE].shape == (256,)
    with pytest.raises(FormatError, match=r"ffn_gate\.scale: found F32 \[256\]"):
        build(file.metadata, file, "here")


def test_input_scales_are_left_out(original, scaled, tmp_path):
    metadata, tensors = original
    inputs = {
        name.removesuffix("scale") + "input_scale": value
        for name, value in tensors.items()
        if name.endswith(".scale")
    }
    path = write(tmp_path / "inputs.gguf", metadata, tensors | inputs)
    assert list(kizami.GGUF(path)) == list(kizami.GGUF(scaled))
    same_bits(kizami.load(path).logits(ids(9)), kizami.load(scaled).logits(ids(9)))
    kizami.quantize(path, tmp_path / "again.gguf", type="NVFP4")
    kizami.quantize(scaled, tmp_path / "expected.gguf", type="NVFP4")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_a_job_may_end_between_a_weight_and_its_scales(scaled, tmp_path, monkeypatch):
    kizami.quantize(scaled, tmp_path / "expected.gguf", type="NVFP4")
    monkeypatch.setattr(job, "SYNC_BYTES", 1)
    original, written = job.Job.write, []

    def write(self, name, pieces):
        written.append(name)
        if sum(n.endswith(".scale") for n in written) == 3:
            raise KeyboardInterrupt
        original(self, name, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "write", write)
        with pytest.raises(KeyboardInterrupt):
            kizami.quantize(scaled, tmp_path / "out.gguf", type="NVFP4")
    alone = written[-2]
    assert written[-1] == scale_name(alone)
    records = (tmp_path / "out.gguf.kizami-journal").read_text()
    assert f'"{alone}"' in records and f'"{written[-1]}"' not in records
    kizami.quantize(scaled, tmp_path / "out.gguf", type="NVFP4", resume=True)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_arrays_can_have_one_too():
    values = np.random.default_rng(1).normal(0, 1, (2, 3, 64)).astype(np.float32)
    blocks = kizami.quantize_array(values, "NVFP4")
    scales = [np.array([[s]], np.float32) for s in (0.3, -2.0)]
    found = _core.Tensor("NVFP4", values.shape, [blocks.reshape(-1)], scales)
    expected = kizami.dequantize(blocks, "NVFP4") * np.array([0.3, -2.0], np.float32)[:, None, None]
    same_bits(found.dequantize(), expected)
    refusals = {
        "of 1 matrices, expected 2": scales[:1],
        "found 2, expected 1": [np.ones((1, 2), np.float32)] * 2,
    }
    for message, wrong in refusals.items():
        with pytest.raises(FormatError, match=message):
            _core.Tensor("NVFP4", values.shape, [blocks.reshape(-1)], wrong)
