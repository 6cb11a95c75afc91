"""The first pass over the calibration text: what each type would cost each tensor, before a plan is made.

All windows pass through one layer at a time (:func:`kizami.feedback.layers`). From a layer's moments follow
its part of the imatrix and, on sampled rows, what the final rounding would do to the layer's outputs in
every type. Small models then tell by probes what that does to the whole; of larger ones every layer's
findings can be kept as they come, so that an interrupted pass is not lost. Knows how to measure; neither
budgets nor what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kizami import _core, feedback, pieces
from kizami.calibrate import calibration_windows
from kizami.distortion import Distortions, relative_error
from kizami.engine import Model, from_source
from kizami.errors import naming
from kizami.formats import TYPES, candidates, fitting, quantizable
from kizami.imatrix import Imatrix
from kizami.memory import SAMPLED, UNLIMITED, Cut, cut_to, need
from kizami.moments import Curvatures, Statistics
from kizami.probe import probe, probe_windows
from kizami.progress import Progress
from kizami.sensitivity import sensitivities
from kizami.spill import check_waiting
from kizami.verify import verification_windows

# Rows sampled of a tensor at least, in SAMPLED of its matrices at most; of each a multiple of 16.
ROWS = 96
# The coarse type of probes.
TYPICAL = "IQ2_XXS"


@dataclass(frozen=True)
class Survey:
    """What the first pass found: what a plan is made from.

    Attributes:
        imatrix: importance of columns.
        distortions: with the final rounding, relative to the mean square of the layer's outputs.
        sensitivities: predicted KLD per unit of that, by tensor.
    """

    imatrix: Imatrix
    distortions: Distortions
    sensitivities: Mapping[str, float]


class Keeper(Protocol):
    """Keeps findings for a later run (:class:`kizami.job.Job`)."""

    def findings(self) -> Iterator[tuple[Imatrix, Any]]:
        """What was kept, in order."""

    def keep(self, part: Imatrix, found: Any) -> None:
        """Keeps some tensors' part of the imatrix, and what else was found, of JSON's types."""


class Earlier:
    """What an interrupted pass found of the layers that it finished, and where this one keeps its own.

    Attributes:
        names: tensors of those layers.
        entries: their part of the imatrix.
        errors, units: of those that may lose bits, as :func:`survey` finds them.
    """

    def __init__(self, keeper: Keeper | None) -> None:
        self.names = set[str]()
        self.entries: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.errors: dict[str, dict[str, float]] = {}
        self.units: dict[str, float] = {}
        self._keeper = keeper
        for part, found in keeper.findings() if keeper else ():
            self.names.update(found["names"])
            self.entries |= part.entries
            self.errors |= found["errors"]
            self.units |= found["units"]

    def keep(
        self,
        names: list[str],
        entries: dict[str, tuple[np.ndarray, np.ndarray]],
        errors: dict[str, dict[str, float]],
        units: dict[str, float],
    ) -> None:
        """Keeps what was found of some more tensors, if there is a place for it."""
        if self._keeper:
            found = {"names": names, "errors": errors, "units": units}
            self._keeper.keep(Imatrix(entries=entries), found)


def survey_text(
    source: Any,
    text: str,
    dataset: str,
    *,
    n_ctx: int,
    folder: Path,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """What ``kizami quantize`` with the same text finds in its first pass: for plans that no job follows.

    Args:
        source: an open model.
        text: for calibration, ``n_ctx`` tokens at a time; ``dataset`` is its name.
        folder: where files may wait.
        max_memory: most bytes that the process may take.
        progress: called with (stage, done, in total).

    Raises:
        UsageError: the text does not fill one window, or memory is too small.
        FormatError: a weight is not finite, or logits are not.
        InputOutputError: the disk is too small for what has to wait.
    """
    model = from_source(source, activations="f32")
    ids, _ = verification_windows(calibration_windows(model, text, n_ctx))
    cut = cut_to(max_memory, model, ids.shape, folder, True)
    check_waiting(folder, need(model, ids.shape, cut.windows, True).on_disk(cut))
    return first_pass(model, ids, dataset, progress, cut)


def first_pass(
    model: Model,
    ids: np.ndarray,
    dataset: str,
    progress: Progress | None = None,
    cut: Cut = UNLIMITED,
    keeper: Keeper | None = None,
) -> Survey:
    """Surveys a model, with probes where it is small enough.

    Args:
        model: the unquantized source, loaded with ``activations="f32"``.
        ids: token ids ``[n_windows, n_ctx]`` of the calibration text; some are kept for probes.
        dataset: name of the text, for the imatrix.
        progress: called with (stage, done, in total).
        cut: how the work is cut to fit in memory.
        keeper: where each layer's findings are kept, and those of an earlier run are. Not for models that
            are probed: probes need their rounded tensors, too.

    Raises:
        FormatError: a weight is not finite, or logits are not.
    """
    seen, apart = probe_windows(model, ids)
    imatrix = Imatrix(chunks=len(seen), chunk_size=seen.shape[1], datasets=[dataset])
    probed = len(apart) > 0
    earlier = Earlier(None if probed else keeper)
    done = earlier.names
    layers = feedback.layers(model, seen, done=done, stage="survey", cut=cut, progress=progress)
    found, rounded = survey(model.source, layers, imatrix, probed=probed, cut=cut, earlier=earlier)
    measured = probe(model, apart, rounded, found.distortions, found.sensitivities, progress, cut)
    return Survey(imatrix, found.distortions, {**found.sensitivities, **measured})


def survey(
    source: Any,
    layers: Iterable[tuple[list[str], Statistics]],
    imatrix: Imatrix,
    probed: bool = False,
    cut: Cut = UNLIMITED,
    earlier: Earlier | None = None,
) -> tuple[Survey, dict[str, _core.Tensor]]:
    """Measures all tensors that may lose bits.

    Args:
        source: an open model.
        layers: what :func:`kizami.feedback.layers` finds, which also reports progress.
        imatrix: says what text it will be of; its entries are filled here.
        probed: whether to round all tensors for probes.
        cut: whether weights leave memory when a tensor is measured.
        earlier: what is known of the tensors that ``layers`` leaves out; findings are kept there.

    Returns:
        With sensitivities by class; and if ``probed``, tensors as they finally would be in ``TYPICAL``, or
        what stands in for it.

    Raises:
        FormatError: a weight is not finite, or moments are not.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    names = [name for name, shape in shapes.items() if quantizable(name, shape)]
    errors: dict[str, dict[str, float]] = {}
    units = sensitivities(names)
    rounded: dict[str, _core.Tensor] = {}

    def measure(name: str, moments: Statistics | None) -> None:
        tensor, types = source[name], candidates(shapes[name])
        curvatures = moments.curvatures(name) if moments and _fed(types) else None
        wanted, coarse = fitting(TYPICAL, shapes[name]), probed_as(name, tensor)
        with naming(source.path, name):
            if moments is None or curvatures is None:
                errors[name] = {t: relative_error(tensor, t, name, imatrix) for t in types}
            else:
                sample = Sample(tensor, moments.tokens(name), curvatures)
                errors[name] = sample.errors([t for t in types if t != tensor.type])
                errors[name] |= {t: 0.0 for t in types if t == tensor.type}
                # Priors are per unit of the weights' own error. Plain rounding is the same act in both units.
                output = sample.plain_error(wanted)
                if output > 0:
                    units[name] *= relative_error(tensor, wanted, name, imatrix) / output
            if probed and coarse is not None:
                blocks = pieces.encode(tensor, coarse, None, curvatures)
                rounded[name] = _core.Tensor(coarse, shapes[name], [blocks])

    if earlier is not None:
        imatrix.entries.update(earlier.entries)
        errors |= earlier.errors
        units |= earlier.units
    for of_layer, moments in layers:
        entries = moments.entries()
        imatrix.entries.update(entries)
        measured = [name for name in of_layer if name in units]
        for name in measured:
            measure(name, moments)
            cut.release(source)
        del moments  # not to be held while the next layer's are gathered
        if earlier is not None:
            earlier.keep(of_layer, entries, {n: errors[n] for n in measured}, {n: units[n] for n in measured})
    for name in [name for name in names if name not in errors]:
        measure(name, None)  # layers that no text passes
    return Survey(imatrix, Distortions(errors), units), rounded


