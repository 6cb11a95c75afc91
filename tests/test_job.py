"""Jobs that are not interrupted: what they need of a disk, the sets they write, what they tell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path

import gguf
import numpy as np
import pytest

import kills
import kizami as package
from commandline import KIZAMI, json_of, kizami, names, one_error
from kizami import shards
from kizami.errors import InputOutputError, UsageError

TYPE = {"type": "Q8_0"}
quantize = sys.modules["kizami.quantize"]  # the package has the function under this name


@pytest.fixture(scope="module")
def model(small):
    return small[0]


# -- disks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [TYPE, {"bpw": 4.0}, {"size": 1_300_000}])
def test_a_disk_too_small_is_known_before_the_work(model, tmp_path, monkeypatch, options):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1234))
    monkeypatch.setattr(quantize, "encode", None)
    monkeypatch.setattr("kizami.recipe.Choices.best", None)
    with pytest.raises(InputOutputError, match=r"needs [\d,]+ bytes, 1,234 are free"):
        package.quantize(model, tmp_path / "out.gguf", **options)
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
def test_no_space_to_reserve(model, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));" + KIZAMI[-1]
    args = [sys.executable, "-c", limit, "quantize", model, tmp_path / "out.gguf", "--type", "Q8_0"]
    run = subprocess.run(args, capture_output=True, text=True)
    assert run.returncode == 74 and run.stderr.splitlines()[-1].startswith("error: "), run.stderr
    assert "out.gguf: cannot reserve space for" in run.stderr and "are free" in run.stderr
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputOutputError, match="not writable"):
        package.quantize(model, tmp_path / "out.gguf", **TYPE)
    tmp_path.chmod(0o700)
    assert names(tmp_path) == []


# -- split sets ----------------------------------------------------------------------------------------


def test_a_split_set_holds_what_one_file_does(model, tmp_path):
    report = package.quantize(model, tmp_path / "v3.gguf", split_size=1_000_000, **TYPE)
    assert names(tmp_path) == [Path(path).name for path in report.paths]
    count = len(report.paths)
    assert count >= 2 and report.path == report.paths[0] == str(tmp_path / f"v3-00001-of-{count:05}.gguf")
    assert report.bytes == sum(os.path.getsize(path) for path in report.paths)
    (tmp_path / "whole").mkdir()
    whole_path = tmp_path / "whole" / "whole.gguf"
    package.quantize(model, whole_path, **TYPE)
    whole, split = package.GGUF(whole_path), package.GGUF(report.path)
    assert list(split) == list(whole) and split.typed_metadata == whole.typed_metadata
    for name in whole:
        np.testing.assert_array_equal(split[name].bytes(), whole[name].bytes())
    for no, path in enumerate(report.paths):
        theirs = gguf.GGUFReader(path)
        assert len(theirs.tensors) == 1 or os.path.getsize(path) <= 1_000_000
        keys = [("split.no", no, "UINT16"), ("split.count", count, "UINT16")]
        for key, value, kind in [*keys, ("split.tensors.count", len(whole), "INT32")]:
            assert theirs.fields[key].contents() == value and theirs.fields[key].types[0].name == kind
        assert ("general.architecture" in theirs.fields) == (no == 0)
    shown = json_of(kizami("show", report.path, "--json"))
    assert [t["name"] for t in shown["tensors"]] == list(whole)
    ids = [1, 2, 3, 4]
    np.testing.assert_array_equal(package.load(report.path).logits(ids), package.load(whole_path).logits(ids))


def test_a_budget_in_bytes_bounds_the_whole_set(model, tmp_path):
    report = package.quantize(model, tmp_path / "out.gguf", size=1_700_000, split_size=1_000_000)
    assert len(report.paths) == 2 and 1_650_000 < report.bytes <= 1_700_000
    for path in report.paths:
        assert os.path.getsize(path) <= 1_000_000


def test_every_cut_keeps_its_bounds(tmp_path):
    metadata = [("general.name", "str", "x" * 999), ("general.alignment", "u32", 64)]
    tensors = [(f"t{i}", "F32", (1 + 7919 * i % 90_000,)) for i in range(60)]
    total = shards.shards(tmp_path / "x.gguf", metadata, tensors)[0].size
    for limit in (1_000_000, 1_234_567, total, total + 1000):
        made = shards.shards(tmp_path / "x.gguf", metadata, tensors, limit)
        assert all(shard.size <= limit for shard in made)
        assert [name for shard in made for name, *_ in shard.tensors] == [name for name, *_ in tensors]
        assert total <= sum(shard.size for shard in made) <= total + shards.overhead(total, limit) + 64
        assert len(made) <= total / limit * 1.2 + 1
    with pytest.raises(UsageError, match="split-size"):
        shards.shards(tmp_path / "x.gguf", metadata, tensors, 999_999)


def test_an_older_set_is_replaced_whole(model, tmp_path, monkeypatch):
    options = {**TYPE, "split_size": 1_000_000}
    first = Path(package.quantize(model, tmp_path / "out.gguf", **options).path)
    original, replaced = os.replace, []

    def replace(source, target):
        assert replaced or not first.exists(), "others are renamed while no set can be opened"
        replaced.append(Path(target).name)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    report = package.quantize(model, tmp_path / "out.gguf", **options)
    assert replaced == [Path(path).name for path in [*report.paths[1:], report.paths[0]]]


def test_no_shard_of_the_source_is_overwritten(model, tmp_path):
    report = package.quantize(model, tmp_path / "out.gguf", split_size=1_000_000, **TYPE)
    before = {path: Path(path).read_bytes() for path in report.paths}
    with pytest.raises(UsageError, match="is an input itself"):
        package.quantize(report.path, tmp_path / "out.gguf", split_size=1_000_000, **TYPE)
    assert before == {path: Path(path).read_bytes() for path in report.paths}
    assert names(tmp_path) == [Path(path).name for path in report.paths]


# -- what is told --------------------------------------------------------------------------------------


def test_the_file_says_how_it_came_about(small, tmp_path):
    model, imatrix = small
    text = model / "calibration.txt"
    ways = {"plain": {"type": "Q8_0"}, "matrix": {"imatrix": imatrix, "type": "Q8_0"}}
    ways["feedback"] = {"calibration": text, "size": 1_700_000}
    told = {}
    for name, options in ways.items():
        report = package.quantize(model, tmp_path / f"{name}.gguf", **options)
        assert report.bytes <= options.get("size", report.bytes)
        dry = package.quantize(model, tmp_path / "dry.gguf", dry_run=True, **options)
        assert dry.bytes == report.bytes == (tmp_path / f"{name}.gguf").stat().st_size
        metadata = package.GGUF(report.path).metadata
        told[name] = {key: value for key, value in metadata.items() if key.startswith("kizami.")}
    assert list(told["plain"]) == ["kizami.recipe"] and told["plain"]["kizami.recipe"].endswith(
        "rounding plain"
    )
    assert list(told["matrix"]) == ["kizami.recipe", "kizami.imatrix.sha256"]
    assert told["feedback"]["kizami.recipe"].endswith("rounding feedback")
    assert told["feedback"]["kizami.calibration.sha256"] == kills.hashes(model)["calibration.txt"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_a_page_or_json(small, tmp_path):
    model, imatrix = small
    out = tmp_path / "out.gguf"
    args = ["quantize", model, out, "--bpw", 4, "--imatrix", imatrix]
    said = json_of(kizami(*args, "--report", tmp_path / "report.json", "--json"))
    assert json.loads((tmp_path / "report.json").read_text()) == said
    errors = {t["name"]: t["error"] for t in said["tensors"]}
    assert errors["output_norm.weight"] is None and errors["blk.1.ffn_up_exps.weight"] > 0
    package.report.save_report(said, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags) and "url(" not in text
    titles = [attributes["title"] for tag, attributes in page.tags if "title" in attributes]
    for tensor in said["tensors"]:
        assert any(title.startswith(f"{tensor['name']}: {tensor['bytes']:,} bytes") for title in titles)
    assert f"{said['bytes']:,} bytes" in page.words and f"{said['predicted_kld']:.4f}" in page.words
    assert {t["type"] for t in said["tensors"]} <= set(page.words)
    assert {f"{1000 * error:.3g}" for error in errors.values() if error is not None} <= set(page.words)
    (layer,) = said["coverage"]
    assert (
        layer["layer"] == "blk.1"
        and layer["experts"] == 4
        and f"not measured: {said['kld_note']}" in page.words
    )
    assert {"blk.1", f"{layer['least']:,}", f"{layer['most']:,}"} <= set(page.words)
    one_error(kizami(*args, "--report", tmp_path / "report.txt", code=2), ".json or .html")
    one_error(kizami(*args, "--report", imatrix.with_suffix(".json"), "--resume", "--force", code=2), "both")
