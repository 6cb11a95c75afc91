"""Dynamic against uniform files at the same size: mean KLD with paired 95 % intervals.

    .venv/bin/python bench/quality.py                      # the embedded model
    .venv/bin/python bench/quality.py --model DIR --ctx 256 --types IQ2_XXS IQ3_XXS Q4_K --json out.json

The imatrix comes from DIR/calibration.txt, the figures from DIR/eval.txt, which are disjoint. The dynamic
file gets the uniform one's size in bytes as its budget. The interval is that of the mean over windows of the
paired difference, so that the dependence of neighbouring tokens does not make it too narrow.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import kizami
from kizami.allocation import make_plan
from kizami.calibrate import calibrate
from kizami.demo import EMBEDDED
from kizami.encode import write
from kizami.evaluate import score, windows
from kizami.plan import uniform_plan
from kizami.recipe import read_text


def window_means(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of each window's scored tokens."""
    return values.reshape(count, -1).mean(axis=1)


def paired(worse: np.ndarray, better: np.ndarray) -> tuple[float, float]:
    """Mean difference of two files' windows, and half the width of its 95 % interval."""
    gain = worse - better
    return gain.mean(), 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))


def compare(model: Path, n_ctx: int, types: list[str], calibration_tokens: int | None) -> list[dict]:
    """One row per uniform type: both files' size and figures, and the paired difference."""
    reference = kizami.load(model, activations="f32")
    text = read_text(model / "calibration.txt")
    imatrix = calibrate(
        reference, text, n_ctx=n_ctx, max_tokens=calibration_tokens, dataset="calibration.txt"
    )
    ids = windows(reference, read_text(model / "eval.txt"), n_ctx)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in types:
            uniform, dynamic = Path(folder, f"{name}.gguf"), Path(folder, f"{name}-dynamic.gguf")
            write(reference.source, uniform_plan(reference.source, name), uniform, imatrix)
            size = uniform.stat().st_size
            write(reference.source, make_plan(reference.source, size=size, imatrix=imatrix), dynamic, imatrix)
            scores = score([kizami.load(uniform), kizami.load(dynamic)], reference, ids)
            u, d = (s.summary() for s in scores)
            gain, half = paired(*(window_means(s.kld, len(ids)) for s in scores))
            rows.append(
                {
                    "uniform": name,
                    "uniform_bytes": size,
                    "dynamic_bytes": dynamic.stat().st_size,
                    "uniform_result": u.to_dict(),
                    "dynamic_result": d.to_dict(),
                    "ratio": d.kld_mean / u.kld_mean,
                    "gain": gain,
                    "gain_half_width": half,
                }
            )
            print(
                f"| {name} | {size:,} | {u.kld_mean:.4f} | {dynamic.stat().st_size:,} | {d.kld_mean:.4f} | "
                f"{d.kld_mean / u.kld_mean:.2f} | {gain:.4f} ± {half:.4f} | "
                f"{100 * u.same_top:.1f} | {100 * d.same_top:.1f} |",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--types", nargs="+", default=["IQ2_XXS", "IQ3_XXS", "Q4_K"])
    parser.add_argument("--calibration-tokens", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(
        "| uniform | bytes | KLD | dynamic bytes | KLD | ratio | paired difference | same top % | dynamic % |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        rows = compare(options.model, options.ctx, options.types, options.calibration_tokens)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
