"""The importance matrix: per weight matrix, the sum of squares of each input channel over calibration text.

Knows: llama.cpp's two file forms (GGUF, and the older .dat), read with every length checked, and the GGUF
form written as llama-imatrix writes it.
Does not know: how the sums are collected (calibrate.py) or what they weigh (the quantizer).

Source of the forms: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix (README). The .dat form,
little endian: i32 entries; each i32 name length, name, i32 calls, i32 values, f32 mean square x calls; then
optionally i32 last chunk, i32 length and name of the data set. It has no counts per expert.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import _core
from .errors import FormatError, InputOutputError, KizamiError, UsageError
from .gguf import GGUF, MAGIC, TypedMetadata, mistaken_for, read_head

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_NAME = 1 << 16
MAX_TENSOR_NAME = 63  # bytes, a limit of every GGUF reader


@dataclass
class Imatrix:
    """Sums of squares of what linear layers take in, per tensor that multiplies it.

    Attributes:
        entries: tensor name to (sum2, counts): float32 [n_mat, cols], the sum of squares of each channel,
            and float32 [n_mat], the tokens it was taken over. One matrix per expert or attention head.
        chunks: number of pieces of text the sums were taken over.
        chunk_size: tokens per piece; 0 when the file does not say.
        datasets: names of the texts.
        path: the file it was read from.
    """

    entries: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chunks: int = 0
    chunk_size: int = 0
    datasets: list[str] = field(default_factory=list)
    path: str = field(default="imatrix", compare=False, repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Imatrix:
        """Reads either form.

        Raises:
            InputOutputError: missing or unreadable.
            FormatError: truncated, malformed, or with sums or counts that are negative or not finite.
        """
        path = Path(path)
        head = read_head(path)
        if head.startswith(MAGIC):
            found = _read_gguf(path)
            found.path = os.fspath(path)
            return found
        if mistaken := mistaken_for(head):
            raise FormatError(f"{path}: found {mistaken[0]}, expected an importance matrix", hint=mistaken[1])
        found = _read_dat(path)
        found.path = os.fspath(path)
        return found

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the GGUF form, tensors sorted by name; the file appears under its name only when complete.

        Raises:
            UsageError: an entry's shapes disagree, or its name is too long for a GGUF.
            InputOutputError: the file cannot be written.
        """
        metadata: TypedMetadata = [
            ("general.type", "str", "imatrix"),
            ("imatrix.datasets", "[str]", list(self.datasets)),
            ("imatrix.chunk_count", "u32", self.chunks),
            ("imatrix.chunk_size", "u32", self.chunk_size),
        ]
        arrays: dict[str, np.ndarray] = {}
        for name in sorted(self.entries):
            sums, counts = (np.ascontiguousarray(part, "<f4") for part in self.entries[name])
            if sums.ndim != 2 or counts.shape != sums.shape[:1] or not sums.size:
                raise UsageError(
                    f"importance of {name!r}: sums {sums.shape} and counts {counts.shape} disagree"
                )
            if len((name + SUMS).encode()) > MAX_TENSOR_NAME:
                raise UsageError(f"importance of {name!r}: name is too long for a GGUF")
            # ggml drops trailing dimensions of one, so a single matrix is written as a vector.
            arrays[name + SUMS] = sums if len(sums) > 1 else sums[0]
            arrays[name + COUNTS] = counts[:, None] if len(counts) > 1 else counts
        try:
            layout = [(name, "F32", array.shape) for name, array in arrays.items()]
            writer = _core.GgufWriter(str(path), metadata, layout)
            for name, array in arrays.items():
                writer.write(name, array.reshape(-1).view(np.uint8))
            writer.finish()
        except KizamiError:
            raise
        except OSError as error:
            raise InputOutputError(f"{path}: {error.strerror or error}") from None

    def sha256(self) -> str:
        """Hash of all that is in it, as hexadecimal digits; the same for both forms of file."""
        head = [self.chunks, self.chunk_size, list(self.datasets)]
        found = hashlib.sha256(json.dumps(head).encode())
        for name in sorted(self.entries):
            sums, counts = (np.ascontiguousarray(part, "<f4") for part in self.entries[name])
            found.update(f"\n{name} {sums.size} {counts.size}\n".encode())
            found.update(sums)
            found.update(counts)
        return found.hexdigest()

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Whether it may be of a model with tensors of these shapes, before anything is done with it.

        Raises:
            FormatError: no entry is for one of the tensors, or one is for another shape.
        """
        known = [name for name in shapes if name in self.entries]
        if self.entries and not known:
            raise FormatError(
                f"{self.path}: entry {next(iter(self.entries))!r}: found no such tensor in the model, nor of "
                "any other entry",
                hint="the importance matrix belongs to another model",
            )
        for name in known:
            n_mat, _, cols = [1, 1, *shapes[name]][-3:]
            self.weights(name, n_mat, cols)

    def weights(self, name: str, n_mat: int, cols: int) -> np.ndarray | None:
        """Mean squares of a tensor's input channels, what the quantizer weighs its errors with.

        A matrix no token reached (an expert the text never woke) gets the mean over those that were reached;
        if none was, ones.

        Args:
            name: GGUF tensor name.
            n_mat, cols: matrices and columns of the tensor.

        Returns:
            float32 [n_mat, cols], or None when there is no entry.

        Raises:
            FormatError: the entry is for another shape.
        """
        if name not in self.entries:
            return None
        sums, counts = self.entries[name]
        if sums.size != n_mat * cols or len(counts) not in (1, n_mat):
            raise FormatError(
                f"{self.path}: importance of {name!r}: found {list(sums.shape)} values, "
                f"expected {[n_mat, cols]}",
                hint="the importance matrix belongs to another model",
            )
        # A stack of matrices with one common count (attention heads) comes as one long row.
        sums = sums.reshape(n_mat, cols).astype(np.float64)
        counts = np.broadcast_to(counts.astype(np.float64), (n_mat,))
        seen = counts > 0
        means = np.ones((n_mat, cols))
        if seen.any():
            means[seen] = sums[seen] / counts[seen, None]
            means[~seen] = sums[seen].sum(axis=0) / counts[seen].sum()
        return means.astype(np.float32)

    def __repr__(self) -> str:
        return f"Imatrix({len(self.entries)} tensors, {self.chunks} chunks of {self.chunk_size})"


def _checked(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum2 [n_mat, cols], counts [n_mat]) from flat arrays, or FormatError."""
    what = f"{path}: entry {name!r}"
    if not counts.size or not sums.size or sums.size % counts.size:
        raise FormatError(f"{what}: {sums.size:,} sums for {counts.size:,} counts")
    for label, values in (("sum", sums), ("count", counts)):
        if not np.isfinite(values).all() or (values < 0).any():
            bad = values[~(np.isfinite(values) & (values >= 0))][0]
            raise FormatError(f"{what}: {label} {bad}, expected a finite number not below zero")
    return sums.reshape(counts.size, -1), counts


