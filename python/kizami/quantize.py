"""From a model to a GGUF of the size asked for: calibrate, plan, encode, write.

Each step is a file and a command of its own; this does them all. The output appears under its name
only when it is whole: everything goes to a partial file beside it first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kizami import _core, feedback
from kizami.allocation import make_plan
from kizami.calibrate import calibrate, calibration_windows
from kizami.checkpoint import open_source
from kizami.engine import from_source
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.feedback import Moments
from kizami.formats import TYPES
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.outputs import check_output
from kizami.plan import (
    Plan,
    PlannedTensor,
    file_bytes,
    file_layout,
    load_types,
    output_metadata,
    plan_from_types,
    uniform_plan,
)
from kizami.presets import preset_bpw
from kizami.rules import Rules

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """What was written, or would be with ``dry_run``."""

    path: str
    bytes: int
    bpw: float
    tensors: list[dict[str, Any]]
    predicted_kld: float | None
    seconds: float
    peak_rss: int | None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return asdict(self)


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file in UTF-8.

    Raises:
        InputOutputError: it cannot be read.
        FormatError: it is not text.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputOutputError(f"{os.fspath(path)}: cannot read the text: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{os.fspath(path)}: byte {error.start}: found no UTF-8, expected a text") from None


def peak_rss() -> int | None:
    """Largest resident memory of this process in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write(
    source: Any,
    plan: Plan,
    out: str | os.PathLike[str],
    imatrix: Imatrix | None,
    progress: Progress | None = None,
    layers: Iterable[tuple[str, Moments]] = (),
) -> None:
    """Encodes every tensor of ``source`` as planned and writes the file.

    Args:
        source: an open model.
        plan: the type of each of its tensors.
        out: the file to write.
        imatrix: importance of columns.
        progress: called with (stage, tensors done, tensors in total).
        layers: what :func:`kizami.feedback.layers` finds, for rounding with error feedback; in tensors of no
            layer, and in all without it, each weight is rounded by itself.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    if imatrix is not None and not any(t.name in imatrix.entries for t in plan.tensors):
        raise FormatError("imatrix: found no entry for any tensor of the model, expected one of this model")
    types = {t.name: t.type for t in plan.tensors}
    metadata = output_metadata(source, types, imatrix)
    writer = _core.GgufWriter(os.fspath(out), metadata, file_layout(plan.tensors))
    left = {t.name: t for t in plan.tensors}

    def put(planned: PlannedTensor, moments: Moments | None) -> None:
        tensor = source[planned.name]
        writer.write(planned.name, encoded(source, tensor, planned, imatrix, moments))
        if planned.scales and tensor.scale is not None:
            writer.write(scale_name(planned.name), tensor.scale.view(np.uint8))
        if progress:
            progress("encode", len(plan.tensors) - len(left), len(plan.tensors))

    try:
        for prefix, moments in layers:
            for name in [name for name in left if name.startswith(prefix)]:
                put(left.pop(name), moments)
        for name in list(left):
            put(left.pop(name), None)
        writer.finish()
    finally:
        writer.abort()


def encoded(
    source: Any,
    tensor: _core.Tensor,
    planned: PlannedTensor,
    imatrix: Imatrix | None,
    moments: Moments | None,
) -> np.ndarray:
    """The bytes of one tensor in its planned type; with error feedback where there are moments of its inputs.

    Raises:
        FormatError: a weight is not finite, its inputs are not, or the imatrix does not fit.
    """
    if tensor.type == planned.type:
        return tensor.bytes()  # no new rounding
    n_mat = planned.shape[0] if len(planned.shape) == 3 else 1
    weights = imatrix.weights(planned.name, n_mat, planned.shape[-1]) if imatrix else None
    curvatures = None
    try:
        if moments is not None and TYPES[planned.type]["quantized"]:
            curvatures = moments.curvatures(planned.name)
        return tensor.encode(planned.type, weights, curvatures)
    except FormatError as error:
        raise FormatError(
            f"{os.fspath(source.path)}: tensor {planned.name}: {error}", hint=error.hint
        ) from None


def quantize(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bpw: float | None = None,
    size: int | None = None,
    type: str | None = None,
    preset: str | None = None,
    plan: str | os.PathLike[str] | None = None,
    pins: Mapping[str, str] | None = None,
    floors: Mapping[str, str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    rounding: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Quantizes a model to a GGUF file that stock llama.cpp loads.

    Args:
        src: a checkpoint directory as published, or a GGUF.
        out: the file to write.
        bpw: budget in bits per weight over all tensors, or
        size: budget in bytes of the whole file, or
        type: one type for all tensors that may lose bits (``Q4_K``; ``F32``, ``F16``, ``BF16`` export), or
        preset: budget as a name of llama.cpp's (``Q4_K_M``): the bits per weight of its file, or
        plan: a plan file to replay.
        pins: pattern of tensor names to type: what these tensors get instead (``{"attn_.*": "Q6_K"}``).
        floors: pattern of tensor names to type: these tensors get none coarser.
        imatrix: importance of columns, from ``kizami imatrix`` or llama-imatrix, or
        calibration: a text to measure it on.
        rounding: ``"feedback"`` lets every weight make up for the errors of those before it, as far as
            their inputs go together on the calibration text (:mod:`kizami.feedback`); ``"plain"`` rounds
            each by itself. Feedback where there is a text, if not given.
        dry_run: plan only; nothing is written.
        progress: called with (stage, done, total).

    Raises:
        UsageError: options that do not go together, or a budget below the smallest possible.
        FormatError: an input is damaged.
        InputOutputError: a file cannot be read or written.
    """
    start = time.perf_counter()
    if sum(option is not None for option in (bpw, size, type, preset, plan)) != 1:
        raise UsageError("budget: expected exactly one of bpw, size, type, preset and plan")
    if plan is not None and (pins or floors):
        raise UsageError("pins and floors: found beside a plan", hint="edit the types in the plan itself")
    if imatrix is not None and calibration is not None:
        raise UsageError("importance: found an imatrix and a calibration text, expected at most one")
    if rounding not in (None, "plain", "feedback"):
        raise UsageError(f"rounding: found {rounding!r}, expected 'plain' or 'feedback'")
    if rounding == "feedback" and calibration is None:
        raise UsageError("rounding: found 'feedback' without a calibration text, expected one")
    out = Path(out)
    check_output(out, src, plan, imatrix, calibration)
    source = open_source(Path(src))
    if "general.architecture" not in source.metadata:
        kind = source.metadata.get("general.type", "unknown")
        raise FormatError(
            f"{os.fspath(src)}: general.architecture: missing, expected a model; the file's type is {kind}"
        )
    # Before anything is measured.
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    Rules(shapes, pins, floors)
    if preset is not None:
        bpw = preset_bpw(preset, shapes)
    importance = None
    layers: Iterable[tuple[str, Moments]] = ()
    if imatrix is not None:
        importance = Imatrix.read(imatrix)
    elif calibration is not None:
        model, text = from_source(source, activations="f32"), read_text(calibration)
        importance = calibrate(model, text, dataset=Path(calibration).name, progress=progress)
        if rounding != "plain":
            layers = feedback.layers(model, calibration_windows(model, text))
    if type is not None:
        planned = uniform_plan(source, type, pins=pins, floors=floors)
    elif plan is not None:
        planned = plan_from_types(source, load_types(plan), os.fspath(plan))
    else:
        planned = make_plan(
            source, bpw=bpw, size=size, imatrix=importance, pins=pins, floors=floors, progress=progress
        )
    if not dry_run:
        write(source, planned, out, importance, progress, layers)
    return Report(
        path=os.fspath(out),
        bytes=file_bytes(source, planned.tensors, importance) if dry_run else out.stat().st_size,
        bpw=planned.bpw,
        tensors=[{"name": t.name, "type": t.type, "bytes": t.bytes} for t in planned.tensors],
        predicted_kld=planned.predicted_kld,
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
    )
