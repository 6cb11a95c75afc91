"""Calibration: what the inputs of every linear layer look like on a text. Gives an imatrix.

Runs the model with float activations, layer by layer, and sums the squares of each layer's inputs, column
by column (per expert, per head). ``attn_k_b`` and ``attn_v_b`` are recorded as the absorbed form multiplies
them. Knows nothing of types or budgets.
"""

from __future__ import annotations

import numpy as np

from kizami import feedback
from kizami.engine import Model
from kizami.errors import UsageError
from kizami.evaluate import windows
from kizami.imatrix import Imatrix
from kizami.memory import UNLIMITED, Cut
from kizami.progress import Progress


def calibration_windows(
    model: Model, text: str, n_ctx: int = 512, max_tokens: int | None = None
) -> np.ndarray:
    """Token ids ``[n_windows, n_ctx]`` of a calibration text; at most ``max_tokens``, spread evenly over it.

    Raises:
        UsageError: the text does not fill one window.
    """
    ids = windows(model, text, n_ctx)
    if max_tokens is not None:
        keep = max(1, max_tokens // n_ctx)
        if keep < len(ids):
            ids = ids[np.unique(np.linspace(0, len(ids) - 1, keep).round().astype(int))]
    return ids


def calibrate(
    model: Model,
    text: str,
    *,
    n_ctx: int = 512,
    max_tokens: int | None = None,
    dataset: str = "",
    cut: Cut = UNLIMITED,
    progress: Progress | None = None,
) -> Imatrix:
    """The imatrix of ``model`` on ``text``.

    Args:
        model: best the unquantized source, loaded with ``activations="f32"``.
        text: text like that of later use; special tokens in it are parsed.
        n_ctx: tokens per window; each starts with the begin-of-sentence token where the tokenizer adds one.
        max_tokens: use at most this many tokens, in windows spread evenly over the text.
        dataset: name of the text, for the file.
        cut: how the work is cut to fit in memory.
        progress: called with (stage, steps done, in total).

    Raises:
        UsageError: the text does not fill one window.
    """
    ids = calibration_windows(model, text, n_ctx, max_tokens)
    if model.activations != "f32":
        raise UsageError(f"activations: found {model.activations!r}, expected 'f32' for calibration")
    entries = {}
    passes = feedback.layers(model, ids, stage="calibrate", moments=False, cut=cut, progress=progress)
    for _, found in passes:
        entries.update(found.entries())
    datasets = [dataset] if dataset else []
    return Imatrix(dict(sorted(entries.items())), chunks=len(ids), chunk_size=n_ctx, datasets=datasets)
