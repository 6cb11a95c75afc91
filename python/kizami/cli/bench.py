"""`kizami bench`: tokens per second of prompt and generation, and where the time goes."""

from __future__ import annotations

from typing import Any

import click

from kizami.bench import REPEATS, label
from kizami.bench import run as run_bench
from kizami.engine import load

from . import output
from .options import MODEL, TOKENS, cache_type_option, json_option, repack_option, threads_option


class _Counts(click.ParamType):
    """Numbers of tokens, separated by commas; `0` alone is none."""

    name = "tokens"

    def __init__(self, zero: bool) -> None:
        self._zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not self._zero and value.strip() == "0":
            return ()
        parts = [part.strip() for part in value.split(",")]
        return tuple(0 if self._zero and part == "0" else TOKENS.convert(part, param, ctx) for part in parts)


def _counts_option(*names: str, default: str, text: str, zero: bool = False):  # type: ignore[no-untyped-def]
    """`-x N,..`: where `0` is a number if `zero`, and otherwise says that there are none."""
    return click.option(
        *names, metavar="N,..", type=_Counts(zero), default=default, show_default=True, help=text
    )


@click.command(cls=output.Command, short_help="measure tokens per second")
@click.argument("model", type=MODEL)
@_counts_option("-p", "prompts", default="512", text="Tokens of the prompts; 0 for none.")
@_counts_option("-n", "generations", default="64", text="Tokens to generate; 0 for none.")
@_counts_option(
    "-d",
    "--depth",
    "depths",
    default="0",
    text="Tokens in the cache before the clock starts; every test is run at each depth.",
    zero=True,
)
@click.option(
    "-r",
    "--repeats",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=REPEATS,
    show_default=True,
    help="Times each test is run; the median counts.",
)
@click.option("--profile", is_flag=True, help="Also show what each operation takes.")
@cache_type_option
@repack_option
@threads_option
@json_option
def bench(
    model: str,
    prompts: tuple[int, ...],
    generations: tuple[int, ...],
    depths: tuple[int, ...],
    repeats: int,
    profile: bool,
    cache_type: str,
    repack: str,
    as_json: bool,
) -> None:
    """Measure how many tokens per second MODEL reads (pp) and writes (tg).

    A token that is generated touches its share of the weights once: that many bytes, times tokens per second,
    are compared with how fast the same threads read plain memory.

    \b
    Examples:
      kizami bench v3.gguf
      kizami bench v3.gguf -p 128,2K -n 128 --depth 0,4K --threads 16 --json
      kizami bench v3.gguf -p 0 --profile
    """
    with output.Progress() as progress:
        loaded = load(model, cache_type=cache_type, repack=repack, progress=progress)
        found = run_bench(
            loaded, prompts, generations, depths, repeats=repeats, profile=profile, progress=progress
        )
    if as_json:
        output.emit(found)
        return
    rows = [
        [
            _label(test),
            f"{test['tokens_per_s']:.2f}",
            _giga(test["macs_per_s"]),
            _giga(test["bytes_per_s"]),
            "" if test["bandwidth_share"] is None else f"{100 * test['bandwidth_share']:.0f} %",
        ]
        for test in found["tests"]
    ]
    output.table(["test", ">tokens/s", ">GMAC/s", ">GB/s", ">of memory"], rows)
    threads = found["threads"]
    output.line(
        f"{threads} thread{'s' if threads > 1 else ''}, {found['isa']}, "
        f"memory read at {_giga(found['bandwidth'])} GB/s"
    )
    for test in found["tests"] if profile else []:
        output.line(f"\n{_label(test)}")
        _operations(test["profile"])


def _label(test: dict[str, Any]) -> str:
    return label(test["test"][:2], test["tokens"], test["depth"])


def _operations(profile: list[dict[str, Any]]) -> None:
    rows = [
        [
            op["op"],
            f"{100 * op['share']:.1f} %",
            f"{op['ms_per_token']:.4f}",
            _giga(op["macs_per_s"]),
            _giga(op["bytes_per_s"]),
        ]
        for op in profile
    ]
    output.table(["operation", ">of time", ">ms/token", ">GMAC/s", ">GB/s"], rows)


def _giga(rate: float | None) -> str:
    return "" if rate is None else f"{rate / 1e9:.2f}"
