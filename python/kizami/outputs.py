"""Where results may be written: never over an input, and found out before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from kizami.errors import InputOutputError, UsageError


def check_output(out: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> None:
    """Refuses an output path that names an input, or that cannot be written.

    A source directory protects every file in it; new files may be written beside them.

    Args:
        out: the file to write.
        inputs: files and directories the work reads; None for those not given.

    Raises:
        UsageError: ``out`` is an input, under whatever name.
        InputOutputError: its directory is missing or not writable, or it is no regular file.
    """
    path = Path(out)
    folder = path.parent
    if not folder.is_dir():
        raise InputOutputError(f"{path}: cannot write: no such directory")
    if path.exists() and not path.is_file():
        raise InputOutputError(f"{path}: cannot write: not a regular file")
    if not os.access(folder, os.W_OK):
        raise InputOutputError(f"{path}: cannot write: the directory is not writable")
    if not path.exists():
        return
    for given in inputs:
        if given is None or not Path(given).exists():
            continue
        same = path.samefile(given)
        inside = Path(given).is_dir() and folder.samefile(given)
        if same or inside:
            raise UsageError(f"{path}: is an input itself, expected another name for the output")
