"""`kizami demo`: everything at once, on the embedded model."""

from __future__ import annotations

import click

from kizami import demo as demonstration

from . import output
from .options import json_option, threads_option


@click.command(cls=output.Command, short_help="do all of it once, on the embedded model")
@threads_option
@json_option
def demo(as_json: bool) -> None:
    """Quantize the embedded model in two ways, and compare both with what they were made from.

    Calibrates, writes a file with one type and a file of the same size with a type per tensor, evaluates both
    against the FP8 source on text it was not trained on, and lets each continue a prompt.

    \b
    Examples:
      kizami demo
      kizami demo --json
    """
    with output.Progress() as progress:
        result = demonstration.run(progress=progress)
    if as_json:
        output.emit(result.to_dict())
        return
    rows = [
        [
            row["file"],
            f"{row['bytes']:,}",
            f"{row['bpw']:.3f}",
            f"{row['ppl']:.3f}",
            f"{row['kld_mean']:.4f}",
            f"{row['kld_p999']:.3f}",
            f"{row['same_top'] * 100:.2f}",
        ]
        for row in result.rows
    ]
    columns = ["file", ">bytes", ">bpw", ">perplexity", ">mean KLD", ">99.9 % KLD", ">same top %"]
    output.table(columns, rows)
    output.line(f"perplexity of the source: {result.ppl_ref:.3f}")
    output.line()
    output.line(f"prompt: {output.printable(result.prompt)}")
    width = max(len(name) for name, _ in result.continuations)
    for name, text in result.continuations:
        output.line(f"  {name:<{width}}  {output.printable(text)}")
