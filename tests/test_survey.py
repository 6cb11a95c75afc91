"""What a plan with a calibration text is made from: the survey's errors, the probes' sensitivities."""

from __future__ import annotations

import math
import signal
import subprocess
import sys

import numpy as np
import pytest

import kizami
import passes
import synthetic
from commandline import json_of
from commandline import kizami as kizami_command
from kizami import _core, feedback, probe
from kizami.calibrate import calibrate, calibration_windows
from kizami.demo import EMBEDDED, N_CTX
from kizami.distortion import Distortions, relative_error
from kizami.errors import FormatError, UsageError
from kizami.formats import candidates, fitting, quantizable
from kizami.imatrix import Imatrix
from kizami.journal import Journal
from kizami.moments import SHRINKAGE, observed_as
from kizami.recipe import read_text
from kizami.sensitivity import class_of, sensitivities
from kizami.survey import TYPICAL, Sample, first_pass, survey

quantize = sys.modules["kizami.quantize"]  # the package has the function under this name
TOKENS = 8 * N_CTX


@pytest.fixture(scope="module")
def model():
    return kizami.load(EMBEDDED, activations="f32")


@pytest.fixture(scope="module")
def ids(model):
    return calibration_windows(model, read_text(EMBEDDED / "calibration.txt"), N_CTX, TOKENS)


@pytest.fixture(scope="module")
def moments(model, ids):
    """By the name of a tensor."""
    return {name: found for names, found in feedback.layers(model, ids) for name in names}


@pytest.fixture(scope="module")
def sums(model, ids):
    """What they are made from, by the name of what was observed."""
    return passes.sums_of(feedback.layers(model, ids))


@pytest.fixture(scope="module")
def surveyed(model, ids):
    """What the survey found, and tensors for probes."""
    imatrix = Imatrix(chunks=len(ids), chunk_size=N_CTX, datasets=["x"])
    return survey(model.source, feedback.layers(model, ids), imatrix, probed=True)


@pytest.fixture(scope="module")
def found(surveyed):
    return surveyed[0]


def names_of(source):
    return [name for name, tensor in source.items() if quantizable(name, tuple(tensor.shape))]


# -- the survey ----------------------------------------------------------------------------------------


def test_the_imatrix_is_that_of_calibration(model, found):
    text = read_text(EMBEDDED / "calibration.txt")
    expected = calibrate(model, text, n_ctx=N_CTX, max_tokens=TOKENS, dataset="x")
    assert found.imatrix.entries.keys() == expected.entries.keys()
    assert found.imatrix.sha256() == expected.sha256()


