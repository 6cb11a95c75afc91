"""The command line: arguments, what comes out where, exit codes. Bad files are in test_bad_input.py."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import entry_points

import pytest

from commandline import KIZAMI, SOURCE, json_of, kizami, one_error
from kizami import GGUF, bench, demo, load, system
from kizami.cli import COMMANDS, cli
from kizami.cli import quantize as quantize_command
from kizami.cli.options import SIZE, TOKENS
from kizami.cli.output import printable

# -- numbers and usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, found",
    [
        ("4200000", 4_200_000),
        ("4.2MB", 4_200_000),
        ("4.2 mb", 4_200_000),
        ("131GB", 131 * 10**9),
        ("1.5G", 1_500_000_000),
        ("512k", 512_000),
        ("0.1TB", 10**11),
        ("1MiB", 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2Ki", 2048),
        ("100B", 100),
    ],
)
def test_sizes_as_people_write_them(written, found):
    assert SIZE(written) == found


@pytest.mark.parametrize(
    "written", ["", "MB", "-1MB", "0", "0.1B", "1e6", "4,2MB", "4 2", "1XB", "1iB", "nan", "9" * 30, "１MB"]
)
def test_other_sizes_are_refused(written):
    result = kizami("quantize", SOURCE, "x.gguf", "--size", written, "--dry-run", code=2)
    one_error(result, "--size", "4.2MB")


@pytest.mark.parametrize("written, found", [("512", 512), ("32K", 32768), ("32k", 32768), ("1M", 1 << 20)])
def test_tokens_as_people_write_them(written, found):
    assert TOKENS(written) == found


@pytest.mark.parametrize(
    "args, fragment",
    [
        (["nonsense"], "no such command"),
        (["show"], "missing argument"),
        (["show", "nowhere"], "does not exist"),
        (["quantize", SOURCE, "x.gguf"], "--preset, --type, --plan, found none"),
        (["quantize", SOURCE, "x.gguf", "--bpw", "2", "--type", "Q4_K"], "found --bpw and --type"),
        (["quantize", SOURCE, "x.gguf", "--bpw", "-1"], "--bpw"),
        (["quantize", SOURCE, "x.gguf", "--bpw", "nan"], "bpw"),
        (["quantize", SOURCE, "x.gguf", "--type", "Q4_X"], "'Q4_X'"),
        (["quantize", SOURCE, "x.gguf", "--type", "F8_E4M3"], "F8_E4M3"),
        (["quantize", SOURCE, "x.gguf", "--type", "Q4_K", "--threads", "0"], "--threads"),
        (["quantize", SOURCE, "x.gguf", "--plan", "nowhere.json"], "does not exist"),
        (["quantize", SOURCE, ".", "--type", "Q4_K"], "is a directory"),
        (["plan", SOURCE, "--out", "p.json"], "exactly one of --bpw, --size, --preset, --curve"),
        (["plan", SOURCE, "--bpw", "2"], "--out"),
        (["eval", SOURCE, "--reference", SOURCE, "--text", "nowhere.txt"], "does not exist"),
        (["eval", SOURCE, "--reference", SOURCE, "--text", "."], "is a directory"),
        (
            ["eval", SOURCE, "--reference", SOURCE, "--text", SOURCE + "/config.json", "--ctx", "1M"],
            "1048576",
        ),
        (["imatrix", SOURCE, "--text", SOURCE + "/config.json", "--out", "x", "--ctx", "4096"], "4096"),
        (["run", SOURCE, "hello", "--top-p", "0"], "--top-p"),
        (["run", SOURCE, "hello", "--temp", "nan"], "temperature"),
        (["run", SOURCE, "hello", "-n", "0"], "-n"),
        (["run", SOURCE, "hello " * 100, "--ctx", "64"], "context of 64"),
        (["run", SOURCE], "stdin is empty"),
        (["bench", SOURCE, "-p", "1M"], "1048576"),
        (["bench", SOURCE, "-p", "32,many"], "'many'"),
        (["bench", SOURCE, "-n", "32", "-d", "1M"], "1048576"),
        (["bench", SOURCE, "-p", "0", "-n", "0"], "0 tests"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(args, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_error(kizami(*args, code=2), fragment)
    assert list(tmp_path.iterdir()) == []


def test_help_is_there_and_ends_with_examples():
    assert "quantize" in kizami("--help").stdout
    assert kizami(code=2).stdout == ""
    for command in COMMANDS:
        page = kizami(command.name, "--help").stdout
        assert f"kizami {command.name}" in page.split("Examples:")[1]
        assert "--json" in page
    assert kizami("--version").stdout.startswith("kizami ")


def test_both_programs_are_installed():
    found = {e.name: e.load() for e in entry_points(group="console_scripts") if e.value.startswith("kizami.")}
    assert sorted(found) == ["kizami", "quantize-model"]
    run = subprocess.run(
        [shutil.which("quantize-model", path=sysconfig.get_path("scripts")), "--help"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout.startswith("Usage: quantize-model [OPTIONS] SRC OUT.gguf")


# -- commands ------------------------------------------------------------------------------------------


def test_env():
    found = json_of(kizami("env", "--json"))
    assert set(found) == {"version", "isa", "isa_available", "cores", "memory"}
    assert found["isa"] in found["isa_available"] and found["isa_available"][0] == "scalar"
    assert found["cores"] >= 1 and found["memory"] > 1 << 26
    assert found["isa"] in kizami("env").stdout


def test_show_a_file_and_a_directory(q4k):
    file, directory = (json_of(kizami("show", path, "--json")) for path in (q4k, SOURCE))
    for key in ("general.architecture", "tokenizer.ggml.tokens", "deepseek2.block_count"):
        assert file["metadata"][key] == directory["metadata"][key]
    assert len(file["metadata"]["tokenizer.ggml.tokens"]) == 4096
    shapes = [{t["name"]: t["shape"] for t in found["tensors"]} for found in (file, directory)]
    assert shapes[0] == shapes[1]
    assert file["weights"] == directory["weights"]
    assert 4.5 < file["bpw"] < 4.6 and file["bpw"] == file["tensor_bytes"] * 8 / file["weights"]
    for path in (q4k, SOURCE):
        text = kizami("show", path).stdout
        assert re.search(r"tokenizer\.ggml\.tokens .*\.\.\.\] 4,096 items\n", text)
        assert re.search(r"blk\.5\.ffn_down_exps\.weight +\w+ +8 x 256 x 256 +[\d,]+\n", text)


def test_show_a_type_it_cannot_compute_with(q4k, tmp_path):
    blob = q4k.read_bytes()
    at = blob.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    assert blob[at : at + 4] == b"\0\0\0\0"  # F32, as wide as I32
    path = tmp_path / "foreign.gguf"
    path.write_bytes(blob[:at] + b"\x1a\0\0\0" + blob[at + 4 :])
    assert "I32" in kizami("show", path).stdout
    one_error(kizami("run", path, "hello", code=65), "output_norm.weight", "I32")


def test_quantize_with_one_type(q4k, tmp_path):
    out = tmp_path / "again.gguf"
    found = json_of(kizami("quantize", q4k, out, "--type", "q8-0", "--json"))
    assert found["bytes"] == out.stat().st_size and found["path"] == str(out)
    assert set(found) >= {"bytes", "bpw", "tensors", "seconds", "peak_rss"}
    written = GGUF(out)
    assert {t["name"]: t["type"] for t in found["tensors"]} == {name: t.type for name, t in written.items()}
    assert all(t["bytes"] == written[t["name"]].nbytes for t in found["tensors"])
    weights = sum(GGUF(out)[t["name"]].dequantize().size for t in found["tensors"])
    assert found["bpw"] == pytest.approx(sum(t["bytes"] for t in found["tensors"]) * 8 / weights)
    assert found["seconds"] > 0 and (found["peak_rss"] is None or found["peak_rss"] > 1 << 20)


def test_dry_run_tells_the_size_and_writes_nothing(q4k, small, tmp_path):
    model, matrix = small
    out = tmp_path / "out.gguf"
    args = ["quantize", model, out, "--bpw", "4", "--imatrix", matrix]
    said = json_of(kizami(*args, "--dry-run", "--json"))
    assert said["bpw"] <= 4 and list(tmp_path.iterdir()) == []
    done = json_of(kizami(*args, "--json"))
    assert done["bytes"] == said["bytes"] == out.stat().st_size
    assert done["tensors"] == said["tensors"]
    text = kizami("quantize", SOURCE, tmp_path / "x.gguf", "--type", "Q4_K", "--dry-run").stdout
    assert f"would be {q4k.stat().st_size:,} bytes" in text and "ffn_down_exps" in text
    assert list(tmp_path.iterdir()) == [out]


def test_calibration_and_imatrix_give_the_same_file(small, tmp_path):
    model, _ = small
    # --calibration uses windows of 512 tokens.
    words, wide = model / "calibration.txt", tmp_path / "imatrix.gguf"
    kizami("imatrix", model, "--text", words, "--out", wide)
    ways = {
        "a.gguf": ["--imatrix", wide],
        "plain.gguf": ["--calibration", words, "--rounding", "plain"],
        "feedback.gguf": ["--calibration", words, "--rounding", "feedback"],
        "default.gguf": ["--calibration", words],
    }
    for name, option in ways.items():
        kizami("quantize", model, tmp_path / name, "--type", "IQ4_NL", *option)
    a, plain, feedback, default = ((tmp_path / name).read_bytes() for name in ways)
    assert a == plain
    assert feedback == default
    # With feedback one type needs no importance: the file names the text instead.
    known = [set(GGUF(tmp_path / name).metadata) for name in ("plain.gguf", "feedback.gguf")]
    importance = {key for key in known[0] if "imatrix" in key}
    text = {f"kizami.{key}" for key in ("calibration.sha256", "kld", "kld.tokens")}
    assert len(importance) == 4 and known[1] == known[0] - importance | text
    both = ["--imatrix", wide, "--calibration", words]
    one_error(kizami("quantize", model, tmp_path / "c.gguf", "--type", "Q4_K", *both, code=2), "at most one")


def test_a_plan_is_made_edited_and_replayed(small, tmp_path):
    model, matrix = small
    plan, out = tmp_path / "plan.json", tmp_path / "out.gguf"
    said = json_of(kizami("plan", model, "--bpw", "4", "--imatrix", matrix, "--out", plan, "--json"))
    assert said["bpw"] <= 4 and said["predicted_kld"] > 0
    assert "predicted KLD" in kizami("plan", model, "--size", "5MB", "--out", plan).stdout
    edited = json.loads(plan.read_text(encoding="utf-8"))
    next(t for t in edited["tensors"] if t["name"] == "output.weight")["type"] = "Q8_0"
    plan.write_text(json.dumps(edited), encoding="utf-8")
    kizami("quantize", model, out, "--plan", plan)
    written = {name: t.type for name, t in GGUF(out).items()}
    assert written == {t["name"]: t["type"] for t in edited["tensors"]}


def test_rounding_without_a_text_or_an_imatrix_is_said(small, tmp_path):
    model, matrix = small
    out, words = tmp_path / "out.gguf", "every weight counts alike"
    assert words in kizami("quantize", model, out, "--type", "Q4_K").stderr
    for option in (
        ["--type", "f16"],
        ["--type", "Q4_K", "--imatrix", matrix],
        ["--type", "Q4_K", "--dry-run"],
    ):
        assert words not in kizami("quantize", model, out, *option).stderr


def test_eval(q4k, text):
    args = ["eval", q4k, "--reference", SOURCE, "--text", text, "--ctx", "256"]
    found = json_of(kizami(*args, "--json"))
    keys = "tokens ppl ppl_ref kld_mean kld_sem kld_p99 kld_p999 kld_max same_top".split()
    assert set(found) == set(keys)
    assert 0 < found["kld_mean"] < 0.1 and 0.8 < found["same_top"] <= 1 and found["tokens"] > 100
    assert "same top" in kizami(*args).stdout


def test_run_answers_on_stdout_and_reports_on_stderr(q4k):
    result = kizami("run", q4k, "What is 7 + 15?", "-n", 8, "--threads", 1)
    assert result.stdout.endswith("\n") and len(result.stdout) > 1
    assert re.fullmatch(
        r"load: +[\d.]+ s\n"
        r"prompt: +[\d.]+ s, \d+ tokens, [\d.]+ tokens/s\n"
        r"generation: +[\d.]+ s, \d+ tokens, [\d.]+ tokens/s\n",
        result.stderr,
    )
    found = json_of(kizami("run", q4k, "-n", 8, "--json", stdin="What is 7 + 15?\n"))
    assert found["text"] == result.stdout.removesuffix("\n")
    assert found["prompt_tokens"] > 5 and 0 < found["generated_tokens"] <= 8


def test_run_raw_and_sampled(q4k):
    args = ["run", q4k, "The borrow checker", "--raw", "-n", 12, "--temp", 0.8, "--top-p", 0.9, "--json"]
    one, two = (json_of(kizami(*args, "--seed", 7))["text"] for _ in range(2))
    assert one == two
    assert len({json_of(kizami(*args, "--seed", seed))["text"] for seed in range(4)}) > 1
    assert json_of(kizami(*args))["prompt_tokens"] < json_of(kizami(*args[:3], "--json"))["prompt_tokens"]


def test_bench(q4k):
    found = json_of(kizami("bench", q4k, "-p", "32,8", "-n", 4, "-d", "0,16", "-r", 2, "--json", "-t", 2))
    assert found["threads"] == 2 and found["isa"] in system.info()["isa_available"] and found["bandwidth"] > 0
    names = [(t["test"], t["depth"]) for t in found["tests"]]
    assert names == [("pp32", 0), ("pp8", 0), ("pp32", 16), ("pp8", 16), ("tg4", 0), ("tg4", 16)]
    for t in found["tests"]:
        assert (
            t["tokens_per_s"] > 0 and t["macs_per_s"] > 0 and len(t["samples"]) == 2 and t["profile"] is None
        )
        assert (t["bandwidth_share"] is None) == t["test"].startswith("pp")


def test_bench_profile(q4k):
    (test,) = json_of(kizami("bench", q4k, "-p", 0, "-n", 2, "--profile", "--json"))["tests"]
    operations = test["profile"]
    assert operations[-1]["op"] == "rest" and "output" in [op["op"] for op in operations]
    assert sum(op["share"] for op in operations) == pytest.approx(1.0)
    assert sum(op["ms_per_token"] for op in operations) == pytest.approx(1000 / test["tokens_per_s"], rel=0.9)
    shown = kizami("bench", q4k, "-p", 8, "-n", 2, "--profile").stdout
    for fragment in ("tokens/s", "of memory", "memory read at", "ms/token", "rest"):
        assert fragment in shown


def test_active_weights_are_those_of_the_used_experts(q4k):
    model = load(q4k)
    config, source = model.config, model.tensors
    nbytes, macs = bench.active(model)
    everything = sum(source[name].nbytes for name in source)
    experts = sum(source[name].nbytes for name in source if "_exps." in name)
    table = source["token_embd.weight"]
    expected = everything - experts + experts * config.n_expert_used / config.n_expert
    assert nbytes == pytest.approx(expected - table.nbytes + table.nbytes / table.shape[0])
    assert 0 < macs < sum(math.prod(source[name].shape) for name in source)


def test_demo(small, monkeypatch):
    monkeypatch.setattr(demo, "EMBEDDED", small[0])
    result = kizami("demo", "--json")
    found = json_of(result)
    dynamic, uniform = found["rows"]
    assert set(dynamic) == {"file", "bytes", "bpw", "ppl", "kld_mean", "kld_p999", "same_top"}
    assert dynamic["bytes"] <= uniform["bytes"]
    assert len(found["continuations"]) == 3 and found["ppl_ref"] > 1
    # Stages are plain lines where stderr is no terminal.
    assert re.search(r"^survey: \d+ of \d+ in [\d.]+ s$", result.stderr, re.MULTILINE)


# -- as a process --------------------------------------------------------------------------------------


def test_a_process_fails_in_one_line_without_traceback(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model")
    run = subprocess.run([*KIZAMI, "run", bad, "hello"], capture_output=True, text=True)
    assert run.returncode == 65 and run.stdout == ""
    assert run.stderr.startswith(f"error: {bad}: not a GGUF file") and run.stderr.count("\n") == 1


def test_output_in_a_narrow_encoding(q4k):
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run([*KIZAMI, "show", q4k], capture_output=True, env=env)
    assert run.returncode == 0 and run.stderr == b"" and b"<?User?>" in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE, no SIGINT to another process")
def test_a_closed_pipe_is_quiet(q4k):
    shell = f"{sys.executable} -c 'from kizami.cli import main; main()' show {q4k} --json | head -c 10"
    run = subprocess.run(shell, shell=True, capture_output=True)
    assert len(run.stdout) == 10 and run.stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE, no SIGINT to another process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_job_leaves_nothing_behind(tmp_path, sent, code):
    out = tmp_path / "out.gguf"
    # A shell's background jobs ignore SIGINT, and so would the child of a test run as one.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heed}; from kizami.cli import main; main()"]
    words = SOURCE + "/calibration.txt"
    args = [*program, "quantize", SOURCE, out, "--type", "IQ1_S", "--calibration", words, "--threads", "1"]
    # Without vector instructions it certainly still calibrates when the signal comes: nothing is finished
    # yet.
    slow = os.environ | {"KIZAMI_ISA": "scalar"}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(args, **pipes, text=True, env=slow) as process:
        for _ in range(600):
            if list(tmp_path.iterdir()) or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_the_quantize_command_is_the_program():
    assert quantize_command is cli.commands["quantize"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_an_io_error():
    with open("/dev/full", "w") as full:
        run = subprocess.run([*KIZAMI, "env"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 74 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_a_files_own_words_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\nc\u202e") == "a\N{REPLACEMENT CHARACTER}[31mb c\N{REPLACEMENT CHARACTER}"
