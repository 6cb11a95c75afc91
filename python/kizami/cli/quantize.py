"""`kizami quantize`, also installed as `quantize-model`: a model in, a GGUF of the size asked for out."""

from __future__ import annotations

import math

import click

from kizami.checkpoint import open_source
from kizami.quantize import Report
from kizami.quantize import quantize as quantize_file

from . import output
from .options import (
    FILE,
    MODEL,
    OUTPUT,
    bpw_option,
    exactly_one,
    imatrix_option,
    json_option,
    size_option,
    threads_option,
)


@click.command(cls=output.Command, short_help="write a GGUF of the size asked for")
@click.argument("src", type=MODEL)
@click.argument("out", type=OUTPUT, metavar="OUT.gguf")
@bpw_option
@size_option
@click.option(
    "--type", "type_name", metavar="TYPE", help="One type for every matrix: Q4_K, IQ2_XXS, F16, ..."
)
@click.option("--plan", type=FILE, help="A plan to replay, from `kizami plan`.")
@imatrix_option
@click.option("--calibration", type=FILE, metavar="TEXT", help="Text to measure the importance matrix on.")
@click.option(
    "--rounding",
    type=click.Choice(["feedback", "plain"]),
    help="feedback: every weight makes up for the errors of those before it, as the calibration text allows. "
    "[default: feedback where there is a text]",
)
@click.option("--dry-run", is_flag=True, help="Print the type of every tensor and the size; write nothing.")
@threads_option
@json_option
def quantize(
    src: str,
    out: str,
    bpw: float | None,
    size: int | None,
    type_name: str | None,
    plan: str | None,
    imatrix: str | None,
    calibration: str | None,
    rounding: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write SRC as a GGUF with a type per tensor that fits a budget, or with one type.

    SRC is a Hugging Face directory or a GGUF. Exactly one of --bpw, --size, --type and --plan says what is
    wanted; F32, F16 and BF16 are types too. OUT.gguf appears only when it is complete.

    \b
    Examples:
      kizami quantize DeepSeek-V3/ v3.gguf --size 131GB --calibration text.txt
      kizami quantize DeepSeek-V3/ v3.gguf --bpw 1.9 --imatrix imatrix.gguf
      kizami quantize v3-bf16.gguf v3-q4.gguf --type Q4_K
      kizami quantize DeepSeek-V3/ v3.gguf --plan plan.json --dry-run --json
    """
    exactly_one(bpw=bpw, size=size, type=type_name, plan=plan)
    if imatrix and calibration:
        raise click.UsageError("expected at most one of --imatrix and --calibration, found both")
    with output.Progress() as progress:
        report = quantize_file(
            src,
            out,
            bpw=bpw,
            size=size,
            type=type_name,
            plan=plan,
            imatrix=imatrix,
            calibration=calibration,
            rounding=rounding,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        output.emit(report.to_dict())
    else:
        _print(report, src, dry_run)


def _print(report: Report, src: str, dry_run: bool) -> None:
    source = open_source(src)
    if dry_run:
        rows = [[t["name"], t["type"], f"{t['bytes']:,}"] for t in report.tensors]
        output.table(["tensor", "type", ">bytes"], rows)
        output.line()
    output.histogram((t["type"], math.prod(source[t["name"]].shape), t["bytes"]) for t in report.tensors)
    output.line()
    outcome = output.outcome(report.bytes, report.bpw, report.predicted_kld)
    output.line(f"{report.path} {'would be' if dry_run else 'is'} {outcome}")
    peak = f", peak memory {output.size(report.peak_rss)}" if report.peak_rss else ""
    output.note(f"{report.seconds:.1f} s{peak}")