FAMILIES = [
    ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"],
    ["IQ1_S", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"],
    ["Q4_0", "Q5_0", "Q8_0"],
]


def test_more_bits_lose_less(model, found):
    errors = found.distortions.errors
    assert errors.keys() == set(names_of(model.source))
    for name, of_type in errors.items():
        assert list(of_type) == candidates(tuple(model.source[name].shape))
        for family in FAMILIES:
            falling = [of_type[t] for t in family if t in of_type]
            assert all(b < a < 1 for a, b in zip(falling, falling[1:], strict=False)), (name, of_type)


def test_feedback_loses_less_than_plain_rounding(model, moments, found):
    for prefix, layer in moments.items():
        for name in (name for name in names_of(model.source) if name.startswith(prefix)):
            sample = Sample(model.source[name], layer.tokens(name), layer.curvatures(name))
            wanted = fitting(TYPICAL, tuple(model.source[name].shape))
            fed, plain = sample.errors([wanted])[wanted], sample.plain_error(wanted)
            assert 0 < found.distortions.errors[name][wanted] == fed < plain, name


def test_priors_are_in_the_unit_of_the_errors(model, moments, found):
    """What plain rounding is predicted to cost is the same by the error of weights and by that of outputs."""
    priors = sensitivities(names_of(model.source))
    names = ("blk.2.attn_q_b.weight", "blk.2.ffn_down_exps.weight", "output.weight", "token_embd.weight")
    for name in names:
        layer = moments[name]
        sample = Sample(model.source[name], layer.tokens(name), layer.curvatures(name))
        by_output = found.sensitivities[name] * sample.plain_error(TYPICAL)
        by_weights = priors[name] * relative_error(model.source[name], TYPICAL, name, found.imatrix)
        assert by_output == pytest.approx(by_weights)


def test_a_tied_embedding_is_the_head_too():
    tied, apart = ["token_embd.weight"], ["token_embd.weight", "output.weight"]
    assert sensitivities(tied)["token_embd.weight"] == pytest.approx(sum(sensitivities(apart).values()))


def damped(of, shapes, name, curvatures):
    """The damped means that a tensor's curvatures were made from: float64 ``[n_mat, cols, cols]``."""
    observed = observed_as(name, shapes)
    sums, tokens = of[observed]
    part = name.split(".")[-2]
    shrinkage = sums.shape[-1] * SHRINKAGE.get(observed.split(".")[-2], 0.0)
    layer, seen = sums, tokens
    if part in ("ffn_gate_exps", "ffn_up_exps"):
        layer, seen = of[f"{name.rpartition('.ffn')[0]}.ffn_gate_inp.weight"]
    means = (sums + shrinkage * layer.sum(axis=0) / seen.sum()) / (tokens + shrinkage)[:, None, None]
    for mean, curvature in zip(means, curvatures, strict=True):
        mean += curvature.damping * np.diag(mean).mean() * np.eye(len(mean))
    return means


@pytest.mark.parametrize("type_name", ["IQ2_XXS", "Q4_K"])
@pytest.mark.parametrize("part", ["ffn_down_exps", "ffn_up_exps", "attn_v_b", "attn_k_b", "attn_output"])
def test_errors_are_those_of_the_whole_tensor(model, moments, sums, found, monkeypatch, part, type_name):
    """Really encoded, the loss taken under the moments in NumPy."""
    name = f"blk.2.{part}.weight"
    tensor, layer = model.source[name], moments[name]
    shape = tuple(tensor.shape)
    type_name = fitting(type_name, shape)
    curvatures = layer.curvatures(name)
    encoded = _core.Tensor(type_name, shape, [tensor.encode(type_name, None, curvatures)])
    n_mat = shape[0] if len(shape) == 3 else 1
    weights, rounded = (t.dequantize().reshape(n_mat, *shape[-2:]).astype(float) for t in (tensor, encoded))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.source.items()}
    means = damped(sums, shapes, name, curvatures)

    def loss(rows):
        return float(layer.tokens(name) * np.ones(n_mat) @ ((rows @ means) * rows).sum(axis=(1, 2)))

    expected = loss(rounded - weights) / loss(weights)
    assert found.distortions.errors[name][type_name] == pytest.approx(expected, rel=0.15)
    monkeypatch.setattr("kizami.survey.ROWS", 1 << 20)
    sample = Sample(tensor, layer.tokens(name), curvatures)
    assert sample.errors([type_name])[type_name] == pytest.approx(expected, rel=1e-4)


def test_a_type_that_stays_loses_nothing(model, ids, tmp_path, monkeypatch):
    monkeypatch.setattr("kizami.survey.candidates", lambda shape: ["Q3_K", "Q4_K", "Q8_0"])
    monkeypatch.setattr("kizami.survey.quantizable", lambda name, shape: name == "blk.0.attn_q_a.weight")
    kizami.quantize(EMBEDDED, tmp_path / "q4k.gguf", type="Q4_K")
    source = kizami.load(tmp_path / "q4k.gguf", activations="f32")
    first = next(feedback.layers(source, ids[:1]))
    name = "blk.0.attn_q_a.weight"
    errors = survey(source.source, [first], Imatrix())[0].distortions.errors[name]
    assert errors["Q4_K"] == 0 < errors["Q8_0"] < errors["Q3_K"]


def test_rows_that_no_type_divides_stay_out(tmp_path):
    """Curvatures are of columns that divide into blocks."""
    synthetic.train_tokenizer(tmp_path)
    vocabulary = kizami.tokenizer.Tokenizer.from_file(tmp_path / "tokenizer.json", {}).vocab_size
    synthetic.write_model(tmp_path, synthetic.CONFIG | {"vocab_size": vocabulary, "qk_nope_head_dim": 40})
    source = kizami.load(tmp_path, activations="f32")
    layers = feedback.layers(source, np.arange(32, dtype=np.uint32)[None])
    found, rounded = survey(source.source, layers, Imatrix(), probed=True)
    errors = found.distortions.errors
    assert "blk.0.attn_k_b.weight" not in rounded
    assert list(errors["blk.0.attn_k_b.weight"]) == ["BF16"]


# -- probes --------------------------------------------------------------------------------------------


