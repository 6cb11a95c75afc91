"""The plan: what it chooses from, pins and floors, curves, and how they are shown."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kizami
from commandline import SOURCE, json_of, one_error
from commandline import kizami as command
from kizami.allocation import expected_kld, make_plan
from kizami.checkpoint import open_source
from kizami.curve import make_curve
from kizami.demo import EMBEDDED
from kizami.distortion import Distortions, measure
from kizami.errors import FormatError, UsageError
from kizami.formats import TYPES, WRITABLE, fitting, quantizable
from kizami.plan import Plan, file_bytes, uniform_plan
from kizami.plot import draw_curve
from kizami.presets import PRESETS
from kizami.sensitivity import SENSITIVITY, sensitivities

many = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def source():
    return open_source(EMBEDDED)


@pytest.fixture(scope="module")
def distortions(source):
    """The embedded model's, measured once."""
    return measure(source)


def types_of(plan):
    return {t.name: t.type for t in plan.tensors}


# -- what a plan chooses from --------------------------------------------------------------------------


def test_a_table_measured_before_gives_the_same_plan(source, distortions, monkeypatch):
    few = ["IQ2_XXS", "Q4_K", "IQ4_NL", "BF16"]
    known = {n: {t: e for t, e in errors.items() if t in few} for n, errors in distortions.errors.items()}
    monkeypatch.setattr("kizami.formats.CANDIDATES", few)
    assert make_plan(source, bpw=3.0, distortions=Distortions(known)) == make_plan(source, bpw=3.0)


def test_only_types_with_known_errors_are_chosen(source, distortions):
    few = {"IQ2_XXS", "Q4_K", "IQ4_NL", "Q8_0"}
    known = {n: {t: e for t, e in errors.items() if t in few} for n, errors in distortions.errors.items()}
    plan = make_plan(source, bpw=3.0, distortions=Distortions(known))
    assert {"IQ2_XXS", "Q4_K", "IQ4_NL"} < {t.type for t in plan.tensors} <= few | {"F32"}


def test_sensitivities_move_bits(source, distortions):
    name = "blk.1.ffn_down_exps.weight"
    before = make_plan(source, bpw=2.5, distortions=distortions)
    after = make_plan(source, bpw=2.5, distortions=distortions, sensitivities={name: 10.0})
    bytes_of = [next(t.bytes for t in plan.tensors if t.name == name) for plan in (before, after)]
    assert bytes_of[1] > 2 * bytes_of[0]


def test_a_class_shares_its_prior(distortions):
    priors = sensitivities(distortions.errors)
    assert priors.keys() == distortions.errors.keys()
    experts = [value for name, value in priors.items() if "ffn_down_exps" in name]
    assert sum(experts) == pytest.approx(dict(SENSITIVITY)["ffn_down_exps"]) and len(set(experts)) == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda errors: errors.pop("output.weight"), r"output\.weight: found no type"),
        (lambda errors: errors.update({"blk.1.attn_k_b.weight": {"Q4_K": 0.1}}), "rows of 64 do not divide"),
        (lambda errors: errors["output.weight"].update(Q4_K=float("nan")), "NaN|finite|number"),
    ],
)
def test_a_table_of_another_model_is_refused(source, distortions, edit, message):
    errors = {name: dict(of_type) for name, of_type in distortions.errors.items()}
    edit(errors)
    with pytest.raises(FormatError, match=message):
        make_plan(source, bpw=3.0, distortions=Distortions(errors))


def test_sensitivities_of_another_model_are_refused(source, distortions):
    with pytest.raises(FormatError, match=r"blk\.77\.attn_q\.weight"):
        make_plan(source, bpw=3.0, distortions=distortions, sensitivities={"blk.77.attn_q.weight": 1.0})


# -- pins and floors -----------------------------------------------------------------------------------

PATTERNS = ["attn_", r"blk\.1\.", "ffn_down", "shexp", r"^output\.weight$", "token_embd", "_exps", "."]
RULES = st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from(WRITABLE), max_size=3)


def expected_pin(name, pins):
    """The first pin whose pattern is found in the name."""
    return next((t for pattern, t in pins.items() if re.search(pattern, name)), None)


