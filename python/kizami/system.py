"""What the machine offers: version, instruction sets, cores, memory. Knows no models."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kizami import _core
from kizami.errors import UsageError


def info() -> dict[str, Any]:
    """Facts for `kizami env` and for bug reports.

    Returns:
        version: of the package.
        isa, isa_available: the instruction set in use, and those this CPU can run, lowest first.
        cores: logical cores this process may use.
        memory: bytes of main memory.
    """
    return {
        "version": version(),
        "isa": _core.isa(),
        "isa_available": _core.isa_available(),
        "cores": cores(),
        "memory": memory(),
    }


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("kizami")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Bytes of main memory."""
    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Bytes that this process can take without others being swapped out, within its control group's limit."""
    free = int(psutil.virtual_memory().available)
    limit, used = (_read(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used + _file_cache()))


# Version 2 of Linux's control groups, as containers see their own.
_CGROUP = Path("/sys/fs/cgroup")


def _file_cache() -> int:
    """Bytes of files that count as used and are given up when memory is wanted, as a mapped model's are."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        entries = dict(line.split(maxsplit=1) for line in lines)
        return int(entries["active_file"]) + int(entries["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _read(path: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit (`max`)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def check_environment() -> None:
    """A misspelt instruction set would be no limit at all.

    Raises:
        UsageError: ``KIZAMI_ISA`` names none that this build knows.
    """
    asked, known = os.environ.get("KIZAMI_ISA"), _core.isa_levels()
    if asked and asked not in known:
        raise UsageError(f"KIZAMI_ISA: found {asked!r}, expected one of {', '.join(known)}")
