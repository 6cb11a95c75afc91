"""Layers for multi-token prediction: left out, or kept as llama.cpp reads them."""

from __future__ import annotations

import numpy as np
import pytest

import kizami as package
import synthetic
from commandline import json_of, kizami
from kizami.checkpoint import Checkpoint
from kizami.errors import FormatError
from kizami.tokenizer import Tokenizer

NEXTN = {f"blk.2.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "shared_head_norm")}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    synthetic.train_tokenizer(folder)
    vocabulary = Tokenizer.from_file(folder / "tokenizer.json", {}).vocab_size
    return synthetic.CONFIG | {"vocab_size": vocabulary, "num_nextn_predict_layers": 1}


@pytest.fixture(scope="module")
def model(config, tmp_path_factory):
    return synthetic.write_model(tmp_path_factory.mktemp("mtp") / "model", config)


def test_it_is_left_out_unless_asked_for(model):
    source = Checkpoint(model)
    assert not any(name.startswith("blk.2.") for name in source)
    assert source.metadata["deepseek2.block_count"] == 2
    assert "deepseek2.nextn_predict_layers" not in source.metadata
    assert len(source.notes) == 1 and "layer 2" in source.notes[0] and "--mtp" in source.notes[0]


def test_it_is_kept_whole_but_for_copies(model, config):
    source, tensors = Checkpoint(model, mtp=True), synthetic.weights(config)
    assert source.metadata["deepseek2.block_count"] == 3
    assert source.metadata["deepseek2.nextn_predict_layers"] == 1
    own = {name.replace("blk.1.", "blk.2.") for name in source if name.startswith("blk.1.")}
    assert {name for name in source if name.startswith("blk.2.")} == own | NEXTN
    assert source.notes == []
    joined = source["blk.2.nextn.eh_proj.weight"]
    assert joined.type == "F8_E4M3" and tuple(joined.shape) == (256, 512)
    stored = tensors["model.layers.2.enorm.weight"].astype(np.uint32) << 16
    np.testing.assert_array_equal(source["blk.2.nextn.enorm.weight"].dequantize(), stored.view(np.float32))


def test_the_file_runs_as_without_it(model, tmp_path):
    """The main model's bytes are the same, and readers find it."""
    text = model / "calibration.txt"
    text.write_text("The quick brown fox jumps over 13 lazy dogs, isn't it?\n" * 60, encoding="utf-8")
    words = ["--calibration", text, "--ctx", 32, "--json"]
    files = [tmp_path / "with.gguf", tmp_path / "without.gguf"]
    for path, option in zip(files, (["--mtp"], []), strict=True):
        found = json_of(kizami("quantize", model, path, "--type", "Q4_0", *words, *option))
        assert found["kld"] > 0
    kept, left_out = (package.GGUF(path) for path in files)
    assert set(kept) - set(left_out) == {name for name in kept if name.startswith("blk.2.")}
    assert (
        kept["blk.2.nextn.eh_proj.weight"].type == "Q4_0" and kept["blk.2.nextn.hnorm.weight"].type == "F32"
    )
    for name, tensor in left_out.items():
        np.testing.assert_array_equal(kept[name].bytes(), tensor.bytes(), err_msg=name)
    logits = [package.load(path).logits(list(range(20, 40))) for path in files]
    np.testing.assert_array_equal(*logits)
    again = tmp_path / "again.gguf"
    package.quantize(files[0], again, type="Q8_0")  # a file keeps what it has
    assert set(package.GGUF(again)) == set(kept)


def test_a_budget_plans_it_too(model, tmp_path):
    plan = tmp_path / "plan.json"
    made = json_of(kizami("plan", model, "--bpw", 5, "--mtp", "--out", plan, "--json"))
    assert NEXTN <= {t["name"] for t in made["tensors"]}
    result = json_of(kizami("quantize", model, tmp_path / "out.gguf", "--plan", plan, "--mtp", "--json"))
    assert result["bytes"] == made["file_bytes"]


def test_what_is_missing_or_unknown_is_named(config, tmp_path):
    for name, shape, words in (
        ("model.layers.2.eh_proj.weight", None, "eh_proj.weight' is missing"),
        ("model.layers.2.other.weight", (4, 4), "other.weight' is not part of this architecture"),
    ):
        tensors = synthetic.weights(config)
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.zeros(shape, np.float32)
        path = synthetic.write_model(tmp_path / name, config, tensors)
        Checkpoint(path)
        with pytest.raises(FormatError, match=words):
            Checkpoint(path, mtp=True)
