"""A GGUF file as a read-only mapping of tensor names to tensors.

Knows: what a file that is no GGUF usually is, how the container's records become Python values, and that a
matrix may have its scale in a tensor of its own.
Does not know: the container's layout (the Rust crate `kizami-gguf` parses and checks it), nor what the
tensors mean (models/).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import _core
from .errors import FormatError, InputOutputError, KizamiError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

# (key, type, value) with type one of u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64, or [type] for an array.
TypedMetadata = list[tuple[str, str, object]]

MAGIC = b"GGUF"

# What people hand over instead of a model, by its first bytes. A pointer file of an unfinished
# `git clone` is by far the most common.
_MISTAKEN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page", "the download link led to a web page; download the file itself"),
    (b"<html", "an HTML page", "the download link led to a web page; download the file itself"),
    (b"PK\x03\x04", "a zip archive or a PyTorch pickle", "kizami reads GGUF and safetensors"),
    (b"\x80\x02", "a pickle", "kizami reads GGUF and safetensors"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"GGUF", "a GGUF file", None),
    (b"\0\0\0\0\0\0\0\0", "zeros: an unfinished or preallocated file", "download or write it again"),
)


def mistaken_for(head: bytes) -> tuple[str, str | None] | None:
    """Says what a file with these first bytes is (description, hint), or None if they tell nothing."""
    for magic, what, hint in _MISTAKEN:
        if head.startswith(magic):
            return what, hint
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "a safetensors file", "give the model's directory instead"
    return None


def read_head(path: Path, count: int = 64) -> bytes:
    """First `count` bytes of a regular file; InputOutputError if missing, unreadable or not a file."""
    try:
        if path.is_dir():
            raise InputOutputError(f"{path}: is a directory, expected a file")
        if path.exists() and not path.is_file():
            raise InputOutputError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise InputOutputError(f"{path}: no such file") from None
    except KizamiError:
        raise
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror or error}") from None


def scale_name(weight: str) -> str:
    """Name of the tensor that holds the scale of a weight's matrices."""
    return weight.removesuffix("weight") + "scale"


class GGUF(Mapping[str, _core.Tensor]):
    """A GGUF file: `file["blk.0.attn_q_a.weight"]` is a `Tensor` that reads straight from the mapping.

    A scale in a tensor of its own, as NVFP4 has it (`blk.0.ffn_up.scale`), is part of its weight and no key;
    scales of inputs (`blk.0.ffn_up.input_scale`) are for arithmetic in FP4 and left out.

    Args:
        path: the file.

    Attributes:
        path: where it is.
        metadata: dict of key to Python value.
        typed_metadata: list of (key, type, value), as it would be written again.
        paths: the file, or those of the set.

    Raises:
        InputOutputError: the file is missing or unreadable.
        FormatError: it is not a GGUF file version 2 or 3, or is damaged (names the field and the offset).

    Source of the layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        head = read_head(self.path)
        if not head.startswith(MAGIC):
            what, hint = mistaken_for(head) or (f"bytes {head[:4].hex(' ') or 'none: it is empty'}", None)
            raise FormatError(
                f"{self.path}: not a GGUF file: found {what}, expected the magic 'GGUF'", hint=hint
            )
        try:
            self._file = _core.GgufFile(str(self.path))
        except KizamiError:
            raise
        except OSError as error:
            raise InputOutputError(f"{self.path}: {error.strerror or error}") from None
        except ValueError as error:
            raise FormatError(f"{self.path}: {error}") from None
        self.typed_metadata: TypedMetadata = list(self._file.metadata)
        self.metadata: dict[str, object] = {key: value for key, _, value in self.typed_metadata}
        self.paths = [Path(path) for path in self._file.paths]
        self._names, self._scales = _with_scales(self._file.tensors)

    def __getitem__(self, name: str) -> _core.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.tensor(name, self._scales.get(name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self) -> None:
        """Takes the files' pages out of this process's memory; they are read again when needed."""
        self._file.release()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored in the file (`tokenizer.ggml.*`); FormatError when there is none."""
        from .tokenizer import Tokenizer

        return Tokenizer.from_metadata(self.metadata, source=str(self.path))

    def __repr__(self) -> str:
        arch = self.metadata.get("general.architecture", self.metadata.get("general.type", "?"))
        return f"GGUF({str(self.path)!r}, {arch}, {len(self)} tensors)"


def _with_scales(tensors: list[tuple[str, str, list[int], int]]) -> tuple[dict[str, None], dict[str, str]]:
    """Which tensors stand for themselves, and which weights have a scale in a tensor of its own.

    Beside NVFP4 every `.scale` is one, and must fit. llama.cpp takes it beside any type, and llama-quantize
    leaves it beside the type it writes. But other architectures have other things of that name, so beside
    other types what is no F32 for each matrix is a tensor like any other.
    """
    headers = {name: (kind, shape) for name, kind, shape, _ in tensors}
    scales, left_out = dict[str, str](), set[str]()
    for weight, (kind, shape) in headers.items():
        if not weight.endswith(".weight") or len(shape) < 2:
            continue
        scale = scale_name(weight)
        if scale in headers and (kind == "NVFP4" or headers[scale] == ("F32", [math.prod(shape[:-2])])):
            scales[weight] = scale
        if kind == "NVFP4":
            left_out.add(weight.removesuffix("weight") + "input_scale")
    left_out.update(scales.values())
    return {name: None for name in headers if name not in left_out}, scales
