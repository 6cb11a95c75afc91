"""The formats a tensor of a GGUF file can be in: their sizes, which tensors may be in them, what stands in.

Knows the core's table of types and the shapes of tensors; neither files nor what rounding loses.
"""

from __future__ import annotations

import math

from kizami import _core
from kizami.errors import UsageError

TYPES = {t["name"]: t for t in _core.types()}
# What the planner chooses from, and what --type takes: every format that GGUF files can hold.
WRITABLE = [name for name, t in TYPES.items() if t["ggml_id"] is not None]
CANDIDATES = [name for name in WRITABLE if TYPES[name]["quantized"]] + ["BF16"]
# What a tensor gets in place of a type whose blocks do not divide its rows: the first of these types of
# 32-weight blocks that is not coarser; F16 where not even that many weights divide.
FALLBACKS = ("IQ4_NL", "Q5_0", "Q8_0")


def quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor may lose bits: matrices, but no norms and no router, as in llama.cpp."""
    return len(shape) >= 2 and name.endswith(".weight") and "norm" not in name and "ffn_gate_inp" not in name


def nbytes(type_name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor in a type; None where its rows do not divide into blocks."""
    t = TYPES[type_name]
    if shape[-1] % t["block"]:
        return None
    return math.prod(shape) // t["block"] * t["block_bytes"]


def candidates(shape: tuple[int, ...]) -> list[str]:
    """The types the planner chooses from for a tensor of that shape: those whose blocks divide its rows."""
    return [name for name in CANDIDATES if nbytes(name, shape) is not None]


def parse_type(name: str) -> str:
    """The canonical name of a writable type.

    Raises:
        UsageError: there is none.
    """
    wanted = name.upper().replace("-", "_")
    if wanted not in WRITABLE:
        raise UsageError(f"type: found {name!r}, expected one of {', '.join(WRITABLE)}")
    return wanted


def fallback(type_name: str, shape: tuple[int, ...]) -> str:
    """The type of a tensor whose rows do not divide into blocks of the wanted one."""
    finer = (t for t in FALLBACKS if TYPES[t]["bpw"] >= TYPES[type_name]["bpw"])
    return next((t for t in finer if nbytes(t, shape) is not None), "F16")


def fitting(type_name: str, shape: tuple[int, ...]) -> str:
    """The wanted type, or the one that stands in for it."""
    return type_name if nbytes(type_name, shape) is not None else fallback(type_name, shape)
