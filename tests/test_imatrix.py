"""The importance matrix: both file forms, their damage, and what the quantizer gets."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commandline import SOURCE, kizami, one_error
from kizami.coverage import Coverage, coverage
from kizami.errors import FormatError, InputOutputError, KizamiError, UsageError
from kizami.imatrix import Imatrix


def example() -> Imatrix:
    rng = np.random.default_rng(1)
    return Imatrix(
        entries={
            "blk.1.ffn_up_exps.weight": (
                rng.uniform(0, 9, (4, 32)).astype(np.float32),
                np.array([5, 0, 2, 1], np.float32),
            ),
            "blk.0.attn_q_a.weight": (
                rng.uniform(0, 9, (1, 64)).astype(np.float32),
                np.array([8], np.float32),
            ),
        },
        chunks=3,
        chunk_size=512,
        datasets=["calibration.txt", "日本.txt"],
    )


def write_raw(path: Path, tensors: dict[str, np.ndarray], skip: str = "", kind: str = "imatrix") -> Path:
    """A GGUF importance matrix by the `gguf` package, without the metadata key `skip`."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_string("general.type", kind)
    if skip != "datasets":
        writer.add_array("imatrix.datasets", ["a.txt"])
    for key in ("chunk_count", "chunk_size"):
        if skip != key:
            writer.add_uint32(f"imatrix.{key}", 2)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries: list[tuple[str, int, np.ndarray]], tail: bytes = b"") -> bytes:
    content = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        content += struct.pack("<i", len(name.encode())) + name.encode()
        content += struct.pack("<ii", calls, values.size) + values.astype("<f4").tobytes()
    return content + tail


