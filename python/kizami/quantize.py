"""From a model to a GGUF of the size asked for: survey or calibrate, plan, encode, write.

Knows the order of the steps, and which of them a request needs. Does not know how any of them is done, nor
how an interrupted job is gone on with (job.py).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kizami import feedback
from kizami.calibrate import calibrate, calibration_windows
from kizami.checkpoint import open_source
from kizami.coverage import coverage
from kizami.encode import encode, finished
from kizami.engine import Model, from_source
from kizami.errors import FormatError, UsageError
from kizami.imatrix import Imatrix
from kizami.job import Job
from kizami.memory import UNLIMITED, Cut, cut_to, least, need
from kizami.outputs import check_output
from kizami.plan import Plan, file_layout, output_metadata, types_of
from kizami.progress import Progress
from kizami.recipe import Request
from kizami.report import check_report, save_report
from kizami.shards import Shard, shards
from kizami.spill import Spill
from kizami.survey import Survey, first_pass
from kizami.verify import UNVERIFIED, Verification, Verified, verification_windows
from kizami.written import Output, Written


@dataclass(frozen=True)
class Report:
    """What was written, or would be with ``dry_run``.

    Attributes:
        path: the file, of a split set the first; ``paths`` has all.
        bytes: of all files together.
        bpw: bits per weight over all tensors.
        tensors: of each its name, type, bytes, bpw, and error: relative, measured on sampled rows before the
            plan was made; None where it was not.
        predicted_kld: nats per token, None where nothing was planned.
        kld: what the job measured, in nats, over ``kld_tokens`` tokens that rounding did not see; None
            without error feedback, or for the reason in ``kld_note``.
        seconds: since the call.
        peak_rss: largest resident memory of the process, in bytes; None where the system does not say.
        least_memory: the smallest ``max_memory`` that the job could have had, in bytes; None without a text.
        coverage: of each layer how many tokens its experts saw (:class:`kizami.coverage.Coverage`).
    """

    path: str
    bytes: int
    bpw: float
    tensors: list[dict[str, Any]]
    predicted_kld: float | None
    kld: float | None
    kld_tokens: int
    kld_note: str
    seconds: float
    peak_rss: int | None
    least_memory: int | None
    coverage: list[dict[str, Any]]
    paths: list[str]

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return asdict(self)


def peak_rss() -> int | None:
    """Largest resident memory of this process in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says includes the program that started this one.
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
    mtp: bool = False,
    max_memory: int | None = None,
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
        mtp: keep the layers of a checkpoint for multi-token prediction. No text passes through them, so
            they are rounded plainly.
        max_memory: most bytes of memory to take, about; the file is the same. What does not fit waits in
            files without a name beside ``out``.
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
        mtp=mtp,
    )
    if resume and force:
        raise UsageError("unfinished job: found both resume and force, expected at most one")
    out = Path(out)
    check_output(out, *inputs)
    if report is not None:
        check_report(report)
        check_output(report, out, *inputs)
    source = open_source(Path(src), mtp=mtp)
    if "general.architecture" not in source.metadata:
        kind = source.metadata.get("general.type", "unknown")
        raise FormatError(
            f"{os.fspath(src)}: general.architecture: missing, expected a model; the file's type is {kind}"
        )
    request.check(source)  # before anything is measured
    if dry_run:
        made = _run(request, source, out, None, max_memory, progress)
    else:
        with Job(out, request.recipe(source), resume=resume, force=force) as job:
            job.check_space(request.needs(source))
            made = _run(request, source, out, job, max_memory, progress)
            job.finish(request.recipe(source))
    result = Report(
        path=os.fspath(made.files[0].path),
        bytes=sum(file.size for file in made.files),
        bpw=made.plan.bpw,
        tensors=[
            {
                "name": t.name,
                "type": t.type,
                "bytes": t.bytes,
                "bpw": 8 * t.bytes / math.prod(t.shape),
                "error": made.plan.errors.get(t.name),
            }
            for t in made.plan.tensors
        ],
        predicted_kld=made.plan.predicted_kld,
        kld=made.verified.kld,
        kld_tokens=made.verified.tokens,
        kld_note=made.verified.note,
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
        least_memory=made.least_memory,
        coverage=[asdict(layer) for layer in coverage(made.imatrix)] if made.imatrix else [],
        paths=[os.fspath(file.path) for file in made.files],
    )
    if report is not None:
        save_report(result.to_dict(), report)
    return result


@dataclass(frozen=True)
class Outcome:
    """What came of a request: see :class:`Report`."""

    plan: Plan
    files: list[Shard]
    imatrix: Imatrix | None
    least_memory: int | None
    verified: Verified