def _read_gguf(path: Path) -> Imatrix:
    file = GGUF(path)
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        raise FormatError(f"{path}: field 'general.type': found {kind!r}, expected 'imatrix'")
    for key, expected in (("datasets", list), ("chunk_count", int), ("chunk_size", int)):
        if not isinstance(file.metadata.get(f"imatrix.{key}"), expected):
            raise FormatError(f"{path}: field 'imatrix.{key}' is missing or not of its type")
    matrix = Imatrix(
        chunks=file.metadata["imatrix.chunk_count"],
        chunk_size=file.metadata["imatrix.chunk_size"],
        datasets=[str(name) for name in file.metadata["imatrix.datasets"]],
    )
    for tensor in file:
        name = tensor.removesuffix(SUMS).removesuffix(COUNTS)
        if name == tensor:
            raise FormatError(f"{path}: tensor {tensor!r}: expected a name ending in {SUMS} or {COUNTS}")
        for other in (name + SUMS, name + COUNTS):
            if other not in file:
                raise FormatError(f"{path}: tensor {other!r} is missing beside {tensor!r}")
            if file[other].type != "F32":
                raise FormatError(f"{path}: tensor {other!r}: type {file[other].type}, expected F32")
        if name not in matrix.entries:
            sums, counts = (file[name + part].dequantize().reshape(-1) for part in (SUMS, COUNTS))
            matrix.entries[name] = _checked(path, name, sums, counts)
    return matrix


class _Reader:
    """A cursor over the bytes of a .dat file that never reads past their end."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise InputOutputError(f"{path}: {error.strerror or error}") from None

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise FormatError(f"{self.path}: {what} needs {count:,} bytes at {self.at:,}, have {self.left:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def count(self, what: str, low: int, high: int) -> int:
        (value,) = struct.unpack("<i", self.take(4, what))
        if not low <= value <= high:
            raise FormatError(
                f"{self.path}: {what} at byte {self.at - 4:,}: found {value}, expected {low} to {high:,}"
            )
        return value

    def text(self, length: int, what: str) -> str:
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: {what} before byte {self.at:,} is not UTF-8") from None


def _read_dat(path: Path) -> Imatrix:
    reader = _Reader(path)
    matrix = Imatrix()
    # An entry is at least a one-letter name, two counts and a value.
    for index in range(reader.count("number of entries", 1, max(reader.left // 17, 1))):
        name = reader.text(
            reader.count(f"name length of entry {index}", 1, MAX_NAME), f"name of entry {index}"
        )
        calls = reader.count(f"calls of {name!r}", 1, (1 << 31) - 1)
        values = reader.count(f"values of {name!r}", 1, max(reader.left // 4, 1))
        if name in matrix.entries:
            raise FormatError(f"{path}: entry {name!r} appears twice")
        sums = np.frombuffer(reader.take(4 * values, f"values of {name!r}"), "<f4").astype(np.float32)
        matrix.entries[name] = _checked(path, name, sums, np.array([calls], np.float32))
    if reader.left:
        matrix.chunks = reader.count("number of chunks", 0, (1 << 31) - 1)
        if length := reader.count("length of the data set's name", 0, MAX_NAME):
            matrix.datasets = [reader.text(length, "the data set's name")]
    if reader.left:
        raise FormatError(f"{path}: {reader.left:,} bytes after the last field, expected none")
    return matrix
