"""What a file is made from: told to the journal, which refuses to go on with anything else, and to the file.

Knows: which options go together, which of them and which inputs the bytes depend on, and the identity of
files. Does not know: how anything is computed or written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from kizami import system
from kizami.allocation import Choices
from kizami.distortion import Distortions
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.imatrix import Imatrix
from kizami.journal import digest
from kizami.plan import Plan, load_types, plan_from_types, uniform_plan
from kizami.presets import preset_bpw
from kizami.progress import Progress
from kizami.provenance import text_hash
from kizami.rules import Rules
from kizami.shards import check_split_size, overhead

Where = str | os.PathLike[str]

HEAD = 1 << 20  # bytes hashed at the start of an input: headers, of which any change of its tensors is one


def identity(path: Path) -> dict[str, Any]:
    """Whether a file is still the one it was: size and time of change, inode, and the hash of its beginning.

    Raises:
        InputOutputError: it cannot be read.
    """
    try:
        found = path.stat()
        with open(path, "rb") as file:
            head = digest(file.read(HEAD))
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror or error}") from None
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "head": head}


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file in UTF-8.

    Raises:
        InputOutputError: it cannot be read.
        FormatError: it is not text.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputOutputError(f"{os.fspath(path)}: cannot read the text: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{os.fspath(path)}: byte {error.start}: found no UTF-8, expected a text") from None


@dataclass(frozen=True)
class Request:
    """What was asked of a quantization, its files read. One of bpw, size, type, preset and types is given.

    Attributes:
        types: of a plan file: tensor name to type; ``plan`` is its name.
        text: for calibration, ``n_ctx`` tokens at a time; ``dataset`` is its name.
        others: as in :func:`kizami.quantize`.
    """

    bpw: float | None
    size: int | None
    type: str | None
    preset: str | None
    types: dict[str, str] | None
    plan: str
    pins: dict[str, str]
    floors: dict[str, str]
    imatrix: Imatrix | None
    text: str | None
    dataset: str
    n_ctx: int
    rounding: str
    split_size: int | None
    mtp: bool

    @classmethod
    def read(
        cls,
        *,
        bpw: float | None,
        size: int | None,
        type: str | None,
        preset: str | None,
        plan: Where | None,
        pins: Mapping[str, str] | None,
        floors: Mapping[str, str] | None,
        imatrix: Where | None,
        calibration: Where | None,
        ctx: int,
        rounding: str | None,
        split_size: int | None,
        mtp: bool,
    ) -> Request:
        """Checks that options go together, and reads the files they name.

        Raises:
            UsageError: they do not.
            InputOutputError, FormatError: a file is not readable, or not what it should be.
        """
        numbers: dict[str, Any] = {"bpw": bpw, "size": size, "split_size": split_size}
        for name, value in numbers.items():
            if value is not None and not isinstance(value, Real):
                raise UsageError(f"{name}: found {value!r}, expected a number")
        if split_size is not None:
            check_split_size(split_size)
        if sum(option is not None for option in (bpw, size, type, preset, plan)) != 1:
            raise UsageError("budget: expected exactly one of bpw, size, type, preset and plan")
        if plan is not None and (pins or floors):
            raise UsageError("pins and floors: found beside a plan", hint="edit the types in the plan itself")
        if imatrix is not None and calibration is not None:
            raise UsageError("importance: found an imatrix and a calibration text, expected at most one")
        if rounding not in (None, "plain", "feedback"):
            raise UsageError(f"rounding: found {rounding!r}, expected 'plain' or 'feedback'")
        if rounding == "feedback" and calibration is None:
            raise UsageError("rounding: found 'feedback' without a calibration text, expected one")
        return cls(
            bpw=bpw,
            size=size,
            type=type,
            preset=preset,
            types=None if plan is None else load_types(plan),
            plan=os.fspath(plan or ""),
            pins=dict(pins or {}),
            floors=dict(floors or {}),
            imatrix=None if imatrix is None else Imatrix.read(imatrix),
            text=None if calibration is None else read_text(calibration),
            dataset=Path(calibration or "").name,
            n_ctx=ctx,
            rounding=rounding or ("plain" if calibration is None else "feedback"),
            split_size=split_size,
            mtp=mtp,
        )

    def recipe(self, source: Any) -> dict[str, Any]:
        """All that the bytes of the output depend on: this program, what was asked, and the weights' files.

        Of large things it has the hash. The model's configuration and tokenizer are not in it: they are in
        the layout of the output, which a job compares, too.

        Raises:
            InputOutputError: a file of the source cannot be read.
        """
        return {
            "version": system.version(),
            "options": {
                "bpw": self.bpw,
                "size": self.size,
                "type": self.type,
                "preset": self.preset,
                "plan": None if self.types is None else text_hash(json.dumps(self.types)),
                # In order: of several that fit a tensor the first counts.
                "pins": [list(pin) for pin in self.pins.items()],
                "floors": [list(floor) for floor in self.floors.items()],
                "imatrix": None if self.imatrix is None else self.imatrix.sha256(),
                "calibration": None if self.text is None else text_hash(self.text),
                "ctx": self.n_ctx if self.text is not None else None,
                "rounding": self.rounding,
                "split-size": self.split_size,
                "mtp": self.mtp,
            },
            "inputs": {path.name: identity(path) for path in source.paths},
        }

    def rounded_on(self) -> str | None:
        """Hash of the text for error feedback; None for plain rounding."""
        return text_hash(self.text) if self.text is not None and self.rounding == "feedback" else None

    def check(self, source: Any) -> None:
        """Finds out what is wrong with pins, floors and budget for the model, without measuring anything.

        Raises:
            UsageError: something is.
            FormatError: the imatrix is of another model.
        """
        if self.imatrix is not None:
            self.imatrix.check(_shapes(source))
        if self.type is not None or self.types is not None:
            Rules(_shapes(source), self.pins, self.floors)
        else:
            # Of an imatrix to be measured the header's size is known: it depends on the name of its text.
            measured = self.imatrix if self.text is None else Imatrix(datasets=[self.dataset])
            self._choices(source, measured).check(bpw=self._bpw(source), size=self.size)

    def _bpw(self, source: Any) -> float | None:
        """The budget in bits per weight, if it is one."""
        return self.bpw if self.preset is None else preset_bpw(self.preset, _shapes(source))

    def fixed(self, source: Any) -> Plan | None:
        """The plan where there is nothing to choose."""
        if self.type is not None:
            return uniform_plan(source, self.type, pins=self.pins, floors=self.floors)
        return None if self.types is None else plan_from_types(source, self.types, self.plan)

    def choose(
        self,
        source: Any,
        imatrix: Imatrix | None,
        distortions: Distortions | None = None,
        sensitivities: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """The best plan within the budget; arguments are those of :class:`kizami.allocation.Choices`."""
        choices = self._choices(source, imatrix, distortions, sensitivities, progress)
        return choices.best(bpw=self._bpw(source), size=self.size)

    def _choices(
        self,
        source: Any,
        imatrix: Imatrix | None,
        distortions: Distortions | None = None,
        sensitivities: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> Choices:
        # A budget in bytes is one of all files together.
        split = None if self.size is None or self.split_size is None else overhead(self.size, self.split_size)
        return Choices(
            source,
            imatrix=imatrix,
            distortions=distortions,
            sensitivities=sensitivities,
            pins=self.pins,
            floors=self.floors,
            calibration=self.rounded_on(),
            reserve=split or 0,
            progress=progress,
        )

    def needs(self, source: Any) -> int:
        """About the bytes of the output, before anything is planned."""
        if self.size is not None:
            return self.size
        if (fixed := self.fixed(source)) is not None:
            return fixed.file_bytes
        weights = sum(map(math.prod, _shapes(source).values()))
        return int(weights * (self._bpw(source) or 0.0) / 8)


def _shapes(source: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in source.items()}
