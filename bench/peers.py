"""kizami against llama.cpp and ik_llama.cpp: the same files, the same machine, the same threads, one run.

    .venv/bin/python bench/peers.py moe-*.gguf --llama PATH/llama-bench --ik PATH/llama-bench
    .venv/bin/python bench/peers.py moe-Q4_K.gguf --llama ... --tests pp512,tg64 --threads 2 --rounds 3

Every engine measures itself (`kizami bench`, `llama-bench`), in a process of its own, once per round and
setting; the rounds interleave them, so that a slow minute of the machine hits all alike. Medians over the
rounds count, and each peer is represented by its fastest setting of each test. Rows go to the CSV as they
come; `bench/report.py` makes the table, and the plot, from that file. What each engine is told is in
`bench/README.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import report
from kizami import system

# Arguments of each setting under which a peer is run. Its fastest in a test is the one compared with.
LLAMA = {
    "fa": "-fa on",
    "no fa": "-fa off",
    "fa, no repack": "-fa on --repack 0",
    "no fa, no repack": "-fa off --repack 0",
}
IK = {"default": "-mla 3 -fa 1 -fmoe 1 -rtr 0", "rtr": "-mla 3 -fa 1 -fmoe 1 -rtr 1"}
# What decides how a peer was built, from CMake's cache.
BUILD_KEYS = r"CMAKE_BUILD_TYPE|CMAKE_CXX_FLAGS(_RELEASE)?|GGML_(NATIVE|CPU_REPACK|LLAMAFILE|OPENMP|IQK_\w+)"


@dataclass(frozen=True)
class Job:
    """What one process is asked to measure: every test at every depth."""

    model: Path
    prompts: list[int]
    generations: list[int]
    depths: list[int]
    threads: int


@dataclass(frozen=True)
class Found:
    """One measurement; `share` is the fraction of the memory bandwidth, where the engine knows it."""

    test: str
    depth: int
    tokens_per_s: float
    share: float | None = None


class Failure(Exception):
    """An engine did not measure what it was asked to; says why."""


@dataclass
class Engine(ABC):
    """A program under one setting. `version` is known once it has run."""

    name: str
    setting: str
    command: list[str]
    build: str = ""
    version: str = field(default="", init=False)

    @abstractmethod
    def measure(self, job: Job, timeout: float) -> Iterator[Found]:
        """Runs the program on the job; raises Failure."""

    def _run(self, arguments: list[object], timeout: float) -> object:
        command = [*self.command, *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"no result after {timeout:g} s") from None
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}") from None
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no message"]
            raise Failure(f"exit status {done.returncode}: {last[0]}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise Failure("its output is no JSON") from None


class Kizami(Engine):
    """`kizami bench`."""

    def measure(self, job: Job, timeout: float) -> Iterator[Found]:
        prompts, generations = listed(job.prompts) or "0", listed(job.generations) or "0"
        arguments: list[object] = ["bench", job.model, "-p", prompts, "-n", generations]
        arguments += ["-d", listed(job.depths), "-t", job.threads, "-r", 1, "--json"]
        for test in self._run(arguments, timeout)["tests"]:
            yield Found(test["test"], test["depth"], test["tokens_per_s"], test["bandwidth_share"])


class Llama(Engine):
    """llama.cpp's llama-bench, which knows depths (`-d`)."""

    def measure(self, job: Job, timeout: float) -> Iterator[Found]:
        arguments: list[object] = ["-m", job.model, "-p", listed(job.prompts) or 0]
        arguments += ["-n", listed(job.generations) or 0, "-d", listed(job.depths)]
        for test in self._run([*arguments, "-t", job.threads, "-r", 1, "-o", "json"], timeout):
            self.version = f"{test['build_commit']} ({test['build_number']})"
            kind, tokens = ("pp", test["n_prompt"]) if test["n_prompt"] else ("tg", test["n_gen"])
            yield Found(f"{kind}{tokens}", test["n_depth"], test["avg_ts"])


