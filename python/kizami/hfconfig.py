"""config.json of a DeepSeek-V2/V3 checkpoint: validated, and as the `deepseek2.*` keys of a GGUF.

Knows: which fields the architecture needs, their types and ranges, and the key and type under which
llama.cpp's converter writes each of them.
Does not know: tensors (checkpoint.py), the tokenizer, the model card (modelcard.py), or how the model runs.

Sources: DeepSeek-V3 technical report (arXiv:2412.19437) sections 2.1 and 4.2; the configuration class of
transformers' DeepseekV3; the key table of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .errors import FormatError
from .gguf import TypedMetadata
from .safetensors import read_json

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
MAX_LAYERS, MAX_EXPERTS = 512, 1024  # what llama.cpp can hold, so what a file we write may have
SCALE_BLOCK = 128  # rows and columns under one FP8 scale: the only block size published and supported

_REQUIRED = object()
GATING = {"softmax": 1, "sigmoid": 2}


class _Fields:
    """Typed access to a parsed JSON object; every complaint names the file, the field, found and expected."""

    def __init__(self, values: dict[str, object], where: str) -> None:
        self.values, self.where = values, where

    def fail(self, key: str, expected: str) -> FormatError:
        found = repr(self.values[key]) if key in self.values else "nothing"
        return FormatError(f"{self.where}: field {key!r}: found {found}, expected {expected}")

    def get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.fail(key, "a value")
            return default
        return value

    def integer(self, key: str, low: int, high: int, default: object = _REQUIRED) -> int:
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high:,}")
        return value

    def maybe_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self.values.get(key) is None else self.integer(key, low, high)

    def number(self, key: str, low: float, high: float, default: object = _REQUIRED) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def maybe_number(self, key: str, low: float, high: float) -> float | None:
        return None if self.values.get(key) is None else self.number(key, low, high)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: object) -> str | None:
        value = self.get(key, default)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise self.fail(key, "one of " + ", ".join(choices))
        return value

    def table(self, key: str) -> _Fields | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return _Fields(value, f"{self.where}: {key}")


@dataclass(frozen=True)
class Config:
    """The fields of config.json that decide tensors and arithmetic. Widths in elements, counts as counts.

    `q_lora_rank` is None when queries are projected directly (V2-Lite); `experts` is 0 for a dense model;
    `fp8` says that weights may be E4M3 with a scale per 128x128 block; `raw` is the whole parsed file.
    """

    layers: int
    mtp_layers: int
    dense_layers: int
    hidden: int
    dense_width: int
    vocab: int
    context: int
    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope: int
    rope: int
    value: int
    experts: int
    experts_used: int | None
    shared_experts: int
    expert_width: int
    groups: int | None
    groups_used: int | None
    scoring: str | None
    weights_scale: float | None
    weights_norm: bool
    correction_bias: bool
    tied: bool
    eps: float
    rope_theta: float
    scaling: _Fields | None
    scaling_type: str | None
    fp8: bool
    raw: dict[str, object]

    def is_moe(self, layer: int) -> bool:
        """Whether this layer has routed experts."""
        return self.experts > 0 and layer >= self.dense_layers


def read_config(path: Path) -> Config:
    """Reads and validates `config.json`; FormatError names the first field that cannot be right."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError(f"{path}: found a {type(values).__name__}, expected an object")
    fields = _Fields(values, str(path))
    archs = values.get("architectures")
    if not isinstance(archs, list) or not archs or archs[0] not in ARCHITECTURES:
        raise fields.fail("architectures", "[" + " or ".join(ARCHITECTURES) + "]")

    width = 1 << 24
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    experts = fields.integer("n_routed_experts", 0, MAX_EXPERTS, 0)
    groups = fields.maybe_integer("n_group", 1, MAX_EXPERTS) if experts else None
    groups_used = fields.maybe_integer("topk_group", 1, groups or 1) if experts else None
    if groups and experts % groups:
        raise fields.fail("n_group", f"a divisor of n_routed_experts = {experts}")
    v3 = archs[0] == "DeepseekV3ForCausalLM"
    # Each changes the arithmetic, and V2 and V3 differ in what its absence means. Published files have them.
    routing = ("first_k_dense_replace", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor")
    for key in (*routing, "n_group", "topk_group") if v3 else routing:
        if experts and key not in values:
            raise fields.fail(key, "a value, as n_routed_experts is given")
    heads = fields.integer("num_attention_heads", 1, 1 << 16)
    if (kv_heads := fields.integer("num_key_value_heads", 1, 1 << 16, heads)) != heads:
        raise fields.fail("num_key_value_heads", f"num_attention_heads = {heads} (found {kv_heads})")
    if fields.flag("attention_bias", False):
        raise fields.fail("attention_bias", "false: biased projections are not supported")
    fields.choice("hidden_act", ("silu",), "silu")
    if experts:
        fields.integer("moe_layer_freq", 1, 1, 1)
    rope = fields.integer("qk_rope_head_dim", 2, width)
    if rope % 2:
        raise fields.fail("qk_rope_head_dim", "an even number")
    theta, scaling, scaling_type = _rope(fields)
    # transformers drops these two when it saves a V3 model again, because its class has no other choice.
    scoring = fields.choice("scoring_func", tuple(GATING), "sigmoid" if v3 else None)
    topk_method = fields.get("topk_method", "noaux_tc" if v3 else None)

    return Config(
        layers=layers,
        mtp_layers=fields.integer("num_nextn_predict_layers", 0, 100, 0),
        dense_layers=fields.integer("first_k_dense_replace", 0, layers, 0 if experts else layers),
        hidden=fields.integer("hidden_size", 1, width),
        dense_width=fields.integer("intermediate_size", 1, width),
        vocab=fields.integer("vocab_size", 1, width),
        context=fields.integer("max_position_embeddings", 1, 1 << 31),
        heads=heads,
        q_lora_rank=fields.maybe_integer("q_lora_rank", 1, width),
        kv_lora_rank=fields.integer("kv_lora_rank", 1, width),
        nope=fields.integer("qk_nope_head_dim", 1, width),
        rope=rope,
        value=fields.integer("v_head_dim", 1, width),
        experts=experts,
        experts_used=fields.integer("num_experts_per_tok", 1, experts) if experts else None,
        shared_experts=fields.integer("n_shared_experts", 0, MAX_EXPERTS, 0),
        expert_width=fields.integer("moe_intermediate_size" if experts else "intermediate_size", 1, width),
        groups=groups,
        groups_used=groups_used,
        scoring=scoring,
        weights_scale=fields.maybe_number("routed_scaling_factor", 0.0, 1e6),
        weights_norm=fields.flag("norm_topk_prob", False),
        correction_bias=topk_method == "noaux_tc",
        tied=fields.flag("tie_word_embeddings", False),
        eps=fields.number("rms_norm_eps", 1e-12, 1.0, 1e-6),
        rope_theta=theta,
        scaling=scaling,
        scaling_type=scaling_type,
        fp8=_fp8(fields),
        raw=values,
    )


def _rope(fields: _Fields) -> tuple[float, _Fields | None, str | None]:
    """(theta, scaling table, scaling type or None). `rope_parameters` is where transformers 5 puts both."""
    table = fields.table("rope_parameters") or fields.table("rope_scaling")
    theta = fields.number("rope_theta", 1.0, 1e12, 10000.0)
    if table is None:
        return theta, None, None
    theta = table.maybe_number("rope_theta", 1.0, 1e12) or theta
    key = "rope_type" if table.values.get("rope_type") is not None else "type"
    kind = table.choice(key, ("yarn", "linear", "default"), None)
    if kind in (None, "default"):
        return theta, table, None
    table.number("factor", 1.0, 1e6)
    if kind == "yarn":
        original = "original_max_position_embeddings"
        if table.values.get(original) is None and fields.values.get(original) is not None:
            table.values[original] = fields.values[original]
        table.integer(original, 1, 1 << 31)
    return theta, table, kind


def _fp8(fields: _Fields) -> bool:
    table = fields.table("quantization_config")
    if table is None:
        return False
    table.choice("quant_method", ("fp8",), _REQUIRED)
    table.choice("fmt", ("e4m3",), "e4m3")
    if table.values.get("weight_block_size") != [SCALE_BLOCK, SCALE_BLOCK]:
        raise table.fail("weight_block_size", f"[{SCALE_BLOCK}, {SCALE_BLOCK}], the only block supported")
    return True


def architecture_metadata(config: Config, mtp: bool = False) -> TypedMetadata:
    """The `deepseek2.*` keys the converter writes, with its types. MLA is described as the multi-query
    attention it becomes once absorbed: one key head of width kv_lora_rank + rope, value width kv_lora_rank.
    With `mtp` layers for multi-token prediction count, too.
    """
    keys: TypedMetadata = []

    def add(name: str, kind: str, value: object) -> None:
        if value is not None:
            keys.append((f"deepseek2.{name}", kind, value))

    add("block_count", "u32", config.layers + (config.mtp_layers if mtp else 0))
    if mtp and config.mtp_layers:
        add("nextn_predict_layers", "u32", config.mtp_layers)
    add("context_length", "u32", config.context)
    add("embedding_length", "u32", config.hidden)
    add("feed_forward_length", "u32", config.dense_width)
    add("attention.head_count", "u32", config.heads)
    add("attention.head_count_kv", "u32", 1)
    if config.scaling is not None and config.scaling_type is not None:
        add("rope.scaling.type", "str", config.scaling_type)
        add("rope.scaling.factor", "f32", config.scaling.number("factor", 1.0, 1e6))
        if config.scaling_type == "yarn":
            original = config.scaling.integer("original_max_position_embeddings", 1, 1 << 31)
            add("rope.scaling.original_context_length", "u32", original)
            attention = "attention_factor" if "attention_factor" in config.scaling.values else "attn_factor"
            for field, name in (
                ("extrapolation_factor", "yarn_ext_factor"),
                (attention, "yarn_attn_factor"),
                ("beta_fast", "yarn_beta_fast"),
                ("beta_slow", "yarn_beta_slow"),
            ):
                add(f"rope.scaling.{name}", "f32", config.scaling.maybe_number(field, -1e6, 1e6))
    add("rope.freq_base", "f32", config.rope_theta)
    add("attention.layer_norm_rms_epsilon", "f32", config.eps)
    if config.experts:
        add("expert_count", "u32", config.experts)
        add("expert_used_count", "u32", config.experts_used)
        add("expert_group_count", "u32", config.groups)
        add("expert_group_used_count", "u32", config.groups_used)
        add("expert_gating_func", "u32", GATING.get(config.scoring or ""))
    add("leading_dense_block_count", "u32", config.dense_layers)
    add("vocab_size", "u32", config.vocab)
    add("attention.q_lora_rank", "u32", config.q_lora_rank)
    add("attention.kv_lora_rank", "u32", config.kv_lora_rank)
    add("attention.key_length", "u32", config.kv_lora_rank + config.rope)
    add("attention.value_length", "u32", config.kv_lora_rank)
    add("attention.key_length_mla", "u32", config.nope + config.rope)
    add("attention.value_length_mla", "u32", config.value)
    add("expert_feed_forward_length", "u32", config.expert_width)
    add("expert_shared_count", "u32", config.shared_experts)
    add("expert_weights_scale", "f32", config.weights_scale)
    if config.weights_norm:
        add("expert_weights_norm", "bool", True)
    add("rope.dimension_count", "u32", config.rope)
    if config.scaling is not None:
        # llama.cpp stores a tenth of mscale_all_dim for this architecture and multiplies it back on load.
        mscale = config.scaling.maybe_number("mscale_all_dim", 0.0, 1e6)
        other = config.scaling.maybe_number("mscale", 0.0, 1e6)
        if mscale is not None and other is not None and mscale != other:
            # The file has no place for the second number: readers take the two as equal.
            raise config.scaling.fail("mscale", f"the value of mscale_all_dim ({mscale:g})")
        add("rope.scaling.yarn_log_multiplier", "f32", None if mscale is None else 0.1 * mscale)
    return keys
