"""`kizami quantize`, also installed as `quantize-model`: a model in, a GGUF of the size asked for out."""

from __future__ import annotations

import shlex
import sys

import click

from kizami.errors import Stopped
from kizami.formats import TYPES, WRITABLE
from kizami.job import resumable
from kizami.quantize import Report
from kizami.quantize import quantize as quantize_file

from . import output
from .options import (
    FILE,
    MODEL,
    OUTPUT,
    SIZE,
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


@click.command(cls=output.Command, short_help="write a GGUF of the size asked for")
@click.argument("src", type=MODEL)
@click.argument("out", type=OUTPUT, metavar="OUT.gguf")
@bpw_option
@size_option
@preset_option
@click.option(
    "--type", "type_name", metavar="TYPE", help="One type for every matrix: Q4_K, IQ2_XXS, F16, ..."
)
@click.option(
    "--plan",
    type=FILE,
    help="A plan to replay, from `kizami plan`: types only, so --calibration or --imatrix belong here again.",
)
@pin_option
@floor_option
@imatrix_option
@click.option(
    "--calibration",
    type=FILE,
    metavar="TEXT",
    help="Text like that of later use: weights are rounded with error feedback on it, and a budget is "
    "planned with what that loses.",
)
@context_option(512, "Tokens per window of the text.")
@click.option(
    "--rounding",
    type=click.Choice(["feedback", "plain"]),
    help="feedback: every weight makes up for the errors of those before it, as the calibration text allows. "
    "[default: feedback where there is a text]",
)
@click.option(
    "--split-size",
    metavar="SIZE",
    type=SIZE,
    help="Write a split set, OUT-00001-of-00003.gguf, of files up to SIZE.",
)
@mtp_option
@memory_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted job on OUT.gguf, to the same bytes.")
@click.option("--force", is_flag=True, help="Discard an interrupted job on OUT.gguf and start again.")
@click.option(
    "--report", type=OUTPUT, metavar="PATH", help="Write a report: a page if PATH ends in .html, or .json."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print types and size, by tensor with --json; write nothing. With "
    "--calibration and a budget that takes the whole first pass, which `kizami plan --out` would keep.",
)
@threads_option
@json_option
def quantize(
    src: str,
    out: str,
    bpw: float | None,
    size: int | None,
    preset: str | None,
    type_name: str | None,
    plan: str | None,
    pins: dict[str, str],
    floors: dict[str, str],
    imatrix: str | None,
    calibration: str | None,
    ctx: int,
    rounding: str | None,
    split_size: int | None,
    mtp: bool,
    max_memory: int | None,
    resume: bool,
    force: bool,
    report: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write SRC as a GGUF with a type per tensor that fits a budget, or with one type.

    SRC is a Hugging Face directory or a GGUF. Exactly one of --bpw, --size, --preset, --type and --plan says
    what is wanted; F32, F16 and BF16 are types too. OUT.gguf appears only when it is complete; what is
    finished until then survives an interrupt or a crash in OUT.gguf.kizami-* beside it, and --resume goes on.

    \b
    Examples:
      kizami quantize DeepSeek-V3/ v3.gguf --size 131GB --calibration text.txt
      kizami quantize DeepSeek-V3/ v3.gguf --bpw 1.9 --imatrix imatrix.gguf
      kizami quantize DeepSeek-V3/ v3.gguf --preset Q4_K_M --pin 'attn_.*=Q8_0' --imatrix imatrix.gguf
      kizami quantize v3-bf16.gguf v3-q4.gguf --type Q4_K
      kizami quantize DeepSeek-V3/ v3.gguf --plan plan.json --calibration text.txt
      kizami quantize DeepSeek-V3/ v3.gguf --size 131GB --calibration text.txt --split-size 48GB --resume
    """
    exactly_one(bpw=bpw, size=size, preset=preset, type=type_name, plan=plan)
    if imatrix and calibration:
        raise click.UsageError("expected at most one of --imatrix and --calibration, found both")
    floats = [name for name in WRITABLE if not TYPES[name]["quantized"]]
    if not (imatrix or calibration or dry_run or (type_name or "").upper() in floats):
        output.note(
            "without --calibration or --imatrix every weight counts alike: either makes a better file"
        )
    try:
        with output.Progress() as progress:
            result = quantize_file(
                src,
                out,
                bpw=bpw,
                size=size,
                type=type_name,
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
                max_memory=max_memory,
                resume=resume,
                force=force,
                dry_run=dry_run,
                report=report,
                progress=progress,
            )
    except (KeyboardInterrupt, SystemExit):
        if dry_run or not resumable(out):
            raise
        raise Stopped(
            f"{out}: interrupted; what is finished is kept", hint=f"go on: {_resume_command()}"
        ) from None
    if as_json:
        output.emit(result.to_dict())
    else:
        _print(result, dry_run)


def _resume_command() -> str:
    """What was typed, with --resume."""
    root = click.get_current_context().find_root().info_name or "kizami"
    typed = [word for word in sys.argv[1:] if word not in ("--resume", "--force")]
    return shlex.join([root, *typed, "--resume"])


def _print(report: Report, dry_run: bool) -> None:
    tensors = [(t["name"], t["type"], round(8 * t["bytes"] / t["bpw"]), t["bytes"]) for t in report.tensors]
    if dry_run:
        output.parts(tensors)
        output.line()
    output.histogram(t[1:] for t in tensors)
    output.line()
    outcome = output.outcome(report.bytes, report.bpw, report.predicted_kld)
    files = f", {len(report.paths)} files" if len(report.paths) > 1 else ""
    output.line(f"{report.path} {'would be' if dry_run else 'is'} {outcome}{files}")
    if report.kld is None and report.least_memory and not dry_run:
        output.line(f"KLD not measured: {report.kld_note}")
    if report.kld is not None:
        on = f"{report.kld_tokens:,} tokens of the text that rounding did not see"
        output.line(f"KLD {report.kld:.4g} on {on}")
    peak = f", peak memory {output.size(report.peak_rss)}" if report.peak_rss else ""
    least = f" (--max-memory: from {output.size(report.least_memory)})" if report.least_memory else ""
    output.note(f"{report.seconds:.1f} s{peak}{least}")
