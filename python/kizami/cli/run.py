"""`kizami run`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Any

import click

from kizami.engine import Model, load

from . import output
from .options import MODEL, cache_type_option, context_option, json_option, repack_option, threads_option


@click.command(cls=output.Command, short_help="answer a prompt")
@click.argument("model", type=MODEL)
@click.argument("prompt", required=False)
@click.option(
    "-n",
    "max_tokens",
    metavar="N",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Most tokens to generate.",
)
@context_option(None, "Context in tokens: 4096, 32K.  [default: the model's]")
@click.option(
    "--temp",
    metavar="T",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Probability mass to sample from.",
)
@click.option("--seed", metavar="S", type=click.IntRange(0), help="The same seed gives the same answer.")
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the model's chat template.")
@cache_type_option
@repack_option
@threads_option
@json_option
def run(
    model: str,
    prompt: str | None,
    max_tokens: int,
    ctx: int | None,
    temp: float,
    top_p: float,
    seed: int | None,
    raw: bool,
    cache_type: str,
    repack: str,
    as_json: bool,
) -> None:
    """Answer PROMPT, or what comes on stdin. The answer goes to stdout, its speed to stderr.

    \b
    Examples:
      kizami run v3.gguf "Why is the sky blue?"
      kizami run v3.gguf --raw -n 200 --temp 0.7 --seed 1 "Once upon a time"
      git diff | kizami run v3.gguf --ctx 32K
    """
    text = _prompt(prompt)
    with output.Progress() as progress:
        loaded = load(model, cache_type=cache_type, repack=repack, progress=progress)
    pieces: list[str] = []
    stream = loaded.stream(
        text, max_tokens=max_tokens, temperature=temp, top_p=top_p, seed=seed, raw=raw, n_ctx=ctx
    )
    interrupted = False
    try:
        for part in stream:
            pieces.append(part)
            if not as_json:
                output.piece(part)
    except KeyboardInterrupt:
        # Ctrl-C ends the answer: what there is of it, and its speed, still count.
        interrupted = True
    if as_json:
        output.emit({"text": "".join(pieces), **_timings(loaded)})
    else:
        if not pieces or not pieces[-1].endswith("\n"):
            output.line()
        _report(loaded)
    if interrupted:
        raise KeyboardInterrupt


def _prompt(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError("expected a PROMPT, or text on stdin; found neither")
        prompt = output.read_prompt(sys.stdin.buffer.read(), "stdin")
        if not prompt:
            raise click.UsageError("expected a PROMPT, or text on stdin; stdin is empty")
        return prompt
    # Bytes of the command line that are no UTF-8 arrive as surrogates.
    return output.read_prompt(prompt.encode("utf-8", "surrogateescape"), "PROMPT")


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None


def _timings(model: Model) -> dict[str, Any]:
    t = model.timings
    return {
        "load_s": t.load_s,
        "prompt_tokens": t.prompt_tokens,
        "prompt_s": t.prompt_s,
        "prompt_tokens_per_s": _rate(t.prompt_tokens, t.prompt_s),
        "generated_tokens": t.generated_tokens,
        "generated_s": t.generated_s,
        "generated_tokens_per_s": _rate(t.generated_tokens, t.generated_s),
    }


def _report(model: Model) -> None:
    t = model.timings
    output.note(f"load:       {t.load_s:8.3f} s")
    for label, tokens, seconds in (
        ("prompt:    ", t.prompt_tokens, t.prompt_s),
        ("generation:", t.generated_tokens, t.generated_s),
    ):
        rate = _rate(tokens, seconds)
        output.note(f"{label} {seconds:8.3f} s, {tokens} tokens" + (f", {rate:.1f} tokens/s" if rate else ""))
