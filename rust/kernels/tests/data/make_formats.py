"""Makes the fixtures of tests/formats.rs: blocks of every block format and the weights they stand for.

The weights come from the Python package `gguf` (MIT licence), those of formats it cannot read from
llama.cpp's own library. Blocks are random in every bit, except that the codebook formats go through all
entries of their codebook, formats with scales of a byte through all of those, and that some are hostile.

    pip install gguf numpy && python rust/kernels/tests/data/make_formats.py --ggml PATH/libggml-base.so

A file holds the number of blocks as a little-endian u32, the blocks, then one little-endian f32 per weight.
"""

import argparse
import ctypes
import zlib
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Zeros of both signs, the smallest and largest magnitudes, infinities, NaN.
HOSTILE = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]

# Per format: number of blocks with ordinary scales, byte offsets of its f16 scales.
FORMATS = {
    "Q4_0": (40, [0]),
    "Q4_1": (40, [0, 2]),
    "Q5_0": (40, [0]),
    "Q5_1": (40, [0, 2]),
    "Q8_0": (40, [0]),
    "Q2_K": (14, [80, 82]),
    "Q3_K": (14, [108]),
    "Q5_K": (14, [0, 2]),
    "Q4_K": (14, [0, 2]),
    "Q6_K": (14, [208]),
    "IQ4_NL": (40, [0]),
    "IQ4_XS": (14, [0]),
    "IQ3_S": (14, [0]),
    "IQ3_XXS": (14, [0]),
    "IQ2_S": (32, [0]),
    "IQ2_XS": (16, [0]),
    "IQ2_XXS": (14, [0]),
    "IQ1_M": (64, []),
    "IQ1_S": (64, [0]),
    "TQ2_0": (14, [64]),
    "TQ1_0": (14, [52]),
    "MXFP4": (256, []),
    "NVFP4": (64, []),
    "Q2_0": (20, [0]),
    "Q1_0": (10, [0]),
}

# What the `gguf` package cannot read: weights and bytes per block.
ONLY_GGML = {"Q1_0": (128, 18), "Q2_0": (64, 18)}


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
    elif name == "IQ2_XS":
        words = blocks[:, 2:66].copy().view("<u2") & 0xFE00
        words |= (np.arange(words.size).reshape(words.shape) % 512).astype(np.uint16)
        blocks[:, 2:66] = words.astype("<u2").view(np.uint8)
    elif name == "IQ2_S":
        entries = np.arange(len(blocks) * 32).reshape(-1, 32) % 1024
        blocks[:, 2:34] = entries % 256
        high = (entries // 256).reshape(-1, 8, 4) << np.array([0, 2, 4, 6])
        blocks[:, 66:74] = high.sum(axis=-1)
    elif name == "IQ3_S":
        entries = np.arange(len(blocks) * 64).reshape(-1, 64) % 512
        blocks[:, 2:66] = entries % 256
        blocks[:, 66:74] = np.packbits(entries // 256, axis=-1, bitorder="little")
    elif name == "IQ1_M":
        entries = np.arange(len(blocks) * 32).reshape(-1, 32) % 2048
        blocks[:, :32] = entries % 256
        high = (entries // 256).reshape(-1, 16, 2) << np.array([0, 4])
        blocks[:, 32:48] = blocks[:, 32:48] & 0x88 | high.sum(axis=-1)
    elif name == "IQ1_S":
        entries = np.arange(len(blocks) * 32).reshape(-1, 32) % 2048
        blocks[:, 2:34] = entries % 256
        high = (entries // 256).reshape(-1, 8, 4) << np.array([0, 3, 6, 9])
        rest = blocks[:, 34:].copy().view("<u2") & 0xF000
        blocks[:, 34:] = (rest | high.sum(axis=-1)).astype("<u2").view(np.uint8)


def cover_scales(name: str, blocks: np.ndarray, halves: np.ndarray) -> None:
    """Overwrites scales that are no f16 at one place: every byte there is, or the nibbles of these halves."""
    if name == "MXFP4":
        blocks[:, 0] = np.arange(len(blocks)) % 256
    elif name == "NVFP4":
        blocks[:, :4] = np.arange(4 * len(blocks)).reshape(-1, 4) % 256
    elif name == "IQ1_M":
        words = blocks[:, 48:].copy().view("<u2") & 0x0FFF
        words |= (halves[:, None] >> np.array([0, 4, 8, 12], dtype=np.uint16) & 15) << 12
        blocks[:, 48:] = words.astype("<u2").view(np.uint8)


def dequantize_by_ggml(library: Path | None, name: str, blocks: np.ndarray, weights: int) -> np.ndarray:
    """Weights of blocks as llama.cpp's library reads them; raises SystemExit where it is not given."""
    if not library:
        raise SystemExit(f"{name}: needs --ggml, the path of llama.cpp's libggml-base")
    out = np.empty((len(blocks), weights), dtype=np.float32)
    function = ctypes.CDLL(str(library))[f"dequantize_row_{name.lower()}"]
    data = np.ascontiguousarray(blocks)
    function(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
    return out


def make(name: str, rng: np.random.Generator, library: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Blocks `[n, bytes]` u8 of one format and their weights `[n, weights]` f32."""
    ordinary, offsets = FORMATS[name]
    if name in ONLY_GGML:
        count, size = ONLY_GGML[name]
    else:
        quant_type = GGMLQuantizationType[name]
        _, size = GGML_QUANT_SIZES[quant_type]
    blocks = rng.integers(0, 256, (ordinary + len(HOSTILE), size), dtype=np.uint8)
    cover_codebook(name, blocks[:ordinary])
    scales = (rng.uniform(0.001, 2.0, ordinary) * rng.choice([-1, 1], ordinary)).astype(np.float16)
    cover_scales(name, blocks, np.concatenate([scales.view(np.uint16), np.array(HOSTILE, dtype=np.uint16)]))
    for i, offset in enumerate(offsets):
        scales = (rng.uniform(0.001, 2.0, ordinary) * rng.choice([-1, 1], ordinary)).astype(np.float16)
        hostile = np.roll(np.array(HOSTILE, dtype=np.uint16), 4 * i)
        put_half(blocks, offset, np.concatenate([scales.view(np.uint16), hostile]))
    if name in ONLY_GGML:
        return blocks, dequantize_by_ggml(library, name, blocks, count).astype("<f4")
    with np.errstate(all="ignore"):
        return blocks, quants.dequantize(blocks, quant_type).astype("<f4")


def main() -> None:
    """Writes one file per format beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ggml", type=Path, help="llama.cpp's libggml-base, for what `gguf` cannot read")
    library = parser.parse_args().ggml
    for name in FORMATS:
        # A seed of its own, so that a new format leaves the others' files alone.
        blocks, weights = make(name, np.random.default_rng(zlib.crc32(name.encode())), library)
        count = np.array(len(blocks), dtype="<u4")
        path = Path(__file__).with_name(f"{name.lower()}.bin")
        path.write_bytes(count.tobytes() + blocks.tobytes() + weights.tobytes())


if __name__ == "__main__":
    main()
