"""Hidden states of many windows between two layers of a model, which they pass one layer at a time.

Knows how windows go through a layer, all its experts together or some at a time, where they wait between, and
which of their tokens are scored. Does not know what is looked for in them (feedback.py, probe.py, verify.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kizami.engine import Model
from kizami.evaluate import scored_rows
from kizami.layers import Batch, FfnBlock, Head, Observer, Segment
from kizami.memory import LOGIT_ROWS, Cut
from kizami.models import Architecture
from kizami.models.decoder import Layer
from kizami.spill import Kept, Spill


class Stream:
    """Windows of token ids ``[n_windows, n_ctx]`` before the first layer of a model.

    Args:
        decoder: whose layers they will pass.
        model: has its caches and the type of its activations.
        cut: how many windows and experts run together, and whether weights leave memory.
        spill: what they wait in.
        passed: called when some of the windows have passed something.

    Attributes:
        groups: of windows that run together.
    """

    def __init__(
        self,
        decoder: Architecture,
        model: Model,
        ids: np.ndarray,
        cut: Cut,
        spill: Spill,
        passed: Callable[[], None],
    ) -> None:
        self.groups = [ids[i : i + cut.windows] for i in range(0, len(ids), cut.windows)]
        self._model, self._spill, self._passed = model, spill, passed
        self._cut = cut
        self._hidden = [spill.keep(self._batch(group).embed(decoder.head)) for group in self.groups]
        self._sums: list[Kept] = []
        cut.release(model.source)

    def attend(self, layer: Layer, observer: Observer | None) -> None:
        """All windows pass a layer's attention."""
        for i in range(len(self.groups)):
            self.attend_group(i, layer, observer)

    def attend_group(self, i: int, layer: Layer, observer: Observer | None) -> None:
        """One group of windows passes a layer's attention."""
        x = self._hidden[i].get()
        self._batch(self.groups[i], observer).attend(x, layer.attention)
        self._hidden[i].set(x)
        self._passed()

    def show_attention(self, i: int, layer: Layer, observer: Observer) -> None:
        """What one group would show if it passed; it stays where it is."""
        self._batch(self.groups[i], observer).attend(self._hidden[i].get().copy(), layer.attention)

    def feed_forward(self, block: FfnBlock, observer: Observer | None, first: int, end: int) -> None:
        """All windows pass some experts of a layer's other half; with the last of them they have passed it
        all."""
        for i in range(len(self.groups)):
            self.feed_forward_group(i, block, observer, first, end)

    def feed_forward_group(
        self, i: int, block: FfnBlock, observer: Observer | None, first: int, end: int
    ) -> None:
        """One group of windows passes some experts."""
        whole, last = (first, end) == (0, block.experts), end == block.experts
        x, batch = self._hidden[i].get(), self._batch(self.groups[i], observer)
        if whole:
            batch.feed_forward(x, block)
        else:
            sums = self._sums[i].get() if first else np.zeros_like(x)
            batch.feed_forward_part(x, sums, block, first, end)
            if not last:
                self._keep_sums(i, sums)
        if last:
            self._hidden[i].set(x)
        self._passed()

    def show_experts(
        self, i: int, block: FfnBlock, observer: Observer, first: int, end: int, *, hidden: bool
    ) -> None:
        """What some experts would take in if one group passed: it stays where it is; down if ``hidden``."""
        self._batch(self.groups[i], observer).show(self._hidden[i].get(), block, first, end, hidden=hidden)

    def pass_layer(self, layer: Layer, release: Callable[[], None]) -> None:
        """All windows pass a layer that nobody observes; after each of its parts ``release`` is called."""
        self.attend(layer, None)
        release()
        self.pass_experts(layer, release)

    def pass_experts(self, layer: Layer, release: Callable[[], None]) -> None:
        """All windows pass the other half of a layer that nobody observes."""
        block = layer.feed_forward
        for first, end in self._cut.parts(block.experts):
            self.feed_forward(block, None, first, end)
            release()

    def show_head(self, i: int, head: Head, observer: Observer) -> None:
        """What a head takes in of one group."""
        head.observe(self._hidden[i].get(), observer)
        self._passed()

    def scored(self) -> Iterator[np.ndarray]:
        """Hidden states ``[tokens, d]`` of the tokens that are scored, as they are now: window by window, as
        many together as logits may be."""
        for kept, group in zip(self._hidden, self.groups, strict=True):
            for window in kept.get().reshape(*group.shape, -1):
                rows = window[scored_rows(len(window))]
                yield from (rows[i : i + LOGIT_ROWS] for i in range(0, len(rows), LOGIT_ROWS))

    def _keep_sums(self, i: int, sums: np.ndarray) -> None:
        if i == len(self._sums):
            self._sums.append(self._spill.keep(sums))
        else:
            self._sums[i].set(sums)

    def _batch(self, group: np.ndarray, observer: Observer | None = None) -> Batch:
        segments = [Segment(window, self._model.new_cache(), len(window)) for window in group]
        return Batch(segments, activations=self._model.activations, observer=observer)
