"""`kizami bench`: tokens per second of prompt and generation."""

from __future__ import annotations

import click

from kizami.bench import run as run_bench
from kizami.engine import load

from . import output
from .options import MODEL, TOKENS, cache_type_option, json_option, threads_option


@click.command(cls=output.Command, short_help="measure tokens per second")
@click.argument("model", type=MODEL)
@click.option(
    "-p", "n_prompt", metavar="N", type=TOKENS, default=512, show_default=True, help="Tokens of the prompt."
)
@click.option(
    "-n", "n_generate", metavar="N", type=TOKENS, default=64, show_default=True, help="Tokens to generate."
)
@cache_type_option
@threads_option
@json_option
def bench(model: str, n_prompt: int, n_generate: int, cache_type: str, as_json: bool) -> None:
    """Measure how many tokens per second MODEL reads and writes: the median of three runs each.

    \b
    Examples:
      kizami bench v3.gguf
      kizami bench v3.gguf -p 2K -n 128 --threads 16 --json
    """
    with output.Progress() as progress:
        found = run_bench(load(model, cache_type=cache_type), n_prompt, n_generate, progress=progress)
    if as_json:
        output.emit(found)
        return
    rows = [
        ["prompt", str(n_prompt), f"{found['pp']:.2f}"],
        ["generation", str(n_generate), f"{found['tg']:.2f}"],
    ]
    output.table(["phase", ">tokens", ">tokens/s"], rows)
    threads = found["threads"]
    output.line(f"{threads} thread{'s' if threads > 1 else ''}, {found['isa']}")
