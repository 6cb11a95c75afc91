"""What a checkpoint's directory says about the model as a work: the `general.*` keys of a GGUF.

Knows: how llama.cpp's converter derives name, basename, version, size label, license, tags and recommended
sampling from the directory's name, config.json, generation_config.json and the model card's front matter.
Does not know: tensors, the architecture's keys (hfconfig.py), or YAML beyond `key: value` and flat lists,
which is all that published cards use for these fields; what it cannot read it leaves out.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (keys, naming convention).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import KizamiError
from .gguf import TypedMetadata
from .safetensors import read_json

_VERSION = re.compile(r"(v|iter)?\d+(\.\d+)*", re.IGNORECASE)
_FILE_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"((a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)

_CARD_STRINGS = ("author", "version", "organization", "finetune", "basename", "description", "size_label")
_SAMPLING = (
    ("top_k", "top_k", "i32"),
    ("top_p", "top_p", "f32"),
    ("min_p", "min_p", "f32"),
    ("temp", "temperature", "f32"),
    ("penalty_repeat", "repetition_penalty", "f32"),
)


@dataclass
class NameParts:
    """What the parts of a name like `DeepSeek-V3-0324` stand for; None where it does not say."""

    basename: str | None = None
    size_label: str | None = None
    finetune: str | None = None
    version: str | None = None


def split_name(name: str, parameters: int = 0) -> NameParts:
    """Reads a model id's last part. `parameters` tells a size (7B of 7e9) from a context length (128k)."""
    if " " in name:
        return NameParts()
    parts = [part for part in name.split("-") if part]
    kinds = [_kind(part, index, parameters) for index, part in enumerate(parts)]
    parts = [_spelling(part, kind) for part, kind in zip(parts, kinds, strict=True)]
    if any(kind == "size" and not part.isalpha() for part, kind in zip(parts, kinds, strict=True)):
        kinds = [
            "" if kind == "size" and part.isalpha() else kind for part, kind in zip(parts, kinds, strict=True)
        ]

    # The basename is the leading run of plain words and versions, without the versions that end the name.
    lead = 0
    while lead < len(parts) and (kinds[lead] == "version" or (not kinds[lead] and parts[lead][0].isalpha())):
        lead += 1
    if lead == len(parts):
        while lead and kinds[lead - 1] == "version":
            lead -= 1
    tail = [(part, kind or "finetune") for part, kind in zip(parts[lead:], kinds[lead:], strict=True)]

    found = NameParts(
        basename="-".join(parts[:lead]) or None,
        size_label="-".join(dict.fromkeys(part for part, kind in tail if kind == "size")) or None,
        finetune="-".join(part for part, kind in tail if kind in ("finetune", "context")) or None,
        version="-".join(part for part, kind in tail if kind == "version") or None,
    )
    if found.size_label is found.finetune is found.version is None:
        return NameParts()  # a bare word says nothing
    return found


def _kind(part: str, index: int, parameters: int) -> str:
    if _VERSION.fullmatch(part):
        return "version"
    if _FILE_TYPE.fullmatch(part):
        return "type"
    if index and _SIZE.fullmatch(part):
        scale = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT])", part.replace("_", "."), re.IGNORECASE)
        if parameters and scale:
            count = float(scale[1]) * 1000 ** " KMBT".index(scale[2].upper())
            if abs(count - parameters) > 7 * parameters // 8:
                return "context"
        return "size"
    return "finetune" if index and _FINETUNE.fullmatch(part) else ""


def _spelling(part: str, kind: str) -> str:
    if kind == "context":
        return part[:-1] + part[-1].lower()
    if kind == "size" and len(part) > 1 and part[-2].isdecimal() and part[-1].isalpha():
        return part[:-1].replace("_", ".") + part[-1].upper()
    return part


def title(name: str) -> str:
    """`tiny-deepseek` to `Tiny Deepseek`: words in lower case get a capital, the rest is left alone."""
    words = name.strip().replace("-", " ").split()
    plain = re.compile(r"(?!v\d+(\.\d+)*$)(?!\d)")
    return " ".join(word.title() if word.islower() and plain.match(word) else word for word in words)


def size_label(shapes: dict[str, tuple[int, ...]]) -> str:
    """`8x2.4M`: the experts of a layer x the weights one token's share would have with a single expert."""
    shared = one_expert = total = stacks = 0
    for name, shape in shapes.items():
        if "_exps." in name:
            one_expert += math.prod(shape[1:])
            total, stacks = total + shape[0], stacks + 1
        else:
            shared += math.prod(shape)
    count = shared + one_expert
    scale, suffix = next(
        ((1000**n, s) for n, s in ((4, "T"), (3, "B"), (2, "M")) if count > 1000**n), (1000, "K")
    )
    scaled = count / scale
    rounded = f"{scaled:.{0 if round(scaled) >= 10 else 1}f}{suffix}"
    return f"{total // stacks}x{rounded}" if stacks else rounded


