"""`kizami imatrix`: measure on a text how much each input channel of each matrix matters."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from kizami.calibrate import calibrate, calibration_windows
from kizami.coverage import coverage
from kizami.engine import load
from kizami.memory import cut_to, need
from kizami.outputs import check_output
from kizami.recipe import read_text
from kizami.spill import check_waiting

from . import output
from .options import FILE, MODEL, OUTPUT, context_option, json_option, memory_option, threads_option


@click.command(cls=output.Command, short_help="measure which input channels matter")
@click.argument("model", type=MODEL)
@click.option(
    "--text", type=FILE, required=True, help="Calibration text, UTF-8; special tokens in it are parsed."
)
@click.option("--out", type=OUTPUT, required=True, metavar="IMATRIX.gguf", help="The file to write.")
@context_option(512, "Tokens per window.")
@memory_option
@threads_option
@json_option
def imatrix(model: str, text: str, out: str, ctx: int, max_memory: int | None, as_json: bool) -> None:
    """Write the importance matrix of MODEL on a text, in llama.cpp's GGUF form.

    \b
    Examples:
      kizami imatrix DeepSeek-V3/ --text calibration.txt --out imatrix.gguf
      kizami imatrix v3-bf16.gguf --text calibration.txt --out imatrix.gguf --ctx 1K --json
    """
    start = time.perf_counter()
    check_output(out, model, text)
    words = read_text(text)
    with output.Progress() as progress:
        loaded = load(model, activations="f32")
        shape, folder = calibration_windows(loaded, words, ctx).shape, Path(out).parent
        cut = cut_to(max_memory, loaded, shape, folder, False)
        check_waiting(folder, need(loaded, shape, cut.windows, False).on_disk(cut))
        made = calibrate(loaded, words, n_ctx=ctx, dataset=Path(text).name, cut=cut, progress=progress)
    made.write(out)
    result = {
        "path": out,
        "tensors": len(made.entries),
        "chunks": made.chunks,
        "chunk_size": made.chunk_size,
        "tokens": made.chunks * made.chunk_size,
        "coverage": [asdict(layer) for layer in coverage(made)],
        "seconds": time.perf_counter() - start,
    }
    if as_json:
        output.emit(result)
    else:
        output.line(f"{out}: {result['tensors']} tensors over {result['tokens']:,} tokens")
        layers = coverage(made)
        if layers:
            least = min(layers, key=lambda layer: layer.least)
            unseen = sum(layer.unseen for layer in layers)
            output.line(
                f"experts: {unseen} of {sum(layer.experts for layer in layers)} saw nothing; "
                f"fewest tokens {least.least:,} ({least.layer}, median there {least.median:,})"
            )
        output.note(f"{result['seconds']:.1f} s")
