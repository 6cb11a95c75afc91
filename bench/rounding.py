"""Error feedback against plain rounding, every projection in one type: mean KLD with paired 95 % intervals.

    .venv/bin/python bench/rounding.py                                   # the embedded model
    .venv/bin/python bench/rounding.py --model DIR --types IQ1_S IQ2_XXS --texts code.txt --json out.json

Embedding, head, router and norms stay as they are, so both files have the same bytes and nothing but
rounding differs. Statistics come from DIR/calibration.txt; figures from DIR/eval.txt and from any other texts
named, with float activations. The interval is that of the mean over windows of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import kizami
from kizami import feedback
from kizami.calibrate import calibrate, calibration_windows
from kizami.demo import EMBEDDED
from kizami.encode import write
from kizami.evaluate import score, windows
from kizami.formats import quantizable
from kizami.plan import Plan, plan_from_types, uniform_plan
from kizami.recipe import read_text
from quality import paired, window_means

TYPES = ["IQ1_S", "IQ2_XXS", "IQ3_XXS", "Q4_K"]
UNTOUCHED = ("output.", "token_embd.")


def projections(source: kizami.GGUF, type_name: str) -> Plan:
    """The plan that gives every projection the type (or its fallback) and keeps the rest."""
    types = {}
    for t in uniform_plan(source, type_name).tensors:
        if quantizable(t.name, t.shape) and not t.name.startswith(UNTOUCHED):
            types[t.name] = t.type
        else:
            types[t.name] = "F32" if t.type == "F32" else "BF16"
    return plan_from_types(source, types, "bench")


def compare(model: Path, options: argparse.Namespace) -> list[dict]:
    """One row per type and text: both files' mean KLD and the paired difference."""
    reference = kizami.load(model, activations="f32")
    text = read_text(model / "calibration.txt")
    n_ctx, most = options.ctx, options.calibration_tokens
    imatrix = calibrate(reference, text, n_ctx=n_ctx, max_tokens=most, dataset="calibration.txt")
    calibration = calibration_windows(reference, text, n_ctx, most)
    texts = {
        path.name: windows(reference, read_text(path), n_ctx)[: options.windows]
        for path in (model / "eval.txt", *options.texts)
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain, fed = Path(folder, "plain.gguf"), Path(folder, "feedback.gguf")
        for name in options.types:
            plan = projections(reference.source, name)
            seconds = []
            for path, layers in ((plain, ()), (fed, feedback.layers(reference, calibration))):
                start = time.perf_counter()
                write(reference.source, plan, path, imatrix, layers=layers)
                seconds.append(time.perf_counter() - start)
            assert plain.stat().st_size == fed.stat().st_size
            models = [kizami.load(path, activations="f32") for path in (plain, fed)]
            for file, ids in texts.items():
                p, f = (window_means(s.kld, len(ids)) for s in score(models, reference, ids))
                gain, half = paired(p, f)
                rows.append(
                    {
                        "type": name,
                        "text": file,
                        "plain": p.mean(),
                        "feedback": f.mean(),
                        "ratio": f.mean() / p.mean(),
                        "difference": gain,
                        "half_width": half,
                        "seconds": seconds,
                    }
                )
                print(
                    f"| {name} | {file} | {p.mean():.5f} | {f.mean():.5f} | {f.mean() / p.mean():.3f} | "
                    f"{gain:.5f} ± {half:.5f} | {seconds[0]:.0f} | {seconds[1]:.0f} |",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--texts", nargs="+", type=Path, default=[], help="beside DIR/eval.txt")
    parser.add_argument("--windows", type=int, help="of each text at most [all]")
    parser.add_argument("--calibration-tokens", type=int, help="at most [all]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| type | text | plain | feedback | ratio | paired difference | s plain | s feedback |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        rows = compare(options.model, options)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
