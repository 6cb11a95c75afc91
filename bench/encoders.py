"""Our encoders against llama-quantize: same file, same imatrix, same threads, all tensors; and error
feedback.

    .venv/bin/python bench/encoders.py MODEL --bf16 MODEL.gguf --imatrix FILE --llama PATH/llama-quantize
    .venv/bin/python bench/encoders.py MODEL ... --types IQ1_S Q4_K --rounds 5 --json out.json

MODEL is the directory that the BF16 file was made of, with calibration.txt for error feedback. Tensors that
both encode in exactly the type asked for are compared; the embedding, which has no imatrix, stays as it is.

*Error.* From the bytes of both, over each whole tensor, weighted with its imatrix (per expert): `1 - rho²`
and gain, means over tensors, and the worst ratio of `1 - rho²` of ours to theirs in any tensor. Under H,
the moments of the calibration text: `e H eᵀ / w H wᵀ` of a class of tensors.

*Time* is that of processors, over the number of threads, so that other work on the machine does not count;
the JSON has elapsed time, too. llama-quantize also reads, writes and builds tables, so from what it takes
goes a run of its own that copies all tensors but the smallest, which it encodes in the same type: it reads
as much and writes more. Of ours, `Tensor.encode` is timed, in this process, from the same mapped file; both
decode BF16 on the way. Feedback is timed with its curvatures at hand; what those take is said once. Rounds
go through all types, and runs of all kinds within a type take turns; medians over rounds count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import kizami
from kizami import _core, feedback
from kizami.calibrate import calibration_windows
from kizami.gguf import GGUF
from kizami.imatrix import Imatrix
from kizami.recipe import read_text

TYPES = [t["name"] for t in _core.types() if t["quantized"] and t["ggml_id"] is not None]
WITHOUT_FEEDBACK = {"TQ1_0", "TQ2_0", "Q2_0", "Q1_0", "MXFP4", "NVFP4"}
# What the tensors of a class have in their names; the first that fits counts.
CLASSES = {
    "q_a, kv_a": "attn_(q_a|kv_a)",
    "q_b": "attn_q",
    "k_b, v_b": "attn_[kv]",
    "attn_output": "attn_output",
    "experts: gate, up": "ffn_(gate|up)_exps",
    "down": "ffn_down_exps",
    "shared: gate, up": "ffn_(gate|up)_shexp",
    "down (shared)": "ffn_down_shexp",
    "dense: gate, up": "ffn_(gate|up)",
    "down (dense)": "ffn_down",
    "output": "output",
}


class Model:
    """The tensors to encode, what their columns are worth, and their curvatures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.file = GGUF(options.bf16)
        imatrix = Imatrix.read(options.imatrix)
        self.weights: dict[str, np.ndarray] = {}
        for name, tensor in self.file.items():
            if tensor.type == "BF16" and name in imatrix.entries:
                n_mat = tensor.shape[0] if len(tensor.shape) == 3 else 1
                found = imatrix.weights(name, n_mat, tensor.shape[-1])
                assert found is not None
                self.weights[name] = found
        self.curvatures: dict[str, list[_core.Curvature]] = {}
        self.curvature_seconds = 0.0
        if options.calibration_tokens:
            reference = kizami.load(options.model, activations="f32")
            text = read_text(options.model / "calibration.txt")
            ids = calibration_windows(reference, text, options.ctx, options.calibration_tokens)
            for names, moments in feedback.layers(reference, ids):
                kept: dict[int, list[_core.Curvature]] = {}
                for name in self.weights:
                    if name in names:
                        start = time.perf_counter()
                        if (found := moments.curvatures(name)) is None:
                            sys.exit(f"{name}: the calibration text does not reach it")
                        if id(found) not in kept:
                            kept[id(found)] = list(found)
                        self.curvature_seconds += time.perf_counter() - start
                        self.curvatures[name] = kept[id(found)]

    def divisible(self, type_name: str) -> list[str]:
        """Tensors whose rows divide into blocks of a type."""
        block = next(t["block"] for t in _core.types() if t["name"] == type_name)
        return [name for name in self.weights if self.file[name].shape[-1] % block == 0]

    def plain(self, name: str, type_name: str) -> np.ndarray:
        """A tensor's bytes, each weight rounded by itself."""
        return self.file[name].encode(type_name, self.weights[name])

    def fed(self, name: str, type_name: str) -> np.ndarray:
        """A tensor's bytes with error feedback."""
        tensor, curvatures = self.file[name], self.curvatures[name]
        if len(curvatures) == 1:
            return tensor.encode(type_name, None, curvatures)
        parts = (tensor.at(i).encode(type_name, None, [c]) for i, c in enumerate(curvatures))
        return np.concatenate(list(parts))

    def moments(self, name: str, back: np.ndarray) -> tuple[float, float]:
        """`1 - rho²` and gain of a decoded tensor."""
        weights = self.weights[name].astype(np.float64)
        x, y = (a.reshape(len(weights), -1, a.shape[-1]) for a in (self.file[name].dequantize(), back))
        pairs = ((x, x), (x, y), (y, y))
        columns = (np.einsum("mrc,mrc->mc", a, b, dtype=np.float64) for a, b in pairs)
        xx, xy, yy = (float((weights * sums).sum()) for sums in columns)
        return 1 - xy * xy / (xx * yy), xy / xx

    def power(self, name: str, values: np.ndarray) -> float:
        """Mean squares of the outputs that weights, or errors of weights, lead to."""
        curvatures = self.curvatures[name]
        total = 0.0
        for i, rows in enumerate(np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]))):
            tensor = _core.Tensor("F32", rows.shape, [rows.reshape(-1).view(np.uint8)])
            total += tensor.output_power(curvatures[i if len(curvatures) > 1 else 0])
        return total


