"""All printing: tables, JSON, progress, errors and exit codes. The only file that knows rich.

Answers and tables go to stdout; progress, timings and errors to stderr. Bars are drawn on a terminal only;
elsewhere each finished stage is one plain line. With --json stdout holds exactly one object.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from kizami import system
from kizami.errors import FormatError, KizamiError

INTERRUPTED = 130
INPUT_OUTPUT = 74


# -- commands that fail in one line --------------------------------------------------------------------


class Command(click.Command):
    """A command whose known errors are one line and an exit code."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault(
            "context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        )
        super().__init__(*args, **settings)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        _lenient_streams()
        # Left only after the handlers, so that nothing an error holds (a partial file) outlives it.
        sys.exit(_exit_code(run))

    def invoke(self, ctx: click.Context) -> Any:
        system.check_environment()
        return super().invoke(ctx)


class Group(Command, click.Group):
    """A group of such commands, listed in the order they were added: that in which people need them."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _lenient_streams() -> None:
    """Text the terminal's encoding lacks is shown as `?` rather than ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _exit_code(work: Callable[[], Any]) -> int:
    try:
        code = work()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        hint = f"see {error.ctx.command_path} --help" if error.ctx else None
        return _fail(message[:1].lower() + message[1:], hint, error.exit_code)
    except KizamiError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except MemoryError as error:
        what = f": {error}" if str(error) else ""
        return _fail(
            f"not enough memory{what}", "try --repack never, a smaller --ctx or a smaller model", INPUT_OUTPUT
        )
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", None, INPUT_OUTPUT)


def _fail(message: str, hint: str | None, code: int) -> int:
    # A file's own words may be part of a message: they stay on the line and cannot steer the terminal.
    for label, text in (("error", message), ("hint", hint)):
        if text:
            click.echo(f"{label}: {printable(text)}", err=True)
    return code


def printable(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


# -- answers on stdout ---------------------------------------------------------------------------------


def emit(result: dict[str, Any]) -> None:
    """One JSON object. Numbers JSON cannot hold (NaN, infinities) become null."""
    click.echo(json.dumps(_finite(result)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(text: str = "") -> None:
    """A line of the answer."""
    click.echo(text)


def piece(text: str) -> None:
    """A part of the answer, shown at once."""
    click.echo(text, nl=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; a column whose name starts with `>` is aligned to the right. Plain columns if piped."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    # Piped, no line is folded or cut, however long: the next program wants the whole of it.
    console = Console(
        file=sys.stdout, highlight=False, markup=False, emoji=False, width=None if terminal else 1000
    )
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        right = name.startswith(">")
        # Where the terminal is narrow, long values are folded, never names and numbers.
        whole = right or i == 0
        drawn.add_column(
            name.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=whole
        )
    for row in rows:
        drawn.add_row(*(printable(cell) for cell in row))
    if terminal:
        console.print(drawn)
        return
    with console.capture() as capture:
        console.print(drawn)
    click.echo("\n".join(text.rstrip() for text in capture.get().splitlines()))


def size(count: int) -> str:
    """Bytes as people write them: `4.20 MB`, decimal."""
    for unit, name in ((1000**4, "TB"), (1000**3, "GB"), (1000**2, "MB"), (1000, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"


def outcome(nbytes: int, bpw: float, predicted_kld: float | None) -> str:
    """What a budget bought, in a line."""
    predicted = f", predicted KLD {predicted_kld:.4f}" if predicted_kld is not None else ""
    return f"{nbytes:,} bytes ({size(nbytes)}), {bpw:.3f} bpw{predicted}"


def histogram(tensors: Iterable[tuple[str, int, int]]) -> None:
    """Table of types: how many tensors, weights and bytes each has. Takes (type, weights, bytes)."""
    totals: dict[str, list[int]] = {}
    for kind, weights, nbytes in tensors:
        total = totals.setdefault(kind, [0, 0, 0])
        for i, value in enumerate((1, weights, nbytes)):
            total[i] += value
    rows = [
        [kind, str(count), f"{weights:,}", f"{nbytes:,}", f"{nbytes * 8 / weights:.3f}" if weights else ""]
        for kind, (count, weights, nbytes) in sorted(totals.items(), key=lambda item: -item[1][2])
    ]
    table(["type", ">tensors", ">weights", ">bytes", ">bpw"], rows)


def parts(tensors: Iterable[tuple[str, str, int, int]]) -> None:
    """Table of the parts of layers, and which layers have which type, coarse to fine.

    Takes (name, type, weights, bytes). Parts that are all F32 (norms, routers, biases) are one line.
    """
    grouped: dict[str, list[tuple[int | None, str, int, int]]] = {}
    for name, kind, weights, nbytes in tensors:
        layer, part = _layer_and_part(name)
        grouped.setdefault(part, []).append((layer, kind, weights, nbytes))
    small = [part for part, group in grouped.items() if len(group) > 1 and {t[1] for t in group} == {"F32"}]
    if len(small) > 1:
        grouped["others"] = [t for part in small for t in grouped.pop(part)]
    rows = []
    for part, group in grouped.items():
        weights, nbytes = sum(t[2] for t in group), sum(t[3] for t in group)
        where: dict[str, list[int]] = {}
        for layer, kind, *_ in sorted(group, key=lambda t: t[3] / max(t[2], 1)):
            where.setdefault(kind, []).append(-1 if layer is None else layer)
        kinds = (
            [f"{kind} in {_ranges(layers)}" for kind, layers in where.items()] if len(where) > 1 else where
        )
        bpw = f"{nbytes * 8 / weights:.3f}" if weights else ""
        rows.append([part, str(len(group)), f"{nbytes:,}", bpw, "; ".join(kinds)])
    table(["part", ">tensors", ">bytes", ">bpw", "types, by layer"], rows)


def _layer_and_part(name: str) -> tuple[int | None, str]:
    """`blk.7.ffn_norm.weight` is layer 7 and `ffn_norm`."""
    part = name.removesuffix(".weight")
    block, _, rest = part.partition(".")
    number, _, inner = rest.partition(".")
    return (int(number), inner) if block == "blk" and number.isdecimal() and inner else (None, part)


def _ranges(numbers: list[int]) -> str:
    """`3-5 8` for 3, 4, 5 and 8."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


# -- everything else on stderr -------------------------------------------------------------------------


def note(text: str) -> None:
    """A line beside the answer."""
    click.echo(text, err=True)


class Progress:
    """Draws what a long function reports: `with Progress() as progress: f(progress=progress)`.

    Called with (stage, done, total); stages may take turns. On a terminal a bar per stage with the time that
    is left, drawn at most ten times a second; elsewhere one line when a stage is complete.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))
        self._running: dict[str, Any] = {}
        self._began = time.perf_counter()

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            if stage not in self._running:
                self._running[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._running[stage], completed=done, total=total)
        elif done == total:
            note(f"{stage}: {total} of {total} in {time.perf_counter() - self._began:.1f} s")
            self._began = time.perf_counter()
        if done == total:
            self._running.pop(stage, None)  # a stage may come twice: two files are written


def read_prompt(data: bytes, origin: str) -> str:
    """Text from outside, without the newline that ends it.

    Raises:
        FormatError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise FormatError(f"{origin}: byte {error.start}: found no UTF-8, expected a text") from None
