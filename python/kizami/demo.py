"""The whole path on the embedded model: survey, probe, plan, quantize twice, evaluate, generate.

What ``kizami demo`` runs: a file of one type with every weight rounded by itself, and one that is not larger,
with a type per tensor and error feedback, as ``kizami quantize`` makes it; both held against the FP8 source
they were made from.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kizami.engine import from_source, load
from kizami.evaluate import score, windows
from kizami.progress import Progress
from kizami.quantize import Report, quantize
from kizami.recipe import read_text

EMBEDDED = Path(__file__).parent / "data" / "tiny-deepseek"
UNIFORM = "IQ2_XXS"
# A part of the calibration text: enough for eight experts, and for the patience of who watches.
CALIBRATION_CHARACTERS = 200_000
# The embedded model was trained on short rows: beyond 256 tokens its perplexity rises fourfold.
N_CTX = 256
PROMPT = "The compiler checks that"


@dataclass(frozen=True)
class DemoResult:
    """The table, the text each model continues the prompt with, and the reference's perplexity."""

    rows: list[dict[str, Any]]
    continuations: list[tuple[str, str]]
    prompt: str
    ppl_ref: float

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return asdict(self)


def run(*, progress: Progress | None = None, workdir: str | Path | None = None) -> DemoResult:
    """Runs the demonstration.

    Args:
        progress: called with (stage, done, total).
        workdir: where to leave the two files; a temporary directory that is removed if not given.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="kizami-demo-") as folder:
            return _run(Path(folder), progress)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    return _run(Path(workdir), progress)


def _run(folder: Path, progress: Progress | None) -> DemoResult:
    reference = load(EMBEDDED, activations="f32")
    source = reference.source
    with tempfile.TemporaryDirectory(prefix="kizami-demo-") as name:
        text = Path(name, "calibration.txt")
        kept = read_text(EMBEDDED / "calibration.txt")[:CALIBRATION_CHARACTERS]
        text.write_bytes(kept.encode())

        def made(out: Path, **options: Any) -> Report:
            options |= {"calibration": text, "ctx": N_CTX, "force": True, "progress": progress}
            return quantize(EMBEDDED, out, **options)

        uniform = made(folder / f"tiny-deepseek-{UNIFORM}.gguf", type=UNIFORM, rounding="plain")
        dynamic = made(folder / "tiny-deepseek-dynamic.gguf", size=uniform.bytes)
    reports = {Path(report.path): report for report in (dynamic, uniform)}
    models = [load(path) for path in reports]
    ids = windows(reference, read_text(EMBEDDED / "eval.txt"), N_CTX)
    rows, ppl_ref = [], 0.0
    for (path, report), scores in zip(
        reports.items(), score(models, reference, ids, progress=progress), strict=True
    ):
        result = scores.summary()
        ppl_ref = result.ppl_ref
        rows.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "bpw": report.bpw,
                "ppl": result.ppl,
                "kld_mean": result.kld_mean,
                "kld_p999": result.kld_p999,
                "same_top": result.same_top,
            }
        )
    everyone = [("source (FP8)", from_source(source)), *zip((p.name for p in reports), models, strict=True)]
    continuations = [(name, model.generate(PROMPT, max_tokens=32, raw=True)) for name, model in everyone]
    return DemoResult(rows, continuations, PROMPT, ppl_ref)
