"""What all tests share: helper modules beside them can be imported by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic  # noqa: E402 - found by the line above
from commandline import SOURCE, json_of, kizami  # noqa: E402
from kizami import _core  # noqa: E402
from kizami.demo import EMBEDDED  # noqa: E402
from kizami.imatrix import Imatrix  # noqa: E402
from kizami.tokenizer import Tokenizer  # noqa: E402


def pytest_report_header() -> str:
    available = _core.isa_available()
    skipped = [name for name in _core.isa_levels() if name not in available]
    found = f"instruction sets: {' '.join(available)}"
    return found + (f"; NOT TESTED, this CPU cannot run them: {' '.join(skipped)}" if skipped else "")


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def q4k(workdir):
    path = workdir / "q4k.gguf"
    kizami("quantize", SOURCE, path, "--type", "Q4_K")
    return path


@pytest.fixture(scope="session")
def text(workdir):
    path = workdir / "text.txt"
    path.write_text((EMBEDDED / "eval.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(workdir):
    """A model of two layers with random weights, with texts, and its importance matrix."""
    model, path = workdir / "small", workdir / "small.gguf"
    model.mkdir()
    synthetic.train_tokenizer(model)
    vocabulary = Tokenizer.from_file(model / "tokenizer.json", {}).vocab_size
    synthetic.write_model(model, synthetic.CONFIG | {"vocab_size": vocabulary})
    words = (EMBEDDED / "eval.txt").read_text(encoding="utf-8")
    for name, part in (("calibration.txt", words[:5000]), ("eval.txt", words[5000:9000])):
        (model / name).write_text(part, encoding="utf-8")
    args = ["imatrix", model, "--text", model / "calibration.txt", "--out", path, "--ctx", 128]
    found = json_of(kizami(*args, "--threads", 2, "--json"))
    assert found["path"] == str(path) and found["chunk_size"] == 128
    assert found["tokens"] == found["chunks"] * 128 and found["seconds"] > 0
    assert found["tensors"] == len(Imatrix.read(path).entries)
    return model, path


@pytest.fixture
def restore_settings():
    """Puts the instruction set and the threads back."""
    isa, threads = _core.isa(), _core.threads()
    yield
    _core.set_isa(isa)
    _core.set_threads(threads)
