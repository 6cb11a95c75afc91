"""The plan: which type each tensor gets, so that a file of a given size loses as little as possible.

Predicted loss is a sum over tensors: the tensor's sensitivity (:mod:`kizami.sensitivity`) times the relative
error that its type makes (:mod:`kizami.distortion`). A multiple-choice knapsack over exact bytes (Rust:
``solve``) picks the types. Additivity and the predictor are argued in HIGGS (arXiv 2411.17525).

Knows sizes and the plan file; neither measures errors, nor runs models, nor writes GGUF files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kizami import _core
from kizami.distortion import Distortions, measure
from kizami.errors import FormatError, InputOutputError, UsageError
from kizami.formats import TYPES, candidates, fallback, nbytes, parse_type, quantizable
from kizami.gguf import scale_name
from kizami.imatrix import Imatrix
from kizami.sensitivity import sensitivities as priors

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
    """A type for every tensor, and what the file will be."""

    tensors: list[PlannedTensor]
    file_bytes: int
    predicted_kld: float | None = None

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


def uniform_plan(source: Mapping[str, _core.Tensor], type_name: str) -> Plan:
    """Every tensor that may lose bits in one type, with :func:`fallback` where rows do not divide.

    Raises:
        UsageError: the type is unknown.
    """
    wanted = parse_type(type_name)
    types = {}
    for name, tensor in source.items():
        shape = tuple(tensor.shape)
        types[name] = wanted if quantizable(name, shape) else "F32"
        if nbytes(types[name], shape) is None:
            types[name] = fallback(types[name], shape)
    return plan_from_types(source, types, "--type")


def output_metadata(
    source: Any, types: Mapping[str, str], imatrix: Imatrix | None = None
) -> list[tuple[str, str, Any]]:
    """The metadata of a file quantized from ``source``: the source's, with what describes the encoding."""
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
        if k not in own and not k.startswith(("quantize.", "split."))
    ]
    return kept + [(key, *value) for key, value in own.items()]


def file_bytes(source: Any, tensors: list[PlannedTensor], imatrix: Imatrix | None = None) -> int:
    """Bytes of the file a plan makes, header and padding included."""
    metadata = output_metadata(source, {t.name: t.type for t in tensors}, imatrix)
    return _core.GgufWriter.size(metadata, file_layout(tensors))


def _measured(distortions: Distortions, name: str, shape: tuple[int, ...]) -> list[str]:
    """The types of a tensor whose errors are known.

    Raises:
        FormatError: there is none, or one does not divide its rows.
    """
    types = list(distortions.errors.get(name, ()))
    if not types:
        raise FormatError(f"distortions: tensor {name}: found no type, expected at least one")
    for type_name in types:
        if nbytes(type_name, shape) is None:
            raise FormatError(
                f"distortions: tensor {name}: rows of {shape[-1]} do not divide into {type_name}"
            )
    return types


def make_plan(
    source: Any,
    *,
    bpw: float | None = None,
    size: int | None = None,
    imatrix: Imatrix | None = None,
    distortions: Distortions | None = None,
    sensitivities: Mapping[str, float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """The best plan within a budget.

    Args:
        source: an open model: a GGUF or a checkpoint.
        bpw: bits per weight over all tensors, or
        size: bytes of the whole file.
        imatrix: importance of columns; all alike without it.
        distortions: the error that each type makes in each tensor: what there is to choose from. Those of
            plain rounding are measured where none are given.
        sensitivities: predicted KLD per unit of error by tensor; the prior of its class for any other.
        progress: called with (stage, tensors done, tensors in total).

    Raises:
        UsageError: not exactly one budget, or one below the smallest possible (the message says which).
        FormatError: distortions or sensitivities are of another model.
    """
    if (bpw is None) == (size is None):
        raise UsageError("budget: expected exactly one of bpw and size")
    names, shapes = list(source), dict[str, tuple[int, ...]]()
    scales: dict[tuple[str, str], int] = {}
    for name in names:
        tensor = source[name]
        shapes[name], scales[name, tensor.type] = tuple(tensor.shape), kept_scales(tensor, tensor.type)
    open_names = [name for name in names if quantizable(name, shapes[name])]
    options = {name: candidates(shapes[name]) for name in open_names}
    if distortions is not None:
        options = {name: _measured(distortions, name, shapes[name]) for name in open_names}
    if unknown := sorted((sensitivities or {}).keys() - options.keys()):
        raise FormatError(f"sensitivities: tensor {unknown[0]}: none that may lose bits in the source")
    fixed = {name: "F32" for name in names if name not in options}

    def planned(name: str, type_name: str) -> PlannedTensor:
        kept, size = scales.get((name, type_name), 0), nbytes(type_name, shapes[name]) or 0
        return PlannedTensor(name, shapes[name], type_name, size + 4 * kept, kept)

    def tensors(types: Mapping[str, str]) -> list[PlannedTensor]:
        return [planned(n, types[n]) for n in names]

    smallest = tensors(
        fixed | {n: min(options[n], key=lambda c: nbytes(c, shapes[n]) or 0) for n in open_names}
    )
    least = Plan(smallest, file_bytes(source, smallest, imatrix))
    align = int(source.metadata.get("general.alignment", 32))

    def counted(t: PlannedTensor) -> int:
        """Bytes of a budget: in bits per weight those of tensors, of a file padded to the alignment."""
        if bpw is not None:
            return t.bytes
        parts = [t.bytes - 4 * t.scales]
        if t.scales:
            # Themselves, and their entry in the header: its name, and 32 bytes.
            parts += [4 * t.scales, len(scale_name(t.name).encode()) + 32]
        return sum(-(-part // align) * align for part in parts)

    fixed_bytes = sum(counted(planned(n, "F32")) for n in fixed)
    if bpw is not None:
        if not math.isfinite(bpw) or bpw <= 0:
            raise UsageError(f"bpw: found {bpw}, expected a positive number")
        budget = math.floor(bpw * least.weights / 8) - fixed_bytes
        if bpw < least.bpw:
            raise UsageError(
                f"bpw: found {bpw:g}, expected at least {math.ceil(least.bpw * 1e4) / 1e4:g}, "
                "the smallest possible"
            )
    else:
        assert size is not None
        header = least.file_bytes - sum(map(counted, smallest))
        budget = size - header - fixed_bytes
        if size < least.file_bytes:
            raise UsageError(
                f"size: found {size:,} bytes, expected at least {least.file_bytes:,}, the smallest possible"
            )
    if distortions is None:
        distortions = measure(source, imatrix, progress)
    weights = priors(open_names) | dict(sensitivities or {})
    costs = [[weights[n] * distortions.errors[n][c] for c in options[n]] for n in open_names]
    bytes_of = [[counted(planned(n, c)) for c in options[n]] for n in open_names]
    chosen = _core.solve(bytes_of, costs, budget)
    types = fixed | {n: options[n][i] for n, i in zip(open_names, chosen, strict=True)}
    best = tensors(types)
    predicted = sum(cost[i] for cost, i in zip(costs, chosen, strict=True))
    return Plan(best, file_bytes(source, best, imatrix), predicted)
