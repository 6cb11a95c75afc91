"""What the gguf package, the oracle of block layouts, knows: it is a little behind llama.cpp."""

from __future__ import annotations

import gguf


def read_by_gguf(name: str) -> bool:
    """Whether the package decodes a type; `rust/kernels/tests/formats.rs` has the others, by llama.cpp."""
    kind = getattr(gguf.GGMLQuantizationType, name, None)
    return kind is not None and (name in ("F32", "F16") or kind in gguf.quants._type_traits)
