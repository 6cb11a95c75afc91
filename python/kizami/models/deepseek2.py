"""DeepSeek-V2 and V3 (GGUF architecture ``deepseek2``): latent attention and mixture of experts.

Papers: DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437. The file says which tensor
plays which part and with which constants; the blocks themselves are ``kizami.layers``. It serves a
GGUF and a published checkpoint alike, because both name their tensors the GGUF way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kizami import _core
from kizami.errors import FormatError
from kizami.layers import FfnBlock, Mla
from kizami.models import decoder
from kizami.models.decoder import Decoder, Shapes
from kizami.models.metadata import Reader


@dataclass(frozen=True)
class Yarn:
    """Context extension (YaRN, arXiv 2309.00071), with the constants DeepSeek models use."""

    factor: float
    original_context: int
    mscale_all_dim: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def mscale(self) -> float:
        """Factor on queries and keys that keeps attention sharp over the longer context."""
        return 0.1 * self.mscale_all_dim * math.log(self.factor) + 1.0

    @property
    def magnitude(self) -> float:
        """Factor on cosine and sine: 1 where mscale_all_dim has taken its place, as in DeepSeek's models."""
        return 1.0 if self.mscale_all_dim else 0.1 * math.log(self.factor) + 1.0

    @property
    def constants(self) -> tuple[float, float, float, float, float]:
        """What the rotation table is made from."""
        return self.factor, self.original_context, self.beta_fast, self.beta_slow, self.magnitude


