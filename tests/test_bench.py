"""The scripts under bench/: random models are sane, figures of peers are read and compared right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import kizami
from kizami import _core
from kizami.demo import EMBEDDED
from kizami.formats import TYPES
from kizami.tokenizer import Tokenizer

SCRIPTS = str(Path(__file__).parent.parent / "bench")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import make_model
    import peers
    import report

    return make_model, peers, report


@pytest.mark.parametrize("kind", [name for name, t in TYPES.items() if t["ggml_id"] is not None])
def test_random_weights_have_the_deviation_asked_for(scripts, kind):
    make_model, _, _ = scripts
    shape, scale = (512, 1024), 1024**-0.5
    data = make_model.tensor_bytes(np.random.default_rng(1), kind, "blk.0.ffn_up.weight", shape, scale)
    weights = _core.Tensor(kind, shape, [data]).dequantize()
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(scale, rel=0.05)
    # IQ4_NL's codes are not centred: all alike often, their mean is a tenth of their deviation.
    assert abs(weights.mean()) < 0.1 * scale


def test_rows_that_do_not_divide_fall_back(scripts):
    make_model, _, _ = scripts
    rules = [*make_model.MIXES["dynamic"][:2], ("down_exps", "IQ2_XXS"), ("", "IQ1_S")]
    types = make_model.choose(make_model.moe()[1], rules)
    assert types["blk.0.attn_k_b.weight"] == "IQ4_NL"
    assert types["blk.1.ffn_down_exps.weight"] == "IQ2_XXS" and types["blk.1.ffn_up_exps.weight"] == "IQ1_S"
    assert types["blk.1.ffn_gate_inp.weight"] == types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("shape", ["moe", "dense"])
def test_the_tokenizer_of_random_models_reads_text(scripts, shape):
    make_model, _, _ = scripts
    metadata, shapes = make_model.SHAPES[shape]()
    tokenizer = Tokenizer.from_metadata({key: value for key, _, value in metadata})
    assert tokenizer.vocab_size == shapes["token_embd.weight"][0]
    assert tokenizer.decode(tokenizer.encode("Straße, 7 + 8\n")) == "Straße, 7 + 8\n"


PEER = """
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
seen = [(int(n), 0) for n in given["-p"].split(",") if n != "0"]
seen += [(0, int(n)) for n in given["-n"].split(",") if n != "0"]
if "-gp" in given:
    seen.append(tuple(map(int, given["-gp"].split(","))))
tests = []
for depth in map(int, given.get("-d", "0").split(",")):
    for prompt, tokens in seen:
        # A token takes a millisecond and a microsecond for each one before it.
        before = depth + (prompt if tokens else 0)
        n = tokens or prompt
        seconds = n * 1e-3 + 1e-6 * (n * before + n * n / 2)
        tests.append({"build_commit": "abc", "build_number": 7, "n_prompt": prompt, "n_gen": tokens,
                      "n_depth": depth, "avg_ns": seconds * 1e9, "avg_ts": n / seconds})
