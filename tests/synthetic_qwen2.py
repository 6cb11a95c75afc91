"""Small synthetic GGUF files of the qwen2 architecture for the tests: random weights, another's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kizami
from kizami import _core

BASE, EPS = 1e6, 1e-6


@dataclass(frozen=True)
class Shape:
    """The numbers of one model, under the literature's names."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int

    @property
    def head_dims(self) -> int:
        return self.n_embd // self.n_head


def keys(shape: Shape) -> list[tuple[str, str, object]]:
    """Metadata without a tokenizer."""
    return [
        ("general.architecture", "str", "qwen2"),
        ("qwen2.block_count", "u32", shape.n_layer),
        ("qwen2.context_length", "u32", 512),
        ("qwen2.embedding_length", "u32", shape.n_embd),
        ("qwen2.feed_forward_length", "u32", shape.n_ff),
        ("qwen2.attention.head_count", "u32", shape.n_head),
        ("qwen2.attention.head_count_kv", "u32", shape.n_head_kv),
        ("qwen2.attention.layer_norm_rms_epsilon", "f32", EPS),
        ("qwen2.rope.freq_base", "f32", BASE),
    ]


def weights(shape: Shape, vocab: int, tied: bool) -> dict[str, np.ndarray]:
    """Every tensor by its name; without a head of its own if ``tied``."""
    rng = np.random.default_rng(5)
    n_embd, n_ff, kv = shape.n_embd, shape.n_ff, shape.n_head_kv * shape.head_dims

    def normal(*size: int) -> np.ndarray:
        return rng.normal(0, 0.1, size).astype(np.float32)

    tensors = {"token_embd.weight": normal(vocab, n_embd), "output_norm.weight": 1 + normal(n_embd)}
    if not tied:
        tensors["output.weight"] = normal(vocab, n_embd)
    for i in range(shape.n_layer):
        block = {
            "attn_norm.weight": 1 + normal(n_embd),
            "ffn_norm.weight": 1 + normal(n_embd),
            "attn_output.weight": normal(n_embd, n_embd),
            "ffn_gate.weight": normal(n_ff, n_embd),
            "ffn_up.weight": normal(n_ff, n_embd),
            "ffn_down.weight": normal(n_embd, n_ff),
        }
        for part, rows in (("q", n_embd), ("k", kv), ("v", kv)):
            block |= {f"attn_{part}.weight": normal(rows, n_embd), f"attn_{part}.bias": normal(rows)}
        tensors |= {f"blk.{i}.{name}": value for name, value in block.items()}
    return tensors


def write(path: Path, shape: Shape, tensors: dict[str, np.ndarray], other: Path) -> Path:
    """A file in F32 with the tokenizer of another; returns `path`."""
    tokenizer = [entry for entry in kizami.GGUF(other).typed_metadata if entry[0].startswith("tokenizer.")]
    planned = [(name, "F32", value.shape) for name, value in tensors.items()]
    writer = _core.GgufWriter(path, keys(shape) + tokenizer, planned)
    for name, value in tensors.items():
        writer.write(name, value.reshape(-1).view(np.uint8))
    writer.finish()
    return path
