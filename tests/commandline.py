"""Runs commands for the tests: in this process, and what must hold for their output."""

from __future__ import annotations

import json
import sys

from click.testing import CliRunner

from kizami.cli import cli
from kizami.demo import EMBEDDED

SOURCE = str(EMBEDDED)
KIZAMI = [sys.executable, "-c", "from kizami.cli import main; main()"]


def kizami(*args, stdin=None, code=0):
    """Runs a command in this process; returns its result."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="kizami", input=stdin)
    assert result.exit_code == code, (args, result.output, result.exception)
    return result


def names(folder):
    """What is in a folder when a command has ended."""
    return sorted(path.name for path in folder.iterdir())


def json_of(result):
    """The one object on stdout."""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def one_error(result, *fragments):
    """stderr is one error line, perhaps with a hint, and stdout is empty."""
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr
    assert all(line.startswith(("error: ", "hint: ")) for line in lines[lines.index(errors[0]) :])
    assert result.stdout == ""
    for fragment in fragments:
        assert fragment in errors[0]
