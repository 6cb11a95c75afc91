"""Two streams side by side: what the written model takes in, how it differs, and what that is worth."""

from __future__ import annotations

import numpy as np
import pytest

import kizami
from kizami import _core, feedback
from kizami.calibrate import calibration_windows
from kizami.demo import EMBEDDED, N_CTX
from kizami.encode import write
from kizami.evaluate import score, windows
from kizami.layers import Observer
from kizami.memory import UNLIMITED, Cut
from kizami.plan import plan_from_types, uniform_plan
from kizami.recipe import read_text
from kizami.written import Output


@pytest.fixture(scope="module")
def model():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def ids(model):
    return calibration_windows(model, read_text(EMBEDDED / "calibration.txt"), N_CTX, 6 * N_CTX)


@pytest.fixture(scope="module")
def coarse(model, tmp_path_factory):
    """The model with all projections coarse: an output that is written already."""
    out = tmp_path_factory.mktemp("coarse") / "coarse.gguf"
    write(model.source, uniform_plan(model.source, "IQ1_S"), out)
    return kizami.GGUF(out)


def stacks(model, ids, tensors, **options):
    """Moments and drifts of everything that is observed beside what is written: name -> (mean, drift)."""
    output = None if tensors is None else Output(model, tensors, UNLIMITED, lambda: None)
    found = {}
    for names, moments in feedback.layers(model, ids, output=output, **options):
        for name in names:
            means = moments.means(name) if hasattr(moments, "means") else None
            if means is not None:
                drifts = moments.drift_means(name)
                found[name] = np.stack(list(means)), None if drifts is None else np.stack(list(drifts))
    return found


def test_beside_the_source_itself_nothing_differs(model, ids):
    alone, beside = (stacks(model, ids[:4], tensors) for tensors in (None, model.source))
    assert alone.keys() == beside.keys() and "blk.1.ffn_down_exps.weight" in alone
    for name, (mean, _) in alone.items():
        # What is written passes without an observer, in the other form of attention.
        largest = np.abs(mean).max()
        np.testing.assert_allclose(beside[name][0], mean, atol=1e-5 * largest)
        assert beside[name][1] is not None and np.abs(beside[name][1]).max() < 1e-5 * largest, name


def test_inputs_are_those_of_what_is_written(model, ids, coarse):
    """The head's: hidden states of either model as a whole."""
    found = stacks(model, ids[:4], coarse)["output.weight"]
    hidden = []
    for source in (model.source, coarse):
        loaded = kizami.engine.from_source(source, activations="f32")
        stream = kizami.stream.Stream(
            loaded.decoder, loaded, ids[:4], UNLIMITED, kizami.spill.Spill(), lambda: None
        )
        for layer in loaded.decoder.layers:
            stream.pass_layer(layer, lambda: None)
        x = np.concatenate([kept.get() for kept in stream._hidden]).astype(np.float64)
        x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + loaded.config.eps)
        hidden.append(x * model.source["output_norm.weight"].dequantize().astype(np.float64))
    y, x = hidden
    np.testing.assert_allclose(found[0][0], x.T @ x / len(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1][0], (y - x).T @ x / len(x), rtol=1e-3, atol=1e-4)
    assert np.abs(found[1][0]).max() > 0.01


@pytest.mark.parametrize("cut", [Cut(windows=1, experts=3), Cut(windows=2)])
def test_the_cut_does_not_show(model, ids, coarse, cut, tmp_path):
    whole = stacks(model, ids, coarse)
    parts = stacks(model, ids, coarse, cut=Cut(cut.windows, cut.experts, tmp_path, lean=True))
    for name, (mean, drift) in whole.items():
        np.testing.assert_array_equal(parts[name][0], mean)
        np.testing.assert_array_equal(parts[name][1], drift)


class Silent(dict):
    """An output whose shared experts' gates of one layer say nothing: downs take in zeros."""

    def __init__(self, tensors, name):
        tensor = tensors[name]
        blocks = np.zeros(tensor.shape, np.float32).reshape(-1).view(np.uint8)
        super().__init__(tensors.items())
        self[name] = _core.Tensor("F32", tensor.shape, [blocks])