def test_every_tensor_has_a_sensitivity(model, ids, surveyed):
    (found, rounded), seen = surveyed, []
    priors = found.sensitivities
    values = probe.probe(model, ids[:2], rounded, found.distortions, priors, lambda *step: seen.append(step))
    assert values.keys() == priors.keys() == set(names_of(model.source))
    assert all(np.isfinite(value) and value > 0 for value in values.values())
    groups = {(name.split(".")[1] if name.startswith("blk.") else name, class_of(name)) for name in values}
    assert seen == [("probe", i + 1, len(groups)) for i in range(len(groups))]
    # Gate and up of a layer are probed together: between them is a part of what is between their priors.
    gate, up = (f"blk.3.ffn_{part}_exps.weight" for part in ("gate", "up"))
    left, whole = math.log(values[gate] / values[up]), math.log(priors[gate] / priors[up])
    assert whole != 0 and -0.01 < left / whole < 0.9
    assert values["blk.3.attn_v_b.weight"] != values["blk.4.attn_v_b.weight"]
    # What all of it in the coarse type is predicted to cost is not far from what classes tell.
    costs = [
        sum(by[name] * found.distortions.errors[name][tensor.type] for name, tensor in rounded.items())
        for by in (values, priors)
    ]
    assert 0.2 < costs[0] / costs[1] < 5


def test_logits_that_are_none_are_refused():
    with pytest.raises(FormatError, match="logits of a probe"):
        probe._posterior(np.array([0.1, np.nan]), 0.1, 1.0)


def test_what_windows_disagree_on_is_drawn_to_the_prior():
    error, prior = 0.1, 1.0
    agreeing, disagreeing = np.full(16, 0.01) + np.linspace(-1e-4, 1e-4, 16), np.zeros(16)
    disagreeing[3] = 0.16
    sure, unsure = (probe._posterior(windows, error, prior) for windows in (agreeing, disagreeing))
    assert sure == pytest.approx(0.1, rel=0.01)
    assert 2 * sure < unsure < prior
    assert sure < probe._posterior(agreeing[:1], error, prior) < prior
    assert probe._posterior(-agreeing, error, prior) == probe._posterior(agreeing, 0.0, prior) == prior


