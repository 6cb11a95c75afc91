"""The plan: which type each tensor gets, and what file that makes.

Knows sizes, the plan file, and plans that need no choice: a file's, and one type throughout. Does not know
how to choose (:mod:`kizami.allocation`), nor how GGUF files are written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kizami import _core
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.formats import TYPES, fitting, nbytes, parse_type, quantizable
from kizami.gguf import TypedMetadata, scale_name
from kizami.imatrix import Imatrix
from kizami.presets import PRESETS
from kizami.provenance import PREFIX, provenance
from kizami.rules import Rules

FORMAT = "kizami-plan"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: shape with rows before columns, bytes with the scales kept beside it."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    scales: int = 0


@dataclass(frozen=True)
class Plan:
    """A type for every tensor, and what the file will be; relative errors by tensor, where measured."""

    tensors: list[PlannedTensor]
    file_bytes: int
    predicted_kld: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.bytes for t in self.tensors)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return self.tensor_bytes * 8 / self.weights

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for JSON."""
        return {
            "format": FORMAT,
            "version": 1,
            "file_bytes": self.file_bytes,
            "tensor_bytes": self.tensor_bytes,
            "bpw": self.bpw,
            "predicted_kld": self.predicted_kld,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "type": t.type, "bytes": t.bytes}
                for t in self.tensors
            ],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """What ``dataclasses.asdict`` took apart, after a journey through JSON."""
        tensors = [PlannedTensor(**{**t, "shape": tuple(t["shape"])}) for t in fields["tensors"]]
        return cls(**{**fields, "tensors": tensors})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, one tensor a line, for people to read and edit.

        Raises:
            InputOutputError: the file cannot be written.
        """
        whole = self.to_dict()
        tensors = ",\n".join("    " + json.dumps(t) for t in whole.pop("tensors"))
        head = json.dumps(whole, indent=2)[:-2]
        partial = Path(f"{os.fspath(path)}.partial")
        try:
            partial.write_text(f'{head},\n  "tensors": [\n{tensors}\n  ]\n}}\n', encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputOutputError(f"{os.fspath(path)}: cannot write the plan: {error.strerror}") from None


def load_types(path: str | os.PathLike[str]) -> dict[str, str]:
    """Tensor name to type, from a plan file. Sizes and predictions in it are not trusted.

    Raises:
        InputOutputError: the file cannot be read.
        FormatError: it is no plan.
    """
    where = os.fspath(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{where}: cannot read the plan: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not a plan: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != 1:
        raise FormatError(f'{where}: not a plan: expected "format": "{FORMAT}" and "version": 1')
    tensors = found.get("tensors")
    if not isinstance(tensors, list):
        raise FormatError(f"{where}: tensors: found {type(tensors).__name__}, expected a list")
    types: dict[str, str] = {}
    for i, t in enumerate(tensors):
        if (
            not isinstance(t, dict)
            or not isinstance(t.get("name"), str)
            or not isinstance(t.get("type"), str)
        ):
            raise FormatError(f"{where}: tensors[{i}]: expected an object with name and type")
        if t["name"] in types:
            raise FormatError(f"{where}: tensor {t['name']}: found twice")
        types[t["name"]] = t["type"]
    return types


def kept_scales(tensor: _core.Tensor, type_name: str) -> int:
    """How many scales stay beside a tensor in that type: all if it is its own and the bytes stay, too.

    Other types take them in.
    """
    return len(tensor.scale) if tensor.type == type_name and tensor.scale is not None else 0


def file_layout(tensors: list[PlannedTensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every tensor in the file that a plan makes."""
    entries = []
    for t in tensors:
        entries.append((t.name, t.type, t.shape))
        if t.scales:
            entries.append((scale_name(t.name), "F32", (t.scales,)))
    return entries


