"""What the machine offers: version, instruction sets, cores, memory. Knows no models."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Any

from kizami import _core


def info() -> dict[str, Any]:
    """Facts for `kizami env` and for bug reports.

    Returns:
        version: of the package.
        isa, isa_available: the instruction set in use, and those this CPU can run, lowest first.
        cores: logical cores this process may use.
        memory: bytes of main memory; None if unknown.
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


def memory() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    if sys.platform == "win32":
        import ctypes

        class Status(ctypes.Structure):
            """MEMORYSTATUSEX: only the total is read."""

            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("total", ctypes.c_ulonglong)]
            _fields_ += [(f"rest_{i}", ctypes.c_ulonglong) for i in range(6)]

        status = Status(length=ctypes.sizeof(Status))
        ok = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total) if ok else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
