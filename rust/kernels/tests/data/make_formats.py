"""Makes the fixtures of tests/formats.rs: blocks of every block format and the weights they stand for.

The weights come from the Python package `gguf` (MIT licence). Blocks are random in every bit, except that the
codebook formats go through all entries of their codebook, and that some scales are hostile.

    pip install gguf numpy && python rust/kernels/tests/data/make_formats.py

A file holds the number of blocks as a little-endian u32, the blocks, then one little-endian f32 per weight.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Zeros of both signs, the smallest and largest magnitudes, infinities, NaN.
HOSTILE = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]

# Per format: number of blocks with ordinary scales, byte offsets of its f16 scales.
FORMATS = {
    "Q8_0": (40, [0]),
    "Q4_K": (14, [0, 2]),
    "Q6_K": (14, [208]),
    "IQ4_NL": (40, [0]),
    "IQ3_XXS": (14, [0]),
    "IQ2_XXS": (14, [0]),
    "IQ1_S": (64, [0]),
}


def put_half(blocks: np.ndarray, offset: int, bits: np.ndarray) -> None:
    """Writes one f16 per block, given as its bits, at a byte offset of each block."""
    blocks[:, offset : offset + 2] = bits.astype("<u2").view(np.uint8).reshape(-1, 2)


def cover_codebook(name: str, blocks: np.ndarray) -> None:
    """Overwrites the entry numbers of the first blocks by 0, 1, 2, ..., as far as the blocks go."""
    if name == "IQ3_XXS":
        entries = blocks[:, 2:66]
        entries[:] = np.arange(entries.size).reshape(entries.shape) % 256
    elif name == "IQ2_XXS":
        groups = blocks[:, 2:].reshape(-1, 8, 8)
        groups[:, :, :4] = np.arange(len(blocks) * 32).reshape(-1, 8, 4) % 256
        blocks[:, 2:] = groups.reshape(-1, 64)
    elif name == "IQ1_S":
        entries = np.arange(len(blocks) * 32).reshape(-1, 32) % 2048
        blocks[:, 2:34] = entries % 256
        high = (entries // 256).reshape(-1, 8, 4) << np.array([0, 3, 6, 9])
        rest = blocks[:, 34:].copy().view("<u2") & 0xF000
        blocks[:, 34:] = (rest | high.sum(axis=-1)).astype("<u2").view(np.uint8)


def make(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blocks `[n, bytes]` u8 of one format and their weights `[n, weights]` f32."""
    ordinary, offsets = FORMATS[name]
    quant_type = GGMLQuantizationType[name]
    _, size = GGML_QUANT_SIZES[quant_type]
    blocks = rng.integers(0, 256, (ordinary + len(HOSTILE), size), dtype=np.uint8)
    cover_codebook(name, blocks[:ordinary])
    for i, offset in enumerate(offsets):
        scales = (rng.uniform(0.001, 2.0, ordinary) * rng.choice([-1, 1], ordinary)).astype(np.float16)
        hostile = np.roll(np.array(HOSTILE, dtype=np.uint16), 4 * i)
        put_half(blocks, offset, np.concatenate([scales.view(np.uint16), hostile]))
    with np.errstate(all="ignore"):
        return blocks, quants.dequantize(blocks, quant_type).astype("<f4")


def main() -> None:
    """Writes one file per format beside this script."""
    rng = np.random.default_rng(20)
    for name in FORMATS:
        blocks, weights = make(name, rng)
        count = np.array(len(blocks), dtype="<u4")
        path = Path(__file__).with_name(f"{name.lower()}.bin")
        path.write_bytes(count.tobytes() + blocks.tobytes() + weights.tobytes())


if __name__ == "__main__":
    main()
