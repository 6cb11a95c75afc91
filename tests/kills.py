"""Kills jobs with SIGKILL and goes on with them: the file must be the one of a job that was never killed.

    python tests/kills.py [--points 200] [--seed 0]

As a program it makes a small model and kills its quantization at random points: half of them at a random
time, half at a random one of the operations that touch the disk (a write, perhaps half done; bringing to
disk; a rename; a removal). A job is killed up to three times before it may end. `test_resume.py` does the
same at a few points.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Runs `kizami` and kills it at an operation on the disk. Records often: the model is small.
PROGRAM = """
import os, pathlib, signal, sys
from kizami import imatrix, job, journal, partial, probe
job.SYNC_BYTES = 1 << 17
left = int(sys.argv.pop(1))
if sys.argv[-1] == "--no-probes":  # as larger models are surveyed
    probe.MOST_WORK = 0
    sys.argv.pop()

def wrap(owner, name, torn=None):
    original = getattr(owner, name)
    def counted(*args, **named):
        global left
        left -= 1
        if left == 0:
            if torn:
                torn(*args, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, counted)

def half(part, offset, data):
    part._file.seek(offset)
    part._file.write(data[: len(data) // 2])
    part._file.flush()

def half_record(journal_, *records):
    os.pwrite(journal_._file.fileno(), b"0123456789abcdef {\\"unit", journal_._end)

wrap(partial.Part, "write", half)
wrap(partial.Part, "sync")
wrap(partial.Part, "begin")
wrap(partial.Part, "seal")
wrap(journal.Journal, "append", half_record)
wrap(imatrix.Imatrix, "write")
wrap(os, "replace")
wrap(pathlib.Path, "unlink")
from kizami.cli import main
try:
    main()
finally:
    print("operations", -left, file=sys.stderr)
"""


@dataclass(frozen=True)
class Case:
    """A quantization: its arguments after the output, and what must come out."""

    model: Path
    arguments: tuple[str, ...]
    expected: dict[str, str]
    operations: int
    seconds: float


def start(model: Path, out: Path, arguments: tuple[str, ...], kill_at: int = 0) -> subprocess.Popen[str]:
    """The job as a process; with ``kill_at`` it kills itself at that operation."""
    command = [sys.executable, "-c", PROGRAM, str(kill_at), "quantize", str(model), str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def uninterrupted(model: Path, folder: Path, arguments: tuple[str, ...]) -> Case:
    """Runs the job once, to know what it makes and how long it takes."""
    folder.mkdir()
    began = time.monotonic()
    _, stderr = (process := start(model, folder / "out.gguf", arguments)).communicate()
    assert process.returncode == 0, stderr
    operations = int(stderr.rsplit("operations ", 1)[1])
    return Case(model, arguments, hashes(folder), operations, time.monotonic() - began)


def finals_are_whole(case: Case, folder: Path) -> None:
    """What has a final name is a final file, and a set that can be opened is complete."""
    found = {name: value for name, value in hashes(folder).items() if ".kizami-" not in name}
    # An importance matrix on its way is beside its name, too, and hidden.
    found = {name: value for name, value in found.items() if not name.startswith(".")}
    assert found.items() <= case.expected.items(), found
    if found and min(case.expected) in found:
        assert found == case.expected


def kill_and_resume(case: Case, folder: Path, random_: random.Random, times: int = 1) -> list[str]:
    """Kills the job ``times`` times, then lets it end; returns where it was killed."""
    folder.mkdir()
    out, story = folder / "out.gguf", []
    for i in range(times):
        resume = ("--resume",) if i else ()
        if random_.random() < 0.5:
            at = random_.randint(1, case.operations)
            process = start(case.model, out, resume + case.arguments, at)
            story.append(f"operation {at} of {case.operations}")
        else:
            delay = random_.uniform(0.2, case.seconds)
            process = start(case.model, out, resume + case.arguments)
            story.append(f"{delay:.2f} s of {case.seconds:.2f}")
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
        _, stderr = process.communicate()
        assert process.returncode in (-9, 0), (story, stderr)
        finals_are_whole(case, folder)
    process = start(case.model, out, ("--resume", *case.arguments))
    _, stderr = process.communicate()
    assert process.returncode == 0, (story, stderr)
    assert hashes(folder) == case.expected, story
    return story


def main() -> None:
    """Kills at as many points as asked for, over the kinds of job there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from kizami.demo import EMBEDDED
    from kizami.tokenizer import Tokenizer

    sys.path.insert(0, str(Path(__file__).parent))
    import synthetic

    random_ = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kizami-kills-") as name:
        folder = Path(name)
        model = folder / "model"
        model.mkdir()
        synthetic.train_tokenizer(model)
        vocabulary = Tokenizer.from_file(model / "tokenizer.json", {}).vocab_size
        synthetic.write_model(model, synthetic.CONFIG | {"vocab_size": vocabulary})
        text = folder / "text.txt"
        text.write_text((EMBEDDED / "eval.txt").read_text(encoding="utf-8")[:9000], encoding="utf-8")
        kinds = [
            ("--bpw", "4", "--calibration", str(text)),
            ("--bpw", "4", "--calibration", str(text), "--no-probes"),
            ("--type", "Q4_0", "--calibration", str(text)),
            ("--type", "Q8_0", "--calibration", str(text), "--split-size", "1MB"),
            ("--type", "Q8_0", "--split-size", "1MB"),
            ("--size", "1.3MB", "--split-size", "1MB"),
        ]
        cases = [uninterrupted(model, folder / f"case{i}", kind) for i, kind in enumerate(kinds)]
        for case in cases:
            print(
                f"{' '.join(case.arguments)}: {case.operations} operations, {case.seconds:.1f} s", flush=True
            )
        killed = 0
        for point in range(options.points):
            times = random_.randint(1, 3)
            (case,) = random_.choices(cases, [1 / case.seconds for case in cases])
            story = kill_and_resume(case, folder / f"point{point}", random_, times)
            killed += times
            print(f"{point + 1}: same bytes after {', '.join(story)}: {case.arguments}", flush=True)
            shutil.rmtree(folder / f"point{point}")
        print(f"{options.points} jobs, {killed} kills: all ended with the bytes of an uninterrupted one")


if __name__ == "__main__":
    main()
