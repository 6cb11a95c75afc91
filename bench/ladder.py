"""The sizes that llama.cpp's tools choose, and what kizami makes of each: mean KLD by llama-perplexity.

    .venv/bin/python bench/ladder.py --model DIR --llama FOLDER --work FOLDER --json bench/records/ladder.json

For every preset of llama-quantize and every hand recipe (published dynamic mixes, as overrides of types)
kizami gets the bytes of that file as its budget. Both are calibrated on DIR/calibration.txt and judged on the
beginning of DIR/eval.txt, and on any other texts named, against the BF16 file, all by llama-perplexity. The
folder of --llama has llama-quantize, llama-imatrix and llama-perplexity; without it nothing is measured. What
lies in the work folder is taken as done, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import kizami
from kizami.allocation import make_plan
from kizami.calibrate import calibration_windows
from kizami.encode import write
from kizami.plan import uniform_plan
from kizami.provenance import text_hash
from kizami.recipe import read_text
from kizami.survey import Survey, first_pass

PRESETS = (
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M Q2_K_S Q2_K IQ3_XXS IQ3_XS IQ3_S IQ3_M Q3_K_S Q3_K_M Q3_K_L "
    "IQ4_XS IQ4_NL Q4_K_S Q4_K_M Q5_K_S Q5_K_M"
).split()
# Types of the experts' gate and up, of their down, and of all that is always active but the head (Q6_K).
HAND = {
    "hand-1.58": ("iq1_s", "iq2_xxs", "q4_k"),
    "hand-2.0": ("iq2_xxs", "iq2_xs", "q4_k"),
    "hand-2.5": ("iq2_s", "iq3_xxs", "q5_k"),
    "hand-3.1": ("iq3_xxs", "iq3_s", "q5_k"),
    "hand-4.2": ("iq4_xs", "q4_k", "q6_k"),
}


class Peer:
    """llama.cpp's tools, by the folder they lie in, and the folder that their files go to."""

    def __init__(self, folder: Path, work: Path, threads: int) -> None:
        self.folder, self.work, self.threads = folder, work, str(threads)

    def run(self, tool: str, *words: str | Path) -> str:
        """What a tool prints, both streams."""
        found = subprocess.run(
            [self.folder / tool, *words], capture_output=True, text=True, errors="replace", check=False
        )
        if found.returncode:
            sys.exit(f"{tool}: exit status {found.returncode}: {(found.stderr or found.stdout)[-400:]}")
        return found.stdout + found.stderr

    def prepare(self, model: Path, texts: dict[str, str], n_ctx: int) -> None:
        """The BF16 file, its imatrix, and its logits on the texts."""
        bf16 = self.work / "bf16.gguf"
        if not bf16.exists():
            source = kizami.load(model).source
            write(source, uniform_plan(source, "BF16"), bf16)
        if not (self.work / "imatrix.gguf").exists():
            words = ["-m", bf16, "-f", model / "calibration.txt", "-o", self.work / "imatrix.gguf"]
            options = ["-c", str(n_ctx), "--process-output", "--parse-special", "-t", self.threads]
            self.run("llama-imatrix", *words, *options)
        for name, text in texts.items():
            (self.work / name).write_text(text, encoding="utf-8")
            base = self.work / f"{name}.kld"
            if not base.exists():
                words = ["-m", bf16, "-f", self.work / name, "--kl-divergence-base", base]
                self.run("llama-perplexity", *words, "-c", str(n_ctx), "-t", self.threads)

    def quantized(self, rung: str) -> Path:
        """The file of a preset or a hand recipe."""
        out = self.work / f"llama-{rung}.gguf"
        if not out.exists():
            words: list[str | Path] = ["--imatrix", self.work / "imatrix.gguf"]
            preset = rung
            if rung in HAND:
                gate_up, down, active = HAND[rung]
                preset = "Q4_K_M"
                words += ["--output-tensor-type", "q6_k", "--token-embedding-type", active]
                for pattern, name in (
                    ("ffn_(gate|up)_exps", gate_up),
                    ("ffn_down_exps", down),
                    ("attn_.*", active),
                    ("ffn_.*_shexp", active),
                    (r"blk\.0\.ffn_.*", active),
                ):
                    words += ["--tensor-type", f"{pattern}={name}"]
            self.run("llama-quantize", *words, self.work / "bf16.gguf", out, preset, self.threads)
        return out

    def score(self, file: Path, text: str, n_ctx: int) -> dict[str, float]:
        """Mean and 99.9 % KLD, and how often the likeliest token is the same, of a file on a text."""
        log = file.with_suffix(f".{text}.log")
        for _ in range(12):
            # The tool's closing summary is sometimes lost at exit.
            if log.exists() and "Same top p" in (printed := log.read_text(errors="replace")):
                mean = re.search(r"Mean +KLD: +([-\d.]+) ± +([\d.]+)", printed)
                most = re.search(r"99\.9% +KLD: +([-\d.]+)", printed)
                same = re.findall(r"Same top p: +([\d.]+)", printed)
                if mean and most and same:
                    kld, sem = map(float, mean.groups())
                    return {"kld": kld, "sem": sem, "kld_p999": float(most[1]), "same_top": float(same[-1])}
            words = ["-m", file, "--kl-divergence-base", self.work / f"{text}.kld", "--kl-divergence"]
            log.write_text(self.run("llama-perplexity", *words, "-c", str(n_ctx), "-t", self.threads))
        sys.exit(f"{log}: found no summary")


