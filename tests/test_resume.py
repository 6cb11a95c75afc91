"""Long jobs: whatever happens, going on gives the same bytes, and no name shows half a file."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kills
import kizami as package
import passes
from commandline import names
from kizami import feedback, job, partial
from kizami.calibrate import calibration_windows
from kizami.checkpoint import open_source
from kizami.errors import FormatError, InputOutputError, KizamiError, ResumeError, UsageError
from kizami.journal import Journal

TYPE = {"type": "Q8_0"}
LEFT = ["out.gguf.kizami-journal", "out.gguf.kizami-tmp"]
encoding = sys.modules["kizami.encode"]
quantize = sys.modules["kizami.quantize"]  # the package has the function under this name


@pytest.fixture(scope="module")
def model(small):
    return small[0]


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The bytes of an uninterrupted job of one type."""
    out = tmp_path_factory.mktemp("expected") / "out.gguf"
    package.quantize(model, out, **TYPE)
    return out.read_bytes()


@pytest.fixture
def often(monkeypatch):
    """Every tensor is recorded at once."""
    monkeypatch.setattr(job, "SYNC_BYTES", 1)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def interrupt(model, out, tensors=10, error=KeyboardInterrupt, **options):
    """Runs a job that is interrupted when it has encoded so many tensors."""
    original, left = encoding.encoded, tensors

    def encoded(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "encoded", encoded)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            package.quantize(model, out, **(options or TYPE))


def encodings(model, out, **options):
    """Goes on with a job; returns how many tensors it had to encode."""
    original, count = encoding.encoded, 0

    def encoded(*args):
        nonlocal count
        count += 1
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "encoded", encoded)
        package.quantize(model, out, resume=True, **(options or TYPE))
    return count