def test_downs_take_in_what_written_gates_make(model, ids, coarse):
    silent = Silent(coarse, "blk.1.ffn_gate_shexp.weight")
    mean, drift = stacks(model, ids[:4], silent)["blk.1.ffn_down_shexp.weight"]
    assert not mean.any() and not drift.any()
    gates, lost = stacks(model, ids[:4], silent)["blk.1.ffn_gate_shexp.weight"]
    assert gates.any() and lost.any()


def test_what_is_no_drift_is_refused():
    moments = np.eye(32)
    with pytest.raises(kizami.errors.UsageError, match="drift: found shape"):
        _core.Curvature(moments, drift=np.zeros((32, 64)))
    with pytest.raises(kizami.errors.FormatError, match="drift at row 1, column 2"):
        bad = np.zeros((32, 32))
        bad[1, 2] = np.nan
        _core.Curvature(moments, drift=bad)


def test_observers_of_inputs_are_for_others_to_follow(model, ids):
    sums, inputs = Observer(["output.weight"]), Observer.of_inputs(["output.weight"])
    model.logits_many([ids[0][:32]], observer=sums)
    with pytest.raises(kizami.errors.UsageError, match="found one of sums"):
        Observer().follow(sums)
    with pytest.raises(kizami.errors.UsageError, match="found one of inputs"):
        inputs.follow(Observer.of_inputs([]))
    with pytest.raises(kizami.errors.UsageError, match="found one of inputs"):
        inputs.entries()
    assert sums.take("output.weight", 0).any(), "what was refused is still there"
    model.logits_many([ids[0][:32]], observer=inputs)
    sums.follow(inputs)
    model.logits_many([ids[0][:32]], observer=sums)
    assert sums.pairs("output.weight").tolist() == [32]
    assert not sums.take_drift("output.weight", 0).any() and sums.take_drift("output.weight", 0) is None
    block = model.decoder.layers[1].feed_forward
    x = np.zeros((3, model.config.d if hasattr(model.config, "d") else 256), np.float32)
    with pytest.raises(kizami.errors.FormatError):
        block.show(x, 0, block.experts + 1, sums, last=True, hidden=True)


def test_pairs_of_experts_are_tokens_that_both_routers_send(model, ids, coarse):
    output = Output(model, coarse, UNLIMITED, lambda: None)
    for names, moments in feedback.layers(model, ids, output=output):
        for name in names:
            if name.endswith("ffn_down_exps.weight"):
                pairs, tokens = moments.drifts[name].tokens, moments.stacks[name].tokens
                assert (pairs <= tokens).all() and 0.5 * tokens.sum() < pairs.sum() < tokens.sum()


def test_rounding_makes_up_for_the_layers_before(model, tmp_path):
    """At the same types, on text that calibration has not seen."""
    text = tmp_path / "calibration.txt"
    text.write_text(read_text(EMBEDDED / "calibration.txt")[:90_000], encoding="utf-8")
    types = {t.name: t.type for t in uniform_plan(model.source, "IQ1_S").tensors}
    types |= {"token_embd.weight": "BF16", "output.weight": "BF16"}
    plan = plan_from_types(model.source, types, "test")
    plan.save(tmp_path / "plan.json")
    alone, beside = tmp_path / "alone.gguf", tmp_path / "beside.gguf"
    ids = calibration_windows(model, text.read_text(encoding="utf-8"), N_CTX)
    write(model.source, plan, alone, layers=feedback.layers(model, ids))
    kizami.quantize(EMBEDDED, beside, plan=tmp_path / "plan.json", calibration=text, ctx=N_CTX)
    held_out = windows(model, read_text(EMBEDDED / "eval.txt"), N_CTX)[:32]
    klds = [
        s.summary().kld_mean
        for s in score([kizami.load(p, activations="f32") for p in (alone, beside)], model, held_out)
    ]
    assert klds[1] < 0.98 * klds[0]
