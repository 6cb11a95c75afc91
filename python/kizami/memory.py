"""How a pass over a model is cut so that it fits in memory, and what the smallest cut would take.

Knows: shapes, counts of bytes, and where they peak. Does not know: how anything is computed. Counts are
upper bounds: what is counted together is not always there together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
SLACK = 192 << 20
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


@dataclass(frozen=True)
class Need:
    """Bytes that a pass takes at its peak, with some cut of it.

    Attributes:
        base: what there is already, and what stays: the process, the imatrix.
        waiting: hidden states of all windows; on disk in a cut with a folder.
        attention: while one layer's attention is passed, rounded or measured.
        rest: likewise what no expert belongs to: dense networks, shared experts, the router.
        expert: for each expert of a part, while it is passed.
        rounding: while experts are rounded or measured one after the other.
        all_moments: of all experts of a layer, where they wait in memory.
    """

    base: int
    waiting: int
    attention: int
    rest: int
    expert: int
    rounding: int
    all_moments: int

    def total(self, n_expert: int, cut: Cut) -> int:
        """With a cut of it."""
        experts = n_expert if cut.experts is None else min(cut.experts, n_expert)
        kept = 0 if cut.folder is not None else self.waiting
        waiting = self.all_moments if experts == n_expert else 0
        passing = self.rest + experts * self.expert
        return self.base + kept + max(self.attention, passing, self.rest + waiting + self.rounding)


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
    tokens = windows * n_ctx
    layers: dict[str, list[str]] = {}
    for name in shapes:
        layers.setdefault(name.split(".")[1], []).append(name)
    attention = rest = expert = rounding = all_moments = imatrix = 0
    for names in layers.values():
        sums = {"attention": 0, "rest": 0, "expert": 0}
        largest = dict.fromkeys(sums, 0)
        seen, waiting = set[str](), 0
        for name in names:
            if len(shapes[name]) < 2:
                continue
            *stack, rows, cols = [1, 1, *shapes[name]][-3:]
            n_mat, own = stack[0], 8 * cols * cols
            imatrix += 4 * n_mat * cols
            weights = math.ceil(tensors[name].nbytes / n_mat)
            part = "attention" if ".attn" in name else "expert" if "_exps" in name else "rest"
            # What is observed in place of another counts once.
            moments_ = 0 if (of := moments.observed_as(name, shapes)) in seen or of not in names else own
            seen.add(of)
            if part == "expert":
                moments_ = moments_ if "_exps" in of else 0
                sums[part] += weights + moments_ + 8 * tokens * n_used * (rows + cols) // n_mat
                waiting += n_mat * moments_
            else:
                sums[part] += n_mat * (weights + moments_ + 4 * tokens * (rows + cols))
            # A mean in f64, in f32, the matrix that is factored, the factor.
            largest[part] = max(largest[part], int(own * 2.25) + PIECE_BYTES)
        attention = max(attention, sums["attention"] + largest["attention"])
        rest = max(rest, sums["rest"] + largest["rest"] + 24 * tokens * d)
        expert = max(expert, sums["expert"])
        rounding = max(rounding, largest["expert"])
        all_moments = max(all_moments, waiting)
    base = psutil.Process().memory_info().rss + imatrix + SLACK
    return Need(base, 8 * n_windows * n_ctx * d, attention, rest, expert, rounding, all_moments)


def least(model: Any, ids_shape: tuple[int, ...]) -> int:
    """Bytes of the smallest cut of a pass; arguments as for :func:`cut_to`."""
    n_expert, needed = _needed(model, ids_shape, 1)
    return needed.total(n_expert, Cut(1, min(1, n_expert) or None, Path(), lean=True))


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
    found: list[Cut] = []
    for windows in (TOGETHER, 1):
        n_expert, needed = _needed(model, ids_shape, windows)
        for kept in (None, folder):
            if needed.total(n_expert, whole := Cut(windows, None, kept, lean=True)) <= limit:
                return whole
        # Not all experts, for then their moments would wait in memory.
        smallest = Cut(windows, 1, folder, lean=True)
        more = (limit - needed.total(n_expert, smallest)) // max(needed.expert, 1)
        part = Cut(windows, max(min(1 + more, n_expert - 1), 1), folder, lean=True)
        if n_expert > 1 and needed.total(n_expert, part) <= limit:
            found.append(part)
            if part.experts and part.experts >= ENOUGH:
                break
    if found:
        return max(found, key=lambda cut: cut.experts or 0)
    raise UsageError(
        f"max-memory: found {limit:,} bytes, expected at least {least(model, ids_shape):,}",
        hint="fewer tokens at a time (--ctx) take less",
    )


def _needed(model: Any, ids_shape: tuple[int, ...], windows: int) -> tuple[int, Need]:
    n_windows, n_ctx = ids_shape
    n_expert = max((layer.feed_forward.experts for layer in model.decoder.layers), default=0)
    n_used = getattr(model.config, "n_expert_used", 0)
    return n_expert, need(model.source, n_used, n_ctx, n_windows, min(windows, n_windows))