class Kizami:
    """Our side: one survey of the calibration text serves all sizes, a job of its own makes each file. The
    survey sees the windows that jobs keep for verification, too."""

    def __init__(self, model: Path, n_ctx: int) -> None:
        self.model, self.n_ctx = model, n_ctx
        self.source = kizami.load(model).source
        self.text = read_text(model / "calibration.txt")

    @cached_property
    def found(self) -> Survey:
        """Made when the first plan is missing: a run that goes on may need none."""
        reference = kizami.load(self.model, activations="f32")
        windows = calibration_windows(reference, self.text, self.n_ctx)
        return first_pass(reference, windows, "calibration.txt")

    def quantized(self, size: int, out: Path) -> float:
        """Writes the best file of at most so many bytes; returns its predicted KLD."""
        path = out.with_suffix(".plan.json")
        if not path.exists():
            make_plan(
                self.source,
                size=size,
                imatrix=self.found.imatrix,
                distortions=self.found.distortions,
                sensitivities=self.found.sensitivities,
                calibration=text_hash(self.text),
            ).save(path)
        if not out.exists():
            text = self.model / "calibration.txt"
            kizami.quantize(self.model, out, plan=path, calibration=text, ctx=self.n_ctx, force=True)
        return float(json.loads(path.read_text(encoding="utf-8"))["predicted_kld"])


def _cells(score: dict[str, float]) -> str:
    return f"{score['kld']:.5f} ± {score['sem']:.5f} | {score['kld_p999']:.2f} | {score['same_top']:.1f}"


def compare(options: argparse.Namespace) -> list[dict]:
    """One row per rung, printed as it is known."""
    peer = Peer(options.llama, options.work, options.threads)
    files = (options.model / "eval.txt", *options.texts)
    texts = {file.name: file.read_bytes()[: options.bytes].decode(errors="ignore") for file in files}
    peer.prepare(options.model, texts, options.ctx)
    ours, rows = Kizami(options.model, options.ctx), []
    for rung in options.rungs:
        theirs = peer.quantized(rung)
        size = theirs.stat().st_size
        file = options.work / f"kizami-{rung}.gguf"
        predicted = ours.quantized(size, file)
        row: dict = {"rung": rung, "bytes": size, "kizami_bytes": file.stat().st_size, "predicted": predicted}
        for text in texts:
            a, b = peer.score(theirs, text, options.ctx), peer.score(file, text, options.ctx)
            row[text] = {"llama": a, "kizami": b, "ratio": b["kld"] / a["kld"]}
            print(f"| {rung} | {size:,} | {text} | {_cells(a)} | {_cells(b)} |", end=" ")
            print(f"{row[text]['ratio']:.3f} | {predicted:.5f} |", flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for text in texts:
        for name, chosen in (("presets", PRESETS), ("hand recipes", HAND)):
            ratios = [row[text]["ratio"] for row in rows if row["rung"] in chosen]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                print(f"{text}: {name}: geometric mean {mean:.3f}, largest {max(ratios):.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's tools")
    parser.add_argument("--work", type=Path, required=True, help="folder for the files of the run")
    parser.add_argument("--rungs", nargs="+", default=[*PRESETS, *HAND])
    parser.add_argument("--texts", nargs="+", type=Path, default=[], help="beside DIR/eval.txt")
    parser.add_argument("--bytes", type=int, default=60_000, help="of each text at most [60000]")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools = ("llama-quantize", "llama-imatrix", "llama-perplexity")
    if options.llama is None or not all((options.llama / tool).exists() for tool in tools):
        print(f"skipped: --llama names no folder with {', '.join(tools)}")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    scores = "KLD | 99.9 % | same top %"
    print(f"| rung | bytes | text | llama.cpp {scores} | kizami {scores} | ratio | predicted |")
    print("|---|---:|---|---|---:|---:|---|---:|---:|---:|---:|")
    try:
        compare(options)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
