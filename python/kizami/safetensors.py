"""Safetensors files: header checked here, tensors handed out as views of the mapping.

Knows: the container (8-byte length, JSON header, data) and the index of a sharded checkpoint.
Does not know: what the tensors mean, or their names in GGUF (checkpoint.py).

Why not the `safetensors` package: it cannot give NumPy an FP8 or BF16 view without torch or ml_dtypes, it
accepts headers its own specification forbids (duplicate keys), and its errors do not name the file and
the tensor. What is checked: lengths, duplicates, holes, overlaps, types, sizes, trailing bytes.

Source: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import FormatError, InputOutputError
from .gguf import mistaken_for, read_head

# Bits per element of the types of the specification that fill whole bytes.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip

MAX_HEADER = 100_000_000  # bytes; the cap of the reference reader
MAX_RANK = 8
MAX_DIM = 1 << 40


class _Duplicate(ValueError):
    """A key appeared twice in one JSON object."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Duplicate(f"key {twice!r} appears twice")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, what: str) -> object:
    """JSON from bytes; `what` (a file name, perhaps with a part of it) opens the message of a FormatError.

    Stricter than `json.loads`: UTF-8 only, no duplicate keys, no NaN.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise FormatError(f"{what}: JSON nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{what}: not valid JSON: {error}") from None


def read_json(path: Path, limit: int = 1 << 28) -> object:
    """A JSON file of at most `limit` bytes. InputOutputError if missing, FormatError if not JSON."""
    head = read_head(path)
    if mistaken := mistaken_for(head):
        raise FormatError(f"{path}: found {mistaken[0]}, expected JSON", hint=mistaken[1])
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror or error}") from None
    if len(data) > limit:
        raise FormatError(f"{path}: over {limit:,} bytes, too large for a file of this kind")
    return parse_json(data, str(path))


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: type name, shape (rows before columns), bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One safetensors file, mapped read-only; nothing is read before a tensor is asked for.

    Attributes:
        path: where it is.
        entries: dict of tensor name to Entry, in the header's order.

    Raises:
        InputOutputError: missing or unreadable.
        FormatError: the header breaks the specification, or the file is shorter or longer than it says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        head = read_head(path)
        if (mistaken := mistaken_for(head)) and not (len(head) >= 9 and head[8:9] == b"{"):
            raise FormatError(f"{path}: found {mistaken[0]}, expected a safetensors file", hint=mistaken[1])
        size = path.stat().st_size
        length = int.from_bytes(head[:8], "little")
        if size < 10 or not 2 <= length <= MAX_HEADER:
            raise FormatError(f"{path}: not a safetensors file: {size:,} bytes, header length {length:,}")
        if 8 + length > size:
            raise FormatError(
                f"{path}: truncated: the header alone needs {8 + length:,} bytes, have {size:,}"
            )
        try:
            with open(path, "rb") as file:
                file.seek(8)
                header = file.read(length)
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # An array over the map: slices stay views, and the file may be larger than memory.
            self._map = np.frombuffer(self._file, np.uint8)
        except OSError as error:
            raise InputOutputError(f"{path}: {error.strerror or error}") from None
        self.entries = _entries(header, 8 + length, size, str(path))

    def bytes(self, name: str) -> np.ndarray:
        """The tensor's bytes: read-only uint8 [nbytes], a view of the mapping."""
        entry = self.entries[name]
        return self._map[entry.begin : entry.end]

    def release(self) -> None:
        """Takes the file's pages out of this process's memory; they are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)


def _entries(header: bytes, start: int, size: int, path: str) -> dict[str, Entry]:
    if not header.startswith(b"{"):
        raise FormatError(f"{path}: header starts with {header[:1]!r}, expected '{{'")
    table = parse_json(header, f"{path}: header")
    if not isinstance(table, dict):
        raise FormatError(f"{path}: header is a {type(table).__name__}, expected an object")
    notes = table.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise FormatError(f"{path}: __metadata__ is not a map of strings to strings")
    entries = {name: _entry(record, start, f"{path}: tensor {name!r}") for name, record in table.items()}

    at, previous = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "a hole" if entry.begin > at else "an overlap"
            raise FormatError(
                f"{path}: tensor {name!r}: {kind} after {previous}: "
                f"begins at byte {entry.begin:,}, expected {at:,}"
            )
        at, previous = entry.end, f"tensor {name!r}"
    if at > size:
        raise FormatError(f"{path}: truncated: needs {at:,} bytes, have {size:,}", hint="download it again")
    if at < size:
        raise FormatError(f"{path}: {size - at:,} bytes after the last tensor, expected none")
    return entries


def _entry(record: object, start: int, what: str) -> Entry:
    if not isinstance(record, dict):
        raise FormatError(f"{what}: record is a {type(record).__name__}, expected an object")
    dtype, shape, offsets = record.get("dtype"), record.get("shape"), record.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"{what}: type {dtype!r} is unknown, expected one of {' '.join(BITS)}")
    if not _is_counts(shape) or len(shape) > MAX_RANK or any(dim > MAX_DIM for dim in shape):
        raise FormatError(f"{what}: shape {shape!r} is not a list of at most {MAX_RANK} sizes")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{what}: data_offsets {offsets!r} is not [begin, end]")
    needed = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != needed:
        raise FormatError(
            f"{what}: {offsets[1] - offsets[0]:,} bytes, expected {needed:,} for {dtype} {shape}"
        )
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class SafetensorsDirectory:
    """All tensors of a directory: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    Attributes:
        path: the directory.
        files: dict of tensor name to the SafetensorsFile that holds it.

    Raises:
        InputOutputError: neither file is there, or a shard is missing.
        FormatError: a shard is damaged, or the index and the shards disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, SafetensorsFile] = {}
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        if index.exists():
            self._open_shards(index)
        elif single.exists():
            shard = SafetensorsFile(single)
            self.files = dict.fromkeys(shard.entries, shard)
        else:
            raise InputOutputError(
                f"{path}: no model.safetensors and no model.safetensors.index.json",
                hint="give a Hugging Face model directory or a GGUF file",
            )

    def _open_shards(self, index: Path) -> None:
        table = read_json(index)
        weight_map = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(f"{index}: field 'weight_map' is missing, expected tensor name to file name")
        shards: dict[str, SafetensorsFile] = {}
        for name, shard_name in weight_map.items():
            # A name with a separator could leave the directory.
            if (
                not isinstance(shard_name, str)
                or shard_name != os.path.basename(shard_name)
                or "\\" in shard_name
            ):
                raise FormatError(f"{index}: tensor {name!r}: shard {shard_name!r} is not a plain file name")
            if shard_name not in shards:
                shard_path = self.path / shard_name
                if not shard_path.exists():
                    raise FormatError(
                        f"{shard_path}: shard is missing (named by {index.name} for tensor {name!r})",
                        hint="the download is incomplete",
                    )
                shards[shard_name] = SafetensorsFile(shard_path)
            if name not in shards[shard_name].entries:
                raise FormatError(
                    f"{self.path / shard_name}: tensor {name!r} is missing ({index.name} puts it here)"
                )
            self.files[name] = shards[shard_name]
        # `metadata.total_size` of published checkpoints is not always the sum of bytes; the shards' own
        # headers are, so they decide.
        for shard_name, shard in shards.items():
            for name in shard.entries:
                if weight_map.get(name) != shard_name:
                    raise FormatError(
                        f"{shard.path}: tensor {name!r} is not assigned to this shard by {index.name}"
                    )
