"""From a checkpoint to files: sizes, budgets, plans, and what the gguf package reads back."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.allocation import make_plan
from kizami.calibrate import calibrate
from kizami.checkpoint import open_source
from kizami.demo import EMBEDDED
from kizami.distortion import measure
from kizami.encode import write
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.evaluate import score, windows
from kizami.formats import WRITABLE
from kizami.imatrix import Imatrix
from kizami.plan import load_types, uniform_plan
from oracle import read_by_gguf


@pytest.fixture(scope="module")
def source():
    return open_source(EMBEDDED)


@pytest.fixture(scope="module")
def reference():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def imatrix(reference):
    text = (EMBEDDED / "calibration.txt").read_text(encoding="utf-8")
    return calibrate(reference, text, n_ctx=256, max_tokens=16_384, dataset="calibration.txt")


@pytest.fixture(scope="module")
def distortions(source, imatrix):
    return measure(source, imatrix)


@pytest.mark.parametrize("name", [t for t in WRITABLE if hasattr(gguf.GGMLQuantizationType, t)])
def test_files_read_back_the_same_in_gguf(source, imatrix, tmp_path, name):
    path = tmp_path / "out.gguf"
    plan = uniform_plan(source, name)
    write(source, plan, path, imatrix)
    assert path.stat().st_size == plan.file_bytes + header_growth(source, plan, imatrix)
    ours, theirs = kizami.GGUF(path), gguf.GGUFReader(path)
    assert [t.name for t in theirs.tensors] == list(ours)
    for t in theirs.tensors:
        assert t.tensor_type.name == ours[t.name].type
        if not read_by_gguf(t.tensor_type.name):
            continue
        found = ours[t.name].dequantize()
        expected = gguf.dequantize(t.data, t.tensor_type).reshape(found.shape)
        np.testing.assert_array_equal(
            found.view(np.uint32), expected.astype(np.float32).view(np.uint32), t.name
        )
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert field.contents() == ours.metadata[key], key


def header_growth(source, plan, imatrix):
    """Bytes that the imatrix's own keys add to the header the plan was laid out with."""
    from kizami.plan import file_bytes

    return file_bytes(source, plan.tensors, imatrix) - plan.file_bytes


def test_bytes_do_not_depend_on_threads_or_isa(source, imatrix, tmp_path):
    isa, threads = _core.isa(), _core.threads()
    try:
        results = []
        for i, (level, n) in enumerate(
            [(isa, 1), (isa, 2), *[(other, 2) for other in _core.isa_available()[:-1]]]
        ):
            _core.set_isa(level)
            _core.set_threads(n)
            plan = make_plan(source, bpw=2.6, imatrix=imatrix)
            write(source, plan, tmp_path / f"{i}.gguf", imatrix)
            results.append((tmp_path / f"{i}.gguf").read_bytes())
        assert all(r == results[0] for r in results)
    finally:
        _core.set_isa(isa)
        _core.set_threads(threads)


@pytest.mark.parametrize("bpw", [1.75, 2.5, 4.0, 7.0, 15.0])
def test_budget_in_bits_is_kept_and_used(source, distortions, bpw):
    plan = make_plan(source, bpw=bpw, distortions=distortions)
    assert bpw * 0.98 < plan.bpw <= bpw
    weights = sum(int(np.prod(t.shape)) for t in source.values())
    assert plan.tensor_bytes == sum(t.bytes for t in plan.tensors) and plan.weights == weights


def test_budget_in_bytes_is_the_files_size(source, tmp_path):
    report = kizami.quantize(EMBEDDED, tmp_path / "out.gguf", size=4_700_000)
    assert 4_600_000 < report.bytes == (tmp_path / "out.gguf").stat().st_size <= 4_700_000
    assert report.bytes >= sum(t["bytes"] for t in report.tensors)


def test_more_bytes_never_cost_more(source, distortions):
    plans = [make_plan(source, bpw=b, distortions=distortions) for b in (1.8, 2.2, 3.0, 4.5, 6.0)]
    predicted = [plan.predicted_kld for plan in plans]
    assert predicted == sorted(predicted, reverse=True)


@pytest.mark.parametrize("budget", [{"bpw": 0.5}, {"size": 1_000_000}])
def test_a_budget_too_small_names_the_smallest(tmp_path, budget):
    with pytest.raises(UsageError, match="smallest possible") as error:
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", **budget)
    assert list(tmp_path.iterdir()) == []
    smallest = float(
        str(error.value).split("at least ")[1].split(",  ")[0].split(", the")[0].replace(",", "")
    )
    at_least = {key: type(value)(smallest) for key, value in budget.items()}
    kizami.quantize(EMBEDDED, tmp_path / "out.gguf", dry_run=True, **at_least)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_saved_edited_and_replayed(source, distortions, tmp_path):
    plan = make_plan(source, bpw=2.2, distortions=distortions)
    plan.save(tmp_path / "plan.json")
    edited = json.loads((tmp_path / "plan.json").read_text())
    assert {t["name"]: t["type"] for t in edited["tensors"]} == load_types(tmp_path / "plan.json")
    edited["tensors"][0]["type"] = "Q8_0"
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    report = kizami.quantize(EMBEDDED, tmp_path / "out.gguf", plan=tmp_path / "plan.json")
    assert [t["type"] for t in report.tensors] == [t["type"] for t in edited["tensors"]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(version=2), "version"),
        (lambda p: p.update(tensors=7), "tensors"),
        (lambda p: p["tensors"].pop(), "missing"),
        (lambda p: p["tensors"].append({"name": "extra", "type": "F32"}), "extra"),
        (lambda p: p["tensors"].append(p["tensors"][0]), "twice"),
        (lambda p: p["tensors"][0].update(type="Q5_9"), "Q5_9"),
        (lambda p: next(t for t in p["tensors"] if "k_b" in t["name"]).update(type="Q4_K"), "blocks of 256"),
    ],
)
def test_a_broken_plan_is_refused(source, tmp_path, edit, message):
    plan = uniform_plan(source, "Q8_0").to_dict()
    edit(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=message):
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", plan=tmp_path / "plan.json")
    assert not (tmp_path / "out.gguf").exists()


