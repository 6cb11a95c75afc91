"""A file in the making: its bytes go beside its name, at places that are fixed before the first is written.

Knows: one file of an output, its extents, their hashes. Does not know: which of them are finished, or what is
in them (job.py).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from kizami.journal import digest, to_disk
from kizami.shards import Shard

TEMPORARY = ".kizami-tmp"
READ_BYTES = 1 << 24


def beside(out: Path, suffix: str) -> Path:
    """A file of the job that writes ``out``."""
    return out.with_name(out.name + suffix)


class Part:
    """One file in the making: its place and its layout.

    A kill between the renames of a set leaves some of its files ``published``: they count if their bytes are
    right.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard, self.path = shard, beside(shard.path, TEMPORARY)
        self.published = not self.path.exists() and shard.path.exists()
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def begin(self) -> None:
        """Writes the header, and reserves the size on disk, so that a full disk shows now."""
        if self.published:
            self._file = open(self.shard.path, "rb")
            return
        new = not self.path.exists()
        self._file = open(self.path, "w+b" if new else "r+b")
        try:
            self._file.truncate(self.shard.size)
            if hasattr(os, "posix_fallocate"):
                _reserve(self._file, self.shard.size)
            self._file.write(self.shard.header)
        except OSError:
            self.close()
            if new:
                self.path.unlink()
            raise

    def verified(self, hashes: Mapping[str, str]) -> Iterator[str]:
        """Names of the tensors whose bytes have these hashes."""
        for name, (offset, _, padded) in self.shard.extents().items():
            if name in hashes and digest(*self._read(offset, padded)) == hashes[name]:
                yield name

    def is_whole(self, hashes: Mapping[str, str]) -> bool:
        """Whether header, length and all tensors are as they should be."""
        header, size = self.shard.header, self.shard.size
        if os.fstat(self._opened.fileno()).st_size != size or b"".join(self._read(0, len(header))) != header:
            return False
        return len(list(self.verified(hashes))) == len(self.shard.extents())

    def write(self, offset: int, data: memoryview) -> None:
        self._opened.seek(offset)
        self._opened.write(data)

    def view(self, offset: int, nbytes: int) -> np.ndarray:
        """Some bytes as they are now, uint8, mapped. None of them may be held when the file is closed."""
        self._opened.flush()
        if self._map is None:
            self._map = mmap.mmap(self._opened.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8, nbytes, offset)

    def release(self) -> None:
        """Takes mapped pages out of this process's memory."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def seal(self, shard: Shard) -> None:
        """Another header of the same length."""
        if not self.published and shard.header != self.shard.header:
            self.write(0, memoryview(shard.header))
        self.shard = shard

    def sync(self) -> None:
        to_disk(self._opened)

    def close(self) -> None:
        self._map = None
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    @property
    def _opened(self) -> IO[bytes]:
        assert self._file is not None, "a part is opened when it is laid out"
        return self._file

    def _read(self, offset: int, nbytes: int) -> Iterator[bytes]:
        self._opened.seek(offset)
        for at in range(0, nbytes, READ_BYTES):
            yield self._opened.read(min(READ_BYTES, nbytes - at))


def _reserve(file: IO[bytes], nbytes: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        # Where it is not supported, a full disk is an error of the write that meets it.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def sync_folder(folder: Path) -> None:
    """Makes renames survive a power cut, where folders can be brought to disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not sync folders. The files are complete under their names all the
        # same.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)