@dataclass(frozen=True)
class Config:
    """The numbers of one model, under the literature's names."""

    n_layer: int
    n_dense: int
    n_embd: int
    n_head: int
    n_ctx_train: int
    kv_lora_rank: int
    q_lora_rank: int | None
    key_length: int
    value_length: int
    rope_dims: int
    rope_base: float
    yarn: Yarn | None
    eps: float
    n_expert: int
    n_expert_used: int
    n_shared: int
    n_group: int
    n_group_used: int
    scoring: str
    normalize: bool
    scale: float

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], origin: str) -> Config:
        """Reads and checks the ``deepseek2.*`` keys.

        Raises:
            FormatError: a key is missing, of another type or out of range.
        """
        read = Reader(metadata, "deepseek2", origin)
        n_layer = read.int("block_count", 1, 10_000) - read.int("nextn_predict_layers", 0, 100, default=0)
        scaling = read.str("rope.scaling.type", default="none")
        if scaling not in ("none", "yarn"):
            raise FormatError(
                f"{origin}: deepseek2.rope.scaling.type: found {scaling!r}, expected none or yarn"
            )
        yarn = None
        if scaling == "yarn":
            yarn = Yarn(
                factor=read.float("rope.scaling.factor", 1.0, 1e6),
                original_context=read.int("rope.scaling.original_context_length", 1, 2**31),
                # The converter stores a tenth of it; the factor ten is taken off again here.
                mscale_all_dim=read.float("rope.scaling.yarn_log_multiplier", 0.0, 10.0, default=0.0) * 10.0,
                beta_fast=read.float("rope.scaling.yarn_beta_fast", 1e-3, 1e6, default=32.0),
                beta_slow=read.float("rope.scaling.yarn_beta_slow", 1e-3, 1e6, default=1.0),
            )
            for key in ("yarn_ext_factor", "yarn_attn_factor"):
                if (value := read.float(f"rope.scaling.{key}", -1e6, 1e6, default=1.0)) != 1.0:
                    raise FormatError(f"{origin}: deepseek2.rope.scaling.{key}: found {value:g}, expected 1")
        n_expert = read.int("expert_count", 0, 65_536, default=0)
        # Files from before the key existed are DeepSeek-V2's, which used softmax.
        gating = read.int("expert_gating_func", 0, 2, default=0)
        return cls(
            n_layer=n_layer,
            n_dense=min(n_layer, read.int("leading_dense_block_count", 0, 10_000, default=0))
            if n_expert
            else n_layer,
            n_embd=read.int("embedding_length", 1, 2**20),
            n_head=read.int("attention.head_count", 1, 2**16),
            n_ctx_train=read.int("context_length", 1, 2**31),
            kv_lora_rank=read.int("attention.kv_lora_rank", 1, 2**20),
            q_lora_rank=read.int("attention.q_lora_rank", 0, 2**20, default=0) or None,
            key_length=read.int("attention.key_length_mla", 2, 2**16),
            value_length=read.int("attention.value_length_mla", 1, 2**16),
            rope_dims=read.int("rope.dimension_count", 2, 2**16, even=True),
            rope_base=read.float("rope.freq_base", 1.0, 1e12, default=10_000.0),
            yarn=yarn,
            eps=read.float("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            n_expert=n_expert,
            n_expert_used=read.int("expert_used_count", 1, max(n_expert, 1), default=1),
            n_shared=read.int("expert_shared_count", 0, 65_536, default=0),
            n_group=read.int("expert_group_count", 1, max(n_expert, 1), default=1),
            n_group_used=read.int("expert_group_used_count", 1, max(n_expert, 1), default=1),
            scoring="sigmoid" if gating == 2 else "softmax",
            normalize=read.bool("expert_weights_norm", default=False),
            scale=read.float("expert_weights_scale", 0.0, 1e6, default=1.0) or 1.0,
        )


class Layer(decoder.Layer):
    """Attention, then a dense network or experts; both add to the residual stream."""

    def __init__(self, index: int, config: Config, tensors: Mapping[str, _core.Tensor]) -> None:
        c = config

        def weight(name: str) -> _core.Tensor:
            return tensors[f"blk.{index}.{name}.weight"]

        low_rank = c.q_lora_rank is not None
        softmax_scale = (c.yarn.mscale**2 if c.yarn else 1.0) / math.sqrt(c.key_length)
        self.attention = Mla(
            index,
            norm=weight("attn_norm"),
            q_a=weight("attn_q_a") if low_rank else None,
            q_a_norm=weight("attn_q_a_norm") if low_rank else None,
            q_b=weight("attn_q_b") if low_rank else weight("attn_q"),
            kv_a=weight("attn_kv_a_mqa"),
            kv_a_norm=weight("attn_kv_a_norm"),
            k_b=weight("attn_k_b"),
            v_b=weight("attn_v_b"),
            output=weight("attn_output"),
            eps=c.eps,
            scale=softmax_scale,
            rope_dims=c.rope_dims,
            rope_base=c.rope_base,
            yarn=c.yarn.constants if c.yarn else None,
        )

        def network(suffix: str) -> list[_core.Tensor]:
            return [weight(f"ffn_{part}{suffix}") for part in ("gate", "up", "down")]

        if index < c.n_dense:
            self.feed_forward = FfnBlock(index, norm=weight("ffn_norm"), eps=c.eps, shared=network(""))
        else:
            self.feed_forward = FfnBlock(
                index,
                norm=weight("ffn_norm"),
                eps=c.eps,
                shared=network("_shexp") if c.n_shared else None,
                experts=network("_exps"),
                router=weight("ffn_gate_inp"),
                bias=tensors.get(f"blk.{index}.exp_probs_b.bias"),
                scoring=c.scoring,
                # V3 scores a group by its best two experts, V2 by its best one.
                group_score="top2" if c.scoring == "sigmoid" else "max",
                groups=c.n_group,
                groups_used=c.n_group_used,
                used=c.n_expert_used,
                normalize=c.normalize,
                scale=c.scale,
            )


class DeepSeek2(Decoder):
    """A DeepSeek-V2 or V3 model on the weights of a GGUF or of a published checkpoint.

    Its cache holds ``kv_lora_rank + rope_dims`` numbers per token and layer.
    """

    as_rows: tuple[str, ...] = ("token_embd", "attn_k_b", "attn_v_b")

    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, _core.Tensor], origin: str) -> None:
        """Binds weights; reads none of them yet.

        Raises:
            FormatError: a hyperparameter or tensor is missing, or a shape disagrees with the others.
        """
        c = Config.from_metadata(metadata, origin)
        check_shapes(c, tensors, origin)
        layers = [Layer(i, c, tensors) for i in range(c.n_layer)]
        super().__init__(c, tensors, layers, c.kv_lora_rank + c.rope_dims)


