"""The errors kizami raises, and the exit code each one means.

Knows: the kinds of failure a user can meet, and that each message stands alone on one line.
Does not know: how errors are printed (cli/output.py) or what went wrong (the caller says it).

A message names the file, the tensor or field, what was found and what was expected; `hint` is one more
line that says what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class KizamiError(Exception):
    """Base of every error kizami raises on purpose.

    Attributes:
        hint: one line of advice, or None.
        exit_code: what the command line exits with (sysexits.h: 65 bad data, 74 input/output, 75 to be gone
            on with; 2 is usage).
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class FormatError(KizamiError, ValueError):
    """A file is not what it should be: truncated, malformed, inconsistent, or of another kind."""

    exit_code = 65


class UsageError(KizamiError, ValueError):
    """The caller asked for the impossible: an unknown name, a number out of range, a wrong combination."""

    exit_code = 2


class InputOutputError(KizamiError, OSError):
    """The operating system refused: file not found, not readable, disk full."""

    exit_code = 74


class ResumeError(UsageError):
    """What an unfinished job left behind stands in the way, or is of another job than this one."""


class Stopped(KizamiError):
    """The work was interrupted, and can be gone on with."""

    exit_code = 75


@contextmanager
def naming(path: str | os.PathLike[str], tensor: str) -> Iterator[None]:
    """Puts file and tensor before the message of a :class:`FormatError` about weights."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: tensor {tensor}: {error}", hint=error.hint) from None