def check_rules(plan, pins, floors):
    """Pins hold exactly, floors hold for the others, and what loses no bits is F32."""
    for t in plan.tensors:
        if not quantizable(t.name, t.shape):
            assert t.type == "F32", t.name
        elif pinned := expected_pin(t.name, pins):
            assert t.type == fitting(pinned, t.shape), t.name
        else:
            for pattern, floor in floors.items():
                if re.search(pattern, t.name):
                    assert TYPES[t.type]["bpw"] >= TYPES[floor]["bpw"], (t.name, t.type, floor)


@many
@given(bpw=st.floats(1.6, 17.0), pins=RULES, floors=RULES)
def test_rules_hold_and_the_budget_is_never_exceeded(source, distortions, bpw, pins, floors):
    try:
        plan = make_plan(source, bpw=bpw, distortions=distortions, pins=pins, floors=floors)
    except UsageError as error:
        least = float(re.search(r"at least ([\d.]+), the smallest possible", str(error))[1])
        assert least > bpw
        plan = make_plan(source, bpw=least, distortions=distortions, pins=pins, floors=floors)
        bpw = least
    assert plan.bpw <= bpw and plan.predicted_kld >= 0
    check_rules(plan, pins, floors)


@many
@given(size=st.integers(3_100_000, 12_000_000), pins=RULES)
def test_rules_hold_in_a_file_of_a_size(source, distortions, size, pins):
    try:
        plan = make_plan(source, size=size, distortions=distortions, pins=pins)
    except UsageError as error:
        assert "the smallest possible" in str(error)
        return
    assert plan.file_bytes == file_bytes(source, plan.tensors) <= size
    check_rules(plan, pins, {})


@many
@given(type_name=st.sampled_from(WRITABLE), pins=RULES, floors=RULES)
def test_rules_hold_beside_a_uniform_type(source, type_name, pins, floors):
    plan = uniform_plan(source, type_name, pins=pins, floors=floors)
    check_rules(plan, pins, floors)
    for t in plan.tensors:
        ruled = any(re.search(pattern, t.name) for pattern in [*pins, *floors])
        if quantizable(t.name, t.shape) and not ruled:
            assert t.type == fitting(type_name, t.shape)


def test_a_pin_costs_the_rest_and_never_helps(source, distortions):
    free = make_plan(source, bpw=3.0, distortions=distortions)
    pins = {"attn_": "Q8_0"}
    pinned = make_plan(source, bpw=3.0, distortions=distortions, pins=pins)
    assert pinned.predicted_kld > free.predicted_kld
    assert pinned.tensor_bytes <= free.weights * 3 / 8
    rest = [sum(t.bytes for t in plan.tensors if "attn_" not in t.name) for plan in (free, pinned)]
    assert rest[1] < rest[0]


def test_of_several_pins_the_first_counts(source, distortions):
    pins = {r"blk\.3\.ffn_down": "Q6_K", "ffn_down": "IQ2_XXS"}
    types = types_of(make_plan(source, bpw=3.0, distortions=distortions, pins=pins))
    assert types["blk.3.ffn_down_exps.weight"] == "Q6_K" and types["blk.4.ffn_down_exps.weight"] == "IQ2_XXS"


def test_rows_that_do_not_divide_get_what_stands_in(source):
    types = types_of(uniform_plan(source, "Q8_0", pins={"attn_k_b": "Q4_K", "attn_v_b": "Q4_K"}))
    assert types["blk.1.attn_k_b.weight"] == "IQ4_NL"  # rows of 64
    assert types["blk.1.attn_v_b.weight"] == fitting("Q4_K", tuple(source["blk.1.attn_v_b.weight"].shape))


