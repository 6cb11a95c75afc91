"""Second moments of what linear layers take in, and how that goes together with what it has lost on the way
there; and what error feedback makes of both.

Knows which tensors of a layer share their inputs, and how experts that saw little borrow from the others.
Does not know how text passes through a model (feedback.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, overload

import numpy as np

from kizami import _core
from kizami.layers import Observer
from kizami.spill import Kept, Spill

# Parts of a layer that take in the same: the moments of the first that a layer has serve all of them.
SAME_INPUT = (
    ("attn_kv_a_mqa", "attn_q_a", "attn_q"),
    ("attn_q", "attn_k", "attn_v"),
    ("ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp"),
    ("ffn_gate_exps", "ffn_up_exps"),
    ("ffn_gate", "ffn_up"),
)
# An expert that saw this many tokens per column believes its own moments as much as its layer's.
SHRINKAGE = {"ffn_down_exps": 1.0, "ffn_gate_exps": 2.5}
# Where moments of a layer's gates for each expert would take more bytes, all experts have the router's.
MOST_GATES = 1 << 30


def observed_as(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The tensor of the same layer whose inputs are observed in place of those of ``name``.

    Args:
        shapes: those of all tensors, by name.
    """
    prefix, _, part = name.removesuffix(".weight").rpartition(".")
    if part in ("ffn_gate_exps", "ffn_up_exps") and 8 * shapes[name][0] * shapes[name][2] ** 2 > MOST_GATES:
        part = "ffn_gate_inp"
    for group in SAME_INPUT:
        if part in group:
            found = (f"{prefix}.{other}.weight" for other in group)
            return next(other for other in found if other in shapes)
    return name


def observed(name: str, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """What has to be observed for the moments of a tensor: its inputs, and what they are shrunk to."""
    own = observed_as(name, shapes)
    return {own, observed_as(own.replace("ffn_gate_exps", "ffn_gate_inp"), shapes)}


def borrowed_from(name: str) -> bool:
    """Whether experts are drawn to the moments of this tensor's inputs: the router's."""
    return name.endswith("ffn_gate_inp.weight")


class Curvatures(Sequence[_core.Curvature]):
    """One per matrix of a tensor, or a single one that serves all of them.

    Those of many matrices are made when asked for and not kept: each is a quarter the size of its moments, or
    three quarters with drift, and as many bytes as :data:`kizami.memory.METRICS` for each column.
    """

    def __init__(
        self, means: Sequence[np.ndarray] | np.ndarray, drifts: Sequence[np.ndarray] | None = None
    ) -> None:
        """Takes float64 ``[cols, cols]`` for each, and how inputs go together with what they have lost; a
        single one is not kept."""
        self._means, self._drifts, self._count = means, drifts, len(means)
        self._only = self._made(0) if len(means) == 1 else None
        if self._only is not None:
            self._means, self._drifts = (), None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> _core.Curvature: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[_core.Curvature]: ...

    def __getitem__(self, index: int | slice) -> _core.Curvature | Sequence[_core.Curvature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)  # where iteration ends
        return self._made(index) if self._only is None else self._only

    def _made(self, index: int) -> _core.Curvature:
        drift = None if self._drifts is None else self._drifts[index]
        return _core.Curvature(self._means[index], drift=drift)


class Stack:
    """Sums of ``x xᵀ``, or of ``(y - x) xᵀ``, for every matrix of a tensor."""

    def __init__(self, n_mat: int, cols: int) -> None:
        self.tokens = np.zeros(n_mat)
        self._cols = cols
        self._sums: list[Kept | None] = [None] * n_mat
        self._total: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, index: int, sums: np.ndarray, tokens: float, spill: Spill) -> None:
        """Takes over those of one matrix; matrices come in ascending order."""
        self.tokens[index] = tokens
        if len(self) > 1:
            # In a fixed order, so that neither parts nor threads show.
            self._total = sums.copy() if self._total is None else np.add(self._total, sums, out=self._total)
        self._sums[index] = spill.keep(sums) if len(self) > 1 else Kept(sums)

    def sums(self, index: int) -> np.ndarray:
        """float64 ``[cols, cols]``; not to be changed."""
        kept = self._sums[index]
        return np.zeros((self._cols, self._cols)) if kept is None else kept.get()

    def into_mean(self) -> np.ndarray:
        """Of a single matrix, over all its inputs, in place of the sums: they are large, and gone then."""
        (kept,) = self._sums
        self._sums = [None]
        sums = np.zeros((self._cols, self._cols)) if kept is None else kept.get()
        return np.divide(sums, max(self.tokens[0], 1.0), out=sums)

    def mean(self) -> np.ndarray:
        """Over all inputs of all matrices."""
        return (self.sums(0) if self._total is None else self._total) / max(self.tokens.sum(), 1.0)


class Means(Sequence[np.ndarray]):
    """Mean ``x xᵀ``, or ``(y - x) xᵀ``, of each matrix of a stack, drawn to that of the layer: the more, the
    fewer tokens it saw."""

    def __init__(self, stack: Stack, layer: np.ndarray | None, shrinkage: float) -> None:
        """Takes the layer's mean, and how many tokens of its own an expert believes as much; no mean: no
        drawing."""
        self._stack, self._layer, self._shrinkage = stack, layer, shrinkage

    def __len__(self) -> int:
        return len(self._stack)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sums, tokens = self._stack.sums(index), self._stack.tokens[index]
        if self._layer is None:
            return sums / max(tokens, 1.0)
        mean = self._shrinkage * self._layer
        mean += sums
        mean /= tokens + self._shrinkage
        return mean


