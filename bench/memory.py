"""A job on a checkpoint larger than memory: what it takes, and how fast it is.

    .venv/bin/python bench/memory.py FOLDER --max-memory 2GB      # writes 13 GB there, then quantizes them
    .venv/bin/python bench/memory.py FOLDER --max-memory 2GB --json r.json -- --preset IQ2_XXS

Makes an FP8 checkpoint of DeepSeek-V3's form with random weights (once; `--experts` and `--layers` say how
large), with layers of more than 4 GB, and runs `kizami quantize` on it with a calibration text and a limit of
memory. Reports the largest resident set that the system saw, and weights per second. What the model says is
noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kizami.cli.options import SIZE
from kizami.demo import EMBEDDED

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import synthetic  # noqa: E402  (trains a tokenizer)

CONFIG = synthetic.CONFIG | {
    "hidden_size": 4096,
    "intermediate_size": 4096,
    "kv_lora_rank": 512,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "topk_group": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 8,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def codes() -> np.ndarray:
    """65,536 codes of E4M3 as a normal distribution of deviation 64 has them, uint8."""
    values = synthetic.e4m3()
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")[:254]
    drawn = np.random.default_rng(0).normal(0, 64, 1 << 16)
    nearest = np.searchsorted((values[order][1:] + values[order][:-1]) / 2, drawn)
    return order[nearest].astype(np.uint8)


def tensors(config: dict) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every tensor but scales, in order."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    latent, rank, vocab = config["kv_lora_rank"], config["q_lora_rank"], config["vocab_size"]
    yield "model.embed_tokens.weight", "BF16", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        yield base + "input_layernorm.weight", "BF16", (hidden,)
        yield base + "self_attn.q_a_proj.weight", "F8_E4M3", (rank, hidden)
        yield base + "self_attn.q_a_layernorm.weight", "BF16", (rank,)
        yield base + "self_attn.q_b_proj.weight", "F8_E4M3", (heads * (nope + rope), rank)
        yield base + "self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3", (latent + rope, hidden)
        yield base + "self_attn.kv_a_layernorm.weight", "BF16", (latent,)
        yield base + "self_attn.kv_b_proj.weight", "F8_E4M3", (heads * (nope + value), latent)
        yield base + "self_attn.o_proj.weight", "F8_E4M3", (hidden, heads * value)
        yield base + "post_attention_layernorm.weight", "BF16", (hidden,)
        moe = layer >= config["first_k_dense_replace"]
        networks = [("mlp.", config["intermediate_size"])]
        if moe:
            experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
            yield base + "mlp.gate.weight", "BF16", (experts, hidden)
            yield base + "mlp.gate.e_score_correction_bias", "F32", (experts,)
            networks = [(f"mlp.experts.{e}.", width) for e in range(experts)]
            networks.append(("mlp.shared_experts.", width * config["n_shared_experts"]))
        for network, width in networks:
            yield base + network + "gate_proj.weight", "F8_E4M3", (width, hidden)
            yield base + network + "up_proj.weight", "F8_E4M3", (width, hidden)
            yield base + network + "down_proj.weight", "F8_E4M3", (hidden, width)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocab, hidden)


def data(dtype: str, shape: tuple[int, ...], rng: np.random.Generator, table: np.ndarray) -> bytes:
    """Random weights of deviation 1 / sqrt(columns); norms near one."""
    if dtype == "F8_E4M3":
        return table[rng.integers(0, 1 << 16, shape, dtype=np.uint16)].tobytes()
    if dtype == "F32":
        return rng.normal(0, 0.01, shape).astype(np.float32).tobytes()
    near = rng.normal(1, 0.1, shape) if len(shape) == 1 else rng.normal(0, shape[-1] ** -0.5, shape)
    return synthetic.bf16(near).tobytes()


def write_model(path: Path, config: dict) -> None:
    """One file for each layer, and one for the rest, with an index; a directory that is there already
    stays."""
    if (path / "model.safetensors.index.json").exists():
        return
    path.mkdir(parents=True, exist_ok=True)
    synthetic.train_tokenizer(path)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng, table = np.random.default_rng(1), codes()
    files: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, dtype, shape in tensors(config):
        layer = name.split(".")[2] if name.startswith("model.layers.") else "ends"
        own = files.setdefault(f"model-{layer}.safetensors", [])
        own.append((name, dtype, shape))
        if dtype == "F8_E4M3":
            own.append((name + "_scale_inv", "F32", tuple(-(-n // 128) for n in shape)))
    for file, entries in files.items():
        header, at = {}, 0
        for name, dtype, shape in entries:
            nbytes = int(np.prod(shape)) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(header).encode()
        with open(path / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            cols = 0
            for name, dtype, shape in entries:
                if name.endswith("_scale_inv"):  # of the tensor before it
                    out.write(np.full(shape, cols**-0.5 / 64, np.float32).tobytes())
                else:
                    out.write(data(dtype, shape, rng, table))
                    cols = shape[-1]
        print(f"{path / file}: {at:,} bytes", file=sys.stderr)
    where = {name: file for file, entries in files.items() for name, _, _ in entries}
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=176)
    parser.add_argument("--layers", type=int, default=4, help="the first one is dense")
    parser.add_argument("--max-memory", default="2GB")
    parser.add_argument("--bytes-of-text", type=int, default=40_000)
    parser.add_argument("--json", type=Path)
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    options = words[own + 1 :] or ["--preset", "Q4_K_M"]
    given = parser.parse_args(words[:own])
    config = CONFIG | {"n_routed_experts": given.experts, "num_hidden_layers": given.layers}
    model = given.folder / f"model-{given.experts}x{given.layers}"
    write_model(model, config)
    text, out = given.folder / "text.txt", given.folder / "out.gguf"
    text.write_text(
        (EMBEDDED / "calibration.txt").read_text(encoding="utf-8")[: given.bytes_of_text], encoding="utf-8"
    )
    program = Path(sys.executable).with_name("kizami")
    command = [str(program), "quantize", str(model), str(out), "--force", "--calibration", str(text)]
    command += ["--max-memory", given.max_memory, "--json", *options]
    start = time.perf_counter()
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if run.returncode:
        sys.exit(run.returncode)
    found = json.loads(run.stdout)
    weights = sum(int(np.prod(shape)) for _, _, shape in tensors(config))
    layer = max(os.path.getsize(path) for path in model.glob("*.safetensors"))
    result = {
        "source_bytes": sum(os.path.getsize(path) for path in model.glob("*.safetensors")),
        "largest_layer_bytes": layer,
        "output_bytes": found["bytes"],
        "max_memory": SIZE.convert(given.max_memory, None, None),
        "max_rss": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "least_memory": found["least_memory"],
        "seconds": round(seconds, 1),
        "weights_per_second": round(weights / seconds),
    }
    for key, value in result.items():
        print(f"{key:20} {value:>18,}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