@pytest.mark.parametrize("rule", ["pins", "floors"])
@pytest.mark.parametrize(
    ("pattern", "type_name", "message"),
    [
        ("attn_(", "Q6_K", "not a regular expression"),
        ("attn_", "Q9_K", "'Q9_K'"),
        ("attn_", "Q4_K_M", "'Q4_K_M'"),
        ("nothing", "Q6_K", "finds no tensor"),
        ("ffn_gate_inp", "Q6_K", r"only tensors that stay F32, such as blk\.1\.ffn_gate_inp"),
    ],
)
def test_rules_that_cannot_be_are_refused(source, rule, pattern, type_name, message):
    with pytest.raises(UsageError, match=message) as error:
        make_plan(source, bpw=3.0, **{rule: {pattern: type_name}})
    assert rule.removesuffix("s") in str(error.value) and pattern in str(error.value)
    with pytest.raises(UsageError, match=message):
        uniform_plan(source, "Q4_K", **{rule: {pattern: type_name}})


def test_a_budget_too_small_for_the_rules_says_so(source, distortions):
    with pytest.raises(UsageError, match="the smallest possible with these pins and floors"):
        make_plan(source, bpw=3.0, distortions=distortions, pins={"_exps": "Q8_0"})
    with pytest.raises(UsageError, match="the smallest possible with these pins and floors"):
        make_plan(source, size=4_000_000, distortions=distortions, floors={".": "Q4_K"})


def test_the_predicted_kld_of_a_followed_plan_grows_with_its_loss_and_less_than_it(source, distortions):
    plain = [make_plan(source, bpw=bpw, distortions=distortions) for bpw in (2.0, 3.0, 4.0, 5.0)]
    followed = [
        make_plan(source, bpw=bpw, distortions=distortions, calibration="0" * 64)
        for bpw in (2.0, 3.0, 4.0, 5.0)
    ]
    assert [p.tensors for p in plain] == [p.tensors for p in followed]
    losses, klds = ([p.predicted_kld for p in plans] for plans in (plain, followed))
    assert klds == sorted(klds, reverse=True)
    for loss, kld in zip(losses, klds, strict=True):
        assert kld == expected_kld(loss, followed=True, routed=True) > expected_kld(loss, True, routed=False)
    # Routers' mistakes are what is left of the finest.
    assert klds[0] / losses[0] < 1 and all(
        finer[0] / finer[1] > coarser[0] / coarser[1]
        for coarser, finer in pairwise(zip(klds, losses, strict=True))
    )
    assert expected_kld(0.0, followed=True, routed=True) == 0


def test_rules_do_not_go_with_a_plan_to_replay(source, tmp_path):
    path = tmp_path / "plan.json"
    uniform_plan(source, "Q8_0").save(path)
    with pytest.raises(UsageError, match="beside a plan"):
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", plan=path, pins={"attn_": "Q6_K"})


