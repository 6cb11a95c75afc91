"""How a pass over a model is cut so that it fits in memory, and what the smallest cut would take.

Knows: shapes, counts of bytes, and where they peak. Does not know: how anything is computed. Counts are
estimates that mean to err upwards: what is counted together is not always there together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from kizami import moments
from kizami.errors import UsageError
from kizami.formats import nbytes

# Windows that run together: their tokens share each expert's decoded weights.
TOGETHER = 4
# Windows held out for verification, at most, and one of so many.
HELD_OUT, SHARE = 16, 16
# Experts of a part that leave what all parts do over again, norm and router, small beside their own work.
ENOUGH = 8
# What the interpreter, libraries and allocators take beyond what is counted.
SLACK = 128 << 20
# Inputs that wait to be added to sums.
PENDING = 256
# Weights of a tensor that are encoded together: what is made of them is written and forgotten.
PIECE = 1 << 24
# Experts that are sampled at a time, at most. The curvature of each takes a quarter of its moments, and the
# metrics of its blocks of 256 and 32 columns with every eight by themselves, bytes by column.
SAMPLED = 12
METRICS = 4 * (256 + 32 + 2 * 9)
# Where experts have moments of their own: the mean of all, that of the layer, the one drawn to it, in moments
# of one expert.
BORROWED = 3
# What making a curvature takes, in moments: a mean in f32, the matrix that is factored, the factor; with
# inputs to follow the first twice, and what is solved for them before and after it is packed. Besides, a mean
# in f64, which takes the place of the sums where these serve nobody else.
MAKING = {1: 1.25, 2: 1.375}
# Rows of logits that are compared together, and arrays of them in f64: of both models, and on the way to
# their divergence.
LOGIT_ROWS = 64
LOGIT_ARRAYS = 6


@dataclass(frozen=True)
class Cut:
    """How much of a pass goes on at a time. Results do not depend on it.

    Attributes:
        windows: that run together.
        experts: of a layer that run together; None for all.
        folder: where what waits is kept on disk; None for in memory.
        lean: whether weights leave memory as soon as they have been used. The system would take them when it
            needs memory; this way nobody sees more.
    """

    windows: int = TOGETHER
    experts: int | None = None
    folder: Path | None = None
    lean: bool = False

    def parts(self, n_expert: int) -> list[tuple[int, int]]:
        """First expert of each part of a layer, and the one after its last; a layer without any is one
        part."""
        step = max(self.experts or n_expert, 1)
        return [(i, min(i + step, n_expert)) for i in range(0, n_expert, step)] or [(0, 0)]

    def release(self, source: Any) -> None:
        """Lets go of the pages of a source's files, where memory is short."""
        if self.lean:
            source.release()


UNLIMITED = Cut()
# What a layer is made of, as memory sees it.
PARTS = ("attention", "rest", "expert")


@dataclass
class LayerNeed:
    """Bytes that one layer takes: of attention, of what else all tokens pass, and of its experts, for each
    of them.

    Attributes:
        passing: weights in use, inputs and outputs of the tokens that run together; of an expert its weights.
        chosen: inputs and outputs of an expert if all tokens chose it.
        moments: sums of what is observed.
        rounding: what making the largest curvature and a piece of a tensor takes besides.
    """

    passing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    moments: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    rounding: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    chosen: int = 0
    n_expert: int = 0

    def total(self, cut: Cut, n_used: int) -> int:
        """At its peak, with a cut of the work; of ``n_used`` experts that each token chooses."""
        together = self.n_expert if cut.experts is None else min(cut.experts, self.n_expert)
        rest, own = self.moments["rest"], self.moments["expert"]
        waiting = self.n_expert * own if together == self.n_expert else 0
        experts = together * self.passing["expert"] + min(together, n_used) * self.chosen
        return max(
            # While its moments are held, the layer before it is verified.
            self.moments["attention"] + max(*self.passing.values(), experts, self.rounding["attention"]),
            rest + self.passing["rest"] + together * own + experts,
            rest + waiting + max(self.rounding["rest"], self.rounding["expert"]),
        )


