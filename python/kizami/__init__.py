"""kizami: dynamic GGUF quantization of DeepSeek-class models, and running them on ordinary CPUs.

>>> import kizami
>>> kizami.quantize("DeepSeek-V3", "v3.gguf", bpw=1.9, calibration="text.txt")  # doctest: +SKIP
>>> print(kizami.load("v3.gguf").generate("Why is the sky blue?"))  # doctest: +SKIP
"""

from __future__ import annotations

from kizami.arrays import dequantize, matmul, quantize_array
from kizami.engine import Model, load
from kizami.errors import FormatError, InputOutputError, KizamiError, UsageError
from kizami.evaluate import evaluate
from kizami.gguf import GGUF
from kizami.quantize import quantize

__all__ = [
    "GGUF",
    "FormatError",
    "InputOutputError",
    "KizamiError",
    "Model",
    "UsageError",
    "dequantize",
    "evaluate",
    "load",
    "matmul",
    "quantize",
    "quantize_array",
]
