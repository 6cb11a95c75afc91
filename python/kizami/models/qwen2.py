"""Qwen2 and Qwen2.5 (GGUF architecture ``qwen2``): dense, grouped-query attention with biases.

Paper: Qwen2, arXiv 2407.10671. The file says which tensor plays which part and with which constants; the
blocks themselves are ``kizami.layers``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kizami import _core
from kizami.errors import FormatError
from kizami.layers import FfnBlock, Gqa
from kizami.models import decoder
from kizami.models.decoder import Decoder, Shapes
from kizami.models.metadata import Reader


@dataclass(frozen=True)
class Config:
    """The numbers of one model, under the literature's names."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dims: int
    n_ctx_train: int
    rope_dims: int
    rope_base: float
    eps: float

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], origin: str) -> Config:
        """Reads and checks the ``qwen2.*`` keys.

        Raises:
            FormatError: a key is missing, of another type or out of range.
        """
        read = Reader(metadata, "qwen2", origin)
        n_embd, n_head = read.int("embedding_length", 1, 2**20), read.int("attention.head_count", 1, 2**16)
        n_head_kv = read.int("attention.head_count_kv", 1, n_head, default=n_head)
        for key, value, whole in (("head_count", n_head, n_embd), ("head_count_kv", n_head_kv, n_head)):
            if whole % value:
                raise FormatError(
                    f"{origin}: qwen2.attention.{key}: found {value}, expected a divisor of {whole}"
                )
        scaling = read.str("rope.scaling.type", default="none")
        if scaling != "none":
            raise FormatError(f"{origin}: qwen2.rope.scaling.type: found {scaling!r}, expected none")
        head_dims = n_embd // n_head
        for key in ("attention.key_length", "attention.value_length"):
            read.int(key, head_dims, head_dims, default=head_dims)
        return cls(
            n_layer=read.int("block_count", 1, 10_000),
            n_embd=n_embd,
            n_ff=read.int("feed_forward_length", 1, 2**24),
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dims=head_dims,
            n_ctx_train=read.int("context_length", 1, 2**31),
            rope_dims=read.int("rope.dimension_count", 2, head_dims, default=head_dims, even=True),
            rope_base=read.float("rope.freq_base", 1.0, 1e12, default=10_000.0),
            eps=read.float("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        )


class Layer(decoder.Layer):
    """Attention, then a gated network; both add to the residual stream."""

    def __init__(self, index: int, config: Config, tensors: Mapping[str, _core.Tensor]) -> None:
        c = config

        def weight(name: str) -> _core.Tensor:
            return tensors[f"blk.{index}.{name}.weight"]

        def bias(name: str) -> _core.Tensor | None:
            return tensors.get(f"blk.{index}.{name}.bias")

        self.attention = Gqa(
            index,
            norm=weight("attn_norm"),
            q=weight("attn_q"),
            q_bias=bias("attn_q"),
            k=weight("attn_k"),
            k_bias=bias("attn_k"),
            v=weight("attn_v"),
            v_bias=bias("attn_v"),
            output=weight("attn_output"),
            heads=c.n_head,
            groups=c.n_head_kv,
            eps=c.eps,
            scale=1.0 / math.sqrt(c.head_dims),
            rope_dims=c.rope_dims,
            rope_base=c.rope_base,
        )
        network = [weight(f"ffn_{part}") for part in ("gate", "up", "down")]
        self.feed_forward = FfnBlock(index, norm=weight("ffn_norm"), eps=c.eps, shared=network)


class Qwen2(Decoder):
    """A Qwen2 model on the weights of a GGUF.

    Its cache holds a key and a value per token, layer and key head.
    """

    as_rows: tuple[str, ...] = ("token_embd",)

    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, _core.Tensor], origin: str) -> None:
        """Binds weights; reads none of them yet.

        Raises:
            FormatError: a hyperparameter or tensor is missing, or a shape disagrees with the others.
        """
        c = Config.from_metadata(metadata, origin)
        embedding = tensors.get("token_embd.weight")
        needed, optional = expected_shapes(c, embedding.shape[0] if embedding is not None else 0)
        decoder.check_shapes(tensors, needed, optional, origin)
        layers = [Layer(i, c, tensors) for i in range(c.n_layer)]
        super().__init__(c, tensors, layers, Gqa.cache_width(c.n_head_kv, c.head_dims))


def expected_shapes(config: Config, n_vocab: int) -> tuple[Shapes, Shapes]:
    """Every tensor the model reads, with its shape (rows before columns): those it needs, and those that may
    be absent."""
    c = config
    q, kv = c.n_head * c.head_dims, c.n_head_kv * c.head_dims
    needed: Shapes = {
        "token_embd.weight": (n_vocab, c.n_embd),
        "output_norm.weight": (c.n_embd,),
    }
    optional: Shapes = {"output.weight": (n_vocab, c.n_embd)}
    for i in range(c.n_layer):
        block: Shapes = {
            "attn_norm": (c.n_embd,),
            "attn_q": (q, c.n_embd),
            "attn_k": (kv, c.n_embd),
            "attn_v": (kv, c.n_embd),
            "attn_output": (c.n_embd, q),
            "ffn_norm": (c.n_embd,),
            "ffn_gate": (c.n_ff, c.n_embd),
            "ffn_up": (c.n_ff, c.n_embd),
            "ffn_down": (c.n_embd, c.n_ff),
        }
        needed |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        optional |= {f"blk.{i}.attn_{part}.bias": (rows,) for part, rows in (("q", q), ("k", kv), ("v", kv))}
    return needed, optional