class Statistics(Protocol):
    """What is known of the inputs of some tensors."""

    def entries(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """These tensors' part of the imatrix, as :class:`kizami.imatrix.Imatrix` has it."""
        ...

    def curvatures(self, name: str) -> Curvatures | None:
        """What error feedback goes by; None where there is nothing to go by."""
        ...

    def tokens(self, name: str) -> np.ndarray:
        """How many inputs each of a tensor's matrices saw: float64 ``[n_mat]``."""
        ...


class Moments:
    """Second moments of the inputs of some of a layer's tensors, or of the head's."""

    def __init__(
        self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], spill: Spill, second: bool = True
    ) -> None:
        """Has seen nothing yet.

        Args:
            names: of the tensors.
            shapes: those of all tensors, by name.
            spill: where moments of experts wait.
            second: whether to gather second moments; otherwise only the imatrix.

        Attributes:
            observed: names of those whose inputs are looked at; none without second moments.
            observer: is to see the inputs.
            stacks: the sums taken so far, by the name of what was observed; those of single matrices go
                when their curvature is made.
            drifts: the same of what inputs differ by from those that the observer follows; empty if none.
        """
        self.observed = sorted({other for n in names for other in observed(n, shapes)}) if second else []
        self.observer = Observer(self.observed)
        self._shapes, self._spill = shapes, spill
        self.stacks: dict[str, Stack] = {}
        self.drifts: dict[str, Stack] = {}
        self._curvatures: dict[str, Curvatures | None] = {}

    def source(self) -> Observer:
        """An observer of the inputs that those of the same tokens are to be compared with, in place of those
        before."""
        self._forget()
        return Observer.of_inputs(self.observed)

    def take(self) -> None:
        """Takes over what the observer has seen: of each matrix once, when all its inputs have passed."""
        for name in self.observed:
            self._take(name, self.observer.tokens(name), self.observer.take, self.stacks)
            self._take(name, self.observer.pairs(name), self.observer.take_drift, self.drifts)
        self._forget()

    def _forget(self) -> None:
        self.observer.follow(Observer.of_inputs([]))  # what was compared last is not to be held

    def _take(
        self,
        name: str,
        counts: np.ndarray | None,
        take: Callable[[str, int], np.ndarray | None],
        stacks: dict[str, Stack],
    ) -> None:
        for index in [] if counts is None else np.flatnonzero(counts).tolist():
            sums = take(name, index)
            if counts is not None and sums is not None:
                stack = stacks.setdefault(name, Stack(len(counts), len(sums)))
                stack.add(index, sums, counts[index], self._spill)

    def entries(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """These tensors' part of the imatrix, as :class:`kizami.imatrix.Imatrix` has it."""
        return {name: (sums, counts) for name, sums, counts in self.observer.entries()}

    def curvatures(self, name: str) -> Curvatures | None:
        """What error feedback makes of a tensor's mean ``x xᵀ``; None where nothing was seen."""
        observed = observed_as(name, self._shapes)
        if observed not in self._curvatures:
            means: Sequence[np.ndarray] | None
            drifts: Sequence[np.ndarray] | None
            stack = self.stacks.get(observed)
            # Experts borrow from what the router takes in: that stays.
            if stack is not None and len(stack) == 1 and not borrowed_from(observed):
                drift = self.drifts.pop(observed, None)
                means = [self.stacks.pop(observed).into_mean()]
                drifts = None if drift is None else [drift.into_mean()]
            else:
                means, drifts = self.means(name), self.drift_means(name)
            self._curvatures[observed] = None if means is None else Curvatures(means, drifts)
        return self._curvatures[observed]

    def tokens(self, name: str) -> np.ndarray:
        """How many inputs each of a tensor's matrices saw: float64 ``[n_mat]``."""
        return self.entries()[name][1].astype(np.float64)

    def means(self, name: str) -> Sequence[np.ndarray] | None:
        """Mean ``x xᵀ``, float64 ``[cols, cols]``, of each of a tensor's matrices, or one that serves all.

        Experts' own means are shrunk: for gates to that of what the router takes in, for down to that of all
        experts. None where nothing was seen, or the sums have gone into a curvature.
        """
        return self._means(name, self.stacks)

    def drift_means(self, name: str) -> Sequence[np.ndarray] | None:
        """Likewise mean ``(y - x) xᵀ``, ``y`` being what inputs ``x`` are compared with; None without any."""
        return self._means(name, self.drifts)

    def _means(self, name: str, stacks: Mapping[str, Stack]) -> Sequence[np.ndarray] | None:
        name = observed_as(name, self._shapes)
        stack = stacks.get(name)
        if stack is None:
            return None
        part = name.removesuffix(".weight").rpartition(".")[2]
        if len(stack) == 1:
            return [stack.mean()]
        if part not in SHRINKAGE:
            return Means(stack, None, 0.0)
        router = stacks.get(name.replace("ffn_gate_exps", "ffn_gate_inp"), stack)
        return Means(stack, router.mean(), SHRINKAGE[part] * self._shapes[name][-1])