def test_windows_for_probes_are_kept_from_calibration(model, ids, monkeypatch):
    seen, apart = probe.probe_windows(model, ids)
    assert len(apart) == len(ids) // 4 and len(seen) + len(apart) == len(ids)
    together = {window.tobytes() for window in seen} | {window.tobytes() for window in apart}
    assert together == {window.tobytes() for window in ids}
    # None where the text is too short, the work too much or the vocabulary too large.
    assert not len(probe.probe_windows(model, ids[:3])[1])
    for limit in ("MOST_WORK", "MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(probe, limit, 1 << 16)
            everything, none = probe.probe_windows(model, ids)
            assert len(everything) == len(ids) and not len(none)
    assert probe.probe(model, none, {}, Distortions({}), {}) == {}


# -- jobs ----------------------------------------------------------------------------------------------

# Runs `kizami`, where probes may take so much work, and kills it at one of the calls of a function.
KILLER = """
import importlib, os, signal, sys
from kizami import probe
probe.MOST_WORK = int(sys.argv.pop(1))
module, name, left = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
owner = importlib.import_module(module)
original = getattr(owner, name)

def counted(*args, **named):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **named)

setattr(owner, name, counted)
from kizami.cli import main
main()
"""


@pytest.fixture(scope="module")
def job(small, tmp_path_factory):
    """A model, options, and the bytes they make."""
    folder = tmp_path_factory.mktemp("whole")
    text, out = folder / "text.txt", folder / "out.gguf"
    text.write_text(read_text(small[0] / "calibration.txt")[:1500], encoding="utf-8")
    options = {"bpw": 4.0, "calibration": text, "ctx": 128}
    kizami.quantize(small[0], out, **options)
    return small[0], options, out.read_bytes()


def kill(model, out, options, module, name, calls, most_work=probe.MOST_WORK):
    """A job that is killed at a call of a function."""
    typed = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    program = [sys.executable, "-c", KILLER, str(most_work), f"kizami.{module}", name, str(calls)]
    killed = subprocess.run([*program, "quantize", model, out, *typed], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("module", "name", "calls", "surveys"),
    [("survey", "Sample", 9, 1), ("probe", "from_source", 5, 1), ("encode", "encoded", 9, 0)],
)
def test_a_killed_job_surveys_again_until_there_is_a_plan(
    job, tmp_path, monkeypatch, module, name, calls, surveys
):
    model, options, expected = job
    out, count = tmp_path / "out.gguf", []
    kill(model, out, options, module, name, calls)
    monkeypatch.setattr(quantize, "first_pass", lambda *args: (count.append(1), first_pass(*args))[1])
    kizami.quantize(model, out, resume=True, **options)
    assert out.read_bytes() == expected and len(count) == surveys
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_survey_without_probes_goes_on_where_it_was_killed(job, tmp_path, monkeypatch):
    model, options, probed = job
    survey_ = sys.modules["kizami.survey"]
    monkeypatch.setattr(probe, "MOST_WORK", 0)
    samples = []
    monkeypatch.setattr(survey_, "Sample", lambda *args: (samples.append(1), Sample(*args))[1])
    kizami.quantize(model, tmp_path / "whole.gguf", **options)
    expected, whole = (tmp_path / "whole.gguf").read_bytes(), len(samples)
    assert expected != probed
    for damaged in (None, 1, 3):
        folder = tmp_path / str(damaged)
        folder.mkdir()
        out = folder / "out.gguf"
        kill(model, out, options, "survey", "Sample", 20, most_work=0)
        journal = Journal(folder / "out.gguf.kizami-journal")
        kept = [len(record["found"]["errors"]) for record in journal.records if "part" in record]
        journal.close()
        assert len(kept) > 3 and 0 < sum(kept) <= 20
        if damaged is not None:
            part = folder / f"out.gguf.kizami-imatrix-{damaged}"
            if damaged == 1:
                part.unlink()
            else:
                part.write_bytes(part.read_bytes()[:-64])
            kept[damaged] = 0
        samples.clear()
        kizami.quantize(model, out, resume=True, **options)
        assert out.read_bytes() == expected and len(samples) == whole - sum(kept)
        assert [path.name for path in folder.iterdir()] == ["out.gguf"]


def test_a_plan_that_stands_needs_no_survey(job, tmp_path, monkeypatch):
    model, options, _ = job
    for step in ("first_pass", "calibrate"):
        monkeypatch.setattr(quantize, step, None)
    fixed = {key: value for key, value in options.items() if key != "bpw"} | {"type": "Q4_0"}
    kizami.quantize(model, tmp_path / "out.gguf", **fixed)
    metadata = kizami.GGUF(tmp_path / "out.gguf").metadata
    assert not any("imatrix" in key for key in metadata) and "kizami.calibration.sha256" in metadata
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    for dry_run in (False, True):
        with pytest.raises(UsageError, match="at least one window of 128"):
            kizami.quantize(
                model,
                tmp_path / "other.gguf",
                **fixed | {"calibration": tmp_path / "short.txt"},
                dry_run=dry_run,
            )
    assert not (tmp_path / "other.gguf").exists()


def test_a_plan_with_a_text_is_that_of_the_job(job, tmp_path):
    model, options, expected = job
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    made = json_of(kizami_command("plan", model, *words, "--out", tmp_path / "plan.json", "--json"))
    (tmp_path / "whole.gguf").write_bytes(expected)
    file = kizami.GGUF(tmp_path / "whole.gguf")
    assert {t["name"]: t["type"] for t in made["tensors"]} == {name: t.type for name, t in file.items()}
    assert made["file_bytes"] == len(expected)
    text = {key: value for key, value in options.items() if key != "bpw"}
    words = [word for key, value in text.items() for word in (f"--{key}", value)]
    curve = json_of(kizami_command("plan", model, "--curve", "3.9:4.1", *words, "--json"))["curve"]
    assert curve[0]["predicted_kld"] >= made["predicted_kld"] >= curve[-1]["predicted_kld"]


def test_threads_do_not_show(job, tmp_path, monkeypatch, restore_settings):
    """Neither in survey and probes, nor in moments of gates: by expert, or by layer if these are too many."""
    model, options, expected = job
    fixed = {key: value for key, value in options.items() if key != "bpw"} | {"type": "IQ2_XXS"}
    results = set()
    for most in (1 << 30, 0):
        monkeypatch.setattr("kizami.moments.MOST_GATES", most)
        made = []
        for threads in (1, 2, 3):
            _core.set_threads(threads)
            kizami.quantize(model, tmp_path / "out.gguf", **fixed)
            made.append((tmp_path / "out.gguf").read_bytes())
            if most and threads != 2:
                kizami.quantize(model, tmp_path / "out.gguf", **options)
                assert (tmp_path / "out.gguf").read_bytes() == expected
        assert len(set(made)) == 1
        results |= set(made)
    assert len(results) == 2
