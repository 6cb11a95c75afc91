"""The pieces a model file is built from: thin names over blocks that run in Rust.

A layer is two calls, each a whole block: attention with its norm and residual, feed-forward with
its norm and residual. That is how coarse the boundary to Rust is; what a block computes is written
at the heads of the files in ``rust/kernels/src/ops/``. Nothing here does arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kizami import _core
from kizami._core import Cache, FfnBlock, Gqa, Head, Mla, Observer

__all__ = ["Batch", "Cache", "FfnBlock", "Gqa", "Head", "Mla", "Observer", "Segment"]


@dataclass(frozen=True)
class Segment:
    """Some consecutive tokens of one sequence: a prompt, a part of one, or the newest token.

    ``wanted`` says how many tokens at its end need logits.
    """

    ids: Sequence[int] | np.ndarray
    cache: _core.Cache
    wanted: int = 1


class Batch:
    """What one step of a model works on: segments of any number of sequences.

    ``activations`` is ``"int8"`` (fast) or ``"f32"`` (no rounding of activations: calibration, and
    the reference that quality is measured against). ``observer`` collects the imatrix.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        activations: str = "int8",
        observer: _core.Observer | None = None,
    ) -> None:
        self.ids = np.concatenate([np.asarray(s.ids, dtype=np.uint32) for s in segments])
        self.caches = [s.cache for s in segments]
        self.lens = [len(s.ids) for s in segments]
        self.activations = activations
        self.observer = observer
        ends = np.cumsum(self.lens)
        self.wanted = np.concatenate(
            [np.arange(end - s.wanted, end) for s, end in zip(segments, ends, strict=True)]
        )

    def embed(self, head: _core.Head) -> np.ndarray:
        """Hidden states ``[n, d]`` of the batch's tokens."""
        return head.embed(self.ids)

    def attend(self, x: np.ndarray, block: _core.Mla | _core.Gqa) -> None:
        """Adds a layer's attention to ``x``; appends to the caches."""
        block.forward(x, self.caches, self.lens, self.activations, self.observer)

    def feed_forward(self, x: np.ndarray, block: _core.FfnBlock) -> None:
        """Adds a layer's feed-forward network to ``x``."""
        block.forward(x, self.activations, self.observer)

    def feed_forward_part(
        self, x: np.ndarray, sums: np.ndarray, block: _core.FfnBlock, first: int, end: int
    ) -> None:
        """As :meth:`feed_forward`, for experts ``first`` to ``end`` only: adds what they give to ``sums``.

        With the last ones ``sums`` goes to ``x``, and with it what all tokens pass. The same bits as all
        together.
        """
        last = end == block.experts
        block.forward_part(
            x, sums, first, end, last=last, activations=self.activations, observer=self.observer
        )

    def show(self, x: np.ndarray, block: _core.FfnBlock, first: int, end: int, *, hidden: bool) -> None:
        """Shows the observer what experts ``first`` to ``end`` would take in, down only if ``hidden``; ``x``
        stays."""
        assert self.observer is not None
        block.show(
            x,
            first,
            end,
            self.observer,
            last=end == block.experts,
            hidden=hidden,
            activations=self.activations,
        )

    def logits(self, x: np.ndarray, head: _core.Head) -> np.ndarray:
        """Logits ``[wanted, vocab]``; declares the batch's tokens complete in their caches."""
        for cache, length in zip(self.caches, self.lens, strict=True):
            cache.advance(length)
        rows = x if len(self.wanted) == len(x) else np.ascontiguousarray(x[self.wanted])
        return head.logits(rows, self.activations, self.observer)
