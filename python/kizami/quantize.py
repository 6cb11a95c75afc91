"""From a model to a GGUF of the size asked for: survey or calibrate, plan, encode, write.

Knows the order of the steps, and which of them a request needs. Does not know how any of them is done, nor
how an interrupted job is gone on with (job.py).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kizami import _core, feedback
from kizami.calibrate import calibrate, calibration_windows
from kizami.checkpoint import open_source
from kizami.engine import from_source
from kizami.errors import FormatError, UsageError, naming
from kizami.feedback import Moments
from kizami.formats import TYPES
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.job import Job
from kizami.outputs import check_output
from kizami.plan import Plan, PlannedTensor, file_layout, output_metadata
from kizami.recipe import Request
from kizami.recipe import read_text as read_text
from kizami.report import check_report, save_report
from kizami.shards import Shard, shards
from kizami.survey import Survey, first_pass

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """What was written, or would be with ``dry_run``; ``path`` is the first of ``paths``."""

    path: str
    bytes: int
    bpw: float
    tensors: list[dict[str, Any]]
    predicted_kld: float | None
    seconds: float
    peak_rss: int | None
    paths: list[str]

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return asdict(self)


def peak_rss() -> int | None:
    """Largest resident memory of this process in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Writer(Protocol):
    """Where the bytes of a tensor go."""

    def write(self, name: str, data: np.ndarray) -> None:
        """Takes all bytes of a tensor."""


def write(
    source: Any,
    plan: Plan,
    out: str | os.PathLike[str],
    imatrix: Imatrix | None = None,
    progress: Progress | None = None,
    layers: Iterable[tuple[str, Moments]] = (),
    calibration: str | None = None,
) -> None:
    """Encodes every tensor of ``source`` as planned and writes the file, in one go.

    Args:
        source: an open model.
        plan: the type of each of its tensors.
        out: the file to write.
        imatrix: importance of columns.
        progress: called with (stage, tensors done, tensors in total).
        layers: as in :func:`encode`.
        calibration: hash of the text that ``layers`` saw, for the file to name.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    metadata = output_metadata(source, types_of(plan), imatrix, calibration)
    writer = _core.GgufWriter(os.fspath(out), metadata, file_layout(plan.tensors))
    try:
        encode(source, plan, writer, imatrix, progress, layers)
        writer.finish()
    finally:
        writer.abort()


def encode(
    source: Any,
    plan: Plan,
    writer: Writer,
    imatrix: Imatrix | None = None,
    progress: Progress | None = None,
    layers: Iterable[tuple[str, Moments]] = (),
    done: Collection[str] = (),
) -> None:
    """Encodes the tensors of ``source`` as planned, one at a time.

    Args:
        source: an open model.
        plan: the type of each of its tensors.
        writer: gets their bytes.
        imatrix: importance of columns.
        progress: called with (stage, tensors done, tensors in total).
        layers: what :func:`kizami.feedback.layers` finds, for rounding with error feedback; in tensors of no
            layer, and in all without it, each weight is rounded by itself.
        done: tensors that ``writer`` has already.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    if imatrix is not None and not any(t.name in imatrix.entries for t in plan.tensors):
        raise FormatError("imatrix: found no entry for any tensor of the model, expected one of this model")
    left = {t.name: t for t in plan.tensors if not {t.name, *scales_of(t)} <= set(done)}

    def put(planned: PlannedTensor, moments: Moments | None) -> None:
        tensor = source[planned.name]
        writer.write(planned.name, encoded(source, tensor, planned, imatrix, moments))
        if planned.scales and tensor.scale is not None:
            writer.write(scale_name(planned.name), tensor.scale.view(np.uint8))
        if progress:
            progress("encode", len(plan.tensors) - len(left), len(plan.tensors))

    for prefix, moments in layers:
        for name in [name for name in left if name.startswith(prefix)]:
            put(left.pop(name), moments)
        del moments  # not to be held while the next layer's are gathered
    for name in list(left):
        put(left.pop(name), None)


def types_of(plan: Plan) -> dict[str, str]:
    """The type of each tensor."""
    return {t.name: t.type for t in plan.tensors}