def probed_as(name: str, tensor: _core.Tensor) -> str | None:
    """The coarse type of a tensor in probes; None where it has none, or is in it."""
    shape = tuple(tensor.shape)
    wanted = fitting(TYPICAL, shape)
    fits = quantizable(name, shape) and wanted in candidates(shape) and wanted != tensor.type
    return wanted if fits else None


def _fed(types: Iterable[str]) -> bool:
    """Whether moments say how any of the types would be rounded: by feedback, or by their diagonal."""
    return any(TYPES[t]["quantized"] for t in types)


class Sample:
    """Some rows of some matrices of a tensor, evenly spread over those that were used."""

    def __init__(self, tensor: _core.Tensor, tokens: np.ndarray, curvatures: Curvatures) -> None:
        """Decodes them.

        Args:
            tokens: what each matrix saw, float64 ``[n_mat]`` or ``[1]``: how much its outputs count.
            curvatures: one per matrix, or one for all.
        """
        shape = tuple(tensor.shape)
        n_mat = shape[0] if len(shape) == 3 else 1
        used = np.flatnonzero(tokens > 0) if len(tokens) == n_mat else np.arange(n_mat)
        used = used if len(used) else np.arange(n_mat)
        picked = used[np.unique(np.linspace(0, len(used) - 1, min(len(used), SAMPLED)).round().astype(int))]
        per_matrix = -(-ROWS // len(picked) // 16) * 16
        rows = np.unique(np.linspace(0, shape[-2] - 1, min(shape[-2], per_matrix)).round().astype(int))
        self._parts: list[tuple[_core.Tensor, _core.Curvature, float]] = []
        self._power = 0.0
        for index in map(int, picked):
            weights, curvature = tensor.rows(index, rows.tolist()), curvatures[index % len(curvatures)]
            count = max(float(tokens[index % len(tokens)]), 1.0)
            self._parts.append((weights, curvature, count))
            self._power += count * weights.output_power(curvature)

    def errors(self, types: list[str]) -> dict[str, float]:
        """By type, the mean square of what it does to the outputs over that of the outputs, of the sampled
        rows."""
        weights, curvatures, counts = zip(*self._parts, strict=True)
        found = _core.output_errors(list(weights), list(curvatures), types)
        return {
            name: self._relative(n * e for n, e in zip(counts, errors, strict=True))
            for name, errors in zip(types, found, strict=True)
        }

    def plain_error(self, type_name: str) -> float:
        """The same of one type without feedback."""
        return self._relative(n * w.output_error(type_name, c, False) for w, c, n in self._parts)

    def _relative(self, errors: Iterable[float]) -> float:
        return sum(errors) / self._power if self._power > 0 else 0.0
