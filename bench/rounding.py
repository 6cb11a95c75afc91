"""Error feedback against plain rounding, every projection in one type: mean KLD with paired 95 % intervals.

    .venv/bin/python bench/rounding.py                                   # the embedded model
    .venv/bin/python bench/rounding.py --model DIR --types IQ1_S IQ2_XXS --texts code.txt --json out.json
    .venv/bin/python bench/rounding.py --llama build/bin/llama-quantize    # ggml's own encoders beside them

Embedding, head, router and norms stay as they are, so tensors of both files have the same bytes and nothing
but rounding differs. Statistics come from DIR/calibration.txt; feedback is that of `kizami quantize`, which
keeps a sixteenth of the text's windows for verification, and its seconds are those of the whole job. Figures
are from DIR/eval.txt and from any other texts named, with float activations. The interval is that of the mean
over windows of the paired difference. With llama-quantize there is a third file, of the same types, from the
same imatrix; else that column is empty.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import kizami
from kizami import feedback
from kizami.calibrate import calibration_windows
from kizami.demo import EMBEDDED
from kizami.encode import write
from kizami.evaluate import score, windows
from kizami.formats import quantizable
from kizami.imatrix import Imatrix
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


class Ggml:
    """Another encoder: llama-quantize, on the BF16 file and our imatrix."""

    def __init__(self, tool: Path, folder: Path, source: kizami.GGUF, imatrix: Imatrix) -> None:
        """Writes what the tool reads."""
        self.tool, self.bf16, self.imatrix = tool, folder / "bf16.gguf", folder / "imatrix.gguf"
        write(source, uniform_plan(source, "BF16"), self.bf16)
        imatrix.write(self.imatrix)

    def quantize(self, plan: Plan, out: Path) -> None:
        """Writes a file of the plan's types."""
        words = ["--imatrix", str(self.imatrix), "--output-tensor-type", "bf16"]
        words += ["--token-embedding-type", "bf16"]
        for t in plan.tensors:
            if quantizable(t.name, t.shape) and not t.name.startswith(UNTOUCHED):
                words += ["--tensor-type", f"{t.name.replace('.', '[.]')}={t.type.lower()}"]
        # The name of a mix has to be there; every tensor's type is given.
        done = subprocess.run([self.tool, *words, self.bf16, out, "Q8_0"], capture_output=True, check=False)
        if done.returncode:
            sys.exit(
                f"{self.tool}: exit status {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}"
            )
        types = {name: tensor.type for name, tensor in kizami.GGUF(out).items()}
        wrong = [t.name for t in plan.tensors if types[t.name] != t.type]
        assert not wrong, f"{wrong[0]}: found {types[wrong[0]]}"


def compare(model: Path, options: argparse.Namespace) -> list[dict]:
    """One row per type and text: the files' mean KLD and paired differences."""
    reference = kizami.load(model, activations="f32")
    text = read_text(model / "calibration.txt")
    n_ctx, most = options.ctx, options.calibration_tokens
    calibration = calibration_windows(reference, text, n_ctx, most)
    texts = {
        path.name: windows(reference, read_text(path), n_ctx)[: options.windows]
        for path in (model / "eval.txt", *options.texts)
    }
    imatrix = Imatrix(chunks=len(calibration), chunk_size=n_ctx, datasets=["calibration.txt"])
    for _, layer in feedback.layers(reference, calibration, moments=False):
        imatrix.entries.update(layer.entries())
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        plain, fed, theirs = (Path(folder, f"{name}.gguf") for name in ("plain", "feedback", "ggml"))
        ggml = Ggml(options.llama, Path(folder), reference.source, imatrix) if options.llama else None
        # As much of the text as the tokens are of all of it.
        share = calibration.size / calibration_windows(reference, text, n_ctx).size
        kept = Path(folder, "calibration.txt")
        kept.write_text(text[: round(share * len(text))], encoding="utf-8")
        for name in options.types:
            plan = projections(reference.source, name)
            plan.save(saved := Path(folder, "plan.json"))
            start = time.perf_counter()
            write(reference.source, plan, plain, imatrix)
            seconds = [time.perf_counter() - start]
            start = time.perf_counter()
            kizami.quantize(model, fed, plan=saved, calibration=kept, ctx=n_ctx, force=True)
            seconds.append(time.perf_counter() - start)
            sizes = [sum(t.nbytes for t in kizami.GGUF(path).values()) for path in (plain, fed)]
            assert sizes[0] == sizes[1]
            paths = [plain, fed]
            if ggml is not None:
                ggml.quantize(plan, theirs)
                paths.append(theirs)
            models = [kizami.load(path, activations="f32") for path in paths]
            for file, ids in texts.items():
                found = [window_means(s.kld, len(ids)) for s in score(models, reference, ids)]
                rows.append({"type": name, "text": file, "seconds": seconds} | figures(*found))
                print(line(rows[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def figures(plain: np.ndarray, fed: np.ndarray, ggml: np.ndarray | None = None) -> dict[str, float]:
    """What a row has of the windows' means of two or three files; half widths are of 95 % intervals."""
    gain, half = paired(plain, fed)
    row = {"plain": plain.mean(), "feedback": fed.mean(), "ratio": fed.mean() / plain.mean()}
    row |= {"difference": gain, "half_width": half}
    if ggml is not None:
        gain, half = paired(ggml, fed)
        row |= {"ggml": ggml.mean(), "ratio_ggml": fed.mean() / ggml.mean()}
        row |= {"difference_ggml": gain, "half_width_ggml": half}
    return row


def line(row: dict) -> str:
    """A row of the table."""
    cells = [row["type"], row["text"], f"{row['plain']:.5f}", f"{row['feedback']:.5f}", f"{row['ratio']:.3f}"]
    cells.append(f"{row['difference']:.5f} ± {row['half_width']:.5f}")
    if "ggml" in row:
        cells += [f"{row['ggml']:.5f}", f"{row['ratio_ggml']:.3f}"]
        cells.append(f"{row['difference_ggml']:.5f} ± {row['half_width_ggml']:.5f}")
    else:
        cells += ["", "", ""]
    return "| " + " | ".join([*cells, *(f"{s:.0f}" for s in row["seconds"])]) + " |"


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
    parser.add_argument("--llama", type=Path, help="llama-quantize")
    parser.add_argument("--work", type=Path, help="where a folder for the files is made, and removed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.llama is not None and not options.llama.exists():
        print(f"skipped: ggml's encoders: {options.llama} is not there")
        options.llama = None
    others = "ggml | ratio | paired difference"
    print(f"| type | text | plain | feedback | ratio | paired difference | {others} | s plain | s feedback |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    try:
        compare(options.model, options)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
