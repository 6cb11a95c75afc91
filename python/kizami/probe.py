"""Probes: what an error in one part of a model does to its output, measured on the model itself.

The tensors of one class in one layer are rounded to a coarse type as they finally will be, all others stay
as they are, and the KL divergence to the untouched model tells their sensitivity: KLD per unit of their
layers' output error. On text that their rounding has not seen, so what it over-fits counts. Worth it where
the model is small enough to be run some dozen times. Knows how to run and compare; neither plans nor files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from kizami import _core
from kizami.distortion import Distortions
from kizami.engine import Model, from_source
from kizami.errors import FormatError
from kizami.evaluate import log_softmax
from kizami.memory import UNLIMITED, Cut
from kizami.progress import Progress
from kizami.sensitivity import class_of
from kizami.spill import Spill
from kizami.stream import Stream

# Windows of the calibration text that a probe runs on, at most.
WINDOWS = 16
# Multiply-adds that all probes together may take, as if every weight met every token; beyond, there are none.
MOST_WORK = 1 << 45
# Bytes that the reference's logits may take.
MOST_BYTES = 1 << 30
# How far priors may be off, as a standard deviation of logarithms.
DOUBT = 0.7


class Replaced(Mapping[str, _core.Tensor]):
    """An open model with some of its tensors exchanged."""

    def __init__(self, source: Any, tensors: Mapping[str, _core.Tensor]) -> None:
        self._source, self._tensors = source, tensors

    def __getitem__(self, name: str) -> _core.Tensor:
        return self._tensors[name] if name in self._tensors else self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def probe_windows(model: Model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows to calibrate on and windows to probe on, ``[n_windows, n_ctx]`` each.

    None of the second kind where the model is too large for probes, or the text too short.
    """
    weights = sum(math.prod(tensor.shape) for tensor in model.source.values())
    groups = len(_groups(name for name, tensor in model.source.items() if len(tensor.shape) > 1))
    fit = MOST_BYTES // (2 * ids.shape[1] * model.source["token_embd.weight"].shape[0])
    count = min(len(ids) // 4, WINDOWS, fit)
    if count < 1 or groups * count * ids.shape[1] * weights > MOST_WORK:
        return ids, ids[:0]
    apart = np.unique(np.linspace(0, len(ids) - 1, count).round().astype(int))
    return np.delete(ids, apart, axis=0), ids[apart]


def probe(
    model: Model,
    ids: np.ndarray,
    rounded: Mapping[str, _core.Tensor],
    distortions: Distortions,
    priors: Mapping[str, float],
    progress: Progress | None = None,
    cut: Cut = UNLIMITED,
) -> dict[str, float]:
    """Sensitivities of a model's tensors: predicted KLD per unit of relative output error.

    Args:
        model: the unquantized model, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]`` that rounding has not seen.
        rounded: the tensors, each in one type of its own.
        distortions: the relative output error of that, among others.
        priors: sensitivities expected of them, by tensor.
        progress: called with (stage, probes done, in total).
        cut: how the work is cut to fit in memory.

    Returns:
        By tensor, drawn to the priors, the more the less certain they are; nothing without windows. To three
        digits: NumPy's logarithms are not the same on all machines, and plans should be.

    Raises:
        FormatError: logits are not finite.
    """
    if not len(ids):
        return {}
    errors = {name: distortions.errors[name][tensor.type] for name, tensor in rounded.items()}
    groups = _groups(errors)
    found: dict[str, float] = {}
    with Spill(cut.folder) as spill:
        reference = [spill.keep(logits) for logits in _logits(model, ids, cut)]
        for done, names in enumerate(groups.values(), 1):
            probed = from_source(
                Replaced(model.source, {name: rounded[name] for name in names}), activations="f32"
            )
            klds = []
            for kept, logits in zip(reference, _logits(probed, ids, cut), strict=True):
                p, q = log_softmax(kept.get()), log_softmax(logits)
                klds.append((np.exp(p) * (p - q)).sum(axis=1))
            windows = np.array([window.mean() for window in np.concatenate(klds).reshape(len(ids), -1)])
            for name in names:
                found[name] = _posterior(windows, sum(errors[n] for n in names), priors[name])
            if progress:
                progress("probe", done, len(groups))
    return found


def _logits(model: Model, ids: np.ndarray, cut: Cut) -> Iterator[np.ndarray]:
    """Of the tokens that are scored, some of them together; all windows pass one layer at a time, so that no
    more of the model than that has to be in memory."""
    with Spill(cut.folder) as spill:
        stream = Stream(model.decoder, model, ids, cut, spill, lambda: None)
        for layer in model.decoder.layers:
            stream.pass_layer(layer, lambda: cut.release(model.source))
        for hidden in stream.scored():
            yield model.decoder.head.logits(hidden, model.activations)


def _groups(names: Iterable[str]) -> dict[tuple[str, int], list[str]]:
    """Tensors of one class in one layer together."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        layer, _, _ = name.removeprefix("blk.").partition(".")
        groups.setdefault((layer, class_of(name)), []).append(name)
    return groups


def _posterior(windows: np.ndarray, error: float, prior: float) -> float:
    """KLD per unit of error from the means of several windows, and a prior."""
    kld = windows.mean()
    if not np.isfinite(kld):
        raise FormatError("logits of a probe: found NaN or infinity, expected finite numbers")
    if kld <= 0 or error <= 0:
        return prior  # too little to be measured
    variance = windows.var(ddof=1) / len(windows) / kld**2 if len(windows) > 1 else 1.0
    trust = DOUBT**2 / (DOUBT**2 + variance)
    return float(f"{math.exp(trust * math.log(kld / error) + (1 - trust) * math.log(prior)):.3g}")