def plan_from_types(source: Mapping[str, _core.Tensor], types: Mapping[str, str], origin: str) -> Plan:
    """The plan that gives each tensor of ``source`` the type ``types`` names.

    Raises:
        FormatError: a tensor is missing or unknown, or its rows do not divide into the type's blocks.
    """
    if unknown := sorted(types.keys() - source.keys()):
        raise FormatError(f"{origin}: tensor {unknown[0]}: not in the source")
    tensors = []
    for name, tensor in source.items():
        if name not in types:
            raise FormatError(
                f"{origin}: tensor {name}: missing, expected a type for every tensor of the source"
            )
        try:
            type_name = parse_type(types[name])
        except UsageError as error:
            raise FormatError(f"{origin}: tensor {name}: {error}") from None
        shape = tuple(tensor.shape)
        size = nbytes(type_name, shape)
        if size is None:
            block = TYPES[type_name]["block"]
            raise FormatError(
                f"{origin}: tensor {name}: rows of {shape[-1]} do not divide into blocks of {block}"
            )
        scales = kept_scales(tensor, type_name)
        tensors.append(PlannedTensor(name, shape, type_name, size + 4 * scales, scales))
    return Plan(tensors, file_bytes(source, tensors))


def uniform_plan(
    source: Mapping[str, _core.Tensor],
    type_name: str,
    *,
    pins: Mapping[str, str] | None = None,
    floors: Mapping[str, str] | None = None,
) -> Plan:
    """Every tensor that may lose bits in one type, or in what :mod:`kizami.rules` say of it.

    Where rows do not divide into blocks, :func:`kizami.formats.fallback` stands in.

    Args:
        source: an open model.
        type_name: the type.
        pins: pattern of names to type: what these tensors get instead.
        floors: pattern of names to type: what these tensors get if it is finer.

    Raises:
        UsageError: the type is unknown, or pins or floors are wrong.
    """
    named = type_name.upper().replace("-", "_")
    if named in PRESETS and named not in TYPES:
        raise UsageError(
            f"type: found {type_name!r}, a mix of types, expected one type",
            hint=f"a mix is a budget, a preset: --preset {named}",
        )
    wanted = parse_type(type_name)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    rules = Rules(shapes, pins, floors)
    types = {}
    for name, shape in shapes.items():
        if quantizable(name, shape):
            types[name] = rules.left(name, shape, [fitting(wanted, shape)])[0]
        else:
            types[name] = "F32"
    return plan_from_types(source, types, "--type")


def types_of(plan: Plan) -> dict[str, str]:
    """The type of each tensor."""
    return {t.name: t.type for t in plan.tensors}


def output_metadata(
    source: Any,
    types: Mapping[str, str],
    imatrix: Imatrix | None = None,
    calibration: str | None = None,
    kld: float | None = None,
    kld_tokens: int = 0,
) -> TypedMetadata:
    """The metadata of a file quantized from ``source``: the source's, with what describes the encoding.

    ``calibration`` is the hash of the text for error feedback; it and the KLD are as in
    :mod:`kizami.provenance`.
    """
    weights: dict[str, int] = {}
    for name, type_name in types.items():
        weights[type_name] = weights.get(type_name, 0) + math.prod(source[name].shape)
    main = max(weights, key=lambda t: weights[t])
    own: dict[str, tuple[str, Any]] = {
        "general.file_type": ("u32", TYPES[main]["llama_ftype"]),
        "general.quantization_version": ("u32", 2),
    }
    if imatrix is not None:
        own["quantize.imatrix.dataset"] = ("str", ", ".join(imatrix.datasets))
        own["quantize.imatrix.entries_count"] = ("u32", len(imatrix.entries))
        own["quantize.imatrix.chunks_count"] = ("u32", imatrix.chunks)
    kept = [
        (k, t, v)
        for k, t, v in source.typed_metadata
        if k not in own and not k.startswith(("quantize.", "split.", PREFIX))
    ]
    return [
        *kept,
        *((key, *value) for key, value in own.items()),
        *provenance(imatrix, calibration, kld, kld_tokens),
    ]


def file_bytes(
    source: Any,
    tensors: list[PlannedTensor],
    imatrix: Imatrix | None = None,
    calibration: str | None = None,
) -> int:
    """Bytes of the file a plan makes, header and padding included."""
    metadata = output_metadata(source, {t.name: t.type for t in tensors}, imatrix, calibration)
    return _core.GgufWriter.size(metadata, file_layout(tensors))