# -- interrupted and gone on with ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    kinds = {
        "feedback": ("--bpw", "4", "--calibration", str(model / "calibration.txt")),
        "no probes": ("--bpw", "4", "--calibration", str(model / "calibration.txt"), "--no-probes"),
        "split": ("--type", "Q8_0", "--split-size", "1MB"),
    }
    return {name: kills.uninterrupted(model, folder / name, kind) for name, kind in kinds.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("kind", ["feedback", "no probes", "split"])
def test_a_killed_job_ends_with_the_same_bytes(cases, tmp_path, kind):
    """At a few points; `python tests/kills.py` does it at 200."""
    assert len(cases[kind].expected) == (2 if kind == "split" else 1)
    kills.kill_and_resume(cases[kind], tmp_path / "job", random.Random(os.urandom(8)), times=2)


def test_finished_tensors_are_not_encoded_again(model, expected, often, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older")
    interrupt(model, out, tensors=10)
    assert names(tmp_path) == ["out.gguf", *LEFT] and out.read_bytes() == b"older"
    assert encodings(model, out) == len(open_source(model)) - 10
    assert out.read_bytes() == expected and names(tmp_path) == ["out.gguf"]


def test_calibration_and_plan_are_not_made_again(model, cases, often, tmp_path, monkeypatch):
    options = {"bpw": 4.0, "calibration": model / "calibration.txt"}
    out = tmp_path / "out.gguf"
    interrupt(model, out, tensors=20, **options)
    for step in ("first_pass", "calibrate"):
        monkeypatch.setattr(quantize, step, None)
    monkeypatch.setattr("kizami.recipe.Choices.best", None)
    report = package.quantize(model, out, resume=True, **options)
    assert kills.hashes(tmp_path) == cases["feedback"].expected
    assert report.predicted_kld is not None and any(t["error"] for t in report.tensors)


def test_layers_that_are_done_only_pass_tokens_on(model):
    loaded = package.load(model, activations="f32")
    ids = calibration_windows(loaded, (model / "calibration.txt").read_text(encoding="utf-8"), 128, 512)
    seen = []
    whole = passes.sums_of(feedback.layers(loaded, ids, progress=lambda *step: seen.append(step)))
    assert [step for _, step, _ in seen] == list(range(1, seen[-1][2] + 1)) and len(seen) >= 5
    done = {name for name in loaded.tensors if name.startswith(("token_embd", "blk.0.", "output"))}
    part = passes.sums_of(feedback.layers(loaded, ids, done=done))
    assert part.keys() == {name for name in whole if name.startswith("blk.1.")}
    for name, (found, _) in part.items():
        np.testing.assert_array_equal(found, whole[name][0])
    assert not list(feedback.layers(loaded, ids, done=set(loaded.tensors)))


def test_a_lost_imatrix_is_measured_again(model, often, tmp_path):
    options = {"type": "Q4_0", "calibration": model / "calibration.txt", "rounding": "plain"}
    package.quantize(model, tmp_path / "whole.gguf", **options)
    out, kept = tmp_path / "out.gguf", tmp_path / "out.gguf.kizami-imatrix"
    interrupt(model, out, **options)
    kept.write_bytes(kept.read_bytes()[:-3] + b"cut")
    package.quantize(model, out, resume=True, **options)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.fixture(scope="module")
def unfinished(model, tmp_path_factory):
    """Journal and temporary file of an interrupted job: its files' bytes by name."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "SYNC_BYTES", 1 << 17)
        interrupt(model, folder / "out.gguf", tensors=24)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def go_on(model, folder, files):
    """Goes on with a job from these files, in a folder of its own: the output's bytes, or None if refused."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        package.quantize(model, folder / "out.gguf", resume=True, **TYPE)
    except (FormatError, ResumeError) as error:
        assert "journal" in str(error) and error.hint
        return None
    assert names(folder) == ["out.gguf"]
    return (folder / "out.gguf").read_bytes()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_journal_gives_the_right_file_or_a_clean_refusal(
    model, expected, unfinished, tmp_path, data
):
    journal = bytearray(unfinished[LEFT[0]])
    first = journal.index(b"\n")
    at = data.draw(st.integers(0, len(journal) - 1))
    if data.draw(st.booleans()):
        journal[at] ^= data.draw(st.integers(1, 255))
    else:
        del journal[at:]
    found = go_on(model, tmp_path / "try", unfinished | {LEFT[0]: bytes(journal)})
    assert found == expected or (found is None and at <= first)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_temporary_file_is_mended(model, expected, unfinished, tmp_path, data):
    damaged = bytearray(unfinished[LEFT[1]])
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[at] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[at:]
    assert go_on(model, tmp_path / "try", unfinished | {LEFT[1]: bytes(damaged)}) == expected
    assert go_on(model, tmp_path / "try", {LEFT[0]: unfinished[LEFT[0]]}) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_is_believed_up_to_the_first_damaged_line(tmp_path, data):
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    records = [{"n": i, "text": "x" * (i % 7)} for i in range(10)]
    journal = Journal(path)
    journal.append(*records)
    journal.close()
    damaged = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    whole = bytes(damaged[:at]).count(b"\n")
    damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    journal = Journal(path)
    assert journal.records == records[:whole]
    journal.append({"n": "next"})
    journal.close()
    journal = Journal(path)
    assert journal.records == [*records[:whole], {"n": "next"}] and journal.lines == whole + 1
    journal.close(remove=True)
    assert not path.exists()


@pytest.mark.parametrize("step", ["write", "sync"])
def test_a_disk_that_fills_up_can_be_emptied(model, expected, often, tmp_path, monkeypatch, step):
    out, left, original = tmp_path / "out.gguf", 7, getattr(partial.Part, step)

    def fails(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial.Part, step, fails)
        with pytest.raises(InputOutputError, match=r"out\.gguf: cannot .*No space left.* are free") as error:
            package.quantize(model, out, **TYPE)
    assert "--resume" in error.value.hint and names(tmp_path) == LEFT
    assert encodings(model, out) == len(open_source(model)) - 7
    assert out.read_bytes() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_go_on(model, tmp_path, sent):
    out, slow = tmp_path / "out.gguf", os.environ | {"KIZAMI_ISA": "scalar"}
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heed}; from kizami.cli import main; main()"]
    args = ["quantize", str(model), str(out), "--type", "IQ1_S"]
    with subprocess.Popen([*program, *args], stderr=subprocess.PIPE, text=True, env=slow) as process:
        while process.poll() is None and lines_of(tmp_path / LEFT[0]) < 2:  # the recipe, and the layout
            time.sleep(0.01)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert names(tmp_path) == LEFT and "Traceback" not in stderr
    assert f"hint: go on: kizami quantize {model} {out} --type IQ1_S --resume\n" in stderr
    subprocess.run([*program, *args, "--resume"], check=True, capture_output=True)
    assert names(tmp_path) == ["out.gguf"]


# -- refused -------------------------------------------------------------------------------------------


def test_an_unfinished_job_is_in_the_way_until_something_is_said(model, expected, often, tmp_path):
    out = tmp_path / "out.gguf"
    interrupt(model, out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ResumeError, match="unfinished job") as error:
        package.quantize(model, out, **TYPE)
    assert "--resume" in error.value.hint and "--force" in error.value.hint
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    package.quantize(model, out, force=True, **TYPE)
    assert out.read_bytes() == expected and names(tmp_path) == ["out.gguf"]
    with pytest.raises(UsageError, match="both"):
        package.quantize(model, out, force=True, resume=True, **TYPE)


def test_nothing_to_go_on_with_starts_at_the_beginning(model, expected, tmp_path):
    (tmp_path / "out.gguf.kizami-journal").write_bytes(b"0123 cut o")
    package.quantize(model, tmp_path / "out.gguf", resume=True, **TYPE)
    assert (tmp_path / "out.gguf").read_bytes() == expected and names(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize(
    "field", ["type", "split-size", "mtp", "calibration", "mtime_ns", "size", "inode", "layout"]
)
def test_another_recipe_or_input_is_refused_by_name(small, often, tmp_path, field):
    model, out = tmp_path / "model", tmp_path / "out.gguf"
    shutil.copytree(small[0], model)
    options = {"type": "Q4_0", "calibration": model / "calibration.txt"} if field == "calibration" else TYPE
    interrupt(model, out, **options)
    weights = model / "model.safetensors"
    if field in ("type", "split-size", "mtp"):
        changed = {"type": "Q4_0", "split_size": 1_000_000, "mtp": True}
        options = {**TYPE, field.replace("-", "_"): changed[field.replace("-", "_")]}
    elif field == "calibration":
        (model / "calibration.txt").write_bytes((model / "calibration.txt").read_bytes() + b"more")
    elif field == "mtime_ns":
        os.utime(weights, ns=(1, 1))
    elif field == "layout":
        tokenizer = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer["chat_template"] += "more"
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    else:
        shutil.copy2(weights, model / "copy")
        os.replace(model / "copy", weights)  # another inode
        if field == "size":
            weights.write_bytes(weights.read_bytes() + b" ")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if ".kizami-" in name}
    with pytest.raises(
        KizamiError, match="after the last tensor" if field == "size" else rf"\b{field}: found .*, expected "
    ):
        package.quantize(model, out, resume=True, **options)
    assert before == {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if ".kizami-" in name}


def test_an_input_that_changes_during_the_job_is_noticed(small, tmp_path, monkeypatch):
    model, out = tmp_path / "model", tmp_path / "out.gguf"
    shutil.copytree(small[0], model)
    original = quantize.encode

    def encode(*args, **named):
        original(*args, **named)
        os.utime(model / "model.safetensors", ns=(1, 1))

    monkeypatch.setattr(quantize, "encode", encode)
    with pytest.raises(FormatError, match=r"changed during the job.*model\.safetensors: mtime_ns"):
        package.quantize(model, out, **TYPE)
    assert names(tmp_path) == ["model"]


def test_two_jobs_on_one_output(model, expected, often, tmp_path):
    out = tmp_path / "out.gguf"
    original = quantize.encode

    def encode(*args, **named):
        for way in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(ResumeError, match="the only one"):
                package.quantize(model, out, **TYPE, **way)
        original(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "encode", encode)
        package.quantize(model, out, **TYPE)
    assert out.read_bytes() == expected and names(tmp_path) == ["out.gguf"]


def test_a_refusal_with_a_hint_of_its_own_says_how_to_go_on_too(model, often, tmp_path):
    """What waits on disk in a pass has one (test_memory.py)."""
    error = InputOutputError("full", hint="allow more memory (--max-memory)")
    interrupt(model, tmp_path / "out.gguf", tensors=3, error=error)
    assert "--max-memory" in error.hint and "--resume" in error.hint


def test_too_little_memory_loses_nothing_that_is_finished(model, cases, often, tmp_path):
    options = {"bpw": 4.0, "calibration": model / "calibration.txt"}
    out = tmp_path / "out.gguf"
    interrupt(model, out, tensors=5, **options)
    before = names(tmp_path)
    with pytest.raises(UsageError, match="max-memory"):
        package.quantize(model, out, resume=True, max_memory=1, **options)
    assert names(tmp_path) == before != []
    package.quantize(model, out, resume=True, **options)
    assert kills.hashes(tmp_path) == cases["feedback"].expected


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_journal_that_cannot_grow_says_so_once(tmp_path):
    program = """
import resource, signal, sys
from pathlib import Path
from kizami.errors import InputOutputError
from kizami.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append({"recipe": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    journal.append({"unit": "x" * 200})
except InputOutputError as error:
    print(error)
journal.close()
"""
    path = tmp_path / "journal"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr and "cannot write the journal" in done.stdout
    again = Journal(path)
    assert again.records == [{"recipe": 1}] and again.lines == 1
    again.append({"unit": "y"})
    again.close()
    again = Journal(path)
    again.close()
    assert again.records == [{"recipe": 1}, {"unit": "y"}]


def test_an_error_that_would_come_again_leaves_nothing(model, often, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older")
    interrupt(model, out, error=FormatError("weights: found NaN"))
    assert names(tmp_path) == ["out.gguf"] and out.read_bytes() == b"older"
