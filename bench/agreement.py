"""The same file in two engines: how far each is from a float forward pass of the file's own weights.

    .venv/bin/python bench/agreement.py --logits 'python peer_logits.py' [--types F32 Q8_0 Q4_K ...]

A peer is any command that is called as ``COMMAND MODEL.gguf ids.npy out.npy``: it reads int32 ids
``[windows, n_ctx]`` as they are and writes the peer's float32 logits ``[windows, n_ctx, vocab]``, each
window on an empty cache. For llama.cpp a few lines over libllama's C interface do (cache types F32, flash
attention off).
Without ``--logits`` only our own distance is printed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import kizami
from kizami.calibrate import calibrate
from kizami.demo import EMBEDDED
from kizami.encode import write
from kizami.evaluate import log_softmax, windows
from kizami.formats import WRITABLE
from kizami.plan import uniform_plan
from kizami.recipe import read_text


def divergence(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || other) in nats and whether the tops agree, per row of logits."""
    p, q = log_softmax(reference), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logits", help="the peer's command")
    parser.add_argument("--types", nargs="+", default=WRITABLE)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--ctx", type=int, default=256)
    options = parser.parse_args()
    if options.logits is None:
        print("no peer given (--logits): only our own distance is measured")
    source_model = kizami.load(EMBEDDED, activations="f32")
    imatrix = calibrate(
        source_model, read_text(EMBEDDED / "calibration.txt"), n_ctx=options.ctx, max_tokens=65_536
    )
    ids = windows(source_model, read_text(EMBEDDED / "eval.txt"), options.ctx)[: options.windows]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.types:
            path, ids_path, out = (Path(folder, f) for f in ("model.gguf", "ids.npy", "out.npy"))
            write(source_model.source, uniform_plan(source_model.source, name), path, imatrix)
            exact, ours = kizami.load(path, activations="f32"), kizami.load(path)
            theirs = None
            if options.logits:
                np.save(ids_path, ids.astype(np.int32))
                subprocess.run(
                    [*shlex.split(options.logits), path, ids_path, out], check=True, capture_output=True
                )
                theirs = np.load(out, mmap_mode="r")
            found: dict[str, list] = {"kizami": [], "peer": []}
            for i, window in enumerate(ids):
                skip = options.ctx // 2
                truth = exact.logits_many([window], skip=skip)[0]
                found["kizami"].append(divergence(truth, ours.logits_many([window], skip=skip)[0]))
                if theirs is not None:
                    found["peer"].append(divergence(truth, theirs[i, skip:]))
            line = f"{name:8s}"
            for engine, parts in found.items():
                if parts:
                    kld = np.concatenate([k for k, _ in parts])
                    same = np.concatenate([s for _, s in parts])
                    line += f"  {engine}: KLD {kld.mean():.3e}, same top {100 * same.mean():.2f} %"
            print(line, flush=True)


if __name__ == "__main__":
    main()