def test_wrong_rules_and_budgets_are_found_before_calibration(tmp_path, monkeypatch):
    module = sys.modules["kizami.quantize"]  # the package has a function of that name
    for step in ("calibrate", "first_pass"):
        monkeypatch.setattr(module, step, lambda *_args, **_options: pytest.fail("measures"))
    text, out = EMBEDDED / "calibration.txt", tmp_path / "out.gguf"
    wrong = [{"bpw": 3.0, "pins": {"nothing": "Q6_K"}}, {"preset": "Q4_K_X"}, {"bpw": 0.5}]
    for options in [*wrong, {"size": 1_000_000}, {"size": 4_000_000, "floors": {".": "Q4_K"}}]:
        for rounding in ("feedback", "plain"):
            with pytest.raises(UsageError, match="nothing|Q4_K_X|the smallest possible"):
                kizami.quantize(EMBEDDED, out, calibration=text, rounding=rounding, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_plan_or_a_curve_is_found_before_its_text_is_measured(tmp_path, monkeypatch):
    module = sys.modules["kizami.cli.plan"]  # the package has a command of that name
    monkeypatch.setattr(module, "survey_text", lambda *_args, **_options: pytest.fail("measures"))
    monkeypatch.chdir(tmp_path)
    words = ["plan", EMBEDDED, "--calibration", EMBEDDED / "calibration.txt"]
    for wrong, fragment in (
        (["--curve", "--pin", "nothing=Q6_K"], "nothing"),
        (["--curve", "5:4"], "the smallest possible"),
        (["--curve", "1KB:2KB"], "the smallest possible"),
        (["--bpw", "0.5", "--out", "p.json"], "the smallest possible"),
    ):
        one_error(command(*words, *wrong, code=2), fragment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["plan", SOURCE, "--bpw", "3", "--calibration"], ["imatrix", SOURCE, "--text"]]
)
def test_a_disk_too_small_for_what_has_to_wait_is_found_first(words, tmp_path, monkeypatch):
    for module, step in (("kizami.survey", "first_pass"), ("kizami.cli.imatrix", "calibrate")):
        monkeypatch.setattr(sys.modules[module], step, lambda *_args, **_options: pytest.fail("measures"))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=200 << 20))
    words = [*words, EMBEDDED / "calibration.txt", "--out", tmp_path / "out"]
    small = command(*words, "--max-memory", "1MB", code=2).stderr
    at_least = re.search(r"at least ([\d,]+)", small)[1].replace(",", "")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1234))
    refused = command(*words, "--max-memory", at_least, code=74)
    one_error(refused, "have to wait on disk, 1,234 are free", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# -- curves --------------------------------------------------------------------------------------------


def check_curve(curve):
    """Sizes grow, losses do not; uniform files are never better than what is planned."""
    plans = [point.plan for point in curve.points]
    assert [p.file_bytes for p in plans] == sorted(p.file_bytes for p in plans)
    losses = [p.predicted_kld for p in plans]
    assert losses == sorted(losses, reverse=True)
    for u in curve.uniform:
        if u.planned is not None:
            assert u.planned.file_bytes <= u.plan.file_bytes
    return plans


@settings(many, max_examples=8)
@given(low=st.floats(0.5, 8.0), ratio=st.floats(1.05, 4.0), pins=RULES)
def test_a_curve_is_monotone(source, distortions, low, ratio, pins):
    high = low * ratio
    try:
        curve = make_curve(source, low=low, high=high, distortions=distortions, pins=pins)
    except UsageError as error:
        assert "the smallest possible" in str(error)
        return
    plans = check_curve(curve)
    assert plans[-1].bpw <= high and len(plans) >= 12
    for plan in plans:
        check_rules(plan, pins, {})


def test_a_whole_curve_has_all_presets(source, distortions):
    curve = make_curve(source, distortions=distortions)
    plans = check_curve(curve)
    marked = {name for point in curve.points for name in point.presets}
    assert marked == set(PRESETS) - {"IQ1_S"} or marked == set(PRESETS)
    assert all(b.bpw / a.bpw < 1.16 for a, b in zip(plans, plans[1:], strict=False))
    for u in curve.uniform:
        assert u.planned is None or u.planned.predicted_kld <= u.plan.predicted_kld
    assert {"Q4_K", "IQ2_XXS", "Q2_K"} <= {u.type for u in curve.uniform}
    # What is solved for one size is what the curve says of it.
    some = curve.points[7]
    again = make_plan(source, bpw=plans[7].bpw, distortions=distortions)
    assert again.predicted_kld == pytest.approx(some.plan.predicted_kld)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_curve_is_drawn(source, distortions, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curve{suffix}"
    draw_curve(make_curve(source, low=2, high=5, distortions=distortions), path, "tiny-deepseek")
    assert path.stat().st_size > 10_000 and list(tmp_path.iterdir()) == [path]
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_without_matplotlib_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "curve.png"
    result = command("plan", SOURCE, "--curve", "2:3", "--plot", out, code=2)
    one_error(result, "matplotlib is not installed")
    assert "kizami[plot]" in result.stderr and list(tmp_path.iterdir()) == []


# -- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (["--bpw", "3", "--out", "p.json", "--pin", "Q6_K"], "REGEX=TYPE"),
        (["--bpw", "3", "--out", "p.json", "--pin", "=Q6_K"], "REGEX=TYPE"),
        (["--bpw", "3", "--out", "p.json", "--pin", "a(=Q6_K"], "not a regular expression"),
        (["--bpw", "3", "--out", "p.json", "--floor", "attn=Q6"], "'Q6'"),
        (["--bpw", "3", "--out", "p.json", "--pin", "attn=Q6_K", "--pin", "attn=Q8_0"], "two types"),
        (["--bpw", "3", "--out", "p.json", "--floor", "nothing=Q6_K"], "finds no tensor"),
        (["--preset", "Q4_K_X", "--out", "p.json"], "'Q4_K_X'"),
        (["--preset", "Q4_K_M", "--bpw", "3", "--out", "p.json"], "found --bpw and --preset"),
        (["--bpw", "3"], "--out"),
        (["--curve", "2:3", "--out", "p.json"], "writes no plan"),
        (["--curve", "2"], "FROM:TO"),
        (["--curve", "2:many"], "'many'"),
        (["--curve", "5:2"], "the end above the beginning"),
        (["--curve", "0.1:0.2"], "the smallest possible"),
        (["--bpw", "3", "--out", "p.json", "--plot", "x.png"], "--plot without --curve"),
        (["--curve", "2:3", "--plot", "x.pdf"], ".png or .svg"),
    ],
)
def test_wrong_usage_of_plan(args, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_error(command("plan", SOURCE, *args, code=2), fragment)
    assert list(tmp_path.iterdir()) == []


def test_pins_on_the_command_line(small, tmp_path):
    model, matrix = small
    out, plan = tmp_path / "out.gguf", tmp_path / "plan.json"
    rules = ["--pin", "attn_q=Q8_0", "--floor", "shexp=Q5_K"]
    command("plan", model, "--bpw", "5", "--imatrix", matrix, "--out", plan, *rules)
    types = {t["name"]: t["type"] for t in json.loads(plan.read_text())["tensors"]}
    assert {types[f"blk.{i}.attn_q_{part}.weight"] for i in (0, 1) for part in "ab"} == {"Q8_0"}
    assert TYPES[types["blk.1.ffn_up_shexp.weight"]]["bpw"] >= 5.5
    command("quantize", model, out, "--type", "IQ4_NL", *rules)
    written = {name: t.type for name, t in kizami.GGUF(out).items()}
    assert written["blk.0.attn_q_a.weight"] == "Q8_0" and written["blk.1.ffn_up_shexp.weight"] == "Q5_K"
    assert written["output.weight"] == "IQ4_NL"
    found = json_of(command("quantize", model, out, "--preset", "Q5_K_M", *rules, "--dry-run", "--json"))
    assert found["predicted_kld"] > 0


def test_the_curve_on_the_command_line(small):
    model, matrix = small
    args = ["plan", model, "--curve", "4:6", "--imatrix", matrix]
    found = json_of(command(*args, "--json"))
    assert [p["bpw"] for p in found["curve"]] == sorted(p["bpw"] for p in found["curve"])
    assert all(sum(p["types"].values()) == pytest.approx(1) for p in found["curve"])
    assert {"presets", "bytes", "bpw", "predicted_kld", "types"} == set(found["curve"][0])
    assert {"type", "bytes", "bpw", "predicted_kld", "planned_kld"} == set(found["uniform"][0])
    text = command(*args).stdout
    assert "routed experts" in text and "Q4_K_M" in text and "planned, same bytes" in text
    weights = sum(math.prod(t.shape) for t in open_source(model).values())
    sizes = [f"{bpw * weights / 8 / 1000:.3f}kB" for bpw in (4, 6)]
    again = json_of(command("plan", model, "--curve", ":".join(sizes), "--imatrix", matrix, "--json"))
    assert len(again["curve"]) == len(found["curve"])


def test_a_plan_is_shown_by_parts(source, distortions, capsys):
    from kizami.cli import output

    plan = make_plan(source, bpw=3.0, distortions=distortions, pins={r"blk\.(1|2|4)\.ffn_down_exps": "Q6_K"})
    assert isinstance(plan, Plan)
    output.parts((t.name, t.type, math.prod(t.shape), t.bytes) for t in plan.tensors)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 25 < len(plan.tensors)
    (down,) = (line for line in lines if line.startswith("ffn_down_exps "))
    assert "Q6_K in 1-2 4" in down
    (others,) = (line for line in lines if line.startswith("others "))
    assert others.split()[-1] == "F32"
    counts = [int(line.split()[1]) for line in lines[1:]]
    assert sum(counts) == len(plan.tensors)
