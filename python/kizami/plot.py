"""Pictures: the curve of predicted KLD against size. The only file that knows matplotlib, an extra.

Does not know how a curve came about.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kizami.curve import Curve
from kizami.errors import InputOutputError, UsageError

SUFFIXES = (".png", ".svg")
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
# Names closer than this part of the picture's width are not both written; these go first.
APART = 0.027
FAMILIAR = (
    "Q4_K_M",
    "Q4_K",
    "Q2_K",
    "Q3_K_M",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "IQ1_S",
    "IQ2_XXS",
    "IQ3_XXS",
    "IQ4_XS",
)


@dataclass(frozen=True)
class _Mark:
    bytes: int
    kld: float
    names: tuple[str, ...]


def check_plot(path: str | os.PathLike[str]) -> None:
    """Finds out before the work whether a picture can be drawn.

    Raises:
        UsageError: the name is of no known kind of picture, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"plot: found {os.fspath(path)!r}, expected a name that ends in {' or '.join(SUFFIXES)}"
        )
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError:
        raise UsageError(
            "plot: matplotlib is not installed", hint="pip install 'kizami[plot]', or --json for the numbers"
        ) from None
    return matplotlib


def draw_curve(curve: Curve, path: str | os.PathLike[str], title: str) -> None:
    """Draws predicted KLD against file size, both logarithmic, with presets and uniform types by name.

    Raises:
        UsageError: as :func:`check_plot`.
        InputOutputError: the picture cannot be written.
    """
    check_plot(path)
    matplotlib = _matplotlib()
    points = [_Mark(p.plan.file_bytes, p.plan.predicted_kld or 0.0, p.presets) for p in curve.points]
    shown = [point for point in points if point.kld > 0]
    uniform = [_Mark(u.plan.file_bytes, u.plan.predicted_kld or 0.0, (u.type,)) for u in curve.uniform]
    # Those that no smaller one of them is better than.
    uniform = [
        u for u in uniform if u.kld > 0 and not any(o.bytes <= u.bytes and o.kld < u.kld for o in uniform)
    ]
    if not shown:
        raise UsageError("plot: found no plan that loses anything, expected a curve")
    largest = shown[-1].bytes
    unit, unit_name = next(((u, n) for u, n in UNITS if largest >= u), (1.0, "bytes"))

    figure = matplotlib.figure.Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")

    def draw(marks: list[_Mark], style: str, color: str, label: str) -> None:
        axes.plot([m.bytes / unit for m in marks], [m.kld for m in marks], style, color=color, label=label)

    named = [point for point in shown if point.names]
    draw(shown, "-", "C0", "planned")
    draw(named, "o", "C0", "planned, size of llama.cpp's preset")
    draw(uniform, "x", "C1", "one type for all matrices, the best of its size")
    _names(axes, named, unit, above=False)
    _names(axes, uniform, unit, above=True)
    axes.set_xlabel(f"file size, {unit_name}")
    axes.set_ylabel("predicted KL divergence, nats per token")
    axes.set_title(title)
    per_unit = 8 * unit / curve.points[0].plan.weights
    bits = axes.secondary_xaxis("top", functions=(lambda v: v * per_unit, lambda v: v / per_unit))
    bits.set_xlabel("bits per weight")
    plain = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}")
    for axis in (axes.xaxis, bits.xaxis):
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(12, steps=(1, 2, 5, 10)))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_major_formatter(plain)
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=30))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.margins(y=0.08)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        figure.savefig(partial, format=Path(path).suffix.lower().removeprefix("."), dpi=120)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputOutputError(f"{os.fspath(path)}: cannot write the plot: {error.strerror}") from None


def _names(axes: Any, marks: list[_Mark], unit: float, *, above: bool) -> None:
    """Writes names beside marks, familiar ones first, leaving out those that would cover another."""
    taken: list[float] = []
    order = {name: i for i, name in enumerate(FAMILIAR)}
    for mark in sorted(marks, key=lambda mark: min(order.get(name, len(order)) for name in mark.names)):
        place = (mark.bytes / unit, mark.kld)
        at = axes.transAxes.inverted().transform(axes.transData.transform(place))[0]
        if any(abs(at - other) < APART for other in taken):
            continue
        taken.append(at)
        axes.annotate(
            mark.names[0],
            place,
            xytext=(4, 4) if above else (-4, -4),
            textcoords="offset points",
            fontsize=8,
            rotation=40,
            rotation_mode="anchor",
            ha="left" if above else "right",
            va="bottom" if above else "top",
        )
