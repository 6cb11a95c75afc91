"""Writes tiny-deepseek.npz: what transformers computes for two prompts on the embedded model.

Knows the checkpoint (safetensors, FP8 E4M3 with 128x128 block scales) and transformers; knows nothing of
kizami, so that the file is an independent witness. Runs offline, on the CPU, in under a minute:

    pip install torch transformers==5.23.0 safetensors tokenizers numpy
    python tests/golden/make_golden.py

The weights are dequantized to float32, `float(w) * weight_scale_inv` with each scale repeated over its block,
and `DeepseekV3ForCausalLM` runs in float32 with the plain ("eager") attention and experts.

The npz holds `ids_prose` [96] and `ids_chat` [n], int32, each beginning with the BOS token; `logits_prose`
[96, 4096] and `logits_chat` [n, 4096], float32, a row per position; `provenance`, a string with the versions.

`--check FILE` writes nothing and compares with a file of that form: it runs that file's ids and prints the
relative RMS, sqrt(mean((found - expected)^2) / mean(expected^2)), of all positions together and of the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing may come from the network

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "python" / "kizami" / "data" / "tiny-deepseek"
OUT = HERE / "tiny-deepseek.npz"
BLOCK = 128
BOS = "<｜begin▁of▁sentence｜>"
PROSE_START = "Static analysis, like the Rust compiler,"  # where the passage of eval.txt begins
PROSE_TOKENS = 96  # BOS included
CHAT = f"{BOS}<｜User｜>last of amber nurse yacht water<｜Assistant｜>"


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors in float32, the FP8 ones multiplied by their scales, the scales left out."""
    stored = safetensors.torch.load_file(path)
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(".weight_scale_inv"):
            continue
        weights[name] = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            rows, cols = tensor.shape
            scale = stored[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            weights[name] *= scale[:rows, :cols]
    return weights


def load_model() -> transformers.DeepseekV3ForCausalLM:
    """The float32 model: a copy without FP8 goes through `from_pretrained`, which packs the experts."""
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    config["torch_dtype"] = "float32"
    with tempfile.TemporaryDirectory() as copy:
        weights = dequantized(MODEL / "model.safetensors")
        safetensors.torch.save_file(weights, Path(copy) / "model.safetensors", {"format": "pt"})
        (Path(copy) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model, report = transformers.DeepseekV3ForCausalLM.from_pretrained(
            copy,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    # A key that transformers renamed would be ignored and its default used: that must not go unnoticed.
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        raise SystemExit(f"{MODEL}: transformers did not take all the weights: {problems}")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for key in ("rope_theta", "rope_scaling"):  # live in rope_parameters since transformers 5
        config.pop(key)
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    assert model.config.rope_parameters["rope_type"] == "default"
    for key in (
        "architectures",
        "torch_dtype",
        "transformers_version",
    ):  # of no consequence to the arithmetic
        config.pop(key)
    for key, value in config.items():
        taken = getattr(model.config, key)
        if taken != value:
            raise SystemExit(f"config.json: {key} is {value!r}, transformers has {taken!r}")
    return model.eval()


def logits(model: transformers.DeepseekV3ForCausalLM, ids: np.ndarray) -> np.ndarray:
    """ids: int32 [n]. Returns float32 [n, vocab]."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0].numpy()


def prompts() -> dict[str, np.ndarray]:
    """int32 [n] token ids of each prompt."""
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    text = (MODEL / "eval.txt").read_text(encoding="utf-8")
    passage = text[text.index(PROSE_START) :][: 16 * PROSE_TOKENS]
    prose = tokenizer.encode(BOS + passage, add_special_tokens=False).ids[:PROSE_TOKENS]
    chat = tokenizer.encode(CHAT, add_special_tokens=False).ids
    return {"prose": np.array(prose, np.int32), "chat": np.array(chat, np.int32)}


def relative_rms(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Over all of [n, vocab], and the largest of the n positions."""
    error, signal = (found - expected).astype(np.float64) ** 2, expected.astype(np.float64) ** 2
    by_position = np.sqrt(error.mean(1) / signal.mean(1))
    return float(np.sqrt(error.mean() / signal.mean())), float(by_position.max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny-deepseek.npz, or compare with a golden file.")
    parser.add_argument("--check", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = load_model()
    if args.check:
        golden = np.load(args.check)
        for kind in ("prose", "chat"):
            whole, worst = relative_rms(logits(model, golden[f"ids_{kind}"]), golden[f"logits_{kind}"])
            print(f"{kind}: relative RMS {whole:.2e}, worst position {worst:.2e}")
        return
    arrays = {}
    for kind, ids in prompts().items():
        arrays[f"ids_{kind}"] = ids
        arrays[f"logits_{kind}"] = logits(model, ids)
    provenance = (
        f"DeepseekV3ForCausalLM of transformers {transformers.__version__}, torch {torch.__version__} on the "
        f"CPU, float32, eager attention and experts, weights dequantized from FP8; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    )
    np.savez_compressed(OUT, provenance=np.array(provenance), **arrays)
    print(f"{OUT}: {OUT.stat().st_size} bytes", {name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
