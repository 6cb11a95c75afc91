"""What the gguf package, the oracle of block layouts, knows (less than llama.cpp); when weights are equal."""

from __future__ import annotations

import gguf
import numpy as np


def read_by_gguf(name: str) -> bool:
    """Whether the package decodes a type; `rust/kernels/tests/formats.rs` has the others, by llama.cpp."""
    kind = getattr(gguf.GGMLQuantizationType, name, None)
    return kind is not None and (name in ("F32", "F16") or kind in gguf.quants._type_traits)


def same_weights(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two float32 arrays agree: in every bit, the sign of zero included, and any NaN equals any NaN.

    Which of two NaN operands a sum returns depends on their order, which the compiler may choose.
    """
    return (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
