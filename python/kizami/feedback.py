"""A pass over the calibration text, layer by layer: how the inputs of every linear layer go together.

Error feedback (docs/quantizer.md) rounds a weight with the errors of the weights before it in mind, as
far as their inputs are correlated. So it wants the second moments ``sum of x xᵀ``: too many numbers to
keep for a whole model, and therefore all windows pass through one layer at a time, and whoever measures or
rounds that layer takes its moments before the next one begins.

Knows models and statistics; neither types nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from kizami import _core, embedding
from kizami.engine import Model
from kizami.evaluate import TOGETHER
from kizami.layers import Batch, Observer, Segment

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


def _observed(name: str, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """What has to be observed for the moments of a tensor: its inputs, and what they are shrunk to."""
    observed = observed_as(name, shapes)
    return {observed, observed_as(observed.replace("ffn_gate_exps", "ffn_gate_inp"), shapes)}


class Curvatures(Sequence[_core.Curvature]):
    """One per matrix of a tensor, or a single one that serves all of them.

    Those of many matrices are made when asked for and not kept: each is half the size of its moments.
    """

    def __init__(self, means: np.ndarray) -> None:
        """Takes float64 ``[n_mat, cols, cols]``."""
        self._means, self._only = means, _core.Curvature(means[0]) if len(means) == 1 else None

    def __len__(self) -> int:
        return len(self._means)

    @overload
    def __getitem__(self, index: int) -> _core.Curvature: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[_core.Curvature]: ...

    def __getitem__(self, index: int | slice) -> _core.Curvature | Sequence[_core.Curvature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        mean = self._means[index]  # IndexError where iteration ends
        return _core.Curvature(mean) if self._only is None else self._only


def encode(
    tensor: _core.Tensor, type_name: str, weights: np.ndarray | None, curvatures: Curvatures | None
) -> np.ndarray:
    """The bytes of a tensor in another type, uint8: with error feedback where there are curvatures.

    Args:
        weights: importance of columns, ``[n_mat, cols]``, where there are none.

    Raises:
        FormatError: a weight is not finite, or moments are not.
    """
    if curvatures is None or len(curvatures) == 1:
        return tensor.encode(type_name, weights, None if curvatures is None else [curvatures[0]])
    parts = (tensor.at(i).encode(type_name, None, [curvatures[i]]) for i in range(len(curvatures)))
    return np.concatenate(list(parts))


class Moments:
    """Second moments of the inputs of one layer's tensors, or of the head's."""

    def __init__(self, observer: Observer, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._observer, self._shapes = observer, shapes
        self._curvatures: dict[str, Curvatures | None] = {}

    def entries(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The layer's part of the imatrix, as :class:`kizami.imatrix.Imatrix` has it."""
        return {name: (sums, counts) for name, sums, counts in self._observer.entries()}

    def curvatures(self, name: str) -> Curvatures | None:
        """What error feedback makes of a tensor's mean ``x xᵀ``; None where nothing was seen."""
        observed = observed_as(name, self._shapes)
        if observed not in self._curvatures:
            means = self._means(observed)
            self._curvatures[observed] = None if means is None else Curvatures(means)
        return self._curvatures[observed]

    def tokens(self, name: str) -> np.ndarray:
        """How many inputs each of a tensor's matrices saw: float64 ``[n_mat]``."""
        return self.entries()[name][1].astype(np.float64)

    def _means(self, name: str) -> np.ndarray | None:
        """float64 ``[n_mat, cols, cols]``.

        Experts' own means are shrunk to that of the layer, the more the fewer tokens they saw: for gates that
        of what the router takes in, for down that of all experts.
        """
        found = self._observer.moments(name)
        if found is None:
            return None
        sums, tokens = found
        total = tokens.sum()
        if total == 0:
            return None
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part not in SHRINKAGE:
            return sums / np.maximum(tokens, 1.0)[:, None, None]
        shrinkage = SHRINKAGE[part] * sums.shape[-1]
        router = None
        if part == "ffn_gate_exps":
            router = self._observer.moments(name.replace("ffn_gate_exps", "ffn_gate_inp"))
        every, seen = router or found
        layer = every.sum(axis=0) / seen.sum()
        # In place: those of a large layer's experts are most of the memory of the job.
        for expert, n in zip(sums, tokens, strict=True):
            expert += shrinkage * layer
            expert /= n + shrinkage
        return sums


class Embedded(Moments):
    """What stands for moments where the token embedding is rounded: it has no inputs, but readers."""

    def __init__(self, metric: np.ndarray) -> None:
        """Takes what :func:`kizami.embedding.metric` finds, ``[cols, cols]``."""
        self._metric = metric
        self._made: Curvatures | None = None

    def entries(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """None: it has no part in the imatrix."""
        return {}

    def curvatures(self, name: str) -> Curvatures | None:
        """The embedding's, made when first asked for."""
        if self._made is None:
            self._made = Curvatures(self._metric[None])
        return self._made

    def tokens(self, name: str) -> np.ndarray:
        """One matrix, which counts once."""
        return np.ones(1)


def layers(
    model: Model,
    ids: np.ndarray,
    *,
    done: Collection[str] = (),
    stage: str = "feedback",
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[tuple[str, Moments]]:
    """Passes windows through the model one layer at a time.

    Args:
        model: best the unquantized source, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]``.
        done: names of tensors that need none; windows pass through their layers all the same, up to the last
            layer that has others.
        stage: what the pass is called.
        progress: called with (stage, windows times layers done, in total).

    Yields:
        First the token embedding's name, unless it is the head, too, and what stands for its moments. Then
        what the names of a layer's tensors start with (``blk.3.``), and their moments; last those of the
        head, whose names start with ``output``. Nothing of which all is ``done``.
    """
    decoder = model.decoder
    shapes = {name: tuple(tensor.shape) for name, tensor in model.source.items()}
    groups = [ids[i : i + TOGETHER] for i in range(0, len(ids), TOGETHER)]

    def batch(group: np.ndarray, observer: Observer | None = None) -> Batch:
        segments = [Segment(window, model.new_cache(), len(window)) for window in group]
        return Batch(segments, activations=model.activations, observer=observer)

    def wanted(prefix: str) -> list[str]:
        return sorted(name for name in shapes if name.startswith(prefix) and name not in done)

    stages = [*(f"blk.{i}." for i in range(len(decoder.layers))), "output"]
    while stages and not wanted(stages[-1]):
        stages.pop()
    if wanted(embedding.NAME) and (metric := embedding.metric(model, ids)) is not None:
        yield embedding.NAME, Embedded(metric)
    hidden = [batch(group).embed(decoder.head) for group in groups] if stages else []
    passed = 0
    for i, prefix in enumerate(stages):
        # With no observer at all attention would take its other form, whose last bits differ.
        seen = Observer(sorted({name for tensor in wanted(prefix) for name in _observed(tensor, shapes)}))
        for x, group in zip(hidden, groups, strict=True):
            if prefix == "output":
                batch(group, seen).logits(x, decoder.head)
            else:
                decoder.layers[i](x, batch(group, seen))
            passed += len(group)
            if progress:
                progress(stage, passed, len(ids) * len(stages))
        if wanted(prefix):
            yield prefix, Moments(seen, shapes)
