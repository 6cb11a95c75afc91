"""What a quantized file says of how it came about: `kizami.*` keys of its metadata.

Knows: the keys, and the hashes in them. Does not know: who writes them, or what else a journal has to compare
(recipe.py).
"""

from __future__ import annotations

import hashlib

from kizami import system
from kizami.gguf import TypedMetadata
from kizami.imatrix import Imatrix

PREFIX = "kizami."


def provenance(
    imatrix: Imatrix | None = None,
    calibration: str | None = None,
    kld: float | None = None,
    kld_tokens: int = 0,
) -> TypedMetadata:
    """Metadata that says how a file came about; of the same length whatever the KLD.

    Args:
        imatrix: importance of columns.
        calibration: hash of the text that weights were rounded on, with error feedback; None without.
        kld: of the file to its source, as the job measured it on tokens of that text that it had kept apart.
        kld_tokens: how many those were.
    """
    rounding = "plain" if calibration is None else "feedback"
    entries: TypedMetadata = [
        (PREFIX + "recipe", "str", f"kizami {system.version()}, rounding {rounding}"),
    ]
    if imatrix is not None:
        entries.append((PREFIX + "imatrix.sha256", "str", imatrix.sha256()))
    if calibration is not None:
        entries.append((PREFIX + "calibration.sha256", "str", calibration))
        entries.append((PREFIX + "kld", "f32", float("nan") if kld is None else kld))
        entries.append((PREFIX + "kld.tokens", "u32", kld_tokens))
    return entries


def text_hash(text: str) -> str:
    """SHA-256 of a text as hexadecimal digits, as ``sha256sum`` has it of the file."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
