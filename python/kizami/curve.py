"""The curve: predicted KLD against size, for a series of budgets, before anything is written.

Errors are measured once; then every budget is only solved. Beside the curve stand the files of one type, to
compare it with. Knows plans and presets; neither how curves are printed nor how they are drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kizami.allocation import Choices
from kizami.distortion import Distortions
from kizami.errors import UsageError
from kizami.formats import CANDIDATES, TYPES
from kizami.imatrix import Imatrix
from kizami.plan import Plan
from kizami.presets import PRESETS, preset_bpw
from kizami.progress import Progress

# Budgets are no further apart than by this factor, and there are at least so many steps.
STEP, STEPS = 1.12, 12


@dataclass(frozen=True)
class Point:
    """The plan of a budget, and the presets that mean this budget."""

    presets: tuple[str, ...]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return {
            "presets": list(self.presets),
            "bytes": self.plan.file_bytes,
            "bpw": self.plan.bpw,
            "predicted_kld": self.plan.predicted_kld,
            "types": shares(self.plan),
        }


@dataclass(frozen=True)
class Uniform:
    """A file of one type, and the plan that takes no more bytes; None where rules leave none so small."""

    type: str
    plan: Plan
    planned: Plan | None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return {
            "type": self.type,
            "bytes": self.plan.file_bytes,
            "bpw": self.plan.bpw,
            "predicted_kld": self.plan.predicted_kld,
            "planned_kld": self.planned.predicted_kld if self.planned else None,
        }


@dataclass(frozen=True)
class Curve:
    """Points by growing size and not growing KLD; uniform files by growing size."""

    points: list[Point]
    uniform: list[Uniform]

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return {
            "curve": [point.to_dict() for point in self.points],
            "uniform": [uniform.to_dict() for uniform in self.uniform],
        }


def shares(plan: Plan) -> dict[str, float]:
    """The part of routed experts' weights in each type, largest first; without experts, of all weights."""
    experts = [t for t in plan.tensors if "_exps." in t.name]
    weights: Counter[str] = Counter()
    for t in experts or plan.tensors:
        weights[t.type] += math.prod(t.shape)
    return {type_name: n / weights.total() for type_name, n in weights.most_common()}


def make_curve(
    source: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    imatrix: Imatrix | None = None,
    distortions: Distortions | None = None,
    sensitivities: Mapping[str, float] | None = None,
    pins: Mapping[str, str] | None = None,
    floors: Mapping[str, str] | None = None,
    calibration: str | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Solves a series of budgets: both ends, the presets between, and more where these are far apart.

    Args:
        source: an open model.
        low: bits per weight the curve begins at; the smallest possible if not given or smaller.
        high: bits per weight it ends at; those of Q8_0 if not given.
        imatrix, distortions, sensitivities, pins, floors, calibration: as for
            :class:`kizami.allocation.Choices`; uniform files have neither pins nor floors.
        progress: called with (stage, done, total).

    Raises:
        UsageError: nothing lies between the ends, or pins or floors are wrong.
        FormatError: distortions or sensitivities are of another model.
    """
    choices = Choices(
        source,
        imatrix=imatrix,
        distortions=distortions,
        sensitivities=sensitivities,
        pins=pins,
        floors=floors,
        calibration=calibration,
        progress=progress,
    )
    begin, end = ends(choices, low, high)
    presets = {name: preset_bpw(name, choices.shapes) for name in PRESETS}
    points: list[Point] = []
    budgets = _budgets(begin, end, [bpw for bpw in presets.values() if begin < bpw < end])
    types = [t for t in CANDIDATES if TYPES[t]["quantized"]]
    for done, budget in enumerate(budgets, 1):
        plan = choices.best(bpw=budget)
        # The solver is exact nearly always: a smaller plan that loses less is the better one.
        if points and (points[-1].plan.predicted_kld or 0.0) < (plan.predicted_kld or 0.0):
            plan = points[-1].plan
        points.append(Point(tuple(name for name, bpw in presets.items() if bpw == budget), plan))
        if progress:
            progress("curve", done, len(budgets) + len(types))
    uniform = []
    for done, type_name in enumerate(types, len(budgets) + 1):
        single = choices.uniform(type_name)
        if begin <= single.bpw <= end:
            room = single.file_bytes >= choices.smallest.file_bytes
            planned = choices.best(size=single.file_bytes) if room else None
            uniform.append(Uniform(type_name, single, planned))
        if progress:
            progress("curve", done, len(budgets) + len(types))
    return Curve(points, sorted(uniform, key=lambda u: u.plan.file_bytes))


def ends(choices: Choices, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Bits per weight that a curve begins and ends at; nothing is measured for that.

    Args:
        low, high: as for :func:`make_curve`.

    Raises:
        UsageError: nothing lies between them.
    """
    begin = max(low or 0.0, choices.smallest.bpw)
    end = high if high is not None else max(preset_bpw("Q8_0", choices.shapes), 1.1 * begin)
    if not (math.isfinite(begin) and begin < end < math.inf):
        raise UsageError(
            f"curve: found {begin:g} to {end:g} bits per weight, expected the end above the beginning; "
            f"the smallest possible is {choices.smallest.bpw:.4g}"
        )
    return begin, end


def _budgets(begin: float, end: float, between: list[float]) -> list[float]:
    """Both ends, those between, and as many more as keep neighbours less than :data:`STEP` apart."""
    step = min(STEP, (end / begin) ** (1 / STEPS))
    found = sorted({begin, *between, end})
    for a, b in pairwise(tuple(found)):
        n = math.ceil(math.log(b / a) / math.log(step) - 1e-9)
        found += [a * (b / a) ** (i / n) for i in range(1, n)]
    return sorted(found)
