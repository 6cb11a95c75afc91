"""The second pass over the calibration text: how the inputs of every linear layer go together.

Error feedback (docs/quantizer.md) rounds a weight with the errors of the weights before it in mind, as
far as their inputs are correlated. So it wants the second moments ``sum of x xᵀ``: too many numbers to
keep for a whole model, and therefore all windows pass through one layer at a time, and whoever rounds that
layer takes its moments before the next one begins. Knows models and statistics; neither types nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from kizami import _core
from kizami.engine import Model
from kizami.evaluate import TOGETHER
from kizami.layers import Batch, Observer, Segment

# Parts of a layer that take in the same: the moments of the first that a layer has serve all of them.
SAME_INPUT = (
    ("attn_kv_a_mqa", "attn_q_a", "attn_q"),
    ("attn_q", "attn_k", "attn_v"),
    ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp"),
    ("ffn_gate", "ffn_up"),
)
# An expert that saw this many tokens believes its own moments as much as its layer's.
SHRINKAGE = 512


def observed_as(name: str, names: set[str]) -> str:
    """The tensor of the same layer whose inputs are observed in place of those of ``name``."""
    prefix, _, part = name.removesuffix(".weight").rpartition(".")
    for group in SAME_INPUT:
        if part in group:
            found = (f"{prefix}.{other}.weight" for other in group)
            return next(other for other in found if other in names)
    return name


class Moments:
    """Second moments of the inputs of one layer's tensors, or of the head's."""

    def __init__(self, observer: Observer, names: set[str]) -> None:
        self._observer, self._names = observer, names
        self._curvatures: dict[str, list[_core.Curvature] | None] = {}

    def curvatures(self, name: str) -> list[_core.Curvature] | None:
        """What error feedback makes of the mean of ``x xᵀ`` of a tensor's inputs.

        Returns:
            One per matrix, or a single one where it is the same for all; None where nothing was seen.
        """
        observed = observed_as(name, self._names)
        if observed not in self._curvatures:
            means = self._means(observed)
            self._curvatures[observed] = None if means is None else [_core.Curvature(m) for m in means]
        return self._curvatures[observed]

    def _means(self, name: str) -> np.ndarray | None:
        """float64 ``[n_mat, cols, cols]``.

        Experts' own means are shrunk to that of all experts of the layer, the more the fewer tokens they saw.
        """
        found = self._observer.moments(name)
        if found is None:
            return None
        sums, tokens = found
        total = tokens.sum()
        if total == 0:
            return None
        if not name.endswith("_exps.weight"):
            return sums / np.maximum(tokens, 1.0)[:, None, None]
        layer = sums.sum(axis=0) / total
        return (sums + SHRINKAGE * layer) / (tokens + SHRINKAGE)[:, None, None]


def layers(
    model: Model,
    ids: np.ndarray,
    *,
    done: Collection[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[tuple[str, Moments]]:
    """Passes windows through the model one layer at a time.

    Args:
        model: best the unquantized source, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]``.
        done: names of tensors that need none; windows pass through their layers all the same, up to the last
            layer that has others.
        progress: called with (stage, windows times layers done, in total).

    Yields:
        What the names of a layer's tensors start with (``blk.3.``), and their moments, unless all of them are
        ``done``; last that of the head, whose names start with ``output``.
    """
    decoder = model.decoder
    names = set(model.tensors)
    groups = [ids[i : i + TOGETHER] for i in range(0, len(ids), TOGETHER)]

    def batch(group: np.ndarray, observer: Observer | None = None) -> Batch:
        segments = [Segment(window, model.new_cache(), len(window)) for window in group]
        return Batch(segments, activations=model.activations, observer=observer)

    def wanted(prefix: str) -> list[str]:
        return sorted(name for name in names if name.startswith(prefix) and name not in done)

    stages = [*(f"blk.{i}." for i in range(len(decoder.layers))), "output"]
    while stages and not wanted(stages[-1]):
        stages.pop()
    hidden = [batch(group).embed(decoder.head) for group in groups] if stages else []
    passed = 0
    for i, prefix in enumerate(stages):
        # With no observer at all attention would take its other form, whose last bits differ.
        seen = Observer(sorted({observed_as(name, names) for name in wanted(prefix)}))
        for x, group in zip(hidden, groups, strict=True):
            if prefix == "output":
                batch(group, seen).logits(x, decoder.head)
            else:
                decoder.layers[i](x, batch(group, seen))
            passed += len(group)
            if progress:
                progress("feedback", passed, len(ids) * len(stages))
        if wanted(prefix):
            yield prefix, Moments(seen, names)
