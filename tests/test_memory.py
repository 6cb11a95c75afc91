"""Jobs within a limit of memory: the same bytes, from less of it; and what the job says of its own result."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kizami as package
import synthetic
import synthetic_qwen2
from commandline import KIZAMI, json_of, kizami, one_error
from kizami import partial
from kizami.calibrate import calibration_windows
from kizami.demo import EMBEDDED
from kizami.errors import InputOutputError, UsageError
from kizami.evaluate import score
from kizami.memory import Cut, cut_to, least
from kizami.recipe import read_text
from kizami.spill import Spill
from kizami.tokenizer import Tokenizer
from kizami.verify import verification_windows

OPTIONS = {"bpw": 4.0, "ctx": 128}
quantize = sys.modules["kizami.quantize"]  # the package has the function under this name


@pytest.fixture(scope="module")
def job(small, tmp_path_factory):
    """A model, options with a text, the bytes of an unlimited job and its report."""
    model, _ = small
    options = OPTIONS | {"calibration": model / "calibration.txt"}
    out = tmp_path_factory.mktemp("unlimited") / "out.gguf"
    report = package.quantize(model, out, **options)
    return model, options, out.read_bytes(), report


@given(st.integers(0, 300), st.none() | st.integers(1, 400))
def test_parts_are_all_experts_in_order(n_expert, experts):
    parts = Cut(experts=experts).parts(n_expert)
    assert [i for first, end in parts for i in range(first, end)] == list(range(n_expert))
    assert all(0 < end - first <= (experts or n_expert) for first, end in parts) or parts == [(0, 0)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_kept_comes_back(tmp_path, on_disk):
    arrays = [np.random.default_rng(i).normal(size=(i + 1, 7)) for i in range(5)]
    with Spill(tmp_path if on_disk else None) as spill:
        kept = [spill.keep(array.copy()) for array in arrays]
        kept[2].set(arrays[2] * 2)
        for i, one in enumerate(kept):
            np.testing.assert_array_equal(one.get(), arrays[i] * (2 if i == 2 else 1))
        assert not list(tmp_path.iterdir()), "a file that is killed with the process has no name"


class Halting:
    """A file that takes and gives few bytes at a time, as systems may."""

    def __init__(self, file, most):
        self._file, self._most = file, most

    def seek(self, offset):
        return self._file.seek(offset)

    def write(self, data):
        return self._file.write(data[: self._most])

    def readinto(self, buffer):
        return self._file.readinto(buffer[: self._most])


def test_short_writes_and_reads_are_gone_on_with(tmp_path):
    arrays = [np.random.default_rng(i).normal(size=(30, 7)) for i in range(2)]
    with Spill(tmp_path) as spill:
        spill._file = Halting(spill._file, 100)
        spill.close = spill._file._file.close
        kept = [spill.keep(array) for array in arrays]
        for one, array in zip(kept, arrays, strict=True):
            np.testing.assert_array_equal(one.get(), array)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    class Full:
        def seek(self, offset):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def readinto(self, buffer):
            return 0

    with Spill(tmp_path) as spill:
        kept = spill.keep(np.zeros(3))
        monkeypatch.setattr(kept, "_file", Full())
        with pytest.raises(InputOutputError, match=r"cannot write a temporary file: No space left") as error:
            kept.set(np.ones(3))
        assert "--max-memory" in error.value.hint
        with pytest.raises(InputOutputError, match="24 bytes are missing"):
            kept.get()
    with pytest.raises(InputOutputError, match="cannot make a temporary file"):
        Spill(tmp_path / "missing")


def test_a_limit_changes_no_byte(job, tmp_path, monkeypatch):
    """At the smallest limit: experts one by one, everything that waits on disk."""
    model, options, expected, _ = job
    cuts = []
    monkeypatch.setattr(quantize, "cut_to", lambda *args: cuts.append(cut_to(*args)) or cuts[-1])
    smallest = least(package.load(model, activations="f32"), (15, 128), True, True)
    report = package.quantize(model, tmp_path / "out.gguf", max_memory=smallest * 5 // 4, **options)
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert report.least_memory is not None
    (cut,) = cuts
    assert cut.lean and cut.windows in (1, 4)
    for cut in (Cut(1, 1, tmp_path, True), Cut(2, 3, tmp_path), Cut(windows=3, lean=True)):
        monkeypatch.setattr(quantize, "cut_to", lambda *args, cut=cut: cut)
        package.quantize(model, tmp_path / "out.gguf", max_memory=1, **options)
        assert (tmp_path / "out.gguf").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    """The model as a GGUF, in a type of blocks."""
    path = tmp_path_factory.mktemp("file") / "q8_0.gguf"
    package.quantize(small[0], path, type="Q8_0")
    return path


def qwen2(path, file, tied, vocab=None):
    """A dense model with the tokenizer of a file, and rows that all types divide."""
    shape = synthetic_qwen2.Shape(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2)
    vocab = vocab or package.GGUF(file)["token_embd.weight"].shape[0]
    return synthetic_qwen2.write(path, shape, synthetic_qwen2.weights(shape, vocab, tied), file)


@pytest.mark.parametrize("kind", ["file", "dense", "tied"])
def test_a_limit_changes_no_byte_of_other_models(job, file, tmp_path, monkeypatch, kind):
    """Of a GGUF, of a model without experts, and of one whose embedding is the head, too."""
    _, options, _, _ = job
    source = file if kind == "file" else qwen2(tmp_path / "qwen2.gguf", file, kind == "tied")
    folder = tmp_path / "job"
    folder.mkdir()
    out = folder / "out.gguf"
    with pytest.raises(UsageError, match="max-memory: found 1 bytes, expected at least"):
        package.quantize(source, out, max_memory=1, **options)
    assert not list(folder.iterdir())
    report = package.quantize(source, out, **options)
    expected, smallest = out.read_bytes(), report.least_memory * 5 // 4
    assert report.kld > 0 and ("output.weight" in package.GGUF(out)) == (kind != "tied")
    assert {t["type"] for t in report.tensors} - {"F32", "BF16", "Q8_0"}, "something is rounded"
    assert package.quantize(source, out, max_memory=smallest, **options).kld == report.kld
    assert out.read_bytes() == expected
    for cut in (Cut(1, 1, tmp_path, True), Cut(2, 3, tmp_path)):
        monkeypatch.setattr(quantize, "cut_to", lambda *args, cut=cut: cut)
        package.quantize(source, out, max_memory=1, **options)
        assert out.read_bytes() == expected
    assert [path.name for path in folder.iterdir()] == ["out.gguf"]


def test_large_tensors_are_encoded_in_pieces(job, tmp_path, monkeypatch):
    model, options, expected, _ = job
    monkeypatch.setattr("kizami.pieces.PIECE", 1)
    package.quantize(model, tmp_path / "out.gguf", **options)
    assert (tmp_path / "out.gguf").read_bytes() == expected
    monkeypatch.undo()
    for type_name in ("Q4_0", "F16"):
        plain = tmp_path / "plain.gguf"
        package.quantize(model, plain, type=type_name)
        whole = plain.read_bytes()
        monkeypatch.setattr("kizami.pieces.PIECE", 1)
        package.quantize(model, plain, type=type_name)
        assert plain.read_bytes() == whole
        package.quantize(plain, tmp_path / "again.gguf", type=type_name)  # copied
        again = package.GGUF(tmp_path / "again.gguf")
        for name, tensor in package.GGUF(plain).items():
            np.testing.assert_array_equal(tensor.bytes(), again[name].bytes(), err_msg=name)
        monkeypatch.undo()


def test_a_limit_that_cannot_be_kept_is_refused_before_any_work(job, tmp_path):
    model, options, _, _ = job
    out = tmp_path / "out.gguf"
    words = ["--bpw", 4, "--ctx", 128, "--calibration", options["calibration"]]
    result = kizami("quantize", model, out, *words, "--max-memory", "1MB", code=2)
    one_error(result, "max-memory: found 1,000,000 bytes, expected at least")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="max-memory"):
        cut_to(1, package.load(model, activations="f32"), (15, 128), tmp_path, False)


def test_every_command_that_reads_a_text_has_a_limit(small, tmp_path):
    model, imatrix = small
    text = model / "calibration.txt"
    args = [model, "--ctx", 128, "--max-memory", "4GB", "--json"]
    found = tmp_path / "imatrix.gguf"
    kizami("imatrix", *args, "--text", text, "--out", found)
    assert found.read_bytes() == imatrix.read_bytes()
    plans = [tmp_path / "a.json", tmp_path / "b.json"]
    for words, plan in ((args, plans[0]), (args[:3], plans[1])):
        kizami("plan", *words, "--bpw", 4, "--calibration", text, "--out", plan)
    assert plans[0].read_bytes() == plans[1].read_bytes()


# -- what a job says of its result ---------------------------------------------------------------------


def test_the_kld_in_the_file_is_that_of_the_file(job, tmp_path):
    model, options, expected, report = job
    out = tmp_path / "out.gguf"
    out.write_bytes(expected)
    reference = package.load(model, activations="f32")
    ids = calibration_windows(reference, read_text(model / "calibration.txt"), OPTIONS["ctx"])
    rounded_on, apart = verification_windows(ids)
    assert len(rounded_on) + len(apart) == len(ids) and len(apart) >= 1
    (found,) = score([package.load(out, activations="f32")], reference, apart)
    assert report.kld == pytest.approx(found.kld.mean(), rel=6e-3)
    assert report.kld_tokens == len(found.kld)
    metadata = package.GGUF(out).metadata
    assert metadata["kizami.kld"] == pytest.approx(report.kld, rel=1e-6)
    assert metadata["kizami.kld.tokens"] == report.kld_tokens
    assert report.predicted_kld is not None


def test_a_plain_file_has_no_kld(small, tmp_path):
    model, _ = small
    words = ["--type", "Q8_0", "--calibration", model / "calibration.txt", "--rounding", "plain"]
    report = json_of(kizami("quantize", model, tmp_path / "out.gguf", *words, "--json"))
    assert report["kld"] is None and report["kld_tokens"] == 0
    assert "kizami.kld" not in package.GGUF(tmp_path / "out.gguf").metadata


def test_it_is_printed(small, tmp_path):
    model, _ = small
    words = ["--type", "Q4_0", "--calibration", model / "calibration.txt", "--ctx", 128]
    result = kizami("quantize", model, tmp_path / "out.gguf", *words)
    assert "KLD " in result.stdout and "that rounding did not see" in result.stdout
    assert "--max-memory: from" in result.stderr


def test_a_text_of_one_window_keeps_none_apart(small, tmp_path):
    model, _ = small
    text, out = tmp_path / "short.txt", tmp_path / "out.gguf"
    ids = package.load(model).tokenizer.encode((model / "calibration.txt").read_text(encoding="utf-8"))
    text.write_text(package.load(model).tokenizer.decode(ids[:100]), encoding="utf-8")
    words = ["--type", "Q8_0", "--calibration", text, "--ctx", 64]
    assert "KLD not measured: the text has one window" in kizami("quantize", model, out, *words).stdout
    metadata = package.GGUF(out).metadata
    assert np.isnan(metadata["kizami.kld"]) and metadata["kizami.kld.tokens"] == 0


@pytest.mark.parametrize(("owner", "name"), [("Part", "seal"), ("os", "replace")])
@pytest.mark.parametrize("split_size", [None, 1_000_000])
def test_what_is_verified_survives_the_last_moments(small, tmp_path, owner, name, split_size):
    """Headers that say the KLD are those of an uninterrupted job, wherever it ended between measuring and
    names."""
    model, _ = small
    options = {"type": "Q8_0", "ctx": 128, "calibration": model / "calibration.txt", "split_size": split_size}
    (tmp_path / "whole").mkdir()
    package.quantize(model, tmp_path / "whole" / "out.gguf", **options)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    where = {"Part": partial.Part, "os": partial.os}[owner]
    original, calls = getattr(where, name), 0
    for fails_at in (1, 2):
        calls = 0

        def fails(*args, at=fails_at):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return original(*args)

        out = tmp_path / f"job{fails_at}" / "out.gguf"
        out.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, fails)
            if split_size is None and fails_at == 2:
                package.quantize(model, out, **options)  # one file: there is no second call
            else:
                with pytest.raises(KeyboardInterrupt):
                    package.quantize(model, out, **options)
        if fails_at <= calls and not (split_size is None and fails_at == 2):
            package.quantize(model, out, resume=True, **options)
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == expected


def test_a_limit_is_kept(tmp_path):
    """At the least that it asks for, on a model whose moments would take much more."""
    config = synthetic.CONFIG | {"hidden_size": 512, "moe_intermediate_size": 512, "n_routed_experts": 256}
    synthetic.train_tokenizer(tmp_path)
    vocabulary = Tokenizer.from_file(tmp_path / "tokenizer.json", {}).vocab_size
    model = synthetic.write_model(tmp_path / "model", config | {"vocab_size": vocabulary})
    text = tmp_path / "text.txt"
    text.write_text((EMBEDDED / "eval.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    words = [model, tmp_path / "out.gguf", "--type", "Q8_0", "--ctx", 128, "--calibration", text, "--json"]
    found = {}
    for limit in ("100GB", None):
        limit = limit or str(found["100GB"]["least_memory"] + (64 << 20))
        command = [*KIZAMI, "quantize", *map(str, words), "--force", "--max-memory", limit]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[limit] = json.loads(run.stdout)
    free, bound = found.values()
    assert bound["peak_rss"] <= int(limit) < free["peak_rss"]


def test_a_limit_is_kept_with_a_large_vocabulary(small, file, tmp_path):
    """Where most of what a job takes are logits of probes, and an embedding that is the head, too."""
    model = qwen2(tmp_path / "tied.gguf", file, tied=True, vocab=50_000)
    words = [model, tmp_path / "out.gguf", "--bpw", "4", "--calibration", small[0] / "calibration.txt"]

    def run(limit):
        command = [*KIZAMI, "quantize", *map(str, words), "--json", "--max-memory", limit]
        return subprocess.run(command, capture_output=True, text=True)

    asked = re.search(r"at least ([\d,]+)", run("1MB").stderr)
    limit = int(asked[1].replace(",", "")) + (16 << 20)
    found = run(str(limit))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["peak_rss"] <= limit


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory of mapped files")
@pytest.mark.parametrize("kind", ["checkpoint", "file"])
def test_weights_leave_memory(tmp_path, kind):
    """Most of the resident memory of a program that reads a large file would be that file."""
    config = synthetic.CONFIG | {"n_routed_experts": 64, "moe_intermediate_size": 1024}
    model = synthetic.write_model(tmp_path / "model", config)
    weights = model / "model.safetensors"
    if kind == "file":
        model = weights = tmp_path / "q8_0.gguf"
        package.quantize(tmp_path / "model", model, type="Q8_0")
    program = """if True:
    import psutil, kizami
    from kizami.checkpoint import open_source
    source = open_source(%r)
    resident = lambda: psutil.Process().memory_info().rss
    before = resident()
    total = sum(int(t.part(0, 0, 128).dequantize().size) + int(t.at(63).dequantize().size)
                for name, t in source.items() if "_exps" in name)
    for name, t in source.items():
        if "_exps" in name:
            for i in range(64): t.at(i).dequantize()
    read = resident() - before
    source.release()
    print(read - (resident() - before))
    """
    code = program % str(model)
    found = subprocess.run([KIZAMI[0], "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > weights.stat().st_size // 2
