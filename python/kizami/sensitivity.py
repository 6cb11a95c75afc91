"""Sensitivity: the KL divergence predicted per unit of a tensor's relative error.

Knows the shipped priors per class of tensor; neither errors nor types. Sensitivities measured on the model at
hand are a mapping of the same shape, and take their place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# Predicted KLD per unit of relative error, when all tensors of a class have that error; a tensor
# gets an equal part of its class. First match wins. Geometric means of the classes' shares measured
# on two trained miniatures and of those published for DeepSeek-V3.1 (docs/quantizer.md).
SENSITIVITY: list[tuple[str, float]] = [
    (r"^output\.weight$", 1.20),
    (r"^token_embd\.weight$", 0.19),
    (r"attn_kv_a_mqa", 0.18),
    (r"attn_(k_b|v_b)", 0.19),
    (r"attn_q", 0.13),
    (r"attn_output", 0.12),
    (r"_shexp", 0.16),
    (r"ffn_down_exps", 0.22),
    (r"ffn_(gate|up)_exps", 0.22),
    (r"", 0.08),
]


def sensitivities(names: Iterable[str]) -> dict[str, float]:
    """Predicted KLD per unit of relative error of each tensor, from the priors of the classes.

    Args:
        names: all tensors that may lose bits: a class is shared by those of them in it.
    """
    classes = {name: class_of(name) for name in names}
    members = Counter(classes.values())
    found = {name: SENSITIVITY[c][1] / members[c] for name, c in classes.items()}
    if "output.weight" not in found and "token_embd.weight" in found:
        found["token_embd.weight"] += SENSITIVITY[0][1]  # it is the head, too
    return found


def class_of(name: str) -> int:
    """The number of a tensor's class: the first pattern that matches."""
    return next(i for i, (pattern, _) in enumerate(SENSITIVITY) if re.search(pattern, name))
