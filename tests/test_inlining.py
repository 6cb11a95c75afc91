"""The built module, taken apart: what a kernel's function calls, and which instructions it is made of.

A primitive that is not inlined runs with baseline instructions, through memory: correct, and ten times slower
(docs/kernels.md, "Adding"). No result shows it, so this does. Knows symbols and x86-64 mnemonics as objdump
writes them. Does not know what kernels compute.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from typing import NamedTuple

import pytest

from kizami import _core

OBJDUMP = shutil.which("objdump")

pytestmark = pytest.mark.skipif(
    OBJDUMP is None or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="NOT CHECKED: calls left in kernels need objdump (binutils) on Linux, x86-64",
)


class Level(NamedTuple):
    """An instruction set above the baseline."""

    entry: str
    """The function under `kizami_kernels::isa` that every kernel of the level is an instance of."""
    dot: str
    """The dot product of bytes, which every product of quantized weights has."""
    others: frozenset[str]
    """What else makes the level."""
    beyond: tuple[str, ...] = ()
    """Registers that it must not touch."""


VNNI512 = frozenset({"vfmadd231ps", "vcvtph2ps", "vpmulld"})
LEVELS = {
    "avx2": Level(
        "avx2::enter", "vpmaddubsw", frozenset({"vfmadd231ps", "vcvtph2ps", "vpmaddwd"}), ("%zmm", "%k")
    ),
    "avxvnni": Level(
        "avx2::enter_vnni", "vpdpbusd", frozenset({"vfmadd231ps", "vcvtph2ps", "vpmulld"}), ("%zmm", "%k")
    ),
    "avx512": Level("avx512::enter", "vpdpbusd", VNNI512),
    "avx512vbmi": Level(
        "avx512::enter_vbmi", "vpdpbusd", VNNI512 | {"vpermb", "vpmultishiftqb", "vgf2p8affineqb"}
    ),
}
BY_ENTRY = {level.entry: name for name, level in LEVELS.items()}

# What a kernel may call. Anything else is a primitive, or a closure around one, that the compiler left out.
ALLOWED = re.compile(
    "|".join(
        [
            # Other kernels.
            r"<kizami_kernels::isa::\w+::\w+(<\w+>)? as kizami_kernels::isa::Isa>::enter",
            r"kizami_kernels::dispatch::dispatch",
            # Checks that failed.
            r"core::panicking::|core::(option|result)::\w+_failed|core::slice::index::slice_\w*fail",
            r"core::slice::copy_from_slice_impl::len_mismatch_fail|bytemuck::internal::something_went_wrong",
            r"_Unwind_Resume",
            # Memory for a whole task, and activations that nobody has converted yet.
            r"(<.+ as )?alloc::|(__rustc::)?__rust_\w*alloc|_?mi_\w+|std::sync::once_lock::OnceLock",
            r"mem(cpy|set|move|cmp)\b",
            # Eight columns of a metric, once per curvature; the curvature of a panel and the metric of a
            # block, per 64 rows; the diagonal of a block, per 16.
            r"kizami_quantizer::curvature::(Curvature::octet|blocks::factored)",
            r"kizami_quantizer::encode::feedback::(Columns::(new|diagonal)|whole::Whole::new)",
            r"kizami_quantizer::encode::octet::Octet::new",
            r"core::ptr::drop_in_place<(alloc::vec::Vec<)?kizami_quantizer::encode::feedback::(whole::)?\w+>",
            # Blocks of codes that are chosen, as they are put together and written.
            r"core::option::Option<T>::map_or_else|kizami_quantizer::encode::feedback::Group::panel::\{\{closure\}\}",
            # Which columns, once per 128 of them.
            r"kizami_kernels::panel::rows::\{\{closure\}\}",
            # Writing a record, when a model is loaded.
            r"kizami_kernels::repack::write_(codes|scales)|half::binary16::arch::f32_to_f16_fallback",
            # A row of repacked weights as floats.
            r"kizami_kernels::repack::record::Record<.+>::taken",
            # Five digits a byte, for which there are no instructions.
            r"kizami_kernels::formats::tq1_0::digits",
            # Without byte permutations: numbers of a record's codes; eight scales of IQ2_XXS and IQ3_XXS.
            r"<kizami_kernels::isa::scalar::Scalar as kizami_kernels::isa::Isa>::(lookup256|spread)",
        ]
    )
)

FUNCTION = re.compile(r"([0-9a-f]+) <(.+)>:\n")
ENTRY = re.compile(r"kizami_kernels::isa::(\w+::enter\w*)(::<.*)?")
BRANCH = re.compile(r"(?:bnd |notrack )?(?:call|j\w+) +([0-9a-f]+) <")
REFERENCE = re.compile(r"# ([0-9a-f]+) <")
RELOCATION = re.compile(r"([0-9a-f]+) R_X86_64_\w+ +(?:\*ABS\*\+0x([0-9a-f]+)|(\S.*))\n")


class Kernel(NamedTuple):
    """A function of some level."""

    level: str
    calls: frozenset[str]
    instructions: frozenset[str]
    text: list[str]


class Disassembly(NamedTuple):
    """What objdump says, sorted out."""

    kernels: list[Kernel]
    unknown: set[str]
    """Entries that no level here names."""
    wide: set[str]
    """Functions of no level that have instructions, or registers, of AVX."""


def lines(*arguments: str):
    """Lines that objdump writes about the module."""
    command = [OBJDUMP, "-C", "-w", *arguments, _core.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        yield from process.stdout
    assert process.returncode == 0


def mnemonic(text: str) -> str:
    """Without the braces that name an encoding."""
    return text.removeprefix("{vex} ").split()[0]


@pytest.fixture(scope="module")
def disassembly() -> Disassembly:
    starts: dict[int, str] = {}
    found: list[tuple[str, int, list[str]]] = []
    unknown, wide, level, name = set(), set(), None, ""
    for line in lines("-d", "--no-show-raw-insn"):
        if line.startswith(" "):
            text = line[line.rindex("\t") + 1 : -1]
            if level:
                found[-1][2].append(text)
            elif text.startswith("v") or "%ymm" in text or "%zmm" in text:
                wide.add(name)
        elif head := FUNCTION.fullmatch(line):
            address, name = int(head[1], 16), head[2]
            starts[address] = name
            entry = ENTRY.fullmatch(name)
            level = BY_ENTRY.get(entry[1]) if entry else None
            if level:
                found.append((level, address, []))
            elif entry:
                unknown.add(name)
    slots = {
        int(at, 16): int(to, 16) if to else symbol
        for at, to, symbol in RELOCATION.findall("".join(lines("-R")))
    }
    ends = dict(zip(sorted(starts), sorted(starts)[1:], strict=False))

    def targets(start: int, body: list[str]):
        """Where control may go: branches out of the function, and functions whose address it takes."""
        for text in body:
            if text[0] in "bcjn" and (branch := BRANCH.match(text)):
                to = int(branch[1], 16)
                if not start <= to < ends.get(start, start):
                    yield starts.get(to, text)
            elif "#" in text and (reference := REFERENCE.search(text)):
                at = int(reference[1], 16)
                to = slots.get(at, at)
                if isinstance(to, str):
                    yield to
                elif to in starts:
                    yield starts[to]

    kernels = [
        Kernel(level, frozenset(targets(start, body)), frozenset(mnemonic(text) for text in body), body)
        for level, start, body in found
    ]
    return Disassembly(kernels, unknown, wide)


def test_every_level_is_known_here_and_there(disassembly):
    assert not disassembly.unknown, "add the level to LEVELS"
    assert [*LEVELS] == _core.isa_levels()[1:]
    assert {kernel.level for kernel in disassembly.kernels} == LEVELS.keys(), "is the module stripped?"


def test_no_primitive_is_left_as_a_call(disassembly):
    left = defaultdict(int)
    for kernel in disassembly.kernels:
        for name in kernel.calls:
            if not ALLOWED.match(name):
                left[kernel.level, name] += 1
    report = "\n".join(
        f"{count} kernels of {level} call {name}" for (level, name), count in sorted(left.items())
    )
    assert not left, f"inline these, or say in ALLOWED why not:\n{report}"


@pytest.mark.parametrize("name", LEVELS)
def test_kernels_use_the_instructions_of_their_level(disassembly, name):
    level = LEVELS[name]
    kernels = [kernel for kernel in disassembly.kernels if kernel.level == name]
    # For each format one column of rows, and of repacked rows, is a function of its own.
    formats = sum(t["quantized"] for t in _core.types())
    assert sum(level.dot in kernel.instructions for kernel in kernels) >= 2 * formats
    assert level.others <= frozenset().union(*(kernel.instructions for kernel in kernels))
    for register in level.beyond:
        assert not [text for kernel in kernels for text in kernel.text if register in text]


def test_everything_else_runs_on_the_oldest_cpu(disassembly):
    """Instructions of AVX stand behind a level, or behind a question to the CPU."""
    asking = re.compile(r"compiler_builtins::math::libm_math::arch::x86::fma::fmaf?_with_fma4?")
    assert {name for name in disassembly.wide if not asking.match(name)} == set()
