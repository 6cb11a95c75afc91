"""How far what a job has written is from its source: measured while it writes, so no further pass is needed.

Windows that rounding does not see pass each layer twice when it is finished: the source's, and the one that
was written. At the end both have logits. Knows two streams and their distance; neither files nor when a
layer is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kizami.engine import Model
from kizami.evaluate import log_softmax
from kizami.memory import Cut, held_out
from kizami.moments import Statistics
from kizami.spill import Spill
from kizami.stream import Stream
from kizami.written import Output


@dataclass(frozen=True)
class Verified:
    """Mean KL divergence of the written model to its source in nats, to three digits, and over how many
    tokens; without any, why.
    """

    kld: float | None = None
    tokens: int = 0
    note: str = ""


UNVERIFIED = Verified(note="weights are rounded without error feedback")


def verification_windows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows to round on and windows to verify on, ``[n_windows, n_ctx]`` each, the latter spread over the
    text."""
    if not (count := held_out(len(ids))):
        return ids, ids[:0]
    apart = np.unique(np.linspace(0, len(ids) - 1, count + 2).round().astype(int)[1:-1])
    return np.delete(ids, apart, axis=0), ids[apart]


class Verification:
    """Two streams of the same windows, through a source and through what is made of it.

    Args:
        model: the source, with float activations.
        output: what is made of it; a layer is read when it is passed.
        ids: windows ``[n_windows, n_ctx]``; with none of them there is nothing to do.
        cut: how windows and experts are cut to fit in memory.
        spill: where windows wait.
    """

    def __init__(
        self,
        model: Model,
        output: Output,
        ids: np.ndarray,
        cut: Cut,
        spill: Spill,
    ) -> None:
        self._model, self._output, self._ids = model, output, ids
        self._cut, self._spill = cut, spill
        self._passed = 0
        self._streams: tuple[Stream, Stream] | None = None

    def follow(
        self, layers: Iterator[tuple[list[str], Statistics]]
    ) -> Iterator[tuple[list[str], Statistics]]:
        """The layers, each passed by both streams when whoever takes them comes back for the next."""
        for names, moments in layers:
            number = names[0].split(".")[1] if names[0].startswith("blk.") else ""
            if number.isdecimal():
                self._pass_to(int(number))
            yield names, moments
            del moments  # not to be held while the next layer's are gathered

    def result(self) -> Verified:
        """When all is written. What went wrong is told, not raised: the file stands, and took long to
        make."""
        if not len(self._ids):
            return Verified(note="the text has one window, and none could be kept apart")
        self._pass_to(len(self._model.decoder.layers))
        assert self._streams is not None
        source, written, klds = self._model.decoder.head, self._output.decoder().head, []
        for x, y in zip(*(stream.scored() for stream in self._streams), strict=True):
            p, q = (log_softmax(head.logits(rows, "f32")) for head, rows in ((source, x), (written, y)))
            for whose, logits in (("source", p), ("written model", q)):
                if not np.isfinite(logits).all():
                    return Verified(note=f"logits of the {whose} are not finite")
            klds.append((np.exp(p) * (p - q)).sum(axis=1))
        kld = np.concatenate(klds)
        return Verified(float(f"{kld.mean():.3g}"), len(kld))

    def _pass_to(self, layer: int) -> None:
        """Both streams through all layers before this one."""
        if not len(self._ids) or (self._streams is not None and self._passed >= layer):
            return
        decoder = self._output.decoder()
        if self._streams is None:
            quiet: Callable[[], None] = lambda: None  # noqa: E731
            source, written = (
                Stream(made, self._model, self._ids, self._cut, self._spill, quiet)
                for made in (self._model.decoder, decoder)
            )
            self._streams = source, written
            self._output.let_go()
        for number in range(self._passed, layer):
            for made, stream in zip((self._model.decoder, decoder), self._streams, strict=True):
                stream.pass_layer(made.layers[number], self._output.let_go)
        self._passed = max(self._passed, layer)
