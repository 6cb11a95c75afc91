"""A job that writes for hours, and may be killed at any moment: what is finished stays finished.

Everything happens beside the output: tensors go to ``OUT.kizami-tmp``, whose layout is fixed beforehand, and
what is on disk there is told by ``OUT.kizami-journal``. The order is what makes it safe: bytes, to disk,
record, to disk; the output's name changes hands when all is there. A job that is gone on with trusts no byte
before it has hashed it, and ends with the same file as one that was never interrupted.

Knows: extents of bytes, records, names. Does not know: how an importance matrix or a plan is made, or a
tensor encoded.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kizami.errors import FormatError, InputOutputError, KizamiError, ResumeError, UsageError
from kizami.imatrix import Imatrix
from kizami.journal import Hash, Journal, Record, digest
from kizami.partial import TEMPORARY, Part, beside, sync_folder
from kizami.progress import Progress
from kizami.shards import Shard, shard_name

JOURNAL, IMATRIX = ".kizami-journal", ".kizami-imatrix"
# A record is of no use before its bytes are on disk, and that takes time: it is done every so many bytes, or
# seconds. What was done since is what a power cut costs.
SYNC_BYTES, SYNC_SECONDS = 1 << 28, 5.0
FORCE = "`--force` discards what there is and starts again"
RESUME = "`--resume` goes on from here"


def resumable(out: str | os.PathLike[str]) -> bool:
    """Whether an unfinished job on this output can be gone on with."""
    return beside(Path(out), JOURNAL).exists()


class Job:
    """Takes the output ``out`` for this process; leave it with :meth:`finish`, within a ``with``.

    Left by an error that would come again (bad data, wrong usage), or before anything was finished, the job
    takes all its files with it. Left otherwise (an interrupt, a full disk), they stay, to be gone on with.

    Args:
        out: the output; of a split set, what its files are named after.
        recipe: all that the bytes of the output depend on, of JSON's types; dictionaries may be nested.
        resume: go on with an unfinished job, if there is one.
        force: discard an unfinished job, if there is one.

    Attributes:
        done: names of the tensors that are finished; filled by :meth:`lay_out`.

    Raises:
        ResumeError: an unfinished job is there and neither ``resume`` nor ``force`` was asked for, or its
            recipe is another, or it is running.
        FormatError: its journal is damaged at the very beginning.
        InputOutputError: the journal cannot be written.
    """

    def __init__(
        self, out: Path, recipe: Mapping[str, Any], *, resume: bool = False, force: bool = False
    ) -> None:
        self.out, self.done = out, set[str]()
        self._parts: list[Part] = []
        self._places: dict[str, tuple[Part, int, int, int]] = {}
        self._pending: list[Record] = []
        self._bytes, self._synced, self._finished = 0, time.monotonic(), False
        self._journal = Journal(beside(out, JOURNAL))
        try:
            if self._journal.lines and not force:
                self._take_over(recipe, resume)
            else:
                self._remove_files()
                self._journal.clear()
                self._journal.append({"recipe": recipe})
        except BaseException:
            self._journal.close(remove=self._journal.lines == 0)
            raise
        self._kept: Record = {}
        self._units: dict[str, str] = {}
        self._surveyed: list[Record] = []
        for record in self._journal.records:
            if "unit" in record:
                self._units[record["unit"]] = record["hash"]
            elif "part" in record:
                self._surveyed.append(record)
            else:
                self._kept |= record

    def _take_over(self, recipe: Mapping[str, Any], resume: bool) -> None:
        path = self._journal.path
        if not resume:
            raise ResumeError(f"{path}: found an unfinished job, expected none", hint=f"{RESUME}; {FORCE}")
        if not self._journal.records:
            raise FormatError(
                f"{path}: the first line is damaged, expected that of an unfinished job", hint=FORCE
            )
        self._compare(self._journal.records[0].get("recipe", {}), recipe)

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        found, expected = dict(_flat(now)), dict(_flat(before))
        for field in dict.fromkeys([*expected, *found]):
            if found.get(field) != expected.get(field):
                raise ResumeError(
                    f"{self._journal.path}: {field}: found {found.get(field)}, "
                    f"expected {expected.get(field)} as when the job began",
                    hint=FORCE,
                )

    # -- what is kept beside the tensors ---------------------------------------------------------------

    def imatrix(self, make: Callable[[], Imatrix]) -> Imatrix:
        """The importance matrix of this job: the one kept on disk, or a new one, kept from now on."""
        path, kept = beside(self.out, IMATRIX), self._kept.get("imatrix")
        if kept is not None:
            try:
                found = Imatrix.read(path)
                if found.sha256() == kept:
                    return found
            except KizamiError:
                pass  # lost or damaged: what made it is still there
        made = make()
        made.write(path)
        if kept is None:
            self._journal.append({"imatrix": made.sha256()})
        else:
            self._compare({"imatrix": kept}, {"imatrix": made.sha256()})
        return made

    def findings(self) -> Iterator[tuple[Imatrix, Any]]:
        """What :meth:`keep` kept, in that order; without what is lost or damaged since."""
        for number, record in enumerate(self._surveyed):
            try:
                found = Imatrix.read(self._findings_path(number))
            except KizamiError:
                continue
            if found.sha256() == record["part"]:
                yield found, record["found"]

    def keep(self, part: Imatrix, found: Any) -> None:
        """Keeps what was measured on some tensors, before all are: their importance, and a result of JSON's
        types."""
        part.write(self._findings_path(len(self._surveyed)))
        record = {"part": part.sha256(), "found": found}
        self._surveyed.append(record)
        self._journal.append(record)

    def _findings_path(self, number: int) -> Path:
        return beside(self.out, f"{IMATRIX}-{number}")

    def remembered(self, key: str, make: Callable[[], Any]) -> Any:
        """A result of JSON's types: that of the journal, or a new one, which is kept there from now on."""
        if key not in self._kept:
            self._kept[key] = make()
            self._journal.append({key: self._kept[key]})
        return self._kept[key]

    def known(self, key: str) -> Any:
        """A result that :meth:`remembered` keeps already; None if it does not."""
        return self._kept.get(key)

    # -- tensors ---------------------------------------------------------------------------------------

    def check_space(self, needed: int, waiting: int = 0) -> None:
        """Compares with the free space of the output's disk, before any work, unless it is reserved.

        Args:
            needed: bytes of the output.
            waiting: bytes of what waits beside it, in files without names, until it is made.

        Raises:
            InputOutputError: there is less.
        """
        if "layout" not in self._kept:
            self._check_free(needed, waiting)

    def _check_free(self, needed: int, waiting: int = 0) -> None:
        # What is reserved counts.
        has = sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in self._temporaries())
        free = shutil.disk_usage(self.out.parent).free
        left = max(needed - has, 0)
        if left + waiting > free:
            files = f" and {waiting:,} for what waits on disk" if waiting else ""
            raise InputOutputError(
                f"{self.out}: not enough space: the output needs {left:,} bytes{files}, {free:,} are free",
                hint="free some, ask for a smaller output" + (" or allow more memory" if waiting else ""),
            )

    def lay_out(
        self, shards: Sequence[Shard], sealed: Sequence[Shard], progress: Progress | None = None
    ) -> None:
        """Reserves the files of the output, and hashes what they hold of an earlier run.

        Args:
            shards: the files.
            sealed: the same with what is only known at the end, if it is known already (:meth:`seal`).
            progress: called with ("check", tensors hashed, tensors to be hashed).

        Raises:
            ResumeError: the layout is not that of the unfinished job.
            InputOutputError: the disk is full, or refuses otherwise.
        """
        layout = digest(*(shard.header for shard in shards))
        self._compare({"layout": self._kept.get("layout", layout)}, {"layout": layout})
        self._parts = [Part(shard) for shard in sealed]
        self._check_free(sum(part.shard.size for part in self._parts if not part.published))
        for part in self._parts:
            with self._asking(part, "reserve space for"):
                part.begin()
            self._places |= {name: (part, *extent) for name, extent in part.shard.extents().items()}
            with self._asking(part, "read"):
                if part.published and not part.is_whole(self._units):
                    part.close()  # what has this name is another file
                    part.published = False
                    part.begin()
                for name in part.verified(self._units):
                    self.done.add(name)
                    if progress:
                        progress("check", len(self.done), len(self._units))
        self.remembered("layout", lambda: layout)

    def write(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """Writes a tensor's bytes; they are finished when all of them, and then their record, are on disk.

        Args:
            name: of the tensor.
            pieces: its bytes in order, uint8, contiguous.

        Raises:
            FormatError: another length than the layout has.
            InputOutputError: the disk is full, or refuses otherwise.
        """
        part, offset, nbytes, padded = self._places[name]
        hashed, written = Hash(), 0
        for piece in chain(pieces, [np.zeros(padded - nbytes, np.uint8)]):
            written += piece.nbytes
            if piece.nbytes and written <= padded:
                with self._asking(part, "write"):
                    part.write(offset + written - piece.nbytes, piece.data)
                hashed.update(piece.data)
        if written != padded:
            found = written - (padded - nbytes)
            raise FormatError(f"{self.out}: tensor {name}: found {found:,} bytes, expected {nbytes:,}")
        self._pending.append({"unit": name, "offset": offset, "bytes": padded, "hash": hashed.digest()})
        self._bytes += padded
        if self._bytes >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def read(self, name: str) -> np.ndarray:
        """A tensor's bytes as they are in the file, uint8; not to be held when the job ends."""
        part, offset, nbytes, _ = self._places[name]
        with self._asking(part, "read"):
            return part.view(offset, nbytes)

    def release(self) -> None:
        """Takes what was read out of this process's memory."""
        for part in self._parts:
            part.release()

    def seal(self, shards: Sequence[Shard]) -> None:
        """Gives the files headers of the same length that say what is only known at the end."""
        for part, shard in zip(self._parts, shards, strict=True):
            with self._asking(part, "write"):
                part.seal(shard)

    def sync(self) -> None:
        """Brings what was written to disk, and then its records.

        Raises:
            InputOutputError: some may not be there. It is never asked again: the system has forgotten what
                failed.
        """
        records, self._pending = self._pending, []
        for part in {id(part): part for part, *_ in (self._places[r["unit"]] for r in records)}.values():
            with self._asking(part, "bring to disk"):
                part.sync()
        if records:
            self._journal.append(*records)
            self.done.update(record["unit"] for record in records)
        self._bytes, self._synced = 0, time.monotonic()

    def finish(self, recipe: Mapping[str, Any]) -> None:
        """Gives the files their names, and removes all others. The first of a set comes last.

        Args:
            recipe: as it is now.

        Raises:
            FormatError: an input has changed since the job began, or a tensor was not written.
            InputOutputError: the files cannot be renamed.
        """
        self.sync()
        try:
            self._compare(self._journal.records[0]["recipe"], recipe)
        except ResumeError as error:
            raise FormatError(f"{self.out}: an input changed during the job: {error}") from None
        if missing := [name for name in self._places if name not in self.done]:
            raise FormatError(f"{self.out}: tensor {missing[0]}: not written")
        for part in self._parts:
            if not part.published:
                with self._asking(part, "bring to disk"):
                    part.sync()
            part.close()
        first, *others = self._parts
        if others and not first.published:
            # An older set is none from now on, rather than a mixture of two.
            with self._asking(first, "remove the older"):
                first.shard.path.unlink(missing_ok=True)
        for part in [*others, first]:
            if not part.published:
                with self._asking(part, "rename the temporary file to"):
                    os.replace(part.path, part.shard.path)
        with self._asking(first, "bring to disk"):
            sync_folder(self.out.parent)
        self._finished = True
        self._remove_files()
        self._journal.close(remove=True)

    # -- the end ---------------------------------------------------------------------------------------

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        begun = self._begun()
        # What was begun is worth more than a wrong word on the next command line.
        wrong = (FormatError,) if begun else (FormatError, UsageError)
        hopeless = isinstance(error, wrong) and not isinstance(error, ResumeError)
        try:
            if not hopeless:
                self.sync()
        except InputOutputError:
            pass  # those tensors will be made again; the error that led here says more
        for part in self._parts:
            try:
                part.close()
            except OSError:
                pass  # what it still had to write is in no record
        if self._begun() and not hopeless:
            self._journal.close()
            if isinstance(error, InputOutputError):
                error.hint = f"{error.hint}; {RESUME}" if error.hint else RESUME
            return
        self._remove_files()
        self._journal.close(remove=True)

    def _begun(self) -> bool:
        """Whether anything is finished."""
        return any("recipe" not in record for record in self._journal.records)

    def _temporaries(self) -> list[Path]:
        pattern = shard_name(Path(glob.escape(self.out.name)), "?" * 5, "?" * 5) + TEMPORARY
        found = [path for path in self.out.parent.glob(pattern) if path.is_file()]
        whole = beside(self.out, TEMPORARY)
        return [*found, whole] if whole.is_file() else found

    def _remove_files(self) -> None:
        matrix = beside(self.out, IMATRIX)
        # One that was being written when the job was killed has a longer name.
        halves = self.out.parent.glob(f".{glob.escape(matrix.name)}*.partial*")
        parts = self.out.parent.glob(f"{glob.escape(matrix.name)}-*[0-9]")
        for path in [*self._temporaries(), matrix, *parts, *halves]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _asking(self, part: Part, what: str) -> Iterator[None]:
        """Names the file and what was asked for when the system refuses."""
        try:
            yield
        except OSError as error:
            if isinstance(error, KizamiError):
                raise
            self._pending.clear()  # what is not known to be on disk gets no record
            full = ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                free = shutil.disk_usage(self.out.parent).free
                full = f"; the file needs {part.shard.size:,} bytes, {free:,} are free"
            raise InputOutputError(
                f"{part.shard.path}: cannot {what}: {error.strerror or error}{full}"
            ) from None


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries, their names joined by colons."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}: ")
        else:
            yield prefix + key, value
