"""Second moments layer by layer, and rounding with them: right, reproducible, and worth it."""

from pathlib import Path

import numpy as np
import pytest

import kizami
import passes
from kizami import _core, feedback
from kizami.calibrate import calibrate, calibration_windows
from kizami.demo import EMBEDDED, N_CTX
from kizami.encode import write
from kizami.errors import UsageError
from kizami.evaluate import score, windows
from kizami.layers import Observer
from kizami.memory import Cut
from kizami.moments import observed_as
from kizami.plan import uniform_plan
from kizami.recipe import read_text


@pytest.fixture(scope="module")
def model():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def ids(model):
    return calibration_windows(model, read_text(EMBEDDED / "calibration.txt"), N_CTX, 6 * N_CTX)


def moments_of(model, ids, **options):
    """Every tensor's observed moments: name -> (sums, tokens)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.source.items()}
    found = passes.sums_of(feedback.layers(model, ids, **options))
    observed = {name: observed_as(name, shapes) for name in shapes}
    return {name: found[other] for name, other in observed.items() if other in found}


def test_moments_are_those_of_the_model_as_a_whole(model, ids):
    """Layer by layer the inputs are the same as in one pass: the diagonals are the imatrix."""
    imatrix = Observer()
    model.logits_many(list(ids), observer=imatrix)
    found = moments_of(model, ids)
    checked = set()
    for name, sums, tokens in imatrix.entries():
        moments, seen = found[name]
        if len(moments) == len(sums):
            np.testing.assert_array_equal(seen, tokens)
            np.testing.assert_allclose(np.einsum("mii->mi", moments), sums, rtol=1e-4, atol=1e-30)
            checked.add(name.split(".")[-2])
    assert {"output", "attn_output", "attn_k_b", "attn_q_b", "ffn_down_exps", "ffn_gate_inp"} <= checked


def test_scales_of_coarse_codes_suit_what_feedback_makes_of_weights(model, ids):
    """Where inputs are few directions. After each: with scales chosen once, for weights without feedback."""
    name = "blk.3.attn_output.weight"
    moments = next(found for names, found in feedback.layers(model, ids) if name in names)
    (curvature,), tensor = moments.curvatures(name), model.source[name]
    power = tensor.output_power(curvature)
    assert tensor.output_error("IQ1_S", curvature) < 0.008 * power  # .0167
    assert tensor.output_error("IQ1_M", curvature) < 0.006 * power  # .0098
    assert tensor.output_error("IQ2_XXS", curvature) < 0.0018 * power  # .0024


def test_every_matrix_that_is_rounded_has_moments_but_the_embedding(model, ids):
    found = moments_of(model, ids[:1])
    missing = {t.name for t in uniform_plan(model.source, "Q4_K").tensors if t.type != "F32"} - set(found)
    assert missing == {"token_embd.weight"}


def test_moments_depend_neither_on_threads_nor_on_how_the_work_is_cut(model, ids, tmp_path, restore_settings):
    expected = moments_of(model, ids[:3])
    for threads, cut in (
        (1, Cut(windows=2)),
        (3, Cut(windows=1, experts=3, lean=True)),
        (2, Cut(windows=2, experts=1, folder=tmp_path, lean=True)),
        (2, Cut(experts=7, folder=tmp_path)),
    ):
        _core.set_threads(threads)
        found = moments_of(model, ids[:3], cut=cut)
        assert found.keys() == expected.keys()
        for name, (sums, tokens) in found.items():
            np.testing.assert_array_equal(sums, expected[name][0], err_msg=f"{name}: {cut}")
            np.testing.assert_array_equal(tokens, expected[name][1], err_msg=f"{name}: {cut}")
    assert not list(tmp_path.iterdir())


def test_tensors_of_one_input_share_their_moments(monkeypatch):
    parts = ("attn_kv_a_mqa", "attn_q_a", "ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp", "attn_output")
    shapes = {f"blk.1.{part}.weight": (8, 64) for part in parts}
    shapes |= {f"blk.1.ffn_{part}_exps.weight": (4, 8, 64) for part in ("gate", "up")}
    shapes |= {f"{name}.weight": (8, 64) for name in ("blk.0.ffn_gate", "blk.0.ffn_up", "output")}

    def observed(part):
        return observed_as(f"{part}.weight", shapes).removesuffix(".weight")

    assert observed("blk.1.attn_q_a") == "blk.1.attn_kv_a_mqa"
    assert observed("blk.1.ffn_up_shexp") == observed("blk.1.ffn_gate_shexp") == "blk.1.ffn_gate_inp"
    assert observed("blk.1.ffn_up_exps") == "blk.1.ffn_gate_exps"
    assert observed("blk.0.ffn_up") == "blk.0.ffn_gate"
    assert observed("blk.1.attn_output") == "blk.1.attn_output"
    assert observed("output") == "output"
    monkeypatch.setattr("kizami.moments.MOST_GATES", 8 * 4 * 64**2 - 1)
    assert observed("blk.1.ffn_up_exps") == observed("blk.1.ffn_gate_exps") == "blk.1.ffn_gate_inp"


@pytest.mark.parametrize("type_name", ["IQ2_XXS", "Q4_K"])
def test_feedback_brings_the_model_closer_to_its_source(model, tmp_path, type_name):
    """At the same bytes and on text that calibration has not seen."""
    text = read_text(EMBEDDED / "calibration.txt")
    imatrix = calibrate(model, text, n_ctx=N_CTX, max_tokens=24_576)
    plan = uniform_plan(model.source, type_name)
    plain, fed = tmp_path / "plain.gguf", tmp_path / "feedback.gguf"
    write(model.source, plan, plain, imatrix)
    stages = feedback.layers(model, calibration_windows(model, text, N_CTX, 24_576))
    write(model.source, plan, fed, imatrix, layers=stages)
    assert fed.stat().st_size == plain.stat().st_size
    held_out = windows(model, read_text(EMBEDDED / "eval.txt"), N_CTX)[:24]
    klds = [
        s.summary().kld_mean
        for s in score([kizami.load(p, activations="f32") for p in (plain, fed)], model, held_out)
    ]
    assert klds[1] < 0.85 * klds[0]


def test_what_rounding_needs_is_said_before_any_work(tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match="rounding: found 'nearest'"):
        kizami.quantize(EMBEDDED, out, type="Q4_K", rounding="nearest")
    with pytest.raises(UsageError, match="without a calibration text"):
        kizami.quantize(EMBEDDED, out, type="Q4_K", rounding="feedback")
    assert not Path(out).exists()
