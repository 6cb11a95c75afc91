"""Arrays that are not needed for a while: kept in memory, or in a file without a name.

The file is gone with the process, however that ends. Knows how arrays are kept; neither what they are nor
how much memory there is (memory.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from kizami.errors import InputOutputError


class Kept:
    """An array that was put away."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def get(self) -> np.ndarray:
        """The array, which the caller may change."""
        return self._array

    def set(self, array: np.ndarray) -> None:
        """Another one of the same shape and type, in its place."""
        self._array = array


class KeptOnDisk(Kept):
    """One in the file of a :class:`Spill`."""

    def __init__(self, file: IO[bytes], offset: int, array: np.ndarray, folder: Path) -> None:
        self._file, self._offset, self._folder = file, offset, folder
        self._shape, self._dtype = array.shape, array.dtype
        self.set(array)

    def get(self) -> np.ndarray:
        array = np.empty(self._shape, self._dtype)
        left = _bytes(array)
        try:
            self._file.seek(self._offset)
            # The system may read less than was asked for, and never 2 GiB at once; so it is with writing.
            while left.nbytes and (read := self._file.readinto(left)):  # type: ignore[attr-defined]
                left = left[read:]
        except OSError as error:
            raise self._refused("read back", error) from None
        if left.nbytes:
            raise InputOutputError(f"{self._folder}: temporary file: {left.nbytes:,} bytes are missing")
        return array

    def set(self, array: np.ndarray) -> None:
        left = _bytes(np.ascontiguousarray(array))
        try:
            self._file.seek(self._offset)
            while left.nbytes:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._refused("write", error) from None

    def _refused(self, what: str, error: OSError) -> InputOutputError:
        return InputOutputError(
            f"{self._folder}: cannot {what} a temporary file: {error.strerror or error}",
            hint="free some space there, or allow more memory (--max-memory)",
        )


class Spill:
    """Where arrays are kept: in memory without a folder, in a file of that folder otherwise.

    Leave it with :meth:`close`, or within a ``with``; what is kept in it goes.

    Raises:
        InputOutputError: the file cannot be made, or later: it cannot be written or read back.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._end = folder, 0
        self._file: IO[bytes] | None = None
        if folder is not None:
            try:
                # Unbuffered: arrays are large, and a buffer would be flushed at moments that nobody expects.
                self._file = tempfile.TemporaryFile(dir=os.fspath(folder), buffering=0)
            except OSError as error:
                raise InputOutputError(f"{folder}: cannot make a temporary file: {error.strerror}") from None

    def keep(self, array: np.ndarray) -> Kept:
        """Puts an array away. In memory it is the array itself."""
        if self._file is None or self._folder is None:
            return Kept(array)
        kept = KeptOnDisk(self._file, self._end, array, self._folder)
        self._end += array.nbytes
        return kept

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_waiting(folder: Path, waiting: int) -> None:
    """Whether what is going to wait fits on a folder's disk, before any work.

    Args:
        waiting: bytes.

    Raises:
        InputOutputError: it does not, or the folder is not there.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputOutputError(f"{folder}: {error.strerror or error}") from None
    if waiting > free:
        raise InputOutputError(
            f"{folder}: not enough space: {waiting:,} bytes have to wait on disk, {free:,} are free",
            hint="free some there, or allow more memory (--max-memory)",
        )


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
