"""The measure itself: against its definition, its floor, and texts it cannot score."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami.demo import EMBEDDED
from kizami.errors import UsageError
from kizami.evaluate import evaluate, windows

TEXT = (EMBEDDED / "eval.txt").read_text(encoding="utf-8")[:9000]


@pytest.fixture(scope="module")
def reference():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "q.gguf"
    kizami.quantize(EMBEDDED, path, type="IQ3_XXS")
    return kizami.load(path)


def test_a_model_is_no_distance_from_itself(reference):
    result = evaluate(reference, reference, TEXT, n_ctx=128)
    assert (
        result.kld_mean == result.kld_max == 0.0 and result.same_top == 1.0 and result.ppl == result.ppl_ref
    )


def test_figures_follow_their_definition(reference, quantized):
    n_ctx = 64
    ids = windows(reference, TEXT, n_ctx)[:6]
    kld, logp, same = [], [], []
    for window in ids:
        p = reference.logits(window).astype(np.float64)
        q = quantized.logits(window).astype(np.float64)
        p -= np.log(np.exp(p - p.max(1, keepdims=True)).sum(1, keepdims=True)) + p.max(1, keepdims=True)
        q -= np.log(np.exp(q - q.max(1, keepdims=True)).sum(1, keepdims=True)) + q.max(1, keepdims=True)
        for i in range(n_ctx // 2, n_ctx - 1):
            kld.append(np.sum(np.exp(p[i]) * (p[i] - q[i])))
            logp.append(q[i, window[i + 1]])
            same.append(p[i].argmax() == q[i].argmax())
    from kizami.evaluate import score

    result = score([quantized], reference, ids)[0].summary()
    assert result.tokens == len(kld) == 6 * (n_ctx // 2 - 1)
    assert result.kld_mean == pytest.approx(np.mean(kld), rel=1e-9)
    assert result.kld_sem == pytest.approx(np.std(kld, ddof=1) / np.sqrt(len(kld)), rel=1e-9)
    assert result.kld_max == pytest.approx(max(kld), rel=1e-9)
    assert result.ppl == pytest.approx(np.exp(-np.mean(logp)), rel=1e-9)
    assert result.same_top == np.mean(same)
    assert 0 < result.kld_mean < result.kld_p99 <= result.kld_p999 <= result.kld_max


def test_texts_that_fill_no_window_are_refused(reference):
    with pytest.raises(UsageError, match="at least one window of 512"):
        evaluate(reference, reference, "too short")
    with pytest.raises(UsageError, match="ctx"):
        evaluate(reference, reference, TEXT, n_ctx=2)
    with pytest.raises(UsageError, match="ctx"):
        evaluate(reference, reference, TEXT, n_ctx=10**7)
