"""`kizami env`: what this machine offers and what kizami makes of it."""

from __future__ import annotations

import click

from kizami import system

from . import output
from .options import json_option


@click.command(cls=output.Command, short_help="show version, instruction set, cores, memory")
@json_option
def env(as_json: bool) -> None:
    """Show the version, the instruction set in use, those available, cores and memory.

    KIZAMI_ISA=scalar (or any lower level than the best) selects another instruction set; results are the
    same.

    \b
    Examples:
      kizami env
      KIZAMI_ISA=avx2 kizami env --json
    """
    found = system.info()
    if as_json:
        output.emit(found)
        return
    rows = [
        ["version", found["version"]],
        ["instruction set", found["isa"]],
        ["available", " ".join(found["isa_available"])],
        ["cores", str(found["cores"])],
        ["memory", output.size(found["memory"])],
    ]
    output.table(["what", "value"], rows)
