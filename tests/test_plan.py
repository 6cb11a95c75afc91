"""The plan: budgets, what a plan chooses from, and what stays as it was asked for."""

from __future__ import annotations

import pytest

from kizami.checkpoint import open_source
from kizami.demo import EMBEDDED
from kizami.distortion import Distortions, measure
from kizami.errors import FormatError
from kizami.plan import make_plan
from kizami.sensitivity import SENSITIVITY, sensitivities


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


def test_a_table_measured_before_gives_the_same_plan(source, distortions):
    assert make_plan(source, bpw=3.0, distortions=distortions) == make_plan(source, bpw=3.0)


def test_only_types_with_known_errors_are_chosen(source, distortions):
    few = {"IQ2_XXS", "Q4_K", "IQ4_NL", "Q8_0"}
    known = {n: {t: e for t, e in errors.items() if t in few} for n, errors in distortions.errors.items()}
    plan = make_plan(source, bpw=3.0, distortions=Distortions(known))
    assert {t.type for t in plan.tensors} == few | {"F32"}


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
