"""The files of an output: one, or a split set as llama.cpp names and reads them.

``NAME-00001-of-00003.gguf`` has all metadata and the first tensors; the others have the ``split.*`` keys and
theirs. Knows: names, keys, and where every byte of every file will lie. Does not know: who writes them
(job.py), or how such a set is read (rust/gguf/src/split.rs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kizami import _core
from kizami.errors import UsageError
from kizami.gguf import TypedMetadata

# (name, type, shape with rows before columns)
TensorLayout = tuple[str, str, tuple[int, ...]]

ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
LEAST_SPLIT = 1_000_000  # bytes: less is a slip of the pen
MOST_SHARDS = 65_535  # the count is a u16
ENTRY = 8 + 4 + 4 + 8  # bytes of a tensor's entry in the header, without its name and its dimensions


@dataclass(frozen=True)
class Shard:
    """One file of the output: its final name, first bytes, size, and (name, offset, bytes) of its tensors."""

    path: Path
    header: bytes
    size: int
    tensors: list[tuple[str, int, int]]

    def extents(self) -> dict[str, tuple[int, int, int]]:
        """Offset, bytes, and bytes with padding of every tensor: all of a file but its header."""
        ends = [offset for _, offset, _ in self.tensors[1:]] + [self.size]
        return {
            name: (offset, nbytes, end - offset)
            for (name, offset, nbytes), end in zip(self.tensors, ends, strict=True)
        }


def _shard(path: Path, metadata: TypedMetadata, tensors: Sequence[TensorLayout]) -> Shard:
    header, placed, size = _core.GgufWriter.layout(metadata, tensors)
    return Shard(path, header, size, placed)


def shards(
    out: Path, metadata: TypedMetadata, tensors: Sequence[TensorLayout], split_size: int | None = None
) -> list[Shard]:
    """Lays out the files of an output.

    Args:
        out: the name asked for; of a set, what its files are named after.
        metadata: of the model, without ``split.*`` keys.
        tensors: all of them, in order.
        split_size: most bytes of a file, unless a single tensor has more; None for one file.

    Raises:
        UsageError: that would be too many files, or files too small.
        FormatError: a key, value, name or shape that a GGUF cannot hold.
    """
    if split_size is None:
        return [_shard(out, metadata, tensors)]
    check_split_size(split_size)
    alignment = [entry for entry in metadata if entry[0] == ALIGNMENT]
    groups = _cut(metadata, alignment, tensors, split_size)
    if len(groups) > MOST_SHARDS:
        raise UsageError(f"split-size: found {split_size:,} bytes, expected more: {len(groups):,} files")
    made = []
    for no, group in enumerate(groups):
        path = out.with_name(shard_name(out, no, len(groups)))
        own = [*(metadata if no == 0 else alignment), *_keys(no, len(groups), len(tensors))]
        made.append(_shard(path, own, group))
    return made


def check_split_size(split_size: int) -> None:
    """Whether files of a set may be so small.

    Raises:
        UsageError: they may not.
    """
    if split_size < LEAST_SPLIT:
        raise UsageError(f"split-size: found {split_size:,} bytes, expected at least {LEAST_SPLIT:,}")


def shard_name(out: Path, no: int | str, count: int | str) -> str:
    """File name of shard ``no``, counted from zero; both as text for a pattern."""
    number = no if isinstance(no, str) else f"{no + 1:05}"
    of = count if isinstance(count, str) else f"{count:05}"
    return f"{out.name.removesuffix('.gguf')}-{number}-of-{of}.gguf"


def overhead(total: int, split_size: int) -> int:
    """Most bytes that the headers of a set of ``total`` bytes have more than that of one file.

    Two neighbours together are larger than ``split_size``, or they would be one (:func:`_cut`, to 2 * align).
    """
    most = 2 * total // (split_size - 2 * DEFAULT_ALIGNMENT) + 1
    return most * (_core.GgufWriter.size(_keys(0, 1, 0), []) + DEFAULT_ALIGNMENT)


def _keys(no: int, count: int, tensors: int) -> TypedMetadata:
    return [
        ("split.no", "u16", no),
        ("split.count", "u16", count),
        ("split.tensors.count", "i32", tensors),
    ]


def _cut(
    metadata: TypedMetadata, alignment: TypedMetadata, tensors: Sequence[TensorLayout], split_size: int
) -> list[Sequence[TensorLayout]]:
    """Neighbouring tensors together, as many as fit."""
    keys, align = _keys(0, 1, 0), int(str(alignment[0][2])) if alignment else DEFAULT_ALIGNMENT
    # Each rounded up once, as the header they make is once more: what fits may be cut 2 * align bytes too
    # early.
    first, following = (_core.GgufWriter.size([*own, *keys], []) + align for own in (metadata, alignment))
    starts, used = [0], first
    _, placed, _ = _core.GgufWriter.layout(alignment, tensors)
    for i, ((name, _, shape), (_, _, nbytes)) in enumerate(zip(tensors, placed, strict=True)):
        added = ENTRY + len(name.encode()) + 8 * len(shape) + -(-nbytes // align) * align
        if i > starts[-1] and used + added > split_size:
            starts.append(i)
            used = following
        used += added
    return [tensors[a:b] for a, b in zip(starts, [*starts[1:], len(tensors)], strict=True)]
