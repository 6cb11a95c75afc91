"""The command line: `kizami COMMAND`, and `quantize-model` for the command most people came for.

Knows: which commands exist. Each is a file of its own beside this one; all printing, progress bars and exit
codes are in output.py, options that several commands share in options.py.
Does not know: how anything is computed.
"""

from __future__ import annotations

import signal
import sys

import click

from kizami import system

from .bench import bench
from .demo import demo
from .env import env
from .eval import evaluate
from .imatrix import imatrix
from .output import Group
from .plan import plan
from .quantize import quantize
from .run import run
from .show import show

COMMANDS = (run, show, imatrix, plan, quantize, evaluate, bench, env, demo)


@click.group(cls=Group)
@click.version_option(system.version(), message="kizami %(version)s")
def cli() -> None:
    """Turn a DeepSeek-class checkpoint into the best GGUF of the size you ask for, and run it on a CPU.

    MODEL is a GGUF file or a Hugging Face directory with safetensors. Answers and tables go to stdout,
    everything else to stderr. Exit codes: 2 wrong usage, 65 bad data, 74 input or output failed, 75 go on
    with --resume, 130 Ctrl-C.

    \b
    Examples:
      kizami demo
      kizami quantize DeepSeek-V3/ v3.gguf --size 131GB --calibration text.txt
      kizami run v3.gguf "Why is the sky blue?"
    """


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point of `kizami`."""
    end_cleanly()
    cli.main(prog_name="kizami")


def quantize_model() -> None:
    """Entry point of `quantize-model`, the same as `kizami quantize`."""
    end_cleanly()
    quantize.main(prog_name="quantize-model")


def end_cleanly() -> None:
    """Lets SIGTERM unwind like any exit, so that partial files go; 143 is the shell's code for it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
