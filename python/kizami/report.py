"""A quantization told to others: as JSON for programs, or as one page of HTML that needs nothing else.

Knows: what `Report` holds, as a dictionary, and how layers and parts of a model are named. Does not know: how
any of it was made.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kizami.errors import InputOutputError, UsageError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .15rem .5rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
.grid { overflow-x: auto }
.grid td { font-size: 12px; border: 1px solid #fff; color: #000; white-space: nowrap }
.grid th { font-size: 12px; font-weight: normal }
.bar { background: #8ab; height: .8em; display: inline-block }
"""


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuses names that say neither JSON nor HTML, before any work.

    Raises:
        UsageError: it is such a name.
    """
    if Path(path).suffix not in (".json", ".html"):
        raise UsageError(f"report: found {os.fspath(path)!r}, expected a name that ends in .json or .html")


def save_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a report, by the ending of its name.

    Args:
        report: ``Report.to_dict()``.
        path: ends in ``.json`` or ``.html``.

    Raises:
        InputOutputError: the file cannot be written.
    """
    text = html(report) if Path(path).suffix == ".html" else json.dumps(report, indent=1) + "\n"
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputOutputError(f"{os.fspath(path)}: cannot write the report: {error.strerror}") from None


def html(report: Mapping[str, Any]) -> str:
    """The page: what the file is, types and errors by layer and part, what experts saw, bytes by type."""
    tensors = report["tensors"]
    name = Path(report["path"]).name
    kld = report["predicted_kld"]
    facts = [
        (
            "size",
            f"{report['bytes']:,} bytes"
            + (f" in {len(paths)} files" if len(paths := report["paths"]) > 1 else ""),
        ),
        ("bits per weight", f"{report['bpw']:.3f}"),
        ("predicted KLD", "not predicted" if kld is None else f"{kld:.4f}"),
        (
            "measured KLD",
            f"not measured: {report['kld_note']}"
            if (measured := report["kld"]) is None
            else f"{measured:.4g} on {report['kld_tokens']:,} tokens of the text that rounding did not see",
        ),
        ("time", f"{report['seconds']:,.0f} s"),
        ("peak memory", "unknown" if report["peak_rss"] is None else f"{report['peak_rss']:,} bytes"),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>',
            f"<style>{STYLE}</style></head>",
            f"<body><h1>{escape(name)}</h1>",
            _table([], facts),
            "<h2>Types by layer and part</h2>",
            _grid(tensors, lambda t: t["type"]),
            *_errors(tensors),
            *_coverage(report["coverage"]),
            "<h2>Bytes by type</h2>",
            _bytes_by_type(tensors),
            "</body></html>",
            "",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ["".join(f"<th>{escape(name)}</th>" for name in head)] if head else []
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead>{''.join(f'<tr>{row}</tr>' for row in cells)}</thead><tbody>{body}</tbody></table>"


def _bytes_by_type(tensors: Sequence[Mapping[str, Any]]) -> str:
    totals: dict[str, tuple[int, int]] = {}
    for t in tensors:
        count, nbytes = totals.get(t["type"], (0, 0))
        totals[t["type"]] = count + 1, nbytes + t["bytes"]
    whole = sum(nbytes for _, nbytes in totals.values())
    rows = [
        (
            escape(kind),
            f"{count}",
            f"{nbytes:,}",
            f"{nbytes / whole:.1%}",
            f'<span class="bar" style="width:{20 * nbytes / whole:.2f}em"></span>',
        )
        for kind, (count, nbytes) in sorted(totals.items(), key=lambda item: -item[1][1])
    ]
    return _table(["type", "tensors", "bytes", "share", ""], rows)


def _place(name: str) -> tuple[str, str]:
    """Row and column of a tensor: its layer, or where it has none the model; and its part."""
    if name.startswith("blk."):
        _, layer, part = name.split(".", 2)
        return layer, part.removesuffix(".weight")
    return "model", name.removesuffix(".weight")


def _errors(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = [t for t in tensors if t["error"] is not None]
    if not measured:
        return []
    return [
        "<h2>Errors by layer and part</h2>",
        "<p>In thousandths, on sampled rows: with error feedback the mean square of the error of a layer's "
        "outputs over that of the outputs; otherwise of weights, weighted by importance.</p>",
        _grid(measured, lambda t: f"{1000 * t['error']:.3g}"),
    ]


def _coverage(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    if not layers:
        return []
    rows = [
        [
            escape(layer["layer"]),
            *(f"{layer[key]:,}" for key in ("experts", "unseen", "least", "median", "most")),
        ]
        for layer in layers
    ]
    head = ["layer", "experts", "that saw nothing", "fewest tokens", "median", "most"]
    return ["<h2>Tokens by expert</h2>", _table(head, rows)]


def _grid(tensors: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> str:
    places = {_place(t["name"]): t for t in tensors}
    parts = list(dict.fromkeys(part for layer, part in places if layer != "model"))
    layers = list(dict.fromkeys(layer for layer, _ in places if layer != "model"))
    head = "".join(f"<th>{escape(part)}</th>" for part in ["layer", *parts])
    rows = [
        f"<tr><th>{escape(layer)}</th>"
        + "".join(_cell(places.get((layer, part)), text) for part in parts)
        + "</tr>"
        for layer in layers
    ]
    others = [(part, t) for (layer, part), t in places.items() if layer == "model"]
    rest = "".join(f"<tr><th>{escape(part)}</th>{_cell(t, text)}</tr>" for part, t in others)
    return (
        f'<div class="grid"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"<table><tbody>{rest}</tbody></table></div>"
    )


def _cell(tensor: Mapping[str, Any] | None, text: Callable[[Mapping[str, Any]], str]) -> str:
    if tensor is None:
        return "<td></td>"
    error = "" if tensor["error"] is None else f", error {tensor['error']:.2g}"
    title = escape(f"{tensor['name']}: {tensor['bytes']:,} bytes{error}", quote=True)
    return f'<td title="{title}" style="background:{_color(tensor["bpw"])}">{escape(text(tensor))}</td>'


def _color(bits: float) -> str:
    """From red for the fewest bits a weight to blue for the most."""
    hue = 0.6 * min(max(math.log2(bits) / 5, 0.0), 1.0)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.8, 0.7))