def test_a_gguf_is_a_source_too(tmp_path):
    kizami.quantize(EMBEDDED, tmp_path / "f32.gguf", type="F32")
    kizami.quantize(tmp_path / "f32.gguf", tmp_path / "from-gguf.gguf", type="Q4_K")
    kizami.quantize(EMBEDDED, tmp_path / "from-fp8.gguf", type="Q4_K")
    assert (tmp_path / "from-gguf.gguf").read_bytes() == (tmp_path / "from-fp8.gguf").read_bytes()


@pytest.mark.parametrize("role", ["source", "shard", "plan", "imatrix", "calibration"])
def test_no_input_is_ever_overwritten(tmp_path, imatrix, role):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    given = {"shard": folder / "model.safetensors", "source": tmp_path / "f32.gguf"}
    given |= {"plan": tmp_path / "p.json", "imatrix": tmp_path / "i.gguf", "calibration": tmp_path / "c.txt"}
    source, options = folder, {"type": "Q4_K"}
    if role == "source":
        kizami.quantize(folder, given["source"], type="F32")
        source = given["source"]
    elif role == "plan":
        uniform_plan(open_source(folder), "Q8_0").save(given["plan"])
        options = {"plan": given["plan"]}
    elif role == "imatrix":
        imatrix.write(given["imatrix"])
        options["imatrix"] = given["imatrix"]
    elif role == "calibration":
        shutil.copy(EMBEDDED / "eval.txt", given["calibration"])
        options["calibration"] = given["calibration"]
    before = given[role].read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(given[role])
    for out in (given[role], link) if role != "shard" else (given[role],):
        with pytest.raises(UsageError, match="is an input itself"):
            kizami.quantize(source, out, **options)
    assert given[role].read_bytes() == before


def test_an_older_output_survives_a_failure(source, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    wrong = Imatrix(entries={"blk.1.attn_q_a.weight": (np.ones((1, 7), np.float32), np.ones(1, np.float32))})
    with pytest.raises(FormatError, match=r"attn_q_a"):
        write(source, uniform_plan(source, "Q4_K"), out, wrong)
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, UsageError),
        ({"bpw": 3.0, "type": "Q4_K"}, UsageError),
        ({"type": "Q5_9"}, UsageError),
        ({"bpw": float("nan")}, UsageError),
        ({"type": "Q4_K", "imatrix": "a", "calibration": "b"}, UsageError),
        ({"type": "Q4_K", "imatrix": "/nonexistent"}, InputOutputError),
        ({"type": "Q4_K", "calibration": "/nonexistent"}, InputOutputError),
    ],
)
def test_bad_options_leave_nothing(tmp_path, options, error):
    with pytest.raises(error):
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_imatrix_is_what_the_layers_multiply(imatrix, source):
    config = source.config
    k_b, counts = imatrix.entries["blk.1.attn_k_b.weight"]
    assert k_b.shape == (config.heads, config.nope) and (counts == counts[0]).all()
    v_b, _ = imatrix.entries["blk.1.attn_v_b.weight"]
    assert v_b.shape == (config.heads, config.kv_lora_rank)
    gate, counts = imatrix.entries["blk.1.ffn_gate_exps.weight"]
    assert gate.shape[0] == len(counts) and counts.sum() == 2 * imatrix.chunks * imatrix.chunk_size
    up, _ = imatrix.entries["blk.1.ffn_up_exps.weight"]
    np.testing.assert_array_equal(gate, up)


def test_dynamic_beats_uniform_at_the_same_size(source, reference, imatrix, tmp_path):
    """A short version of what the README quotes: paired over tokens, the interval excludes zero."""
    uniform = tmp_path / "uniform.gguf"
    write(source, uniform_plan(source, "IQ2_XXS"), uniform, imatrix)
    plan = make_plan(source, size=uniform.stat().st_size, imatrix=imatrix)
    dynamic = tmp_path / "dynamic.gguf"
    write(source, plan, dynamic, imatrix)
    assert dynamic.stat().st_size <= uniform.stat().st_size
    ids = windows(reference, (EMBEDDED / "eval.txt").read_text(encoding="utf-8"), 256)[:16]
    ours, theirs = score([kizami.load(dynamic), kizami.load(uniform)], reference, ids)
    gain = theirs.kld - ours.kld
    assert gain.mean() > 2.0 * gain.std(ddof=1) / np.sqrt(len(gain))
