"""How many tokens per second a model reads and writes, against what the machine's memory allows.

Knows how to time prompts and single-token steps at a depth, and which weights a token touches; not how
results are shown. The tokens are random: their values do not change the work, except which experts a router
picks.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from kizami import _core, system
from kizami.engine import PREFILL, Model
from kizami.errors import UsageError
from kizami.layers import Segment
from kizami.progress import Progress

REPEATS = 3


def run(
    model: Model,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (64,),
    depths: Sequence[int] = (0,),
    *,
    repeats: int = REPEATS,
    profile: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Times prompts, and runs of single-token steps, that follow `depth` tokens already in the cache.

    Filling the cache is not timed, nor are sampling and a first warming-up; the median of `repeats` counts.

    Args:
        model: from `kizami.load`.
        prompts, generations: tokens of each test; empty for none.
        depths: each test is run at each of them.
        profile: also say where the time went.
        progress: called with (stage, done, total).

    Returns:
        threads, isa, bandwidth (bytes per second of a streaming read with these threads, the better of before
        and after) and tests, a list of: test (`pp512`), tokens, depth, tokens_per_s, samples (seconds) and
        macs_per_s; bytes_per_token (weights it touches), bytes_per_s and bandwidth_share, None for prompts,
        whose tokens share the weights; profile, the list of `operations`, None if not asked for.

    Raises:
        UsageError: nothing to do, no repeats, or more tokens than the model's context holds.
    """
    tests = [("pp", n, depth) for depth in depths for n in prompts]
    tests += [("tg", n, depth) for depth in depths for n in generations]
    limit = model.config.n_ctx_train
    for kind, n, depth in tests:
        if n < 1 or depth < 0 or n + depth > limit:
            raise UsageError(
                f"{label(kind, n, depth)}: found {n} tokens after {depth}, "
                f"expected at least one and together at most the model's context of {limit}"
            )
    if not tests or repeats < 1:
        raise UsageError(
            f"bench: found {len(tests)} tests and {repeats} repeats, expected one or more of both"
        )
    buffer = min(1 << 30, system.memory() // 8)
    bandwidth = _core.read_bandwidth(buffer)
    longest = max(n + depth for _, n, depth in tests)
    ids = np.random.default_rng(0).integers(0, model.tokenizer.vocab_size, longest)
    caches = {}
    for depth in dict.fromkeys(depths):
        caches[depth] = model.new_cache()
        _prefill(model, caches[depth], ids[:depth])
        if progress and depth:
            progress(f"fill {depth}", depth, depth)
    timed = [
        _time(model, caches[depth], label(kind, n, depth), ids[depth : depth + n], repeats, profile, progress)
        for kind, n, depth in tests
    ]
    bandwidth = max(bandwidth, _core.read_bandwidth(buffer))
    nbytes, macs = active(model)
    results = []
    for (kind, n, depth), (samples, recorded) in zip(tests, timed, strict=True):
        rate = n / statistics.median(samples)
        alone = kind == "tg"
        results.append(
            {
                "test": f"{kind}{n}",
                "tokens": n,
                "depth": depth,
                "tokens_per_s": rate,
                "samples": samples,
                "macs_per_s": macs * rate,
                "bytes_per_token": nbytes if alone else None,
                "bytes_per_s": nbytes * rate if alone else None,
                "bandwidth_share": nbytes * rate / bandwidth if alone else None,
                "profile": operations(recorded, sum(samples), n * repeats) if profile else None,
            }
        )
    return {"threads": _core.threads(), "isa": _core.isa(), "bandwidth": bandwidth, "tests": results}


def label(kind: str, tokens: int, depth: int) -> str:
    """Name of a test: `pp512`, `tg64 @ 4096`."""
    return f"{kind}{tokens}" + (f" @ {depth}" if depth else "")


def active(model: Model) -> tuple[float, float]:
    """Bytes of weights that one token alone touches, and multiply-accumulates with them.

    Of the routed experts those that are used count, of the embedding table one row. What attention does with
    the cache is not part of it.
    """
    config, tensors = model.config, model.tensors
    experts = getattr(config, "n_expert", 0)
    nbytes = macs = 0.0
    for name in model.source:
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer and int(layer[1]) >= config.n_layer:
            continue  # layers for multi-token prediction are not run
        tensor = tensors[name]
        size = math.prod(tensor.shape)
        share = config.n_expert_used / experts if experts and "_exps." in name else 1.0
        if name == "token_embd.weight":
            nbytes += tensor.nbytes / tensor.shape[0]
            # Where it is the output too, all of it is read, maybe from a repacked copy.
            tensor = tensors.get("output.weight", tensor)
            share = 0.0 if "output.weight" in model.source else 1.0
        nbytes += tensor.nbytes * share
        macs += size * share if len(tensor.shape) > 1 else 0.0
    return nbytes, macs


def operations(
    recorded: Sequence[tuple[str, int, int, int, int]], seconds: float, tokens: int
) -> list[dict[str, Any]]:
    """What `_core.profile_take` gave, per token, the longest first and last the rest of the time.

    Args:
        seconds, tokens: of the whole.

    Returns:
        op, calls, ms_per_token, share of the time, bytes_per_s and macs_per_s (null where there are none).
    """
    rows: list[dict[str, Any]] = []
    for name, calls, ns, macs, nbytes in sorted(recorded, key=lambda entry: -entry[2]):
        rows.append(
            {
                "op": name,
                "calls": calls,
                "ms_per_token": ns / 1e6 / tokens,
                "share": ns / 1e9 / seconds,
                "bytes_per_s": nbytes * 1e9 / ns if nbytes and ns else None,
                "macs_per_s": macs * 1e9 / ns if macs and ns else None,
            }
        )
    rest = seconds - sum(entry[2] for entry in recorded) / 1e9
    rows.append(
        {
            "op": "rest",
            "calls": None,
            "ms_per_token": rest * 1e3 / tokens,
            "share": rest / seconds,
            "bytes_per_s": None,
            "macs_per_s": None,
        }
    )
    return rows


def _time(
    model: Model,
    cache: _core.Cache,
    stage: str,
    ids: np.ndarray,
    repeats: int,
    profile: bool,
    progress: Progress | None,
) -> tuple[list[float], list[tuple[str, int, int, int, int]]]:
    """Seconds of each repeat, and the profile of them all. The cache is left as deep as it was."""
    depth = len(cache)
    work, warming = (_prefill, PREFILL) if stage.startswith("pp") else (_decode, 4)
    work(model, cache, ids[:warming])
    samples = []
    try:
        _core.profile_take()
        _core.profile(profile)
        for done in range(repeats):
            cache.truncate(depth)
            start = time.perf_counter()
            work(model, cache, ids)
            samples.append(time.perf_counter() - start)
            if progress:
                progress(stage, done + 1, repeats)
    finally:
        _core.profile(False)
        cache.truncate(depth)
    return samples, _core.profile_take()


def _prefill(model: Model, cache: _core.Cache, ids: np.ndarray) -> None:
    for first in range(0, len(ids), PREFILL):
        last = first + PREFILL >= len(ids)
        model.step([Segment(ids[first : first + PREFILL], cache, wanted=int(last))])


def _decode(model: Model, cache: _core.Cache, ids: np.ndarray) -> None:
    for token in ids:
        model.step([Segment([int(token)], cache)])
