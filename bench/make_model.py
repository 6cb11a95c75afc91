"""Writes a GGUF of real shape with random weights, to measure speed with where no checkpoint is at hand.

    .venv/bin/python bench/make_model.py moe.gguf --shape moe --type Q4_K
    .venv/bin/python bench/make_model.py mix.gguf --shape moe --mix dynamic
    .venv/bin/python bench/make_model.py odd.gguf --shape moe --type IQ1_S --set ffn_down_exps=IQ2_XXS

Blocks are random bytes under a scale that gives the weights the standard deviation `1 / sqrt(fan_in)`, so
activations stay finite and routers spread their tokens. Nothing is encoded and one tensor at a time is in
memory: the size of the model costs only disk. A row that does not divide into a type's blocks gets the type
that `kizami quantize --type` gives it. kizami, llama.cpp and ik_llama.cpp load the files; what a model
says is noise, so they serve no measurement of quality.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import sys
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from kizami import _core
from kizami.errors import KizamiError
from kizami.formats import TYPES, WRITABLE, fallback, nbytes, parse_type, quantizable
from kizami.models.deepseek2 import Config, expected_shapes
from kizami.tokenizer import BYTE_OF, CONTROL, NORMAL

Metadata = list[tuple[str, str, object]]
Shapes = dict[str, tuple[int, ...]]

# What a plan under two bits per weight looks like: (pattern, type), first match wins.
MIXES = {
    "dynamic": [
        (r"^token_embd", "Q4_K"),
        (r"^output\.", "Q6_K"),
        (r"attn_(k_b|v_b|kv_a_mqa)", "Q8_0"),
        (r"attn_|_shexp|ffn_(gate|up|down)\.", "Q6_K"),
        (r"ffn_down_exps", "IQ2_XXS"),
        (r"ffn_(gate|up)_exps", "IQ1_S"),
    ]
}

# How large the scale of a block's minimums is against that of its weights, so that these are centred: the
# average code, or minus that where minimums are added.
MINIMUMS = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
# Formats whose scales are a byte each, the first of the block.
BYTE_SCALES = {"MXFP4": 1, "NVFP4": 4}


# -- the shapes ------------------------------------------------------------------------------------------


def moe() -> tuple[Metadata, Shapes]:
    """DeepSeek-V3 in miniature: everything its layers have, at widths a CPU can stream."""
    vocab, dense_width, expert_width = 32_768, 8192, 1536
    keys: dict[str, tuple[str, object]] = {
        "block_count": ("u32", 8),
        "context_length": ("u32", 16_384),
        "embedding_length": ("u32", 2048),
        "feed_forward_length": ("u32", dense_width),
        "attention.head_count": ("u32", 16),
        "attention.head_count_kv": ("u32", 1),
        "rope.freq_base": ("f32", 10_000.0),
        "attention.layer_norm_rms_epsilon": ("f32", 1e-6),
        "expert_count": ("u32", 64),
        "expert_used_count": ("u32", 6),
        "expert_group_count": ("u32", 8),
        "expert_group_used_count": ("u32", 4),
        "expert_gating_func": ("u32", 2),
        "leading_dense_block_count": ("u32", 1),
        "vocab_size": ("u32", vocab),
        "attention.q_lora_rank": ("u32", 768),
        "attention.kv_lora_rank": ("u32", 512),
        "attention.key_length": ("u32", 512 + 64),
        "attention.value_length": ("u32", 512),
        "attention.key_length_mla": ("u32", 128 + 64),
        "attention.value_length_mla": ("u32", 128),
        "expert_feed_forward_length": ("u32", expert_width),
        "expert_shared_count": ("u32", 2),
        "expert_weights_scale": ("f32", 2.5),
        "expert_weights_norm": ("bool", True),
        "rope.dimension_count": ("u32", 64),
    }
    metadata: Metadata = [("general.architecture", "str", "deepseek2")]
    metadata += [(f"deepseek2.{key}", *value) for key, value in keys.items()]
    config = Config.from_metadata({key: value for key, _, value in metadata}, "moe")
    shapes: Shapes = dict(expected_shapes(config, vocab, dense_width, expert_width))
    shapes["output.weight"] = shapes["token_embd.weight"]
    for layer in range(config.n_dense, config.n_layer):
        shapes[f"blk.{layer}.exp_probs_b.bias"] = (config.n_expert,)
    return metadata + tokenizer(vocab, "deepseek-v3"), shapes


def dense() -> tuple[Metadata, Shapes]:
    """Qwen2-1.5B: grouped-query attention with biases, one network per layer, embeddings tied."""
    layers, hidden, width, vocab, heads, kv_heads, head = 28, 1536, 8960, 151_936, 12, 2, 128
    metadata: Metadata = [
        ("general.architecture", "str", "qwen2"),
        ("qwen2.block_count", "u32", layers),
        ("qwen2.context_length", "u32", 32_768),
        ("qwen2.embedding_length", "u32", hidden),
        ("qwen2.feed_forward_length", "u32", width),
        ("qwen2.attention.head_count", "u32", heads),
        ("qwen2.attention.head_count_kv", "u32", kv_heads),
        ("qwen2.rope.freq_base", "f32", 1e6),
        ("qwen2.attention.layer_norm_rms_epsilon", "f32", 1e-6),
    ]
    shapes: Shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        block: Shapes = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (heads * head, hidden),
            "attn_q.bias": (heads * head,),
            "attn_k.weight": (kv_heads * head, hidden),
            "attn_k.bias": (kv_heads * head,),
            "attn_v.weight": (kv_heads * head, hidden),
            "attn_v.bias": (kv_heads * head,),
            "attn_output.weight": (hidden, heads * head),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (width, hidden),
            "ffn_up.weight": (width, hidden),
            "ffn_down.weight": (hidden, width),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return metadata + tokenizer(vocab, "qwen2"), shapes


def tokenizer(vocab: int, rules: str) -> Metadata:
    """Byte-level BPE: the bytes, ever longer tokens that each join an earlier one and a byte, two markers."""
    alphabet, markers = list(BYTE_OF), ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    tokens = list(alphabet)

    def longer() -> chain[tuple[str, str]]:
        return chain.from_iterable(((tokens[i], byte) for byte in alphabet) for i in count())

    merges = []
    for left, right in islice(longer(), vocab - len(alphabet) - len(markers)):
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    types = [NORMAL] * len(tokens) + [CONTROL] * len(markers)
    return [
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", rules),
        ("tokenizer.ggml.tokens", "[str]", tokens + markers),
        ("tokenizer.ggml.token_type", "[i32]", types),
        ("tokenizer.ggml.merges", "[str]", merges),
        ("tokenizer.ggml.bos_token_id", "u32", vocab - 2),
        ("tokenizer.ggml.eos_token_id", "u32", vocab - 1),
        ("tokenizer.ggml.add_bos_token", "bool", True),
    ]


SHAPES = {"moe": moe, "dense": dense}


# -- the bytes -------------------------------------------------------------------------------------------


def choose(shapes: Shapes, rules: list[tuple[str, str]]) -> dict[str, str]:
    """A type for every tensor: that of the first pattern its name has, or the one it falls back to."""
    types = {}
    for name, shape in shapes.items():
        found = next((kind for pattern, kind in rules if re.search(pattern, name)), None)
        types[name] = found if found and quantizable(name, shape) else "F32"
        if nbytes(types[name], shape) is None:
            types[name] = fallback(types[name], shape)
    return types


def deviation(name: str, shape: tuple[int, ...], tied: bool) -> float:
    """Standard deviation of a matrix's weights: what leaves the size of its input as it was. An embedding
    that is not the output matrix too is large, so that tokens stay apart and routers tell them apart."""
    return 1.0 if name.startswith("token_embd") and not tied else 1.0 / math.sqrt(shape[-1])


def floats(rng: np.random.Generator, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """float32 weights: norms are ones, biases small, matrices random."""
    if "norm" in name:
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.02 if name.endswith(".bias") else scale)


def blocks(rng: np.random.Generator, kind: str, n: int, scale: float) -> np.ndarray:
    """`n` blocks of random codes, uint8 `[n, block bytes]`; scales are within a quarter of `scale`, of either
    sign where they can be, because not every format's codes are centred."""
    size = TYPES[kind]["block_bytes"]
    words = rng.integers(0, 1 << 64, -(-n * size // 8), np.uint64, endpoint=False)
    found = words.view(np.uint8)[: n * size].reshape(n, size)
    if kind in BYTE_SCALES:
        found[:, : BYTE_SCALES[kind]] = byte_scales(rng, kind, scale, (n, BYTE_SCALES[kind]))
        return found
    spread = rng.uniform(0.75, 1.25, n).astype(np.float32) * np.float32(scale)
    spread *= rng.choice(np.array([-1.0, 1.0], np.float32), n)
    if kind == "IQ1_M":  # an f16 in the upper nibbles of four words
        nibbles = spread.astype("<f2").view("<u2")[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        found[:, 49::2] = found[:, 49::2] & 15 | (nibbles << 4).astype(np.uint8)
        return found
    for offset, factor in zip(TYPES[kind]["halves"], (1.0, MINIMUMS.get(kind)), strict=False):
        found[:, offset : offset + 2] = (spread * factor).astype("<f2").view(np.uint8).reshape(n, 2)
    return found


def byte_scales(rng: np.random.Generator, kind: str, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """Scale bytes around `scale`: of the two next to each wanted value either, with such odds that squares
    average to the wanted square."""
    every = np.full((256, TYPES[kind]["block_bytes"]), 0x22, np.uint8)  # all codes the same
    every[:, : BYTE_SCALES[kind]] = np.arange(256)[:, None]
    values = _core.Tensor(kind, (256, TYPES[kind]["block"]), [every.reshape(-1)]).dequantize()[:, 0] / 2.0
    order = np.argsort(values[:127])  # ascending, without what a sign bit or a NaN would make of the rest
    if kind == "MXFP4":
        order = np.arange(256)
    squares = np.square(values[order], dtype=np.float64)
    wanted = np.square(rng.uniform(0.75, 1.25, shape) * scale)
    above = np.clip(np.searchsorted(squares, wanted), 1, len(order) - 1)
    low, high = squares[above - 1], squares[above]
    return order[above - (rng.random(shape) * (high - low) > wanted - low)].astype(np.uint8)


@functools.cache
def unit(kind: str) -> float:
    """Standard deviation of the weights of random blocks whose scales are about one."""
    n = 4096
    sample = blocks(np.random.default_rng(0), kind, n, 1.0)
    return float(
        _core.Tensor(kind, (n, TYPES[kind]["block"]), [sample.reshape(-1)]).dequantize().std(dtype=np.float64)
    )


def tensor_bytes(
    rng: np.random.Generator, kind: str, name: str, shape: tuple[int, ...], scale: float
) -> np.ndarray:
    """The bytes of one tensor, uint8; `scale` is its standard deviation."""
    if TYPES[kind]["quantized"]:
        n = math.prod(shape) // TYPES[kind]["block"]
        return blocks(rng, kind, n, scale / unit(kind)).reshape(-1)
    values = floats(rng, name, shape, scale).reshape(-1)
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return values.astype({"F32": "<f4", "F16": "<f2"}[kind]).view(np.uint8)


def write(path: Path, shape: str, rules: list[tuple[str, str]], seed: int = 0) -> int:
    """Writes the model; returns its bytes.

    Raises:
        KizamiError: the file cannot be written.
    """
    metadata, shapes = SHAPES[shape]()
    types = choose(shapes, rules)
    layout = [(name, types[name], size) for name, size in shapes.items()]
    metadata.insert(1, ("general.name", "str", f"random {shape}"))
    metadata.append(("general.quantization_version", "u32", 2))
    writer = _core.GgufWriter(path, metadata, layout)
    rng = np.random.Generator(np.random.SFC64(seed))
    try:
        for name, kind, size in layout:
            scale = deviation(name, size, "output.weight" not in shapes)
            writer.write(name, tensor_bytes(rng, kind, name, size, scale))
        writer.finish()
    finally:
        writer.abort()
    return _core.GgufWriter.size(metadata, layout)


# -- the command line ------------------------------------------------------------------------------------


def rule(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE`, checked."""
    pattern, _, kind = text.rpartition("=")
    try:
        re.compile(pattern)
        return pattern, parse_type(kind)
    except (re.error, KizamiError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="GGUF to write")
    parser.add_argument("--shape", choices=SHAPES, default="moe")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--type", type=str.upper, choices=WRITABLE, help="of all matrices")
    kind.add_argument("--mix", choices=MIXES, help="a named mix")
    parser.add_argument(
        "--set",
        type=rule,
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="type of tensors whose name has the pattern, before --type and --mix; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rules = options.set + (MIXES[options.mix] if options.mix else [("", options.type)])
    try:
        size = write(options.out, options.shape, rules, options.seed)
    except KizamiError as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
