"""From a model to a GGUF of the size asked for: calibrate, plan, encode, write.

Each step is a file and a command of its own; this does them all. The output appears under its name
only when it is whole: everything goes to a partial file beside it first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kizami import _core
from kizami.calibrate import calibrate
from kizami.checkpoint import open_source
from kizami.engine import from_source
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.outputs import check_output
from kizami.plan import (
    Plan,
    file_bytes,
    file_layout,
    load_types,
    make_plan,
    output_metadata,
    plan_from_types,
    uniform_plan,
)

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
) -> None:
    """Encodes every tensor of ``source`` as planned and writes the file.

    Raises:
        FormatError: a weight is not finite, or the imatrix does not fit a tensor.
        InputOutputError: the file cannot be written.
    """
    if imatrix is not None and not any(t.name in imatrix.entries for t in plan.tensors):
        raise FormatError("imatrix: found no entry for any tensor of the model, expected one of this model")
    types = {t.name: t.type for t in plan.tensors}
    metadata = output_metadata(source, types, imatrix)
    writer = _core.GgufWriter(os.fspath(out), metadata, file_layout(plan.tensors))
    try:
        for done, planned in enumerate(plan.tensors):
            tensor = source[planned.name]
            n_mat = planned.shape[0] if len(planned.shape) == 3 else 1
            weights = imatrix.weights(planned.name, n_mat, planned.shape[-1]) if imatrix else None
            try:
                # The same type needs no new rounding.
                same = tensor.type == planned.type
                data = tensor.bytes() if same else tensor.encode(planned.type, weights)
            except FormatError as error:
                raise FormatError(
                    f"{os.fspath(source.path)}: tensor {planned.name}: {error}", hint=error.hint
                ) from None
            writer.write(planned.name, data)
            if planned.scales and tensor.scale is not None:
                writer.write(scale_name(planned.name), tensor.scale.view(np.uint8))
            if progress:
                progress("encode", done + 1, len(plan.tensors))
        writer.finish()
    finally:
        writer.abort()


def quantize(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bpw: float | None = None,
    size: int | None = None,
    type: str | None = None,
    plan: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
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
        plan: a plan file to replay.
        imatrix: importance of columns, from ``kizami imatrix`` or llama-imatrix, or
        calibration: a text to measure it on.
        dry_run: plan only; nothing is written.
        progress: called with (stage, done, total).

    Raises:
        UsageError: options that do not go together, or a budget below the smallest possible.
        FormatError: an input is damaged.
        InputOutputError: a file cannot be read or written.
    """
    start = time.perf_counter()
    if sum(option is not None for option in (bpw, size, type, plan)) != 1:
        raise UsageError("budget: expected exactly one of bpw, size, type and plan")
    if imatrix is not None and calibration is not None:
        raise UsageError("importance: found an imatrix and a calibration text, expected at most one")
    out = Path(out)
    check_output(out, src, plan, imatrix, calibration)
    source = open_source(Path(src))
    if "general.architecture" not in source.metadata:
        kind = source.metadata.get("general.type", "unknown")
        raise FormatError(
            f"{os.fspath(src)}: general.architecture: missing, expected a model; the file's type is {kind}"
        )
    importance = None
    if imatrix is not None:
        importance = Imatrix.read(imatrix)
    elif calibration is not None:
        model = from_source(source, activations="f32")
        importance = calibrate(
            model, read_text(calibration), dataset=Path(calibration).name, progress=progress
        )
    if type is not None:
        planned = uniform_plan(source, type)
    elif plan is not None:
        planned = plan_from_types(source, load_types(plan), os.fspath(plan))
    else:
        planned = make_plan(source, bpw=bpw, size=size, imatrix=importance, progress=progress)
    if not dry_run:
        write(source, planned, out, importance, progress)
    return Report(
        path=os.fspath(out),
        bytes=file_bytes(source, planned.tensors, importance) if dry_run else out.stat().st_size,
        bpw=planned.bpw,
        tensors=[{"name": t.name, "type": t.type, "bytes": t.bytes} for t in planned.tensors],
        predicted_kld=planned.predicted_kld,
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
    )