class Budget(Protocol):
    """What cuts are compared by."""

    def total(self, cut: Cut) -> int:
        """Bytes in memory, with a cut of the work."""
        ...

    def on_disk(self, cut: Cut) -> int:
        """Bytes in files, with a cut of the work."""
        ...


@dataclass(frozen=True)
class Need:
    """Bytes that a pass takes at its peak.

    Attributes:
        base: what there is already, and what stays: the process, the imatrix, what probes hold.
        waiting: hidden states of all windows, and logits of probes; on disk in a cut with a folder.
        layers: what each layer takes, and both ends of the model.
        n_used: experts that each token chooses.
    """

    base: int
    waiting: int
    layers: list[LayerNeed]
    n_used: int

    def total(self, cut: Cut) -> int:
        """In memory, with a cut of the work."""
        waiting = self.waiting if cut.folder is None else 0
        return self.base + waiting + max(layer.total(cut, self.n_used) for layer in self.layers)

    def on_disk(self, cut: Cut) -> int:
        """In files, with a cut of the work."""
        if cut.folder is None:
            return 0
        return self.waiting + max(layer.n_expert * layer.moments["expert"] for layer in self.layers)


@dataclass(frozen=True)
class Largest:
    """What passes that follow one another take."""

    needs: tuple[Need, ...]

    def total(self, cut: Cut) -> int:
        """In memory, with a cut of the work."""
        return max(one.total(cut) for one in self.needs)

    def on_disk(self, cut: Cut) -> int:
        """In files, with a cut of the work."""
        return max(one.on_disk(cut) for one in self.needs)


def need(
    model: Any, ids_shape: tuple[int, ...], windows: int, surveyed: bool, beside: bool = False
) -> Budget:
    """What passes with second moments take.

    Args:
        model: a loaded model.
        ids_shape: ``(n_windows, n_ctx)`` of the text, windows that are kept for verification among them.
        windows: that run together.
        surveyed: whether there is a survey, which may end in probes.
        beside: whether, in a pass after that, windows pass what is written, too, and inputs of both are
            compared: there are twice as many moments, and what is made of them. Without either, the pass is
            for an imatrix: there are none.
    """
    held = held_out(ids_shape[0]) if beside else 0
    if not beside:
        return _need(model, ids_shape, windows, surveyed, 1 if surveyed else 0, held)
    first = _need(model, ids_shape, windows, surveyed, 1, held)
    return Largest((first, _need(model, ids_shape, windows, False, 2, held)))


