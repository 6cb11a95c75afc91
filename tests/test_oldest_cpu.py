"""On an emulated CPU of 2008 (Nehalem: no AVX) the package starts, takes scalar kernels, and has our bits.

NumPy asks for no less than that CPU. tests/test_inlining.py looks at what our own module asks for, one
instruction after the other; this runs it, with what it depends on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys

import pytest

from kizami import _core

QEMU = shutil.which("qemu-x86_64")

pytestmark = pytest.mark.skipif(
    QEMU is None or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="NOT CHECKED: a CPU without AVX2 needs qemu-x86_64 (Debian: qemu-user) on Linux, x86-64",
)

# Every format encoded, decoded and multiplied, as a checksum.
PROGRAM = """
import json, zlib
import numpy as np
import kizami
from kizami import _core
from kizami.formats import WRITABLE

rng = np.random.RandomState(1)
weights = rng.standard_normal((3, 256)).astype(np.float32)
x = rng.standard_normal((2, 256)).astype(np.float32)
found = {}
for name in WRITABLE:
    blocks = kizami.quantize_array(weights, name)
    results = [blocks, kizami.dequantize(blocks, name), kizami.matmul(blocks, name, x)]
    found[name] = [zlib.crc32(result.tobytes()) for result in results]
print(json.dumps([_core.isa(), _core.isa_available(), found]))
"""


def run(*emulator: str, **environment: str) -> list:
    command = [*emulator, sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_cpu_without_avx_runs_the_scalar_kernels():
    isa, available, found = run(QEMU, "-cpu", "Nehalem", KIZAMI_ISA=_core.isa_levels()[-1])
    assert (isa, available) == ("scalar", ["scalar"])
    assert found == run()[2]
