"""The embedding's metric: what it is made of, exact sums, and that rounding with it pays."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami import _core, embedding, feedback, pieces
from kizami.calibrate import calibration_windows
from kizami.demo import EMBEDDED, N_CTX
from kizami.engine import from_source
from kizami.evaluate import score, windows
from kizami.probe import Replaced
from kizami.recipe import read_text
from kizami.sensitivity import sensitivities


@pytest.fixture(scope="module")
def model():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def ids(model):
    return calibration_windows(model, read_text(EMBEDDED / "calibration.txt"), N_CTX, 4 * N_CTX)


def test_sums_of_products_are_exact():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((700, 96)) * np.exp(rng.standard_normal(96))
    found = embedding._products(rows)
    np.testing.assert_array_equal(found, embedding._products(rows[rng.permutation(len(rows))]))
    np.testing.assert_array_equal(found, found.T)
    powers = np.sqrt(np.diag(found))
    assert (np.abs(found - rows.T @ rows) <= 1e-4 * powers[:, None] * powers).all()
    # The largest weights and the most rows that float64 has to hold.
    ones = np.ones((4096, 32))
    np.testing.assert_array_equal(embedding._products(ones), np.full((32, 32), 4096.0))
    assert not embedding._products(0 * ones).any()
    # Weights that are none are refused where they are rounded.
    ones[3, 4] = np.nan
    assert not embedding._products(ones).any()


def test_it_is_made_of_what_reads_the_embedding(model, ids):
    """Written out in NumPy, on rows of the embedding as the norm makes them."""
    found, source = embedding.metric(model, ids), model.source
    priors = sensitivities(n for n, t in source.items() if len(t.shape) > 1 and "norm" not in n)
    norm = source["blk.0.attn_norm.weight"].dequantize()
    rows = source["token_embd.weight"].dequantize()[ids.ravel()].astype(float)
    scale = (1 / (rows**2).mean(axis=1)).mean()
    expected = np.zeros_like(found)
    for part in ("attn_q_a", "attn_kv_a_mqa"):
        read = (source[f"blk.0.{part}.weight"].dequantize() * norm).astype(float)
        expected += priors[f"blk.0.{part}.weight"] * scale * (read.T @ read) / (read**2).sum()
    apart = ~np.eye(len(found), dtype=bool)
    largest = np.abs(expected[apart]).max()
    np.testing.assert_allclose(found[apart], expected[apart], rtol=0, atol=0.01 * largest)
    # A tenth of the mean for all columns; others read a stream that is larger by orders of magnitude.
    added = np.diag(found - expected)
    assert np.allclose(added, embedding.ALIKE * np.diag(expected).mean(), rtol=0.1)


def test_an_embedding_that_is_the_head_has_none(model, ids):
    class Tied(Replaced):
        def __contains__(self, name):
            return name != "output.weight" and super().__contains__(name)

    tied = from_source(Tied(model.source, {}), activations="f32")
    assert embedding.metric(tied, ids) is None
    names, found = next(feedback.layers(tied, ids[:1]))
    assert names == [embedding.NAME] and found.curvatures(embedding.NAME) is None


@pytest.mark.parametrize("type_name", ["IQ2_XXS", "Q4_K"])
def test_rounding_with_it_brings_the_model_closer(model, ids, type_name):
    """At the same bytes; 8 windows that no text for calibration has."""
    (name,), layers = next(feedback.layers(model, ids))
    assert name == embedding.NAME and layers.entries() == {}
    tensor = model.source[name]
    held_out = windows(model, read_text(EMBEDDED / "eval.txt"), N_CTX)[:8]
    files = []
    for curvatures in (None, layers.curvatures(name)):
        blocks = pieces.encode(tensor, type_name, None, curvatures)
        changed = {name: _core.Tensor(type_name, tensor.shape, [blocks])}
        files.append(from_source(Replaced(model.source, changed), activations="f32"))
    plain, fed = (s.kld.mean() for s in score(files, model, held_out))
    assert fed < 0.5 * plain
