"""How the windows of a calibration text pass a model, and who sees what its layers take in.

Alone, they show their inputs. Beside what is written of the model so far, it is the windows that passed what
is written whose inputs are taken, and with them what these differ by from the source's: rounding can then
make up for what all layers before have lost (GPTAQ, arXiv 2504.02692). A layer is written in three steps:
attention, then all gates and ups, then all downs. To see what a step takes in, the written stream runs
through what earlier steps have written, and through the source's own weights for the rest of the layer.
Without the third, which sees what rounding did to gates and ups, half of what this is worth was lost.

Knows the two streams. Does not know how they are cut (stream.py), nor what is made of what is seen
(moments.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kizami.layers import FfnBlock, Head
from kizami.models.decoder import Layer
from kizami.moments import Moments
from kizami.stream import Stream
from kizami.written import Output

# Of a layer's number and networks, the first expert of a part and the one after its last.
Step = Callable[[int, FfnBlock, Moments, int, int], None]


class Alone:
    """Windows that pass a source.

    Args:
        stream: they.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def attend(self, layer: Layer, moments: Moments) -> None:
        """They pass a layer's attention."""
        self.stream.attend(layer, moments.observer)

    def steps(self, names: Sequence[str]) -> list[tuple[list[str], Step]]:
        """How they pass the networks of a layer: which of its tensors are observed, and written, together."""
        return [(list(names), self._pass)]

    def head(self, head: Head, moments: Moments) -> None:
        """They show what the head takes in."""
        for i in range(len(self.stream.groups)):
            self.stream.show_head(i, head, moments.observer)

    def attention_is_written(self, number: int) -> None:
        """Whoever rounds a layer is done with its attention."""

    def layer_is_written(self, number: int) -> None:
        """Whoever rounds a layer is done with it."""

    def _pass(self, number: int, block: FfnBlock, moments: Moments, first: int, end: int) -> None:
        self.stream.feed_forward(block, moments.observer, first, end)


class Beside(Alone):
    """Windows that pass a source and, beside it, what is written of it.

    Args:
        stream: through the source.
        second: the same windows through the output.
        output: what is written so far.
    """

    def __init__(self, stream: Stream, second: Stream, output: Output) -> None:
        super().__init__(stream)
        self._second, self._output = second, output
        self._written: FfnBlock | None = None
        output.let_go()

    def attend(self, layer: Layer, moments: Moments) -> None:
        if not moments.observed:
            super().attend(layer, moments)
            return
        for i in range(len(self.stream.groups)):
            source = moments.source()
            self.stream.attend_group(i, layer, source)
            moments.observer.follow(source)
            self._second.show_attention(i, layer, moments.observer)

    def steps(self, names: Sequence[str]) -> list[tuple[list[str], Step]]:
        downs = [name for name in names if ".ffn_down" in name]
        return [([name for name in names if name not in downs], self._show_gates), (downs, self._pass)]

    def head(self, head: Head, moments: Moments) -> None:
        for i in range(len(self.stream.groups)):
            source = moments.source()
            self.stream.show_head(i, head, source)
            moments.observer.follow(source)
            self._second.show_head(i, head, moments.observer)

    def attention_is_written(self, number: int) -> None:
        self._second.attend(self._output.decoder().layers[number], None)
        self._output.let_go()

    def layer_is_written(self, number: int) -> None:
        self._written = None  # views of a file that will be renamed
        self._second.pass_experts(self._output.decoder().layers[number], self._output.let_go)

    def _show_gates(self, number: int, block: FfnBlock, moments: Moments, first: int, end: int) -> None:
        for i in range(len(self.stream.groups) if moments.observed else 0):
            source = moments.source()
            self.stream.show_experts(i, block, source, first, end, hidden=False)
            moments.observer.follow(source)
            self._second.show_experts(i, block, moments.observer, first, end, hidden=False)

    def _pass(self, number: int, block: FfnBlock, moments: Moments, first: int, end: int) -> None:
        if not moments.observed:
            super()._pass(number, block, moments, first, end)
            return
        if first == 0 or self._written is None:
            self._written = self._output.decoder().layers[number].feed_forward
        for i in range(len(self.stream.groups)):
            source = moments.source()
            self.stream.feed_forward_group(i, block, source, first, end)
            moments.observer.follow(source)
            self._second.show_experts(i, self._written, moments.observer, first, end, hidden=True)
        self._output.let_go()