def held_out(n_windows: int) -> int:
    """How many windows of a text are held out for verification: none of a single one."""
    return min(-(-n_windows // SHARE), HELD_OUT) if n_windows > 1 else 0


def _need(
    model: Any, ids_shape: tuple[int, ...], windows: int, surveyed: bool, moments_of: int, held: int
) -> Need:
    """Of one pass, with moments of so many streams of windows, while ``held`` of these are held out."""
    source, n_layer = model.source, len(model.decoder.layers)
    n_windows, n_ctx = ids_shape
    both = max(moments_of, 1)
    tokens, imatrix = min(windows, n_windows) * n_ctx, 0
    n_vocab, d = source["token_embd.weight"].shape
    tensors = {f"blk.{i}.": LayerNeed() for i in range(n_layer)}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in source.items()}
    seen = set[str]()
    for name, shape in shapes.items():
        layer = tensors.get(".".join(name.split(".")[:2]) + ".")
        if layer is None or len(shape) < 2:
            continue
        n_mat, rows, cols = [1, 1, *shape][-3:]
        # Sums, and inputs that are not in them yet: three times as many with those they are compared with.
        own = 8 * cols * cols * both + 4 * PENDING * cols * (2 * both - 1) if moments_of else 0
        imatrix += 4 * n_mat * cols
        weights = math.ceil(source[name].nbytes / n_mat)
        part = "attention" if ".attn" in name else "expert" if "_exps" in name else "rest"
        observed = moments.observed_as(name, shapes)
        by_expert = "_exps" in observed
        borrowed = BORROWED if by_expert else 0
        # A survey samples some experts together, before the pass beside what is written.
        sampled = SAMPLED if by_expert and both == 1 else 0
        mean = 0 if n_mat == 1 and not moments.borrowed_from(observed) else 1
        largest = int(own * (MAKING[both] + mean + borrowed + sampled / 4))
        largest += (1 + sampled) * METRICS * cols + 4 * PIECE
        if moments_of:
            layer.rounding[part] = max(layer.rounding[part], largest)
        if part == "expert":
            layer.n_expert = max(layer.n_expert, n_mat)
            layer.passing[part] += weights
            layer.chosen += both * 8 * tokens * (rows + cols)
        else:
            layer.passing[part] += n_mat * (weights + both * 4 * tokens * (rows + cols))
        if observed not in seen:
            seen.add(observed)
            layer.moments["expert" if by_expert else part] += own if by_expert else n_mat * own
    for layer in tensors.values():
        layer.passing["rest"] += both * 24 * tokens * d
    # The head's moments, the embedding's metric; two heads, and the logits that are compared.
    ends = LayerNeed()
    if moments_of:
        ends.moments["rest"] = both * 8 * d * d
        ends.rounding["rest"] = both * 3 * 8 * d * d + 4 * PIECE
    head = source["output.weight" if "output.weight" in source else "token_embd.weight"]
    ends.passing["rest"] = 2 * head.nbytes + 8 * LOGIT_ROWS * LOGIT_ARRAYS * n_vocab
    source.release()  # what is mapped so far does not stay
    copy, logits = _probes(model, (n_windows - held, n_ctx)) if surveyed else (0, 0)
    base = psutil.Process().memory_info().rss + imatrix + SLACK + copy
    # Two arrays for each window and stream; two streams of those that are verified.
    waiting = 8 * n_ctx * d * (both * n_windows + 2 * held) + logits
    return Need(base, waiting, [*tensors.values(), ends], getattr(model.config, "n_expert_used", 0))


def _probes(model: Any, ids_shape: tuple[int, ...]) -> tuple[int, int]:
    """Where a model is small enough to be probed: a rounded copy of it, and its own logits."""
    from kizami.probe import probe_windows  # these know what runs a model, as this file does not
    from kizami.survey import probed_as

    _, apart = probe_windows(model, np.zeros(ids_shape, np.uint32))
    if not len(apart):
        return 0, 0
    types = {name: probed_as(name, tensor) for name, tensor in model.source.items()}
    copy = sum(nbytes(of, tuple(model.source[name].shape)) or 0 for name, of in types.items() if of)
    return copy, 2 * apart.size * model.source["token_embd.weight"].shape[0]


def least(model: Any, ids_shape: tuple[int, ...], surveyed: bool, beside: bool = False) -> int:
    """Bytes of the smallest cut of a pass; arguments as for :func:`need`."""
    return need(model, ids_shape, 1, surveyed, beside).total(Cut(1, 1, Path(), lean=True))


def cut_to(
    limit: int | None,
    model: Any,
    ids_shape: tuple[int, ...],
    folder: Path,
    surveyed: bool,
    beside: bool = False,
) -> Cut:
    """The fastest cut of a pass within a limit.

    Args:
        limit: bytes that the process may take; None for any number.
        model, ids_shape, surveyed, beside: as for :func:`need`.
        folder: where files may wait.

    Raises:
        UsageError: no cut is small enough; the smallest is named.
    """
    if limit is None:
        return UNLIMITED
    n_expert = max((layer.feed_forward.experts for layer in model.decoder.layers), default=0)
    found: list[Cut] = []
    for windows in (TOGETHER, 1):
        needed = need(model, ids_shape, windows, surveyed, beside)
        for kept in (None, folder):
            if needed.total(whole := Cut(windows, None, kept, lean=True)) <= limit:
                return whole
        # Not all experts, for then their moments would wait in memory.
        parts = (Cut(windows, experts, folder, lean=True) for experts in range(n_expert - 1, 0, -1))
        if part := next((cut for cut in parts if needed.total(cut) <= limit), None):
            found.append(part)
            if part.experts and part.experts >= ENOUGH:
                break
    if found:
        return max(found, key=lambda cut: cut.experts or 0)
    raise UsageError(
        f"max-memory: found {limit:,} bytes, expected at least {least(model, ids_shape, surveyed, beside):,}",
        hint="fewer tokens at a time (--ctx) take less",
    )