def scales_of(planned: PlannedTensor) -> list[str]:
    """Name of the tensor that a tensor's scales are in, where they stay beside it."""
    return [scale_name(planned.name)] if planned.scales else []


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
    with naming(source.path, planned.name):
        weights = imatrix.weights(planned.name, n_mat, planned.shape[-1]) if imatrix else None
        curvatures = None
        if moments is not None and TYPES[planned.type]["quantized"]:
            curvatures = moments.curvatures(planned.name)
        return feedback.encode(tensor, planned.type, weights, curvatures)


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
    ctx: int = 512,
    rounding: str | None = None,
    split_size: int | None = None,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantizes a model to a GGUF file that stock llama.cpp loads.

    The work may be interrupted at any moment, by whatever: what is finished stays beside ``out``, and
    ``resume`` goes on from there, to the same bytes (:mod:`kizami.job`).

    Args:
        src: a checkpoint directory as published, or a GGUF.
        out: the file to write; with ``split_size``, what the files are named after.
        bpw: budget in bits per weight over all tensors, or
        size: budget in bytes of the whole file, or of all files together, or
        type: one type for all tensors that may lose bits (``Q4_K``; ``F32``, ``F16``, ``BF16`` export), or
        preset: budget as a name of llama.cpp's (``Q4_K_M``): the bits per weight of its file, or
        plan: a plan file to replay.
        pins: pattern of tensor names to type: what these tensors get instead (``{"attn_.*": "Q6_K"}``).
        floors: pattern of tensor names to type: these tensors get none coarser.
        imatrix: importance of columns, from ``kizami imatrix`` or llama-imatrix, or
        calibration: a text to measure it on.
        ctx: tokens of the text that are run together.
        rounding: ``"feedback"`` lets every weight make up for the errors of those before it, as far as
            their inputs go together on the calibration text (:mod:`kizami.feedback`); ``"plain"`` rounds
            each by itself. Feedback where there is a text, if not given.
        split_size: most bytes of one file; there are as many as it takes.
        resume: go on with an unfinished job on ``out``, if there is one.
        force: discard an unfinished job on ``out``, if there is one.
        dry_run: plan only; nothing is written but the report.
        report: a file for the report, ``.json`` or ``.html``.
        progress: called with (stage, done, total).

    Raises:
        UsageError: options that do not go together, or a budget below the smallest possible.
        ResumeError: an unfinished job is in the way, or of another recipe, or running.
        FormatError: an input is damaged.
        InputOutputError: a file cannot be read or written, or the disk is too small.
    """
    start = time.perf_counter()
    inputs = (src, plan, imatrix, calibration)
    request = Request.read(
        bpw=bpw,
        size=size,
        type=type,
        preset=preset,
        plan=plan,
        pins=pins,
        floors=floors,
        imatrix=imatrix,
        calibration=calibration,
        ctx=ctx,
        rounding=rounding,
        split_size=split_size,
    )
    if resume and force:
        raise UsageError("unfinished job: found both resume and force, expected at most one")
    out = Path(out)
    check_output(out, *inputs)
    if report is not None:
        check_report(report)
        check_output(report, out, *inputs)
    source = open_source(Path(src))
    if "general.architecture" not in source.metadata:
        kind = source.metadata.get("general.type", "unknown")
        raise FormatError(
            f"{os.fspath(src)}: general.architecture: missing, expected a model; the file's type is {kind}"
        )
    request.check(source)  # before anything is measured
    if dry_run:
        planned, files = _run(request, source, out, None, progress)
    else:
        with Job(out, request.recipe(source), resume=resume, force=force) as job:
            job.check_space(request.needs(source))
            planned, files = _run(request, source, out, job, progress)
            job.finish(request.recipe(source))
    result = Report(
        path=os.fspath(files[0].path),
        bytes=sum(file.size for file in files),
        bpw=planned.bpw,
        tensors=[
            {
                "name": t.name,
                "type": t.type,
                "bytes": t.bytes,
                "bpw": 8 * t.bytes / math.prod(t.shape),
                "error": planned.errors.get(t.name),
            }
            for t in planned.tensors
        ],
        predicted_kld=planned.predicted_kld,
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
        paths=[os.fspath(file.path) for file in files],
    )
    if report is not None:
        save_report(result.to_dict(), report)
    return result


def _run(
    request: Request, source: Any, out: Path, job: Job | None, progress: Progress | None
) -> tuple[Plan, list[Shard]]:
    """The plan and the layout of the output; with a job its tensors are written, too.

    What the first pass over the text finds, a job remembers: the imatrix in a file, the rest as the plan.
    """
    model = cache(lambda: from_source(source, activations="f32"))
    windows = cache(lambda: calibration_windows(model(), request.text or "", request.n_ctx))
    calibration = request.rounded_on()
    fed = calibration is not None
    planned = request.fixed(source)
    if fed:
        windows()  # a text that is too short is known before anything is written

    @cache
    def surveyed() -> Survey:
        return first_pass(model(), windows(), request.dataset, progress)

    importance = request.imatrix
    if request.text is not None and not (fed and planned is not None):
        # Rounding with feedback takes moments, in the second pass; a plan that stands needs no first one.

        def measure() -> Imatrix:
            if fed:
                return surveyed().imatrix
            text, n_ctx = request.text or "", request.n_ctx
            return calibrate(model(), text, n_ctx=n_ctx, dataset=request.dataset, progress=progress)

        importance = job.imatrix(measure) if job else measure()
    if planned is None:

        def choose() -> dict[str, Any]:
            if not fed:
                return asdict(request.choose(source, importance, progress=progress))
            found = surveyed()
            return asdict(
                request.choose(source, importance, found.distortions, found.sensitivities, progress)
            )

        planned = Plan.from_dict(job.remembered("plan", choose) if job else choose())
    metadata = output_metadata(source, types_of(planned), importance, calibration)
    files = shards(out, metadata, file_layout(planned.tensors), request.split_size)
    if job is not None:
        for file in files:
            check_output(file.path, *source.paths)
        job.lay_out(files, progress)
        layers: Iterable[tuple[str, Moments]] = ()
        if fed:
            layers = feedback.layers(model(), windows(), done=job.done, progress=progress)
        encode(source, planned, job, importance, progress, layers, job.done)
    return planned, files
