"""How evenly a text reaches the experts of a model: those that saw little are rounded on what others saw.

Knows token counts; neither models nor what is done about thin ones (moments.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kizami.imatrix import Imatrix


@dataclass(frozen=True)
class Coverage:
    """Tokens that the experts of one layer saw.

    Attributes:
        layer: as the tensors' names begin, ``blk.3``.
        experts: how many there are.
        unseen: how many saw nothing.
        least, median, most: tokens of an expert.
    """

    layer: str
    experts: int
    unseen: int
    least: int
    median: int
    most: int


def coverage(imatrix: Imatrix) -> list[Coverage]:
    """One for each layer with experts, in the order of layers."""
    found = []
    for name, (_, counts) in imatrix.entries.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "ffn_down_exps" and len(counts) > 1:
            tokens = np.asarray(counts, np.float64)
            low, middle, high = (int(round(float(x))) for x in np.quantile(tokens, [0, 0.5, 1]))
            found.append(Coverage(layer, len(tokens), int((tokens == 0).sum()), low, middle, high))
    return sorted(found, key=lambda one: [int(w) if w.isdecimal() else -1 for w in one.layer.split(".")])
