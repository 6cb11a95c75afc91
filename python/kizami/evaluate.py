"""How far a quantized model is from its reference: KL divergence and perplexity on a text.

The conventions of llama.cpp's ``llama-perplexity --kl-divergence``: the text is cut into windows
of ``n_ctx`` tokens, the first token of each replaced by the begin-of-sentence token where the
tokenizer adds one, and the tokens of the second half of each window are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kizami.engine import Model
from kizami.errors import FormatError, UsageError
from kizami.memory import TOGETHER
from kizami.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """Results over all scored tokens. ``kld_*`` are in nats, ``same_top`` is a fraction."""

    tokens: int
    ppl: float
    ppl_ref: float
    kld_mean: float
    kld_sem: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top: float

    def to_dict(self) -> dict[str, float]:
        """A plain dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Per scored token: log-probability of the text's own token under both models, KLD, same top."""

    logp: np.ndarray
    logp_ref: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray

    def summary(self) -> Evaluation:
        """The figures people quote."""
        p99, p999 = np.quantile(self.kld, [0.99, 0.999])
        n = len(self.kld)
        return Evaluation(
            tokens=n,
            ppl=float(np.exp(-self.logp.mean())),
            ppl_ref=float(np.exp(-self.logp_ref.mean())),
            kld_mean=float(self.kld.mean()),
            kld_sem=float(self.kld.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
            kld_p99=float(p99),
            kld_p999=float(p999),
            kld_max=float(self.kld.max()),
            same_top=float(self.same_top.mean()),
        )


def windows(model: Model, text: str, n_ctx: int) -> np.ndarray:
    """Token ids ``[n_windows, n_ctx]`` of ``text``; the rest that fills no window is left out.

    Raises:
        UsageError: the window is too short, or the text does not fill one.
    """
    if n_ctx < 4 or n_ctx > model.config.n_ctx_train:
        raise UsageError(f"ctx: found {n_ctx}, expected 4 to the model's {model.config.n_ctx_train}")
    tok = model.tokenizer
    ids = tok.encode(text, bos=tok.add_bos)
    n = len(ids) // n_ctx
    if n == 0:
        raise UsageError(f"text: found {len(ids)} tokens, expected at least one window of {n_ctx}")
    out = np.asarray(ids[: n * n_ctx], dtype=np.uint32).reshape(n, n_ctx)
    if tok.add_bos:
        out[:, 0] = tok.bos
    return out


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64 along the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def scored_rows(n_ctx: int) -> slice:
    """Tokens of a window whose successors are scored: those of its second half but the last, which has none
    in
    it, as in llama-perplexity."""
    return slice(n_ctx // 2, n_ctx - 1)


def scored_logits(model: Model, ids: np.ndarray) -> Iterator[np.ndarray]:
    """For each window of ``ids``, the logits of its :func:`scored_rows`: ``[n_ctx - n_ctx // 2 - 1,
    vocab]``."""
    first = scored_rows(ids.shape[1]).start
    for start in range(0, len(ids), TOGETHER):
        for logits in model.logits_many(list(ids[start : start + TOGETHER]), skip=first):
            yield logits[:-1]


def score(
    models: Sequence[Model],
    reference: Model,
    ids: np.ndarray,
    *,
    progress: Progress | None = None,
) -> list[Scores]:
    """Scores every token of the second half of each window, for several models against one reference.

    Args:
        models: the quantized models.
        reference: what they are held against; it runs once for all of them.
        ids: ``[n_windows, n_ctx]`` from :func:`windows`.
        progress: called with (stage, windows done, windows in total).

    Raises:
        FormatError: vocabularies differ, or logits are not finite.
    """
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in models]
    streams = zip(ids, scored_logits(reference, ids), *(scored_logits(m, ids) for m in models), strict=True)
    for done, (window, theirs, *all_ours) in enumerate(streams):
        p = log_softmax(theirs)
        target = window[-len(p) :].astype(np.intp)
        rows = np.arange(len(target))
        for ours, out in zip(all_ours, parts, strict=True):
            if ours.shape != theirs.shape:
                raise FormatError(
                    f"vocabulary: found {ours.shape[1]} tokens, expected the reference's {theirs.shape[1]}"
                )
            q = log_softmax(ours)
            if not (np.isfinite(q).all() and np.isfinite(p).all()):
                raise FormatError(f"logits of window {done}: found NaN or infinity, expected finite numbers")
            kld = (np.exp(p) * (p - q)).sum(axis=1)
            out.append((q[rows, target], p[rows, target], kld, q.argmax(axis=1) == p.argmax(axis=1)))
        if progress:
            progress("evaluate", done + 1, len(ids))
    return [Scores(*(np.concatenate(column) for column in zip(*out, strict=True))) for out in parts]


def evaluate(
    model: Model,
    reference: Model,
    text: str,
    *,
    n_ctx: int = 512,
    progress: Progress | None = None,
) -> Evaluation:
    """KL divergence and perplexity of ``model`` against ``reference`` on ``text``.

    Args:
        model: the quantized model.
        reference: what it is held against, usually the source it was made from.
        text: text disjoint from what calibration has seen.
        n_ctx: tokens per window; the second half of each is scored.
        progress: called with (stage, windows done, windows in total).

    Raises:
        UsageError: the text is too short or the window does not fit the model.
        FormatError: the models do not share a vocabulary.
    """
    ids = windows(reference, text, n_ctx)
    if not np.array_equal(ids, windows(model, text, n_ctx)):
        raise FormatError("tokenizers: the two models split the text differently; expected the same tokens")
    return score([model], reference, ids, progress=progress)[0].summary()
