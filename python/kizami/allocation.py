"""Bit allocation: the types that lose least within a budget.

What a plan loses is a sum over tensors: the tensor's sensitivity (:mod:`kizami.sensitivity`) times the
relative error that its type makes (:mod:`kizami.distortion`). A multiple-choice knapsack over exact bytes
(Rust: ``solve``) picks the types. Additivity and the predictor are argued in HIGGS (arXiv 2411.17525). The
predicted KLD follows from the sum, and grows with it.

Knows what each tensor may be and what that takes and costs; neither runs models nor writes files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from kizami import _core
from kizami.distortion import Distortions, measure, relative_error
from kizami.errors import FormatError, UsageError
from kizami.formats import TYPES, candidates, fitting, nbytes, quantizable
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.plan import Plan, PlannedTensor, file_layout, kept_scales, output_metadata
from kizami.progress import Progress
from kizami.rules import Rules
from kizami.sensitivity import sensitivities as priors

# What is left of the sum when layers make up for what those before them lost (passage.py), which neither
# survey nor probes see; and what a router adds: a token near the boundary between two experts goes to the
# other at odds that grow with the error's size, the root of the sum, and at a cost that does not. Both from
# two fixed recipes of small-deepseek (docs/quantizer.md#predicted-kld).
LEFT = 0.68
FLIPS = 0.0125


def expected_kld(loss: float, followed: bool, routed: bool) -> float:
    """KLD in nats that a plan is predicted to have.

    Args:
        loss: sum of sensitivity times error over all tensors.
        followed: whether layers will make up for what those before them lost.
        routed: whether the model has routed experts.
    """
    if not followed:
        return loss
    return LEFT * loss + (FLIPS * math.sqrt(loss) if routed else 0.0)


def make_plan(
    source: Any,
    *,
    bpw: float | None = None,
    size: int | None = None,
    imatrix: Imatrix | None = None,
    distortions: Distortions | None = None,
    sensitivities: Mapping[str, float] | None = None,
    pins: Mapping[str, str] | None = None,
    floors: Mapping[str, str] | None = None,
    calibration: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The best plan within a budget.

    Args:
        source: an open model: a GGUF or a checkpoint.
        bpw: bits per weight over all tensors, or
        size: bytes of the whole file.
        imatrix, distortions, sensitivities, pins, floors, calibration, progress: as for :class:`Choices`.

    Raises:
        UsageError: not exactly one budget, one below the smallest possible (the message says which), or pins
            or floors are wrong.
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
    return choices.best(bpw=bpw, size=size)


class Choices:
    """What there is to choose from for every tensor of a model, and what it is predicted to cost.

    Attributes:
        shapes: of all tensors, by name.
        smallest: the plan of the fewest bytes.
    """

    def __init__(
        self,
        source: Any,
        *,
        imatrix: Imatrix | None = None,
        distortions: Distortions | None = None,
        sensitivities: Mapping[str, float] | None = None,
        pins: Mapping[str, str] | None = None,
        floors: Mapping[str, str] | None = None,
        calibration: str | None = None,
        reserve: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Gathers them; errors are measured when a budget is first spent.

        Args:
            source: an open model: a GGUF or a checkpoint.
            imatrix: importance of columns; all alike without it.
            distortions: the error that each type makes in each tensor: what there is to choose from. Those of
                plain rounding are measured where none are given.
            sensitivities: predicted KLD per unit of error by tensor; the prior of its class for any other.
            pins: pattern of names to type: what these tensors get (:mod:`kizami.rules`).
            floors: pattern of names to type: these tensors get none coarser, in bits per weight.
            calibration: hash of the text for error feedback, which the file will name.
            reserve: bytes of the file to leave, for the headers of a split set.
            progress: called with (stage, tensors done, tensors in total).

        Raises:
            UsageError: pins or floors are wrong.
            FormatError: distortions or sensitivities are of another model.
        """
        self._source, self._imatrix, self._progress = source, imatrix, progress
        self._reserve = reserve
        self._followed = calibration is not None
        self._known = distortions
        # A tensor of a checkpoint is made when it is asked for, some at a cost: each once.
        self._kept: dict[str, tuple[str, int]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in source.items():
            self.shapes[name] = tuple(tensor.shape)
            self._kept[name] = tensor.type, kept_scales(tensor, tensor.type)
        names = [name for name, shape in self.shapes.items() if quantizable(name, shape)]
        self._sensitivities = priors(names) | dict(sensitivities or {})
        if unknown := sorted(self._sensitivities.keys() - names):
            raise FormatError(f"sensitivities: tensor {unknown[0]}: none that may lose bits in the source")
        rules = Rules(self.shapes, pins, floors)
        self._smallest_possible = "the smallest possible" + (" with these pins and floors" if rules else "")

        self._options: list[list[PlannedTensor]] = []
        for name, shape in self.shapes.items():
            types = rules.left(name, shape, _types(name, shape, distortions)) if name in names else ["F32"]
            self._options.append([self._planned(name, t) for t in types])
        smallest = [min(options, key=lambda t: TYPES[t.type]["bpw"]) for options in self._options]
        # As large for any types.
        self._metadata = output_metadata(source, {t.name: t.type for t in smallest}, imatrix, calibration)
        self.smallest = Plan(smallest, self._file_bytes(smallest))

    def _file_bytes(self, tensors: list[PlannedTensor]) -> int:
        """Bytes of the file of a plan, header and padding included."""
        return _core.GgufWriter.size(self._metadata, file_layout(tensors)) + self._reserve

    def check(self, *, bpw: float | None = None, size: int | None = None) -> None:
        """Whether a budget can be kept; nothing is measured for that.

        Raises:
            UsageError: not exactly one budget, or one below the smallest possible (the message says which).
        """
        least = self.smallest
        if (bpw is None) == (size is None):
            raise UsageError("budget: expected exactly one of bpw and size")
        if bpw is not None:
            if not (math.isfinite(bpw) and bpw > 0):
                raise UsageError(f"bpw: found {bpw}, expected a positive number")
            if bpw < least.bpw:
                at_least = f"{math.ceil(least.bpw * 1e4) / 1e4:g}, {self._smallest_possible}"
                raise UsageError(f"bpw: found {bpw:g}, expected at least {at_least}")
        elif size is not None and size < least.file_bytes:
            at_least = f"{least.file_bytes:,}, {self._smallest_possible}"
            raise UsageError(f"size: found {size:,} bytes, expected at least {at_least}")

    def best(self, *, bpw: float | None = None, size: int | None = None) -> Plan:
        """The plan that is predicted to lose least within a budget.

        Args:
            bpw: bits per weight over all tensors, or
            size: bytes of the whole file.

        Raises:
            UsageError: not exactly one budget, or one below the smallest possible (the message says which).
        """
        self.check(bpw=bpw, size=size)
        least = self.smallest
        if bpw is not None:
            counted = [[t.bytes for t in options] for options in self._options]
            budget = max(math.floor(bpw * least.weights / 8), least.tensor_bytes)
        else:
            assert size is not None
            align = int(self._source.metadata.get("general.alignment", 32))
            counted = [[_padded(t, align) for t in options] for options in self._options]
            # What is left is the header.
            budget = size - (least.file_bytes - sum(_padded(t, align) for t in least.tensors))
        costs = self._costs
        chosen = _core.solve(counted, costs, budget)
        tensors = [options[i] for options, i in zip(self._options, chosen, strict=True)]
        predicted = self._expected(sum(cost[i] for cost, i in zip(costs, chosen, strict=True)))
        errors = {t.name: self._error(t) for t in tensors if t.name in self._sensitivities}
        return Plan(tensors, self._file_bytes(tensors) - self._reserve, predicted, errors)

    def uniform(self, type_name: str) -> Plan:
        """Every tensor that may lose bits in one type, without pins and floors."""
        tensors = []
        for name, shape in self.shapes.items():
            wanted = type_name if name in self._sensitivities else "F32"
            tensors.append(self._planned(name, fitting(wanted, shape)))
        return Plan(tensors, self._file_bytes(tensors), self._expected(sum(map(self._cost, tensors))))

    def _planned(self, name: str, type_name: str) -> PlannedTensor:
        """A tensor in a type that divides its rows."""
        own, scales = self._kept[name]
        if type_name != own:
            scales = 0
        size = nbytes(type_name, self.shapes[name]) or 0
        return PlannedTensor(name, self.shapes[name], type_name, size + 4 * scales, scales)

    @cached_property
    def _costs(self) -> list[list[float]]:
        return [[self._cost(t) for t in options] for options in self._options]

    @cached_property
    def _errors(self) -> Mapping[str, Mapping[str, float]]:
        known = self._known or measure(self._source, self._imatrix, self._progress)
        return known.errors

    def _expected(self, loss: float) -> float:
        """Predicted KLD of a plan that loses so much."""
        return expected_kld(loss, self._followed, any("_exps." in name for name in self.shapes))

    def _cost(self, t: PlannedTensor) -> float:
        """What one tensor loses in its type: its share of the KLD, if no layer made up for another."""
        if t.name not in self._sensitivities:
            return 0.0  # it never loses bits
        return self._sensitivities[t.name] * self._error(t)

    def _error(self, t: PlannedTensor) -> float:
        """Relative error of one tensor in its type."""
        error = self._errors[t.name].get(t.type)
        if error is None:  # that of a pinned F16, say
            error = relative_error(self._source[t.name], t.type, t.name, self._imatrix)
        return error


def _types(name: str, shape: tuple[int, ...], distortions: Distortions | None) -> list[str]:
    """The types there are for a tensor.

    Raises:
        FormatError: the distortions lack it, or know a type that does not divide its rows.
    """
    known = candidates(shape) if distortions is None else list(distortions.errors.get(name, ()))
    if not known:
        raise FormatError(f"distortions: tensor {name}: found no type, expected at least one")
    if wrong := [t for t in known if nbytes(t, shape) is None]:
        raise FormatError(f"distortions: tensor {name}: rows of {shape[-1]} do not divide into {wrong[0]}")
    return known


def _padded(t: PlannedTensor, align: int) -> int:
    """Bytes that a tensor takes of a file whose tensors begin at multiples of ``align``."""
    parts = [t.bytes - 4 * t.scales]
    if t.scales:
        # Themselves, and their entry in the header: its name, and 32 bytes.
        parts += [4 * t.scales, len(scale_name(t.name).encode()) + 32]
    return sum(-(-part // align) * align for part in parts)