def front_matter(path: Path) -> dict[str, str | list[str]]:
    """The strings and flat lists of strings between the `---` lines of a model card; {} when it has none."""
    try:
        lines = path.read_text(encoding="utf-8")[: 1 << 20].splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    found: dict[str, str | list[str]] = {}
    key = ""
    for line in lines[1 : lines.index("---", 1)]:
        if match := re.fullmatch(r"([A-Za-z_]+):\s*(.*)", line):
            key, value = match[1], match[2].strip()
            if value.startswith("[") and value.endswith("]"):
                found[key] = [_unquoted(item) for item in value[1:-1].split(",") if item.strip()]
            elif value and value[0] not in "|>{&*!":
                found[key] = _unquoted(value)
        elif (match := re.fullmatch(r"\s*-\s+([^:{\[]+|'[^']*'|\"[^\"]*\")", line)) and key:
            items = found.setdefault(key, [])
            if isinstance(items, list):
                items.append(_unquoted(match[1]))
    return found


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def general_metadata(
    directory: Path, config: dict[str, object], shapes: dict[str, tuple[int, ...]]
) -> TypedMetadata:
    """The `general.*` keys: architecture and type first, then sampling, names, license, origin, tags.

    Args:
        directory: the checkpoint.
        config: parsed config.json (`_name_or_path` may hold the published name).
        shapes: GGUF tensor name to shape, for the size label.
    """
    card = front_matter(directory / "README.md")
    parameters = sum(math.prod(shape) for shape in shapes.values())
    strings: dict[str, str | None] = {key: _text(card.get(key)) for key in ("name", *_CARD_STRINGS)}
    strings["name"] = strings["name"] or _text(card.get("model_name"))
    strings["author"] = strings["author"] or _text(card.get("model_creator"))
    strings["basename"] = strings["basename"] or _text(card.get("model_type"))
    stored = config.get("_name_or_path")
    # More than one slash is a path on somebody's disk, not a published name.
    ids = [stored] if isinstance(stored, str) and stored and stored.count("/") <= 1 else []
    for model_id in [*ids, directory.resolve().name]:
        organization, _, last = model_id.rpartition("/")
        if organization and not organization.startswith("."):
            strings["organization"] = strings["organization"] or title(organization)
        strings["name"] = strings["name"] or title(last)
        parts = split_name(last, parameters)
        for key in ("basename", "size_label", "finetune", "version"):
            strings[key] = strings[key] or getattr(parts, key)
    strings["size_label"] = strings["size_label"] or size_label(shapes)

    keys: TypedMetadata = [("general.architecture", "str", "deepseek2"), ("general.type", "str", "model")]
    keys += _sampling(directory / "generation_config.json")
    keys += [(f"general.{key}", "str", strings[key]) for key in ("name", *_CARD_STRINGS) if strings[key]]
    for key in ("license", "license_name", "license_link"):
        if value := card.get(key):
            keys.append(
                (
                    f"general.{key.replace('_', '.')}",
                    "str",
                    value if isinstance(value, str) else ",".join(value),
                )
            )
    keys += _base_models(_list(card.get("base_model", card.get("base_models"))))
    for name, fields in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        if values := [value for field in fields for value in _list(card.get(field))]:
            keys.append((f"general.{name}", "[str]", values))
    return keys


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _list(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def _sampling(path: Path) -> TypedMetadata:
    try:
        values = read_json(path) if path.is_file() else {}
    except KizamiError:
        values = {}  # advice only; a model without it still works
    keys: TypedMetadata = []
    for name, field, kind in _SAMPLING:
        value = values.get(field) if isinstance(values, dict) else None
        if type(value) in (int, float) and abs(value) < 1 << 31:
            keys.append((f"general.sampling.{name}", kind, int(value) if kind == "i32" else float(value)))
    return keys


def _base_models(ids: Iterable[str]) -> TypedMetadata:
    keys: TypedMetadata = []
    count = 0
    for model_id in ids:
        organization, _, last = model_id.rpartition("/")
        keys.append((f"general.base_model.{count}.name", "str", title(last)))
        if version := split_name(last).version:
            keys.append((f"general.base_model.{count}.version", "str", version))
        if organization:
            keys.append((f"general.base_model.{count}.organization", "str", title(organization)))
            url = f"https://huggingface.co/{model_id}"
            keys.append((f"general.base_model.{count}.repo_url", "str", url))
        count += 1
    return [("general.base_model.count", "u32", count), *keys] if count else []
