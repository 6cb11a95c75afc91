"""`kizami show`: what a file holds, without reading its weights."""

from __future__ import annotations

import math
import os
from typing import Any

import click

from kizami import _core
from kizami.checkpoint import Checkpoint, open_source

from . import output
from .options import MODEL, json_option

# Items of a long array, and characters of a long text, that are shown.
ITEMS, CHARACTERS = 6, 72

Listing = list[tuple[str, str, tuple[int, ...], int]]


@click.command(cls=output.Command, short_help="show what a GGUF or a model directory holds")
@click.argument("file", type=MODEL)
@json_option
def show(file: str, as_json: bool) -> None:
    """Show the metadata and the tensors of a GGUF file or a Hugging Face directory.

    Shapes have rows before columns. Long values are cut in the tables, not in the JSON.

    \b
    Examples:
      kizami show v3.gguf
      kizami show DeepSeek-V3/ --json | jq .bpw
    """
    source = open_source(file)
    tensors = _listing(source)
    weights = sum(math.prod(shape) for _, _, shape, _ in tensors)
    nbytes = sum(size for *_, size in tensors)
    bpw = nbytes * 8 / weights if weights else 0.0
    if as_json:
        output.emit(
            {
                "path": file,
                "metadata": {key: value for key, _, value in source.typed_metadata},
                "tensors": [
                    {"name": name, "type": kind, "shape": list(shape), "bytes": size}
                    for name, kind, shape, size in tensors
                ],
                "weights": weights,
                "tensor_bytes": nbytes,
                "bpw": bpw,
            }
        )
        return
    output.table(["key", "type", "value"], [[k, t, _short(v)] for k, t, v in source.typed_metadata])
    output.line()
    rows = [[name, kind, " x ".join(map(str, shape)), f"{size:,}"] for name, kind, shape, size in tensors]
    output.table(["tensor", "type", "shape", ">bytes"], rows)
    output.line()
    output.histogram((kind, math.prod(shape), size) for _, kind, shape, size in tensors)
    output.line()
    output.line(f"{len(tensors)} tensors, {weights:,} weights, " + output.outcome(nbytes, bpw, None))
    for note in source.notes if isinstance(source, Checkpoint) else ():
        output.line(note)


def _listing(source: Any) -> Listing:
    if isinstance(source, Checkpoint):
        return [(name, t.type, tuple(t.shape), t.nbytes) for name, t in source.items()]
    # The header, not the tensors: a file may hold types that cannot be computed with.
    header = _core.GgufFile(os.fspath(source.path))
    return [(name, kind, tuple(shape), nbytes) for name, kind, shape, nbytes in header.tensors]


def _short(value: object) -> str:
    if isinstance(value, list):
        shown = ", ".join(_short(item) for item in value[:ITEMS])
        return f"[{shown}]" if len(value) <= ITEMS else f"[{shown}, ...] {len(value):,} items"
    if isinstance(value, float):
        return f"{value:.7g}"
    if not isinstance(value, str):
        return str(value)
    cut = value if len(value) <= CHARACTERS else f"{value[:CHARACTERS]}... {len(value):,} characters"
    return cut.replace("\n", "\\n").replace("\t", "\\t")
