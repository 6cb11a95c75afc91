"""`kizami eval`: how far a quantized model is from its reference on a text."""

from __future__ import annotations

import click

from kizami.engine import load
from kizami.evaluate import evaluate as evaluate_models
from kizami.recipe import read_text

from . import output
from .options import (
    FILE,
    MODEL,
    cache_type_option,
    context_option,
    json_option,
    repack_option,
    threads_option,
)


@click.command("eval", cls=output.Command, short_help="measure the distance from a reference")
@click.argument("model", type=MODEL)
@click.option("--reference", type=MODEL, required=True, help="What MODEL is held against: its source.")
@click.option("--text", type=FILE, required=True, help="Text, UTF-8, that calibration has not seen.")
@context_option(512, "Tokens per window; the second half of each is scored.")
@cache_type_option
@repack_option
@threads_option
@json_option
def evaluate(
    model: str, reference: str, text: str, ctx: int, cache_type: str, repack: str, as_json: bool
) -> None:
    """Measure the KL divergence of MODEL from a reference, and the perplexity of both.

    The same windows and figures as llama-perplexity --kl-divergence; KLD is in nats, same top is the share of
    tokens for which both models have the same favourite.

    \b
    Examples:
      kizami eval v3.gguf --reference DeepSeek-V3/ --text eval.txt
      kizami eval v3.gguf --reference v3-bf16.gguf --text eval.txt --ctx 2K --json
    """
    words = read_text(text)
    # The reference is run as it was published: neither its activations nor its cache are rounded.
    with output.Progress() as progress:
        found = evaluate_models(
            load(model, cache_type=cache_type, repack=repack, progress=progress),
            load(reference, activations="f32"),
            words,
            n_ctx=ctx,
            progress=progress,
        )
    if as_json:
        output.emit(found.to_dict())
        return
    rows = [
        ["tokens scored", f"{found.tokens:,}"],
        ["perplexity", f"{found.ppl:.4f}"],
        ["perplexity of reference", f"{found.ppl_ref:.4f}"],
        ["mean KLD", f"{found.kld_mean:.6f} ± {found.kld_sem:.6f}"],
        ["99 % KLD", f"{found.kld_p99:.6f}"],
        ["99.9 % KLD", f"{found.kld_p999:.6f}"],
        ["maximum KLD", f"{found.kld_max:.6f}"],
        ["same top", f"{found.same_top * 100:.2f} %"],
    ]
    output.table(["figure", ">value"], rows)
