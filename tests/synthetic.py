"""Small synthetic DeepSeek checkpoints for the tests: random weights, a tokenizer trained on the spot.

Writes safetensors with a few lines of its own, so that the reader under test is checked against the
specification and not against itself.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 320,
    "kv_lora_rank": 128,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 256,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 48,
    "vocab_size": 640,
}

TENSOR_TYPES = {np.dtype("uint8"): "F8_E4M3", np.dtype("uint16"): "BF16", np.dtype("float32"): "F32"}


def e4m3() -> np.ndarray:
    """float32 value of each of the 256 E4M3 codes (OCP 8-bit floating point specification, table 2)."""
    code = np.arange(256)
    sign, exponent, mantissa = np.where(code & 128, -1.0, 1.0), (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where((code & 127) == 127, np.nan, sign * value).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """uint16 bits of float32 values cut to BF16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """uint8 arrays are stored as F8_E4M3, uint16 as BF16, float32 as F32."""
    header, at = {}, 0
    for name, array in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {
            "dtype": TENSOR_TYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def weights(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the checkpoint by its published name."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]

    def matrix(name: str, rows: int, cols: int) -> None:
        codes = rng.integers(0, 256, (rows, cols), dtype=np.uint8)
        tensors[name + ".weight"] = np.where((codes & 127) == 127, 0, codes).astype(np.uint8)
        blocks = (-(-rows // 128), -(-cols // 128))
        tensors[name + ".weight_scale_inv"] = rng.uniform(1e-4, 1e-2, blocks).astype(np.float32)

    def vector(name: str, size: int) -> None:
        tensors[name + ".weight"] = bf16(rng.normal(1, 0.1, size))

    def gated(prefix: str, width: int) -> None:
        matrix(prefix + "gate_proj", width, hidden)
        matrix(prefix + "up_proj", width, hidden)
        matrix(prefix + "down_proj", hidden, width)

    tensors["model.embed_tokens.weight"] = bf16(rng.normal(0, 0.1, (config["vocab_size"], hidden)))
    for layer in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        base = f"model.layers.{layer}."
        if layer >= config["num_hidden_layers"]:
            matrix(base + "eh_proj", hidden, 2 * hidden)
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                vector(base + norm, hidden)
            tensors[base + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
            tensors[base + "shared_head.head.weight"] = tensors["model.embed_tokens.weight"]
        vector(base + "input_layernorm", hidden)
        if rank := config["q_lora_rank"]:
            matrix(base + "self_attn.q_a_proj", rank, hidden)
            vector(base + "self_attn.q_a_layernorm", rank)
            matrix(base + "self_attn.q_b_proj", heads * (nope + rope), rank)
        else:
            matrix(base + "self_attn.q_proj", heads * (nope + rope), hidden)
        matrix(base + "self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
        vector(base + "self_attn.kv_a_layernorm", latent)
        matrix(base + "self_attn.kv_b_proj", heads * (nope + value), latent)
        matrix(base + "self_attn.o_proj", hidden, heads * value)
        vector(base + "post_attention_layernorm", hidden)
        if layer < config["first_k_dense_replace"]:
            gated(base + "mlp.", config["intermediate_size"])
            continue
        experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
        tensors[base + "mlp.gate.weight"] = bf16(rng.normal(0, 0.1, (experts, hidden)))
        tensors[base + "mlp.gate.e_score_correction_bias"] = rng.normal(0, 1, experts).astype(np.float32)
        for expert in range(experts):
            gated(f"{base}mlp.experts.{expert}.", width)
        gated(base + "mlp.shared_experts.", width * config["n_shared_experts"])
    vector("model.norm", hidden)
    tensors["lm_head.weight"] = bf16(rng.normal(0, 0.1, (config["vocab_size"], hidden)))
    return tensors


def train_tokenizer(path: Path, pre: str = "deepseek-v3", size: int = 600) -> None:
    """Writes tokenizer.json and tokenizer_config.json with the rules of `pre` and DeepSeek's markers."""
    import tokenizers

    from kizami.pretokenizer import RULES, pipeline

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    spec = {"version": "1.0", "added_tokens": [], "model": empty, "post_processor": None, **pipeline(pre)}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    markers = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=markers,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    corpus = [
        "The quick brown fox jumps over 13 lazy dogs, isn't it? 1234567 中文字符 かな кириллица\n\n  x = y;"
    ] * 20
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    tokenizer.save(str(path / "tokenizer.json"))
    spec = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["ignore_merges"] = RULES[pre].ignore_merges
    (path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {
        "bos_token": {"__type": "AddedToken", "content": markers[0]},
        "eos_token": markers[1],
        "add_bos_token": True,
        "chat_template": "{% for m in messages %}<｜User｜>{{ m['content'] }}{% endfor %}",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_model(path: Path, config: dict | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A whole directory in one shard; returns `path`."""
    config = CONFIG if config is None else config
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(path / "model.safetensors", weights(config) if tensors is None else tensors)
    train_tokenizer(path)
    return path


def shard(path: Path, count: int) -> dict[str, str]:
    """Splits `model.safetensors` into `count` files with an index; returns tensor name to file name."""
    tensors = weights(json.loads((path / "config.json").read_text()))
    (path / "model.safetensors").unlink()
    where = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        write_safetensors(path / file, {name: tensors[name] for name in tensors if where[name] == file})
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return where