class Ik(Engine):
    """ik_llama.cpp's llama-bench, which has no depth. Generation after a prompt is its `-gp`; a prompt of n
    tokens at depth d is what a prompt of d + n takes longer than one of d, both timed by one process."""

    def measure(self, job: Job, timeout: float) -> Iterator[Found]:
        deep = [depth for depth in job.depths if depth]
        prompts = set(job.prompts if 0 in job.depths else ())
        if job.prompts:
            prompts.update(n for depth in deep for n in (depth, *(depth + p for p in job.prompts)))
        # Its own warming-up is one token: a short prompt first, whose time nobody asks for.
        arguments: list[object] = ["-m", job.model, "-p", listed([64, *sorted(prompts)])]
        arguments += ["-n", (listed(job.generations) if 0 in job.depths else "") or 0]
        for depth in deep:
            for tokens in job.generations:
                arguments += ["-gp", f"{depth},{tokens}"]
        seconds: dict[tuple[int, int], float] = {}
        for test in self._run([*arguments, "-t", job.threads, "-r", 1, "-o", "json"], timeout):
            self.version = f"{test['build_commit']} ({test['build_number']})"
            seconds[test["n_prompt"], test["n_gen"]] = test["avg_ns"] / 1e9
        for depth in job.depths:
            for n in job.prompts:
                taken = seconds[depth + n, 0] - (seconds[depth, 0] if depth else 0.0)
                if taken <= 0:
                    raise Failure(f"pp{n} at depth {depth}: the longer prompt took no longer; too noisy")
                yield Found(f"pp{n}", depth, n / taken)
            for n in job.generations:
                yield Found(f"tg{n}", depth, n / seconds[depth, n])


def listed(numbers: list[int]) -> str:
    """`[128, 512]` as the engines read it: `128,512`."""
    return ",".join(map(str, numbers))


# -- what is run ---------------------------------------------------------------------------------------


def build_of(program: Path) -> str:
    """How CMake was told to build the program, from the cache in one of the directories above it."""
    for folder in program.resolve().parents:
        cache = folder / "CMakeCache.txt"
        if cache.is_file():
            found = re.findall(rf"^((?:{BUILD_KEYS})):\w+=(.+)$", cache.read_text(errors="replace"), re.M)
            return " ".join(f"{groups[0]}={groups[-1]}" for groups in found)
    return ""


def engines(options: argparse.Namespace) -> list[Engine]:
    """Every program under every setting; a program that is not there is named on stderr and left out."""
    ours = Kizami("kizami", "default", shlex.split(options.kizami), f"isa={system.info()['isa']}")
    ours.version = own_version()
    found: list[Engine] = [ours]
    for kind, name, path, settings, extra in (
        (Llama, "llama.cpp", options.llama, LLAMA, options.llama_args),
        (Ik, "ik_llama.cpp", options.ik, IK, options.ik_args),
    ):
        if path is None or not path.is_file():
            print(
                f"{name}: skipped, {'no path given' if path is None else f'{path} is no file'}",
                file=sys.stderr,
            )
            continue
        for setting, arguments in settings.items():
            command = [str(path), *shlex.split(arguments), *shlex.split(extra)]
            found.append(kind(name, setting, command, build_of(path)))
    return [e for e in found if e is ours or re.search(options.only, f"{e.name} {e.setting}")]


