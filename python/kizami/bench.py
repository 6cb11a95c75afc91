"""How many tokens per second a model reads and writes.

Knows how to time one prefill and a run of single-token steps; not how results are shown. The tokens are
random: their values do not change the work, except which experts a router picks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kizami import _core
from kizami.engine import PREFILL, Model
from kizami.errors import UsageError
from kizami.layers import Segment

REPEATS = 3


def run(
    model: Model,
    n_prompt: int = 512,
    n_generate: int = 64,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Times a prompt of `n_prompt` tokens and, from an empty cache, `n_generate` single-token steps.

    Each is run once to warm up and then three times; the median counts. Sampling is not part of it.

    Args:
        model: from `kizami.load`.
        n_prompt, n_generate: tokens, 1 to the model's context.
        progress: called with (stage, done, total).

    Returns:
        pp and tg in tokens per second, threads, isa.

    Raises:
        UsageError: more tokens than the model's context holds.
    """
    limit = model.config.n_ctx_train
    for label, count in (("prompt", n_prompt), ("generation", n_generate)):
        if not 1 <= count <= limit:
            raise UsageError(f"{label}: found {count} tokens, expected 1 to the model's context of {limit}")
    ids = np.random.default_rng(0).integers(0, model.tokenizer.vocab_size, max(n_prompt, n_generate))
    return {
        "pp": n_prompt / _median(lambda: _prefill(model, ids[:n_prompt]), "prompt", progress),
        "tg": n_generate / _median(lambda: _decode(model, ids[:n_generate]), "generation", progress),
        "threads": _core.threads(),
        "isa": _core.isa(),
    }


def _median(work: Callable[[], None], stage: str, progress: Callable[[str, int, int], None] | None) -> float:
    seconds = []
    for done in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        if progress:
            progress(stage, done + 1, REPEATS + 1)
    return statistics.median(seconds[1:])


def _prefill(model: Model, ids: np.ndarray) -> None:
    cache = model.new_cache()
    for first in range(0, len(ids), PREFILL):
        last = first + PREFILL >= len(ids)
        model.step([Segment(ids[first : first + PREFILL], cache, wanted=int(last))])


def _decode(model: Model, ids: np.ndarray) -> None:
    cache = model.new_cache()
    for token in ids:
        model.step([Segment([int(token)], cache)])
