"""The token embedding's metric: what an error in one of its columns may be traded for in others.

The embedding has no inputs, so error feedback has no second moments to go by. But its rows are read: by the
first layer's attention, behind a norm that makes them as large as any later input, and by all that comes
after in a stream that attention has added to. An error ``e`` of a row costs ``e F eᵀ``, where ``F`` is made
of these readers' weights. Knows readers and their weights; neither rounding nor types.
"""

from __future__ import annotations

import math

import numpy as np

from kizami.engine import Model
from kizami.formats import quantizable
from kizami.layers import Batch, Segment
from kizami.moments import Curvatures
from kizami.sensitivity import sensitivities

NAME = "token_embd.weight"
# What takes in the stream, behind a norm.
ATTENTION = ("attn_q_a", "attn_q", "attn_kv_a_mqa", "attn_k", "attn_v")
OTHERS = ("ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp", "output")
# A share of the mean of F's diagonal goes to all columns alike: readers are not all that counts.
ALIKE = 0.1
# Windows that tell how much the first layer's attention adds.
WINDOWS = 4


def metric(model: Model, ids: np.ndarray) -> np.ndarray | None:
    """``F``: float64 ``[cols, cols]`` in no particular unit; None where the embedding is the head, too.

    The first layer's attention counts by its weights, each tensor relative to the power of its outputs, by
    the priors of :mod:`kizami.sensitivity`. All others see the error beside what attention has added, and
    count alike in all columns. The same on all machines: sums are exact.

    Args:
        model: the unquantized model, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]``, of which a few are used.
    """
    source = model.source
    if "output.weight" not in source:
        return None
    passed = ("token_embd.", "output", *(f"blk.{i}." for i in range(len(model.decoder.layers))))
    priors = sensitivities(
        n for n, t in source.items() if n.startswith(passed) and quantizable(n, tuple(t.shape))
    )
    norm = source["blk.0.attn_norm.weight"].dequantize().astype(np.float64)
    before, after = _inverse_powers(model, ids[:WINDOWS])
    first = {f"blk.0.{part}.weight" for part in ATTENTION}
    total = np.zeros((len(norm), len(norm)))
    for name in sorted(first & priors.keys()):
        products = _products(source[name].dequantize().astype(np.float64) * norm)
        power = math.fsum(np.diag(products))
        if power > 0:
            total += products * (priors[name] * before / power)
    rest = sum(priors[name] for name in sorted(priors) if name not in first and _reads(name))
    alike = ALIKE * math.fsum(np.diag(total)) / len(norm) + rest * after / len(norm)
    total[np.diag_indices(len(norm))] += alike
    return total


class Embedded:
    """What stands for moments where the token embedding is rounded: it has no inputs, but readers."""

    def __init__(self, metric: np.ndarray | None) -> None:
        """Takes what :func:`metric` finds, ``[cols, cols]``; without any the embedding is rounded plainly."""
        self._metric = metric
        self._made: Curvatures | None = None

    def entries(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """None: it has no part in the imatrix."""
        return {}

    def curvatures(self, name: str) -> Curvatures | None:
        """The embedding's, made when first asked for."""
        if self._made is None and self._metric is not None:
            self._made = Curvatures(self._metric[None])
        return self._made

    def tokens(self, name: str) -> np.ndarray:
        """One matrix, which counts once."""
        return np.ones(1)


def _reads(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in ATTENTION + OTHERS


def _inverse_powers(model: Model, ids: np.ndarray) -> tuple[float, float]:
    """One over the mean square of the stream, averaged over tokens: at the embedding, and after attention.

    To three digits, since the order of NumPy's sums is its own.
    """
    before, after = [], []
    for window in ids:  # one at a time: memory may be short
        batch = Batch([Segment(window, model.new_cache(), len(window))], activations=model.activations)
        x = batch.embed(model.decoder.head)
        before.append((x.astype(np.float64) ** 2).mean(axis=1))
        batch.attend(x, model.decoder.layers[0].attention)
        after.append((x.astype(np.float64) ** 2).mean(axis=1))
    return _inverse_power(np.concatenate(before)), _inverse_power(np.concatenate(after))


def _inverse_power(powers: np.ndarray) -> float:
    powers = powers[powers > 0]  # a row that is all zero says nothing
    return float(f"{(1 / powers).mean():.3g}") if len(powers) else 0.0


def _products(rows: np.ndarray) -> np.ndarray:
    """``rowsᵀ rows``, exactly, of rows rounded to so many bits that float64 holds every sum."""
    largest = float(np.abs(rows).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):  # the latter is refused where it is rounded itself
        return np.zeros((rows.shape[1], rows.shape[1]))
    bits = (53 - max(len(rows) - 1, 1).bit_length()) // 2
    scale = 2.0 ** (bits - math.frexp(largest)[1])
    whole = np.rint(rows * scale)
    return (whole.T @ whole) / scale**2
