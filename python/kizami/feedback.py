"""A pass over the calibration text, layer by layer: how the inputs of every linear layer go together.

Error feedback (docs/quantizer.md) rounds a weight with the errors of the weights before it in mind, as
far as their inputs are correlated. So it wants the second moments ``sum of x xᵀ``: too many numbers to
keep for a whole model, and therefore all windows pass through one layer at a time, and whoever measures or
rounds that layer takes its moments before the next one begins. Where memory is short, a few of a layer's
experts at a time, and what waits meanwhile waits on disk; the numbers are the same.

Knows models, sources and outputs, and statistics; neither types nor files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count

import numpy as np

from kizami.embedding import NAME, Embedded, metric
from kizami.engine import Model
from kizami.memory import UNLIMITED, Cut
from kizami.moments import Moments, Statistics
from kizami.passage import Alone, Beside
from kizami.progress import Progress
from kizami.spill import Spill
from kizami.stream import Stream
from kizami.written import Output

IN_MEMORY = Spill()


def layers(
    model: Model,
    ids: np.ndarray,
    *,
    done: Collection[str] = (),
    stage: str = "feedback",
    moments: bool = True,
    cut: Cut = UNLIMITED,
    progress: Progress | None = None,
    output: Output | None = None,
) -> Iterator[tuple[list[str], Statistics]]:
    """Passes windows through the model one layer at a time: attention, then the rest.

    Args:
        model: best the unquantized source, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]``.
        done: names of tensors that need none; windows pass through their layers all the same, up to the last
            layer that has others.
        stage: what the pass is called.
        moments: whether to gather second moments, too, and not only the imatrix.
        cut: how the work is cut to fit in memory; the numbers do not depend on it.
        progress: called with (stage, steps done, in total).
        output: what is written of the model: what is ``done``, and whatever was yielded when the next is
            asked for. Then moments are of what the written model takes in, with how that differs from what
            the source does (:mod:`kizami.passage`).

    Yields:
        First the token embedding's name and what stands for its moments; then names of some of a layer's
        tensors and their moments, those of attention before the others; last the head's. None that are
        ``done``.

    Raises:
        InputOutputError: what was to wait on disk cannot be written.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.source.items()}
    blocks = [f"blk.{i}." for i in range(len(model.decoder.layers))]

    def wanted(start: str) -> list[str]:
        return sorted(name for name in shapes if name.startswith(start) and name not in done)

    head = wanted("output")
    needed = [i for i, prefix in enumerate(blocks) if head or wanted(prefix)]
    stack = list(zip(blocks, model.decoder.layers, strict=True))[: max(needed, default=-1) + 1]
    if moments and wanted(NAME):
        yield [NAME], Embedded(metric(model, ids))
    if not stack:
        return
    parts = [cut.parts(layer.feed_forward.experts) for _, layer in stack]
    steps = -(-len(ids) // cut.windows) * (sum(len(part) + 1 for part in parts) + bool(head))
    step = count(1)

    def passed() -> None:
        if progress:
            progress(stage, next(step), steps)

    def observe(names: Sequence[str], spill: Spill) -> Moments:
        return Moments(names, shapes, spill, second=moments)

    with Spill(cut.folder) as spill:
        passage = Alone(Stream(model.decoder, model, ids, cut, spill, passed))
        if output is not None:
            second = Stream(output.decoder(), model, ids, cut, spill, lambda: None)
            passage = Beside(passage.stream, second, output)
        for number, ((prefix, layer), part) in enumerate(zip(stack, parts, strict=True)):
            names = wanted(prefix + "attn")
            found = observe(names, IN_MEMORY)
            passage.attend(layer, found)
            found.take()
            cut.release(model.source)
            if names:
                yield names, found
            del found  # not to be held while the next ones are gathered
            passage.attention_is_written(number)
            rest = [name for name in wanted(prefix) if name not in names]
            for names, passes in passage.steps(rest):
                with Spill(cut.folder if len(part) > 1 else None) as waiting:
                    found = observe(names, waiting)
                    for first, end in part:
                        passes(number, layer.feed_forward, found, first, end)
                        found.take()
                        cut.release(model.source)
                    if names:
                        yield names, found
                    del found
            passage.layer_is_written(number)
        if head:
            found = observe(head, IN_MEMORY)
            passage.head(model.decoder.head, found)
            found.take()
            yield head, found
