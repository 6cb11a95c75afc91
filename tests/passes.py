"""What a pass over a text has gathered, for those who want the numbers themselves."""

from __future__ import annotations

import numpy as np


def sums_of(layers):
    """Sums of ``x xᵀ`` float64 ``[n_mat, cols, cols]`` and tokens ``[n_mat]``, by the name of what was
    observed."""
    found = {}
    for _, moments in layers:
        for name, stack in getattr(moments, "stacks", {}).items():  # the embedding has none
            found[name] = np.stack([stack.sums(i) for i in range(len(stack))]), stack.tokens
    return found
