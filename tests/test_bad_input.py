"""Bad input on the command line: one clear line, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from commandline import SOURCE, json_of, kizami, one_error
from kizami.demo import EMBEDDED


def damaged_gguf(q4k, path, kind):
    blob = q4k.read_bytes()
    if kind == "cut in the weights":
        blob = blob[: len(blob) // 2]
    elif kind == "cut in the header":
        blob = blob[:1000]
    elif kind == "empty":
        blob = b""
    elif kind == "another magic":
        blob = b"GGML" + blob[4:]
    elif kind == "a git-lfs pointer":
        blob = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    elif kind == "a tensor is missing":
        blob = blob.replace(b"blk.3.attn_q_a.weight", b"blk.3.attn_q_x.weight", 1)
    path.write_bytes(blob)
    return path


KINDS = ["cut in the weights", "cut in the header", "empty", "another magic", "a git-lfs pointer"]


@pytest.mark.parametrize("kind", [*KINDS, "a tensor is missing"])
def test_damaged_gguf(kind, q4k, text, tmp_path):
    path = damaged_gguf(q4k, tmp_path / "bad.gguf", kind)
    out = tmp_path / "out" / "x"
    out.parent.mkdir()
    commands = [["run", path, "hello"], ["imatrix", path, "--text", text, "--out", out]]
    commands += [["eval", path, "--reference", SOURCE, "--text", text]]
    commands += [["eval", SOURCE, "--reference", path, "--text", text]]
    if kind in KINDS:
        commands += [["show", path], ["quantize", path, out, "--type", "Q8_0"]]
        commands += [
            ["plan", path, "--bpw", "3", "--out", out],
            ["quantize", SOURCE, out, "--bpw", "3", "--imatrix", path],
        ]
    for command in commands:
        one_error(kizami(*command, code=65), "bad.gguf")
    assert list(out.parent.iterdir()) == []


def checkpoint(path, *without):
    """A copy of the embedded directory, by links, but for some files."""
    path.mkdir()
    for file in EMBEDDED.iterdir():
        if file.suffix in (".json", ".safetensors") and file.name not in without:
            try:
                (path / file.name).symlink_to(file)
            except OSError:  # Windows without the right to
                shutil.copy(file, path / file.name)
    return path


def damaged_checkpoint(path, kind):
    if kind == "a shard is missing":
        checkpoint(path, "model.safetensors")
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return "model-00001-of-00002.safetensors"
    if kind == "a tensor is missing":
        checkpoint(path, "model.safetensors")
        blob = (EMBEDDED / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(
            blob.replace(b'"model.norm.weight"', b'"model.other.thing"', 1)
        )
        return "model.norm.weight"
    if kind == "weights are cut":
        checkpoint(path, "model.safetensors")
        (path / "model.safetensors").write_bytes((EMBEDDED / "model.safetensors").read_bytes()[:-1000])
        return "model.safetensors"
    checkpoint(path, "config.json")
    (path / "config.json").write_text("{", encoding="utf-8")
    return "config.json"


@pytest.mark.parametrize("kind", ["a shard is missing", "a tensor is missing", "weights are cut", "no JSON"])
def test_damaged_checkpoint(kind, tmp_path):
    named = damaged_checkpoint(tmp_path / "model", kind)
    out = tmp_path / "out" / "x"
    out.parent.mkdir()
    for command in (
        ["quantize", tmp_path / "model", out, "--type", "Q4_K"],
        ["plan", tmp_path / "model", "--bpw", "3", "--out", out],
        ["show", tmp_path / "model"],
        ["run", tmp_path / "model", "hello"],
    ):
        one_error(kizami(*command, code=65), named)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_a_size_below_the_smallest_names_the_smallest(command, small, tmp_path):
    model, matrix = small

    def args(size):
        target = [tmp_path / "x.gguf"] if command == "quantize" else ["--out", tmp_path / "x"]
        return [command, model, *target, "--size", size, "--imatrix", matrix]

    refused = kizami(*args("0.1MB"), code=2)
    one_error(refused, "100,000", "smallest possible")
    smallest = int(re.search(r"at least ([\d,]+)", refused.stderr)[1].replace(",", ""))
    one_error(kizami(*args(smallest - 1), code=2), f"{smallest:,}")
    assert list(tmp_path.iterdir()) == []
    found = json_of(kizami(*args(smallest), "--json"))
    assert found.get("bytes", found.get("file_bytes")) <= smallest


def test_unreadable_text(q4k, tmp_path):
    bad, out = tmp_path / "bad.txt", tmp_path / "out"
    bad.write_bytes(b"text, then \xff\xfe")
    for command in (
        ["eval", q4k, "--reference", SOURCE, "--text", bad],
        ["imatrix", SOURCE, "--text", bad, "--out", out],
        ["quantize", SOURCE, out, "--bpw", "3", "--calibration", bad],
    ):
        one_error(kizami(*command, code=65), "bad.txt", "byte 11")
    one_error(kizami("run", q4k, stdin=b"\xff", code=65), "stdin")
    assert not out.exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"format": "kizami-plan", "version": 1, "tensors": [{"name": "x", "type": "Q4_K"}]}'],
)
def test_a_bad_plan(content, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(content, encoding="utf-8")
    one_error(kizami("quantize", SOURCE, tmp_path / "x.gguf", "--plan", plan, code=65), "plan.json")
    assert list(tmp_path.iterdir()) == [plan]


def test_the_source_is_never_overwritten(q4k):
    before = q4k.read_bytes()
    one_error(kizami("quantize", q4k, q4k, "--type", "Q8_0", code=2), "is an input itself")
    assert q4k.read_bytes() == before


def test_an_output_in_no_directory_is_refused_before_any_work(q4k, text, tmp_path):
    out = tmp_path / "nowhere" / "x.gguf"
    for command in (
        ["quantize", q4k, out, "--type", "Q8_0"],
        ["plan", q4k, "--bpw", "5", "--out", out],
        ["imatrix", q4k, "--text", text, "--out", out],
    ):
        one_error(kizami(*command, code=2), "nowhere")
