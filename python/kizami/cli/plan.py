"""`kizami plan`: choose a type per tensor for a budget, as a file to edit and replay; or a whole curve."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from kizami.allocation import Choices, make_plan
from kizami.checkpoint import open_source
from kizami.curve import Curve, ends, make_curve
from kizami.imatrix import Imatrix
from kizami.outputs import check_output
from kizami.plan import Plan
from kizami.plot import check_plot, draw_curve
from kizami.presets import preset_bpw
from kizami.provenance import text_hash
from kizami.recipe import read_text
from kizami.survey import survey_text

from . import output
from .options import (
    FILE,
    MODEL,
    OUTPUT,
    RANGE,
    bpw_option,
    context_option,
    exactly_one,
    floor_option,
    imatrix_option,
    json_option,
    memory_option,
    mtp_option,
    pin_option,
    preset_option,
    size_option,
    threads_option,
)


@click.command(cls=output.Command, short_help="choose a type per tensor for a budget")
@click.argument("model", type=MODEL)
@bpw_option
@size_option
@preset_option
@click.option(
    "--curve",
    metavar="[FROM:TO]",
    type=RANGE,
    is_flag=False,
    flag_value=":",
    help="Predicted KLD against size, from FROM to TO bits per weight (2:5) or bytes (100GB:250GB). "
    "[default: the smallest possible to Q8_0]",
)
@pin_option
@floor_option
@imatrix_option
@click.option(
    "--calibration",
    type=FILE,
    metavar="TEXT",
    help="Text to measure on what `kizami quantize` with it would lose: with error feedback, and by probes.",
)
@context_option(512, "Tokens per window of the text.")
@click.option("--out", type=OUTPUT, metavar="PLAN.json", help="The plan file to write.")
@click.option("--plot", type=OUTPUT, help="Draw the curve, as .png or .svg; needs kizami[plot].")
@mtp_option
@memory_option
@threads_option
@json_option
def plan(
    model: str,
    bpw: float | None,
    size: int | None,
    preset: str | None,
    curve: tuple[float | int | None, float | int | None] | None,
    pins: dict[str, str],
    floors: dict[str, str],
    imatrix: str | None,
    calibration: str | None,
    ctx: int,
    out: str | None,
    plot: str | None,
    mtp: bool,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Choose the type of every tensor of MODEL so that the file fits a budget and loses least.

    The plan is JSON, one tensor a line: change types by hand, then replay it with
    `kizami quantize MODEL OUT.gguf --plan PLAN.json` and the same --calibration or --imatrix, for a plan
    holds types only. With --curve nothing is written: a table says what each size would cost, and what files
    of one type would.

    \b
    Examples:
      kizami plan DeepSeek-V3/ --size 131GB --calibration text.txt --out plan.json
      kizami plan DeepSeek-V3/ --preset Q4_K_M --pin 'attn_.*=Q8_0' --out plan.json
      kizami plan DeepSeek-V3/ --curve 1.6:5 --calibration text.txt --plot curve.svg
      kizami plan v3-bf16.gguf --bpw 2.5 --floor 'shexp=Q4_K' --out plan.json --json
    """
    exactly_one(bpw=bpw, size=size, preset=preset, curve=curve)
    if imatrix and calibration:
        raise click.UsageError("expected at most one of --imatrix and --calibration, found both")
    if curve is None and out is None:
        raise click.UsageError("expected --out PLAN.json, found none")
    if curve is not None and out is not None:
        raise click.UsageError("found --out with --curve, which writes no plan")
    if max_memory is not None and calibration is None:
        raise click.UsageError("found --max-memory without --calibration: it limits the pass over a text")
    if curve is None and plot is not None:
        raise click.UsageError("found --plot without --curve")
    for path in (out, plot):
        if path is not None:
            check_output(path, model, imatrix, calibration)
    if plot is not None:
        check_plot(plot)
    text = None if calibration is None else read_text(calibration)
    given = Imatrix.read(imatrix) if imatrix else None
    source = open_source(model, mtp=mtp)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    if given is not None:
        given.check(shapes)
    if preset is not None:
        bpw = preset_bpw(preset, shapes)
    weights = sum(map(math.prod, shapes.values()))
    low, high = (end * 8 / weights if isinstance(end, int) else end for end in curve or (None, None))
    known: dict[str, Any] = {"imatrix": given, "pins": pins, "floors": floors}
    if text is not None:
        name = os.path.basename(calibration or "")
        known["calibration"] = text_hash(text)
        # What is wrong is found before anything is measured: how large an imatrix is follows from its name.
        choices = Choices(source, **known | {"imatrix": Imatrix(datasets=[name])})
        if curve is None:
            choices.check(bpw=bpw, size=size)
        else:
            ends(choices, low, high)
        # Beside what is written; not where temporary files are, which may be memory.
        written = out or plot
        folder = Path(written).parent if written else Path()
        with output.Progress() as progress:
            found = survey_text(
                source, text, name, n_ctx=ctx, folder=folder, max_memory=max_memory, progress=progress
            )
        known["imatrix"] = found.imatrix
        known |= {"distortions": found.distortions, "sensitivities": found.sensitivities}
    if curve is not None:
        with output.Progress() as progress:
            drawn = make_curve(source, low=low, high=high, progress=progress, **known)
        if plot is not None:
            draw_curve(drawn, plot, os.path.basename(os.path.abspath(model)))
        _print_curve(drawn, plot, as_json)
        return
    assert out is not None
    with output.Progress() as progress:
        made = make_plan(source, bpw=bpw, size=size, progress=progress, **known)
    made.save(out)
    if as_json:
        output.emit({"path": out, **made.to_dict()})
    else:
        _print_plan(made, out)


def _print_plan(plan: Plan, out: str) -> None:
    tensors = [(t.name, t.type, math.prod(t.shape), t.bytes) for t in plan.tensors]
    output.parts(tensors)
    output.line()
    output.histogram(t[1:] for t in tensors)
    output.line()
    output.line(f"{out}: " + output.outcome(plan.file_bytes, plan.bpw, plan.predicted_kld))


def _print_curve(curve: Curve, plot: str | None, as_json: bool) -> None:
    if as_json:
        output.emit(curve.to_dict() | ({"plot": plot} if plot else {}))
        return
    points = [point.to_dict() for point in curve.points]
    experts = any("_exps." in t.name for t in curve.points[0].plan.tensors)
    rows = [
        [
            f"{p['bytes']:,}",
            output.size(p["bytes"]),
            f"{p['bpw']:.3f}",
            f"{p['predicted_kld']:.4g}",
            ", ".join(p["presets"]),
            ", ".join(f"{t} {share:.0%}" for t, share in list(p["types"].items())[:3] if share >= 0.05),
        ]
        for p in points
    ]
    head = [
        ">bytes",
        ">size",
        ">bpw",
        ">predicted KLD",
        "as large as",
        "routed experts" if experts else "types",
    ]
    output.table(head, rows)
    if curve.uniform:
        output.line()
        output.line("One type for every matrix, for comparison:")
        rows = []
        for u in (uniform.to_dict() for uniform in curve.uniform):
            planned = u["planned_kld"]
            rows.append(
                [
                    u["type"],
                    f"{u['bytes']:,}",
                    f"{u['bpw']:.3f}",
                    f"{u['predicted_kld']:.4g}",
                    "" if planned is None else f"{planned:.4g}",
                ]
            )
        output.table(["type", ">bytes", ">bpw", ">predicted KLD", ">planned, same bytes"], rows)
    if plot is not None:
        output.note(f"{plot}: the curve")