class Llama:
    """llama-quantize."""

    def __init__(self, options: argparse.Namespace, threads: int) -> None:
        self.options, self.threads = options, threads

    def run(self, out: Path, types: list[str]) -> np.ndarray | None:
        """What it takes; None where it does not know the type. The embedding is copied."""
        words = ["--pure", "--imatrix", self.options.imatrix, "--token-embedding-type", "bf16"]
        for pair in types:
            words += ["--tensor-type", pair]
        command = [self.options.llama, *words, self.options.bf16, out, "Q8_0", str(self.threads)]
        start = clocks()
        done = subprocess.run(command, capture_output=True, check=False)
        return None if done.returncode else clocks() - start


def clocks() -> np.ndarray:
    """Processor seconds per thread of this process and its children, and elapsed seconds."""
    return np.array([sum(os.times()[:4]) / _core.threads(), time.perf_counter()])


def timed(call, names: list[str], type_name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What it takes to encode tensors, and their bytes."""
    start = clocks()
    encoded = {name: call(name, type_name) for name in names}
    return clocks() - start, encoded


def errors(model: Model, type_name: str, encoded: dict[str, np.ndarray], under_h: bool) -> dict[str, dict]:
    """What was lost, by tensor."""
    found = {}
    for name, data in encoded.items():
        shape = model.file[name].shape
        back = _core.Tensor(type_name, shape, [data]).dequantize()
        loss, gain = model.moments(name, back)
        found[name] = {"loss": loss, "gain": gain}
        if under_h:
            found[name]["output"] = model.power(name, model.file[name].dequantize() - back)
    return found


def by_class(power: dict[str, float], found: dict[str, dict]) -> dict[str, float]:
    """Errors of outputs over outputs, each tensor relative to its own, by class."""
    sums = defaultdict(list)
    for name, error in found.items():
        if "output" in error:
            label = next(label for label, pattern in CLASSES.items() if re.search(pattern, name))
            sums[label].append(error["output"] / power[name])
    return {label: float(np.mean(values)) for label, values in sums.items()}


def compare(options: argparse.Namespace) -> list[dict]:
    """One row per type."""
    threads = _core.threads()
    model = Model(options)
    if options.calibration_tokens:
        print(f"curvatures of all tensors: {model.curvature_seconds:.1f} s elapsed")
    llama = None
    if options.llama is None or not options.llama.is_file():
        print(f"llama-quantize: skipped, {options.llama or 'no path given'}", file=sys.stderr)
    else:
        llama = Llama(options, threads)
    power = {name: model.power(name, model.file[name].dequantize()) for name in model.curvatures}
    times: dict[str, dict[str, list[np.ndarray]]] = {t: defaultdict(list) for t in options.types}
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "llama.gguf")
        for number in range(options.rounds):
            for name in options.types:
                # Theirs are read before they are overwritten, so errors are measured in the first round.
                row, time_of = rows.setdefault(name, {"type": name}), times[name]
                tensors = model.divisible(name)
                smallest = min(tensors, key=lambda tensor: np.prod(model.file[tensor].shape))
                theirs: dict[str, np.ndarray] = {}
                if llama and row.get("weights_theirs") != 0:
                    # Where a name is part of another's it must not be taken for it.
                    base = llama.run(out, [f"^{re.escape(smallest)}$={name}", ".=bf16"])
                    whole = llama.run(out, [f".={name}"])
                    if base is not None and whole is not None:
                        time_of["llama"].append(whole - base)
                        file = GGUF(out)
                        theirs = {t: file[t].bytes() for t in tensors if file[t].type == name}
                seconds, plain = timed(model.plain, tensors, name)
                time_of["plain"].append(seconds)
                fed: dict[str, np.ndarray] = {}
                if model.curvatures and name not in WITHOUT_FEEDBACK:
                    seconds, fed = timed(model.fed, tensors, name)
                    time_of["feedback"].append(seconds)
                if number == 0:
                    count = {t: int(np.prod(model.file[t].shape)) for t in tensors}
                    row["weights"] = sum(count.values())
                    row["weights_theirs"] = sum(count[t] for t in theirs if t != smallest)
                    for label, encoded in (("plain", plain), ("feedback", fed), ("llama", theirs)):
                        row[label] = errors(model, name, encoded, bool(fed) and label != "llama")
                        row[f"{label}_output"] = by_class(power, row[label])
                said = {label: f"{values[-1][0]:.2f} s" for label, values in time_of.items()}
                print(f"{name}, round {number + 1}:", said, flush=True)
    for name, row in rows.items():
        finish(row, times[name])
    return list(rows.values())


def finish(row: dict, times: dict[str, list[np.ndarray]]) -> None:
    """Means over the tensors that both have, and millions of weights a second."""
    row["seconds"] = {label: float(np.median([v[0] for v in values])) for label, values in times.items()}
    row["elapsed"] = {label: float(np.median([v[1] for v in values])) for label, values in times.items()}
    for label, value in row["seconds"].items():
        row[f"{label}_speed"] = row["weights_theirs" if label == "llama" else "weights"] / value / 1e6
    shared = [name for name in row["plain"] if not row["llama"] or name in row["llama"]]
    for label in ("plain", "llama"):
        for what in ("loss", "gain"):
            values = [row[label][name][what] for name in shared if name in row[label]]
            row[f"{label}_{what}"] = float(np.mean(values)) if values else None
    ratios = {n: row["plain"][n]["loss"] / row["llama"][n]["loss"] for n in shared if n in row["llama"]}
    row["worst"] = max(ratios, key=lambda n: ratios[n]) if ratios else None
    row["worst_ratio"] = ratios[row["worst"]] if ratios else None


def tables(rows: list[dict]) -> None:
    """Both tables of docs/quantizer.md."""
    print("| type | 1 - rho² | ratio | worst | gain | plain, M/s | times | feedback, M/s | times |")
    print("|---|---|---:|---:|---|---:|---:|---:|---:|")

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    for row in rows:
        loss, other = row["plain_loss"], row["llama_loss"]
        speed, theirs = row["plain_speed"], row.get("llama_speed")
        fed = row.get("feedback_speed")
        cells = [
            f"{loss:.5f} / {cell(other, '.5f')}",
            cell(other and loss / other, ".3f"),
            cell(row["worst_ratio"], ".3f"),
            f"{row['plain_gain']:.3f} / {cell(row['llama_gain'], '.3f')}",
            f"{speed:.1f} / {cell(theirs, '.1f')}",
            cell(theirs and speed / theirs, ".1f"),
            cell(fed, ".1f"),
            cell(fed and theirs and fed / theirs, ".1f"),
        ]
        print(f"| {row['type']} | {' | '.join(cells)} |")
    labels = [label for label in CLASSES if any(label in row["feedback_output"] for row in rows)]
    if labels:
        print(f"\n| type | {' | '.join(labels)} |\n|---{'|---:' * len(labels)}|")
    for row in rows:
        if labels and row["feedback_output"]:
            fed, plain = row["feedback_output"], row["plain_output"]
            print(
                f"| {row['type']} |",
                " | ".join(f"{fed[k] / plain[k]:.2f}" if k in fed else "-" for k in labels),
                "|",
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--bf16", type=Path, required=True, help="the model as a GGUF of BF16")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--llama", type=Path, help="llama-quantize")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--calibration-tokens", type=int, default=98304, help="for feedback; 0: without it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _core.set_threads(options.threads)
    rows = compare(options)
    tables(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