def _run(
    request: Request,
    source: Any,
    out: Path,
    job: Job | None,
    max_memory: int | None,
    progress: Progress | None,
) -> Outcome:
    """The plan and the layout of the output; with a job its tensors are written, too, and verified."""
    text = Text(request, cache(lambda: from_source(source, activations="f32")))
    planned = request.fixed(source)
    fed = request.rounded_on() is not None
    cut, smallest = UNLIMITED, None
    if request.text is not None:
        # Known before anything is written: a text that is too short, memory that is too small.
        model, shape, surveyed = text.model(), text.windows().shape, fed and planned is None
        smallest = least(model, shape, surveyed, fed)
        cut = cut_to(max_memory, model, shape, out.parent, surveyed, fed)
        if job is not None:
            waiting = need(model, shape, cut.windows, surveyed, fed).on_disk(cut)
            job.check_space(request.needs(source), waiting)
    elif max_memory is not None:
        cut = Cut(lean=True)
    importance, planned = _plan(request, source, text, planned, job, cut, progress)

    def files(found: Verified) -> list[Shard]:
        metadata = output_metadata(
            source, types_of(planned), importance, request.rounded_on(), found.kld, found.tokens
        )
        return shards(out, metadata, file_layout(planned.tensors), request.split_size)

    if job is None:
        return Outcome(planned, files(UNVERIFIED), importance, smallest, Verified(note="nothing was written"))
    for file in files(UNVERIFIED):
        check_output(file.path, *source.paths)
    known = job.known("verified")
    job.lay_out(files(UNVERIFIED), files(Verified(**known) if known else UNVERIFIED), progress)
    if not fed:
        encode(source, planned, job, importance, progress, done=job.done, cut=cut)
        return Outcome(planned, files(UNVERIFIED), importance, smallest, UNVERIFIED)
    verified = _write_fed(source, text, planned, importance, job, cut, progress)
    job.seal(files(verified))
    return Outcome(planned, files(verified), importance, smallest, verified)


class Text:
    """What a request's calibration text is to a model; each is made when it is first asked for.

    Attributes:
        model: the source, with float activations.
        windows: all of the text, ``[n_windows, n_ctx]``.
        parted: those to round on, and those to verify on.
    """

    def __init__(self, request: Request, model: Callable[[], Model]) -> None:
        self.model = model
        self.windows = cache(lambda: calibration_windows(model(), request.text or "", request.n_ctx))
        self.parted = cache(lambda: verification_windows(self.windows()))


def _plan(
    request: Request,
    source: Any,
    text: Text,
    planned: Plan | None,
    job: Job | None,
    cut: Cut,
    progress: Progress | None,
) -> tuple[Imatrix | None, Plan]:
    """Importance, where it is known, and the plan, if there is none yet.

    What the first pass over the text finds, a job remembers: layer by layer while it goes on, then the
    imatrix in a file and the rest as the plan.
    """
    fed = request.rounded_on() is not None

    @cache
    def surveyed() -> Survey:
        return first_pass(text.model(), text.parted()[0], request.dataset, progress, cut, job)

    importance = request.imatrix
    if request.text is not None and not (fed and planned is not None):
        # Rounding with feedback takes moments, in the second pass; a plan that stands needs no first one.

        def measure() -> Imatrix:
            if fed:
                return surveyed().imatrix
            words, n_ctx = request.text or "", request.n_ctx
            return calibrate(
                text.model(), words, n_ctx=n_ctx, dataset=request.dataset, cut=cut, progress=progress
            )

        importance = job.imatrix(measure) if job else measure()
    if planned is not None:
        return importance, planned

    def choose() -> dict[str, Any]:
        if not fed:
            return asdict(request.choose(source, importance, progress=progress))
        found = surveyed()
        return asdict(request.choose(source, importance, found.distortions, found.sensitivities, progress))

    planned = Plan.from_dict(job.remembered("plan", choose) if job else choose())
    cut.release(source)
    return importance, planned


def _write_fed(
    source: Any,
    text: Text,
    planned: Plan,
    importance: Imatrix | None,
    job: Job,
    cut: Cut,
    progress: Progress | None,
) -> Verified:
    """Writes all tensors with error feedback, in the second pass over the text, and verifies them."""
    model, (fit, apart) = text.model(), text.parted()
    with Spill(cut.folder) as spill:
        output = Output(model, Written(planned, job.read), cut, job.release)
        verification = Verification(model, output, apart, cut, spill)
        done = finished(planned, job.done)
        layers = feedback.layers(model, fit, done=done, cut=cut, progress=progress, output=output)
        encode(source, planned, job, importance, progress, verification.follow(layers), job.done, cut)
        return Verified(**job.remembered("verified", lambda: asdict(verification.result())))
