"""`kizami plan`: choose a type per tensor for a budget, as a file to read, edit and replay."""

from __future__ import annotations

import math

import click

from kizami.checkpoint import open_source
from kizami.imatrix import Imatrix
from kizami.outputs import check_output
from kizami.plan import make_plan

from . import output
from .options import (
    MODEL,
    OUTPUT,
    bpw_option,
    exactly_one,
    imatrix_option,
    json_option,
    size_option,
    threads_option,
)


@click.command(cls=output.Command, short_help="choose a type per tensor for a budget")
@click.argument("model", type=MODEL)
@bpw_option
@size_option
@imatrix_option
@click.option("--out", type=OUTPUT, required=True, metavar="PLAN.json", help="The plan file to write.")
@threads_option
@json_option
def plan(
    model: str, bpw: float | None, size: int | None, imatrix: str | None, out: str, as_json: bool
) -> None:
    """Choose the type of every tensor of MODEL so that the file fits a budget and loses least.

    The plan is JSON, one tensor a line: change types by hand, then replay it with
    `kizami quantize MODEL OUT.gguf --plan PLAN.json`.

    \b
    Examples:
      kizami plan DeepSeek-V3/ --size 131GB --imatrix imatrix.gguf --out plan.json
      kizami plan v3-bf16.gguf --bpw 2.5 --out plan.json --json
    """
    exactly_one(bpw=bpw, size=size)
    check_output(out, model, imatrix)
    matrix = Imatrix.read(imatrix) if imatrix else None
    source = open_source(model)
    with output.Progress() as progress:
        made = make_plan(source, bpw=bpw, size=size, imatrix=matrix, progress=progress)
    made.save(out)
    if as_json:
        output.emit({"path": out, **made.to_dict()})
        return
    output.histogram((t.type, math.prod(t.shape), t.bytes) for t in made.tensors)
    output.line()
    output.line(f"{out}: " + output.outcome(made.file_bytes, made.bpw, made.predicted_kld))
