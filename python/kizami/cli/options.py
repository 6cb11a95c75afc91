"""Options that several commands share, and numbers as people write them.

Knows: how `4.2MB`, `16GiB` and `32K` are read, what --threads does, which paths must exist.
Does not know: any command.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from typing import Any

import click

from kizami import _core, repack

_BYTES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BYTES |= {"KI": 1024, "MI": 1024**2, "GI": 1024**3, "TI": 1024**4}
_TOKENS = {"": 1, "K": 1024, "M": 1024**2}


class _Number(click.ParamType):
    """A positive whole number with an optional unit."""

    def __init__(self, name: str, units: dict[str, int], suffix: str, expected: str) -> None:
        self.name = name
        self._units = units
        self._pattern = re.compile(
            rf"(\d{{1,18}}(?:\.\d{{1,18}})?)\s*([KMGT]?I?){suffix}", re.IGNORECASE | re.ASCII
        )
        self._expected = expected

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = self._pattern.fullmatch(str(value).strip())
        unit = self._units.get(match[2].upper()) if match else None
        if match and unit:
            number = int(Decimal(match[1]) * unit)
            if 0 < number < 1 << 63:
                return number
        self.fail(f"found {value!r}, expected {self._expected}", param, ctx)


class _Output(click.Path):
    """A file to write, in a directory that exists: known before hours of work, not after."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        folder = os.path.dirname(os.fsdecode(path)) or "."
        if not os.path.isdir(folder):
            self.fail(f"directory {folder!r} does not exist", param, ctx)
        return path


class _Rule(click.ParamType):
    """`REGEX=TYPE`. What both mean is checked against the model."""

    name = "rule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        pattern, equals, type_name = str(value).rpartition("=")
        if not (pattern and equals and type_name):
            self.fail(f"found {value!r}, expected REGEX=TYPE such as 'attn_.*=Q6_K'", param, ctx)
        return pattern, type_name


class _Range(click.ParamType):
    """`FROM:TO` in bits per weight (floats) or, where a unit of bytes is given, in bytes (whole numbers)."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        low, colon, high = str(value).partition(":")
        if not colon:
            self.fail(
                f"found {value!r}, expected FROM:TO such as 2:5 or 100GB:250GB; nothing only at the end",
                param,
                ctx,
            )
        return self._end(low, param, ctx), self._end(high, param, ctx)

    def _end(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> float | int | None:
        text = text.strip()
        if not text:
            return None
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
            return SIZE.convert(text, param, ctx)
        if 0 < float(text) <= 64:
            return float(text)
        self.fail(f"found {text!r}, expected 0 to 64 bits per weight, or bytes with a unit", param, ctx)


def _rules(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, str], ...]) -> dict[str, str]:
    rules: dict[str, str] = {}
    for pattern, type_name in value:
        if rules.setdefault(pattern, type_name) != type_name:
            raise click.BadParameter(f"found two types for {pattern!r}, expected one", ctx, param)
    return rules


SIZE = _Number("size", _BYTES, "B?", "a size such as 4.2MB (decimal), 4GiB (binary) or 4200000")
TOKENS = _Number("tokens", _TOKENS, "", "a number of tokens such as 512 or 32K (K is 1024)")

RANGE = _Range()

# What must exist is checked before any work is done; a wrong path is a usage error.
MODEL = click.Path(exists=True)
FILE = click.Path(exists=True, dir_okay=False)
OUTPUT = _Output(dir_okay=False, writable=True)


def _set_threads(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        _core.set_threads(value)


threads_option = click.option(
    "-t",
    "--threads",
    metavar="N",
    type=click.IntRange(1, 4096),
    expose_value=False,
    callback=_set_threads,
    help="Threads to compute with; results do not depend on it.  [default: all cores]",
)
cache_type_option = click.option(
    "--cache-type",
    type=click.Choice(_core.cache_types()),
    default="f16",
    show_default=True,
    help="How tokens are remembered; q8_0 leaves room for longer contexts, at a price in quality.",
)
repack_option = click.option(
    "--repack",
    type=click.Choice(repack.CHOICES),
    default="auto",
    show_default=True,
    help="Put weights into memory in the order products like: same results, sooner. auto: if they fit.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
bpw_option = click.option(
    "--bpw",
    metavar="BPW",
    type=click.FloatRange(0, 64, min_open=True),
    help="Budget in bits per weight, over all tensors.",
)
size_option = click.option(
    "--size", type=SIZE, help="Budget for the whole file: 131GB, 4.2MB, 16GiB, or bytes."
)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    help="Budget by llama.cpp's name for it: Q4_K_M, IQ2_XS, ...; bytes of that file, types of our own plan.",
)
pin_option = click.option(
    "--pin",
    "pins",
    metavar="REGEX=TYPE",
    type=_Rule(),
    callback=_rules,
    multiple=True,
    help="Type of the tensors whose names REGEX is found in: 'attn_.*=Q6_K'; of several the first.",
)
floor_option = click.option(
    "--floor",
    "floors",
    metavar="REGEX=TYPE",
    type=_Rule(),
    callback=_rules,
    multiple=True,
    help="No type coarser than TYPE for the tensors whose names REGEX is found in.",
)
memory_option = click.option(
    "--max-memory",
    metavar="SIZE",
    type=SIZE,
    help="Most memory to take, about; the rest waits on disk beside the output. Results are the same.",
)
mtp_option = click.option(
    "--mtp", is_flag=True, help="Keep the layers of a checkpoint that draft the tokens to come (MTP)."
)
imatrix_option = click.option("--imatrix", type=FILE, help="Importance matrix, from kizami or llama-imatrix.")


def context_option(default: int | None, text: str):  # type: ignore[no-untyped-def]
    """`--ctx N`, in tokens."""
    return click.option(
        "--ctx", metavar="N", type=TOKENS, default=default, show_default=default is not None, help=text
    )


def exactly_one(**given: object) -> None:
    """Fails unless one of the named options was given."""
    names = ", ".join(f"--{name}" for name in given)
    found = [f"--{name}" for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise click.UsageError(f"expected exactly one of {names}, found {' and '.join(found) or 'none'}")