def expected_shapes(config: Config, n_vocab: int, n_ff: int, n_ff_exp: int) -> Shapes:
    """Every tensor the model reads, with its shape (rows before columns)."""
    c = config
    nope = c.key_length - c.rope_dims
    shapes: Shapes = {
        "token_embd.weight": (n_vocab, c.n_embd),
        "output_norm.weight": (c.n_embd,),
    }
    for i in range(c.n_layer):
        block: Shapes = {
            "attn_norm": (c.n_embd,),
            "attn_kv_a_mqa": (c.kv_lora_rank + c.rope_dims, c.n_embd),
            "attn_kv_a_norm": (c.kv_lora_rank,),
            "attn_k_b": (c.n_head, c.kv_lora_rank, nope),
            "attn_v_b": (c.n_head, c.value_length, c.kv_lora_rank),
            "attn_output": (c.n_embd, c.n_head * c.value_length),
            "ffn_norm": (c.n_embd,),
        }
        if c.q_lora_rank is None:
            block["attn_q"] = (c.n_head * c.key_length, c.n_embd)
        else:
            block["attn_q_a"] = (c.q_lora_rank, c.n_embd)
            block["attn_q_a_norm"] = (c.q_lora_rank,)
            block["attn_q_b"] = (c.n_head * c.key_length, c.q_lora_rank)

        def network(suffix: str, ff: int, stack: tuple[int, ...] = ()) -> Shapes:
            wide, narrow = (*stack, ff, c.n_embd), (*stack, c.n_embd, ff)
            return {f"ffn_gate{suffix}": wide, f"ffn_up{suffix}": wide, f"ffn_down{suffix}": narrow}

        if i < c.n_dense:
            block |= network("", n_ff)
        else:
            block["ffn_gate_inp"] = (c.n_expert, c.n_embd)
            block |= network("_exps", n_ff_exp, (c.n_expert,))
            if c.n_shared:
                block |= network("_shexp", n_ff_exp * c.n_shared)
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def check_shapes(config: Config, tensors: Mapping[str, _core.Tensor], origin: str) -> None:
    """Compares every tensor's shape with what the hyperparameters demand.

    Raises:
        FormatError: naming the first tensor that is missing or has another shape.
    """
    if config.key_length <= config.rope_dims:
        raise FormatError(
            f"{origin}: deepseek2.attention.key_length_mla: found {config.key_length}, "
            f"expected more than rope.dimension_count ({config.rope_dims})"
        )
    if "blk.0.attn_kv_b.weight" in tensors and "blk.0.attn_k_b.weight" not in tensors:
        raise FormatError(
            f"{origin}: blk.0.attn_k_b.weight: found attn_kv_b (a file from before MLA was absorbed), "
            "expected attn_k_b and attn_v_b; quantize the original checkpoint anew"
        )

    def rows(name: str) -> int:
        return tensors[name].shape[-2] if name in tensors and len(tensors[name].shape) >= 2 else 0

    n_ff_exp = rows(f"blk.{config.n_dense}.ffn_gate_exps.weight")
    shapes = expected_shapes(config, rows("token_embd.weight"), rows("blk.0.ffn_gate.weight"), n_ff_exp)
    # These may be absent; where they are not, they must fit.
    optional = {"output.weight": shapes["token_embd.weight"]}
    optional |= {
        f"blk.{i}.exp_probs_b.bias": (config.n_expert,) for i in range(config.n_dense, config.n_layer)
    }
    decoder.check_shapes(tensors, shapes, optional, origin)