def test_round_trip(tmp_path: Path) -> None:
    matrix = example()
    matrix.write(tmp_path / "imatrix.gguf")
    found = Imatrix.read(tmp_path / "imatrix.gguf")
    assert (found.chunks, found.chunk_size, found.datasets) == (3, 512, matrix.datasets)
    assert list(found.entries) == sorted(matrix.entries)
    for name, (sums, counts) in matrix.entries.items():
        np.testing.assert_array_equal(found.entries[name][0], sums)
        np.testing.assert_array_equal(found.entries[name][1], counts)
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_written_as_llama_imatrix_writes(tmp_path: Path) -> None:
    example().write(tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    types = [[kind.name for kind in reader.fields[key].types] for key in keys]
    assert types == [["STRING"], ["ARRAY", "STRING"], ["UINT32"], ["UINT32"]]
    assert [
        (tensor.name, tensor.tensor_type.name, list(map(int, tensor.shape))) for tensor in reader.tensors
    ] == [
        ("blk.0.attn_q_a.weight.in_sum2", "F32", [64]),
        ("blk.0.attn_q_a.weight.counts", "F32", [1]),
        ("blk.1.ffn_up_exps.weight.in_sum2", "F32", [32, 4]),
        ("blk.1.ffn_up_exps.weight.counts", "F32", [1, 4]),
    ]


def test_weights() -> None:
    matrix = example()
    sums, counts = matrix.entries["blk.1.ffn_up_exps.weight"]
    found = matrix.weights("blk.1.ffn_up_exps.weight", 4, 32)
    assert found.dtype == np.float32 and found.shape == (4, 32)
    seen = [0, 2, 3]
    np.testing.assert_allclose(found[seen], sums[seen] / counts[seen, None], rtol=1e-6)
    np.testing.assert_allclose(
        found[1], sums[seen].sum(0) / counts.sum(), rtol=1e-6
    )  # the expert nobody woke
    assert matrix.weights("blk.7.nothing.weight", 1, 32) is None
    with pytest.raises(FormatError, match="another|expected") as error:
        matrix.weights("blk.0.attn_q_a.weight", 1, 65)
    assert "[1, 64]" in str(error.value) and "[1, 65]" in str(error.value)
    # Heads of one tensor share a count in llama.cpp's files: one long row.
    matrix.entries["k_b"] = (np.arange(12, dtype=np.float32)[None], np.array([2], np.float32))
    np.testing.assert_array_equal(matrix.weights("k_b", 3, 4), np.arange(12).reshape(3, 4) / 2)
    matrix.entries["unseen"] = (np.zeros((2, 4), np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(matrix.weights("unseen", 2, 4), np.ones((2, 4)))


def test_legacy(tmp_path: Path) -> None:
    values = np.arange(1, 9, dtype=np.float32)
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([("blk.0.attn_q_a.weight", 4, values)], struct.pack("<ii", 7, 5) + b"x.txt"))
    matrix = Imatrix.read(path)
    assert (matrix.chunks, matrix.chunk_size, matrix.datasets) == (7, 0, ["x.txt"])
    np.testing.assert_allclose(matrix.weights("blk.0.attn_q_a.weight", 2, 4).reshape(-1), values / 4)
    path.write_bytes(legacy([("a", 1, values)]))
    assert Imatrix.read(path).chunks == 0
    matrix.write(tmp_path / "converted.gguf")
    again = Imatrix.read(tmp_path / "converted.gguf")
    np.testing.assert_array_equal(again.weights("blk.0.attn_q_a.weight", 1, 8)[0], values / 4)


ONE = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "needs 4 bytes at 0, have 0"),
        (struct.pack("<i", 0), "number of entries at byte 0: found 0"),
        (struct.pack("<i", -1), "found -1"),
        (struct.pack("<i", 1 << 30) + b"\0" * 64, "number of entries"),
        (struct.pack("<ii", 1, -5) + b"\0" * 32, "name length of entry 0"),
        (struct.pack("<ii", 1, 1 << 20) + b"\0" * 32, "name length of entry 0"),
        (struct.pack("<ii", 1, 60) + b"a" * 32, "name of entry 0 needs 60 bytes"),
        (struct.pack("<ii", 1, 2) + b"\xff\xff" + b"\0" * 32, "not UTF-8"),
        (legacy([("a", 0, ONE)]), "calls of 'a'"),
        (legacy([("a", 1, ONE)])[:-1], "values of 'a'"),
        (legacy([("a", 1, ONE), ("a", 1, ONE)]), "'a' appears twice"),
        (legacy([("a", 1, np.array([1, np.nan], np.float32))]), "sum nan"),
        (legacy([("a", 1, np.array([1, -1], np.float32))]), "sum -1.0"),
        (legacy([("a", 1, ONE)], b"\0\0"), "number of chunks needs 4 bytes"),
        (legacy([("a", 1, ONE)], struct.pack("<ii", 1, 9) + b"x"), "data set's name needs 9 bytes"),
        (legacy([("a", 1, ONE)], struct.pack("<ii", 1, 1) + b"xyz"), "2 bytes after the last field"),
        (b"PK\x03\x04" + b"\0" * 64, "zip archive"),
    ],
)
def test_bad_legacy(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        Imatrix.read(path)
    assert words in str(error.value) and str(path) in str(error.value)


def pair(sums: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    return {"a.in_sum2": sums.astype(np.float32), "a.counts": counts.astype(np.float32)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.in_sum2": np.ones((2, 32), np.float32)}, "'a.counts' is missing"),
        ({"a.counts": np.ones((2, 1), np.float32)}, "'a.in_sum2' is missing"),
        (pair(np.ones((2, 32)), np.ones((3, 1))), "64 sums for 3 counts"),
        (pair(np.ones((2, 32)), np.array([[1], [-1]])), "count -1.0"),
        (pair(np.full((1, 32), np.inf), np.ones((1, 1))), "sum inf"),
        (
            {"a.in_sum2": np.ones((1, 32), np.float16), "a.counts": np.ones((1, 1), np.float32)},
            "type F16, expected F32",
        ),
        ({"a.weight": np.ones((1, 32), np.float32)}, "expected a name ending in"),
    ],
)
def test_bad_gguf(tmp_path: Path, tensors: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(FormatError) as error:
        Imatrix.read(write_raw(tmp_path / "imatrix.gguf", tensors))
    assert words in str(error.value)


def test_bad_gguf_metadata(tmp_path: Path) -> None:
    good = pair(np.ones((2, 32)), np.ones((2, 1)))
    assert Imatrix.read(write_raw(tmp_path / "good.gguf", good)).chunks == 2
    for key in ("datasets", "chunk_count", "chunk_size"):
        with pytest.raises(FormatError, match=f"'imatrix.{key}' is missing"):
            Imatrix.read(write_raw(tmp_path / f"{key}.gguf", good, skip=key))
    with pytest.raises(FormatError, match="'general.type': found 'model'"):
        Imatrix.read(write_raw(tmp_path / "model.gguf", good, kind="model"))
    with pytest.raises(InputOutputError, match="no such file"):
        Imatrix.read(tmp_path / "nothing")


def test_bad_entries_are_not_written(tmp_path: Path) -> None:
    for name, sums, counts in [
        ("a", np.ones(4), np.ones(1)),
        ("a", np.ones((2, 4)), np.ones(3)),
        ("a" * 60, np.ones((1, 4)), np.ones(1)),
    ]:
        with pytest.raises(UsageError):
            Imatrix(entries={name: (sums, counts)}).write(tmp_path / "imatrix.gguf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputOutputError):
        example().write(tmp_path / "missing" / "imatrix.gguf")


def test_coverage_counts_tokens_by_expert():
    sums, counts = np.ones((4, 8), np.float32), np.array([0, 5, 9, 100], np.float32)
    entries = {f"blk.{i}.ffn_down_exps.weight": (sums, counts + i) for i in (10, 2)}
    entries["blk.2.ffn_up_exps.weight"] = entries["blk.0.ffn_down.weight"] = (sums, counts)
    found = coverage(Imatrix(entries=entries))
    assert [layer.layer for layer in found] == ["blk.2", "blk.10"]
    assert found[0] == Coverage("blk.2", experts=4, unseen=0, least=2, median=9, most=102)
    entries = {"blk.0.ffn_down_exps.weight": (sums, counts)}
    assert coverage(Imatrix(entries=entries)) == [Coverage("blk.0", 4, 1, 0, 7, 100)]
    assert coverage(Imatrix()) == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(["gguf", "dat"]), data=st.data())
def test_damage_never_escapes(tmp_path: Path, form: str, data: st.DataObject) -> None:
    """Changed bytes and truncation end in our own error, or in finite sums."""
    path = tmp_path / f"imatrix.{form}"
    if form == "gguf":
        example().write(path)
    else:
        path.write_bytes(legacy([("blk.0.w", 3, ONE), ("b", 1, ONE)], struct.pack("<ii", 7, 1) + b"x"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 600) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        matrix = Imatrix.read(path)
    except KizamiError:
        return
    for sums, counts in matrix.entries.values():
        assert np.isfinite(sums).all() and np.isfinite(counts).all() and sums.shape[0] == counts.size


def test_an_imatrix_of_another_model_is_refused_by_name_before_anything_is_done(tmp_path, monkeypatch):
    for module, step in (("kizami.quantize", "encode"), ("kizami.allocation", "measure")):
        monkeypatch.setattr(sys.modules[module], step, lambda *_args, **_options: pytest.fail("measures"))
    path, out = tmp_path / "other.gguf", tmp_path / "out"
    for name in ("blk.0.attn_nothing.weight", "blk.0.attn_q_a.weight"):
        Imatrix(entries={name: (np.ones((1, 4), np.float32), np.ones(1, np.float32))}).write(path)
        for words in (
            ["quantize", SOURCE, out, "--type", "IQ2_XXS"],
            ["quantize", SOURCE, out, "--bpw", "3"],
            ["plan", SOURCE, "--bpw", "3", "--out", out],
            ["plan", SOURCE, "--curve"],
        ):
            refused = kizami(*words, "--imatrix", path, code=65)
            one_error(refused, "other.gguf", name)
            assert "another model" in refused.stderr
    assert list(tmp_path.iterdir()) == [path]
