"""How a pass over a model is cut so that it fits in memory, and what the smallest cut would take.

Knows: shapes, counts of bytes, and where they peak. Does not know: how anything is computed. Counts are
upper bounds: what is counted together is not always there together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kizami import moments
from kizami.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]

# Windows that run together: their tokens share each expert's decoded weights.
TOGETHER = 4
# Experts of a part that leave what all parts do over again, norm and router, small beside their own work.
ENOUGH = 8
# What the interpreter, libraries and allocators take beyond what is counted.
SLACK = 128 << 20
# What a piece of a tensor takes while it is encoded (feedback.PIECE): its new bytes, at most as floats.
PIECE_BYTES = 4 << 24


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
    """Bytes that one layer takes: of attention, of what else all tokens pass, and for each of its experts.

    Attributes:
        passing: weights in use, inputs and outputs of the tokens that run together.
        moments: sums of what is observed.
        rounding: what making the largest curvature and a piece of a tensor takes besides.
    """

    passing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    moments: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    rounding: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    n_expert: int = 0

    def total(self, cut: Cut) -> int:
        """At its peak, with a cut of the work."""
        together = self.n_expert if cut.experts is None else min(cut.experts, self.n_expert)
        rest, own = self.moments["rest"], self.moments["expert"]
        waiting = self.n_expert * own if together == self.n_expert else 0
        return max(
            self.moments["attention"] + max(self.passing["attention"], self.rounding["attention"]),
            rest + self.passing["rest"] + together * (own + self.passing["expert"]),
            rest + waiting + max(self.rounding["rest"], self.rounding["expert"]),
        )


@dataclass(frozen=True)
class Need:
    """Bytes that a pass takes at its peak.

    Attributes:
        base: what there is already, and what stays: the process, the imatrix.
        waiting: hidden states of all windows; on disk in a cut with a folder.
        layers: what each layer takes.
    """

    base: int
    waiting: int
    layers: list[LayerNeed]

    def total(self, cut: Cut) -> int:
        """With a cut of the work."""
        waiting = self.waiting if cut.folder is None else 0
        return self.base + waiting + max((layer.total(cut) for layer in self.layers), default=0)


def need(source: Any, n_used: int, n_ctx: int, n_windows: int, windows: int = TOGETHER) -> Need:
    """What a pass with second moments takes.

    Args:
        source: an open model.
        n_used: experts that each token uses.
        n_ctx: tokens of a window.
        n_windows: of the text.
        windows: that run together.
    """
    tensors = {name: source[name] for name in source if name.startswith("blk.")}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    d = source["token_embd.weight"].shape[1]
    tokens, imatrix = windows * n_ctx, 0
    layers: dict[str, LayerNeed] = {}
    seen = set[str]()
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        layer = layers.setdefault(name.split(".")[1], LayerNeed())
        *stack, rows, cols = [1, 1, *shape][-3:]
        n_mat, own = stack[0], 8 * cols * cols
        imatrix += 4 * n_mat * cols
        weights = math.ceil(tensors[name].nbytes / n_mat)
        part = "attention" if ".attn" in name else "expert" if "_exps" in name else "rest"
        # A mean in f64, in f32, the matrix that is factored, the factor.
        layer.rounding[part] = max(layer.rounding[part], int(own * 2.25) + PIECE_BYTES)
        observed = moments.observed_as(name, shapes)
        if part == "expert":
            layer.n_expert = max(layer.n_expert, n_mat)
            layer.passing[part] += weights + 8 * tokens * n_used * (rows + cols) // n_mat
        else:
            layer.passing[part] += n_mat * (weights + 4 * tokens * (rows + cols))
        if observed not in seen:
            seen.add(observed)
            by_expert = "_exps" in observed
            layer.moments["expert" if by_expert else part] += own if by_expert else n_mat * own
    for layer in layers.values():
        layer.passing["rest"] += 24 * tokens * d
    base = psutil.Process().memory_info().rss + imatrix + SLACK
    return Need(base, 8 * n_windows * n_ctx * d, list(layers.values()))


def least(model: Any, ids_shape: tuple[int, ...]) -> int:
    """Bytes of the smallest cut of a pass; arguments as for :func:`cut_to`."""
    return _needed(model, ids_shape, 1).total(Cut(1, 1, Path(), lean=True))


def cut_to(limit: int | None, model: Any, ids_shape: tuple[int, ...], folder: Path) -> Cut:
    """The fastest cut of a pass within a limit.

    Args:
        limit: bytes that the process may take; None for any number.
        model: a loaded model.
        ids_shape: ``(n_windows, n_ctx)``.
        folder: where files may wait.

    Raises:
        UsageError: no cut is small enough; the smallest is named.
    """
    if limit is None:
        return UNLIMITED
    n_expert = max((layer.feed_forward.experts for layer in model.decoder.layers), default=0)
    found: list[Cut] = []
    for windows in (TOGETHER, 1):
        needed = _needed(model, ids_shape, windows)
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
        f"max-memory: found {limit:,} bytes, expected at least {least(model, ids_shape):,}",
        hint="fewer tokens at a time (--ctx) take less",
    )


def _needed(model: Any, ids_shape: tuple[int, ...], windows: int) -> Need:
    n_windows, n_ctx = ids_shape
    n_used = getattr(model.config, "n_expert_used", 0)
    return need(model.source, n_used, n_ctx, n_windows, min(windows, n_windows))