def own_version() -> str:
    """The package's version and, in a repository, the commit."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=9"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "no repository"
    return f"{system.version()} ({commit})"


def machine() -> str:
    """Processor, cores, memory, system."""
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.M))
        cpu = f"{found['model name']} (family {found['cpu family']} model {found['model']})"
    except (OSError, KeyError):
        pass
    memory = (system.memory() or 0) / 1e9
    return f"{cpu}, {system.cores()} cores, {memory:.0f} GB, {platform.system()} {platform.release()}"


def run(options: argparse.Namespace) -> None:
    """Measures everything, row by row into the CSV."""
    prompts = [int(t[2:]) for t in options.tests if t.startswith("pp")]
    generations = [int(t[2:]) for t in options.tests if t.startswith("tg")]
    programs = engines(options)
    where = machine()
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, report.COLUMNS)
        rows.writeheader()
        for number in range(options.rounds):
            # Each round starts with another engine, so that none always runs on what one other left behind.
            turn = programs[number % len(programs) :] + programs[: number % len(programs)]
            for model in options.models:
                for threads in options.threads:
                    job = Job(model, prompts, generations, options.depths, threads)
                    for engine in turn:
                        for row in measure(engine, job, options.timeout):
                            rows.writerow(row | {"machine": where, "round": number})
                        file.flush()


class Others:
    """The part of all processors that programs other than ours and its children took; Linux only."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds that all processors worked for anyone (also for other machines: steal), for us, and all."""
        try:
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - ticks[3] - ticks[4]) / tick, sum(os.times()[:4]), sum(ticks) / tick

    def share(self) -> float | str:
        """Since the object was made; empty where it is not known."""
        end = self._read()
        if self._start is None or end is None:
            return ""
        worked, ours, total = (b - a for a, b in zip(self._start, end, strict=True))
        return round(max(0.0, worked - ours) / max(total, 1e-9), 3)


def measure(engine: Engine, job: Job, timeout: float) -> Iterator[dict[str, object]]:
    """One process: a row per measurement, or one with the reason why there are none."""
    who = f"{engine.name} ({engine.setting}), {job.model.name}, {job.threads} threads"
    found, failure, others = [], "", Others()
    try:
        found = list(engine.measure(job, timeout))
        print(
            f"{who}: " + ", ".join(f"{f.test} @ {f.depth} {f.tokens_per_s:.2f}" for f in found),
            file=sys.stderr,
        )
    except Failure as error:
        failure = str(error)
    except (KeyError, TypeError, ValueError) as error:
        failure = f"its output lacks something: {error!r}"
    if failure:
        print(f"{who}: failed: {failure}", file=sys.stderr)
    row: dict[str, object] = {
        "engine": engine.name,
        "setting": engine.setting,
        "arguments": shlex.join(engine.command[1:]) if engine.name != "kizami" else "",
        "version": engine.version,
        "build": engine.build,
        "model": job.model.stem,
        "threads": job.threads,
        "others": others.share(),
        "error": failure,
    }
    if failure:
        yield row
    for f in found:
        share = "" if f.share is None else f.share
        yield row | {"test": f.test, "depth": f.depth, "tokens_per_s": f.tokens_per_s, "memory_share": share}


# -- the command line ------------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    """`0,4096`."""
    return [int(part) for part in text.split(",")]


def tests(text: str) -> list[str]:
    """`pp512,tg64`."""
    found = text.split(",")
    if bad := [t for t in found if not re.fullmatch(r"(pp|tg)[1-9]\d*", t)]:
        raise argparse.ArgumentTypeError(f"found {bad[0]!r}, expected ppN or tgN")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own = shlex.join([sys.executable, "-c", "from kizami.cli import main; main()"])
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files")
    parser.add_argument("--llama", type=Path, help="llama.cpp's llama-bench")
    parser.add_argument("--ik", type=Path, help="ik_llama.cpp's llama-bench")
    parser.add_argument("--llama-args", default="", help="more arguments for it, in every setting")
    parser.add_argument("--ik-args", default="", help="more arguments for it, in every setting")
    parser.add_argument("--kizami", default=own, help="command that is kizami [this Python's]")
    parser.add_argument("--only", default="", help="peers' settings whose 'NAME SETTING' has this pattern")
    parser.add_argument("--tests", type=tests, default="pp128,pp512,pp2048,tg64")
    parser.add_argument("--depths", type=numbers, default="0,4096")
    parser.add_argument("--threads", type=numbers, default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds one process may take")
    parser.add_argument("--csv", type=Path, default=Path("peers.csv"), help="where rows go [peers.csv]")
    parser.add_argument("--plot", type=Path, help="draw the ratios (needs kizami[plot])")
    options = parser.parse_args()
    if missing := [path for path in options.models if not path.is_file()]:
        parser.error(f"{os.fspath(missing[0])}: no such file")
    run(options)
    report.show(report.read(options.csv), options.plot)


if __name__ == "__main__":
    main()