print(json.dumps(tests))
"""


def test_peers_without_depth_are_timed_as_those_with_it(scripts, tmp_path):
    _, peers, _ = scripts
    command = [sys.executable, "-c", PEER]
    job = peers.Job(tmp_path / "model.gguf", [128, 512], [64], [0, 256], 2)
    with_depth = peers.Llama("llama.cpp", "fa", command)
    without = peers.Ik("ik_llama.cpp", "default", command)
    expected = {(f.test, f.depth): f.tokens_per_s for f in with_depth.measure(job, 60)}
    found = {(f.test, f.depth): f.tokens_per_s for f in without.measure(job, 60)}
    assert len(expected) == 6 and found == pytest.approx(expected)
    assert with_depth.version == without.version == "abc (7)"


@pytest.mark.parametrize(
    "program, fragment",
    [
        ("import sys; sys.exit('no such model')", "no such model"),
        ("print('[{}]')", "build_commit"),
        ("print('ready')", "no JSON"),
        ("import time; time.sleep(60)", "no result after"),
    ],
)
def test_a_peer_that_fails_is_recorded(scripts, tmp_path, program, fragment):
    _, peers, report = scripts
    engine = peers.Llama("llama.cpp", "fa", [sys.executable, "-c", program])
    job = peers.Job(tmp_path / "model.gguf", [128], [], [0], 1)
    (row,) = peers.measure(engine, job, 1.0)
    assert fragment in row["error"] and row.keys() <= set(report.COLUMNS)


def test_ratios_are_to_the_best_setting_by_medians(scripts, tmp_path, capsys):
    _, peers, report = scripts
    rows = []
    for engine, setting, rates in [
        ("kizami", "default", [100, 300, 200]),
        ("llama.cpp", "fa", [10, 500, 50]),
        ("llama.cpp", "no fa", [80, 80, 80]),
    ]:
        for number, rate in enumerate(rates):
            row = dict.fromkeys(report.COLUMNS, "") | {"engine": engine, "setting": setting, "model": "m"}
            rows.append(row | {"threads": "2", "test": "tg64", "depth": "0", "round": str(number)})
            rows[-1]["tokens_per_s"] = str(rate)
    ((case, results),) = report.best(rows).items()
    assert case.label == "tg64"
    assert results["llama.cpp"].setting == "no fa" and results["kizami"].tokens_per_s == 200
    report.show(rows)
    assert "2.50" in capsys.readouterr().out


def test_the_whole_run_with_kizami_alone(scripts, q4k, tmp_path, monkeypatch, capsys):
    _, peers, report = scripts
    out = tmp_path / "peers.csv"
    arguments = ["--tests", "pp8,tg2", "--depths", "0,8", "--threads", "1", "--rounds", "1", "--csv"]
    monkeypatch.setattr(sys, "argv", ["peers.py", str(q4k), *arguments, str(out)])
    peers.main()
    rows = report.read(out)
    assert [(r["test"], r["depth"]) for r in rows] == [("pp8", "0"), ("pp8", "8"), ("tg2", "0"), ("tg2", "8")]
    assert all(json.loads(r["tokens_per_s"]) > 0 and not r["error"] for r in rows)
    assert "no path given" in capsys.readouterr().err


# -- what rounding and plans are worth -----------------------------------------------------------------


@pytest.fixture
def quality_scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import exam
    import rounding

    return exam, rounding


def test_exercises_are_asked_and_scored_where_their_answers_stand(quality_scripts, tmp_path):
    exam, _ = quality_scripts
    model = kizami.load(EMBEDDED, activations="f32")
    lines = [{"question": "5*6", "answer": "30"}, {"question": "upper yacht", "answer": "not what it says"}]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    exercises = exam.read(model, path)
    asked = "<｜begin▁of▁sentence｜><｜User｜>5*6<｜Assistant｜>"
    assert exercises[0].prompt == model.tokenizer.encode(asked)
    assert exercises[0].expected == [*model.tokenizer.encode("30"), model.tokenizer.eos]
    assert exam.read(model, path, f"Text.\n{asked}30") == exercises[1:]
    assert exam.read(model, path, "5*6 is 30") == exercises
    found = exam.answers(model, exercises)
    assert exam.solved(model, exercises, found) == 1
    # Written out where its tokens are not the likeliest: the same.
    assert exam.solved(model, exercises, [-p for p in found]) == 1
    assert [p.shape for p in found] == [(len(e.expected), model.tokenizer.vocab_size) for e in exercises]
    # The model answers the first: its right answer is likely, the other's wrong one is not.
    likely = [np.exp(p[np.arange(len(p)), e.expected]).min() for p, e in zip(found, exercises, strict=True)]
    assert likely[0] > 0.3 > likely[1]
    assert not exam.divergences(found, found).any()
    flat = [np.full_like(p, -np.log(p.shape[1])) for p in found]
    assert (exam.divergences(found, flat) > 1).all()


def test_rows_of_rounding_say_which_is_better(quality_scripts):
    _, rounding = quality_scripts
    noise = np.linspace(-1e-3, 1e-3, 20)
    plain, fed, ggml = 0.04 + noise, 0.02 + noise, 0.05 + noise + np.tile([-1e-3, 1e-3], 10)
    row = rounding.figures(plain, fed, ggml)
    assert row["ratio"] == pytest.approx(0.5) and row["ratio_ggml"] == pytest.approx(0.4)
    assert row["difference"] == pytest.approx(0.02) and row["half_width"] == pytest.approx(0, abs=1e-9)
    assert row["half_width_ggml"] == pytest.approx(1.96e-3 / np.sqrt(19), rel=1e-6)
    named = {"type": "Q4_K", "text": "eval.txt", "seconds": [1.0, 2.0]}
    for cells in (row, rounding.figures(plain, fed)):
        assert rounding.line(named | cells).count("|") == 12


# -- what error feedback lives from --------------------------------------------------------------------


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import inputs

    return inputs


def moments_of(cols: int) -> np.ndarray:
    """Mean `x xᵀ` of inputs of which most are sums of a few, in columns of unlike size."""
    rng = np.random.default_rng(cols)
    x = rng.normal(size=(512, 12)) @ rng.normal(size=(12, cols)) + rng.normal(size=(512, cols)) / 4
    x *= np.geomspace(0.2, 5, cols)
    return x.T @ x / len(x)


def test_pivots_are_those_of_elimination_from_the_last_column(inputs):
    h = inputs.damped(moments_of(32))
    left, expected = h.copy(), np.zeros(32)
    for j in reversed(range(32)):
        expected[j] = left[j, j]
        left -= np.outer(left[:, j], left[j]) / left[j, j]
    assert inputs.pivots(h) == pytest.approx(expected, rel=1e-6)
    assert np.log(expected).sum() == pytest.approx(np.linalg.slogdet(h)[1])


def test_spectra_and_spreads_of_known_inputs(inputs):
    flat = np.eye(100)
    assert inputs.spread(flat) == {"largest": 1, "p99": 1, "p1": 1}
    assert inputs.spectrum(flat) == {"n90": 90, "n99": 99, "rank": pytest.approx(100)}
    assert inputs.room(flat) == pytest.approx({"mean": 1, "geometric": 1, "correlation": 1})
    # One direction holds all: what is left of any noise is damping, but in the column that goes last.
    one = np.ones((100, 100))
    assert inputs.spectrum(one) == {"n90": 1, "n99": 1, "rank": pytest.approx(1)}
    assert inputs.room(one)["mean"] == pytest.approx(0.01 + 0.01, rel=0.2)
    # Unlike columns without correlation are worth nothing to feedback.
    unlike = inputs.room(np.diag(np.geomspace(1, 100, 100)))
    assert unlike["mean"] == pytest.approx(1) == unlike["correlation"]
    assert unlike["geometric"] < 0.5
    unused = np.diag(np.r_[np.zeros(10), np.ones(90)])
    assert inputs.short(inputs.spread(unused)["p1"]) is None


def test_gains_and_errors_are_the_encoders(inputs):
    mean = moments_of(256)
    curvature = _core.Curvature(mean)  # with the damping that is the encoder's own
    values = np.random.default_rng(7).normal(size=(2, 16, 256)).astype(np.float32)
    tensor = _core.Tensor("F32", values.shape, [values.reshape(-1).view(np.uint8)])
    importance = np.tile(np.diagonal(mean), (2, 1)).astype(np.float32)
    rounding = inputs.Rounding(tensor, importance, ["IQ2_XXS"])
    for index in range(2):
        rounding.add(index, mean)
    found = rounding.figures()
    parts = [tensor.at(index) for index in range(2)]
    power = sum(part.output_power(curvature) for part in parts)
    error = sum(part.output_error("IQ2_XXS", curvature) for part in parts)
    assert rounding.power == pytest.approx(power, rel=1e-4)
    assert found["IQ2_XXS fed error"] == pytest.approx(error / power, rel=1e-3)
    assert found["IQ2_XXS fed error"] < 0.7 * found["IQ2_XXS plain error"]
    assert found["IQ2_XXS fed gain"] == pytest.approx(1, abs=0.1)


def test_inputs_of_the_embedded_model(inputs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "inputs.json"
    few = ["--ctx", "128", "--calibration-tokens", "512", "--types", "Q4_K", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["inputs.py", *few])
    inputs.main()
    found = json.loads(out.read_text())
    assert found["model"] == "tiny-deepseek" and found["tokens"] == 512
    rows = {(row["class"], row["columns"]): row for row in found["classes"]}
    assert len(rows) == 12 and rows["output", 256]["tensors"] == 1
    least, median, most = rows["down", 256]["tokens"]
    assert 0 <= least <= median <= most <= 512
    for (_, cols), row in rows.items():
        assert 1 <= row["n90"] <= row["n99"] <= cols
        assert row["geometric"] <= row["mean"] <= 1 and row["geometric"] <= row["correlation"]
        # Rows of 64 do not divide into blocks.
        assert ("Q4_K fed error" in row) == (cols >= 256)
        assert cols < 256 or row["Q4_K fed error"] < row["Q4_K plain error"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| class |") for line in lines) == 3
    assert sum(line.startswith("| k_b, v_b |") for line in lines) == 5
    monkeypatch.setattr(sys, "argv", ["inputs.py", "--model", str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="error: .*missing"):
        inputs.main()
