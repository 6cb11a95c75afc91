"""The journal of a long job: what is finished, line by line, to be believed after any crash.

A line is the hash of its JSON, and the JSON: a record. The first says what the job is. Reading stops at the
first line that is cut off or does not hash, because nothing behind it can be trusted to be in order. An open
journal is locked: two jobs on one output would write into each other's file.

Knows: lines, hashes, the lock, bringing bytes to disk. Does not know: what the records mean (job.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from kizami.errors import InputOutputError, ResumeError

Record = dict[str, Any]

# Far behind any record: on Windows nobody else could read the byte that is locked.
LOCKED_BYTE = 1 << 40
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Hash:
    """BLAKE2b of bytes that come one after the other."""

    def __init__(self, size: int = 16) -> None:
        self._found = hashlib.blake2b(digest_size=size)

    def update(self, part: bytes | memoryview) -> None:
        self._found.update(part)

    def digest(self) -> str:
        """As hexadecimal digits, two for each byte of its size."""
        return self._found.hexdigest()


def digest(*parts: bytes | memoryview, size: int = 16) -> str:
    """Hash of some bytes as hexadecimal digits, two for each byte of ``size``."""
    found = Hash(size)
    for part in parts:
        found.update(part)
    return found.digest()


def to_disk(file: IO[bytes]) -> None:
    """Brings what was written to a file to disk; OSError if that failed."""
    file.flush()
    getattr(os, "fdatasync", os.fsync)(file.fileno())


class Journal:
    """Opens the journal at ``path``, or an empty one, and holds its lock until it is closed.

    Attributes:
        path: where it is.
        records: those it holds, up to the first that is damaged.
        lines: how many lines there are, damaged ones included; what follows the last newline is none.

    Raises:
        ResumeError: another job holds it.
        InputOutputError: it cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = self._open()
            data = self._file.read()
        except OSError as error:
            raise InputOutputError(f"{path}: cannot open the journal: {error.strerror or error}") from None
        self.records, self._end = _parse(data)
        self.lines = data.count(b"\n")

    def _open(self) -> IO[bytes]:
        while True:
            # Unbuffered: a buffer that could not be written would be tried again, and fail again, at the end.
            file = os.fdopen(
                os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666),
                "r+b",
                buffering=0,
            )
            if not _lock(file):
                file.close()
                raise ResumeError(
                    f"{self.path}: found a job that is writing this output, expected to be the only one",
                    hint="wait for it, or choose another name for the output",
                )
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            except FileNotFoundError:
                pass
            # Its job ended, and removed it, between the opening and the lock.
            file.close()

    def append(self, *records: Record) -> None:
        """Adds records behind the last good one and brings them to disk.

        Raises:
            InputOutputError: they may not be on disk.
        """
        self.records += records  # first: who sees them in the file finds them here
        try:
            self._file.seek(self._end)
            self._file.truncate()
            left = memoryview(b"".join(map(_line, records)))
            while left:
                left = left[self._file.write(left) :]
            to_disk(self._file)
            self._end = self._file.tell()
        except OSError as error:
            raise InputOutputError(
                f"{self.path}: cannot write the journal: {error.strerror or error}"
            ) from None

    def clear(self) -> None:
        """Forgets all records; on disk with the next ``append``."""
        self.records, self._end = [], 0

    def close(self, *, remove: bool = False) -> None:
        """Gives the lock back; with ``remove`` the file goes."""
        if remove and sys.platform != "win32":
            self.path.unlink(missing_ok=True)  # while it is locked: nobody takes it for an unfinished job
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)


def _line(record: Record) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return digest(text, size=8).encode() + b" " + text + b"\n"


def _parse(data: bytes) -> tuple[list[Record], int]:
    """The records up to the first damaged one, and the byte at which they end."""
    records, end = [], 0
    for line in data.splitlines(keepends=True):
        check, _, text = line.removesuffix(b"\n").partition(b" ")
        if not line.endswith(b"\n") or check != digest(text, size=8).encode():
            break
        records.append(json.loads(text))
        end += len(line)
    return records, end


def _lock(file: IO[bytes]) -> bool:
    """False where another process has the lock. File systems that know no locks do without."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True
