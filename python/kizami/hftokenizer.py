"""Special tokens and chat templates as a Hugging Face directory declares them.

Knows: tokenizer_config.json, chat_template.jinja, the post-processor of tokenizer.json, and which of them
wins when they disagree (the order of llama.cpp's converter, so that files come out alike).
Does not know: vocabularies or encoding (tokenizer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import FormatError
from .safetensors import read_json

KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass
class Special:
    """Ids by role, whether to add them to a bare text, and chat templates by name ("default" first)."""

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)


def read_special(tokenizer_json: Path, spec: Mapping[str, object], config: Mapping[str, object]) -> Special:
    """Reads what stands beside tokenizer.json.

    Args:
        tokenizer_json: its path.
        spec: its parsed content.
        config: parsed config.json; its `*_token_id` fields fill roles nobody else names.

    Raises:
        FormatError: tokenizer_config.json is malformed.
    """
    path = tokenizer_json.parent / "tokenizer_config.json"
    declared = read_json(path) if path.exists() else {}
    if not isinstance(declared, dict):
        raise FormatError(f"{path}: found a {type(declared).__name__}, expected an object")
    special = Special()
    texts = {kind: text for kind in KINDS if (text := _content(declared.get(f"{kind}_token")))}
    _post_processor(spec.get("post_processor"), texts, special)

    added = spec.get("added_tokens", [])
    ids = {entry["content"]: entry["id"] for entry in added if isinstance(entry, dict)}
    for kind in (*KINDS, "eot"):
        flag = declared.get(f"add_{kind}_token")
        if kind in ("bos", "eos", "sep") and isinstance(flag, bool):
            special.add.setdefault(kind, flag)
        token = ids.get(texts.get(kind, ""), config.get(f"{kind}_token_id"))
        if type(token) is int and token >= 0:
            special.ids[kind] = token
    special.templates = _templates(tokenizer_json.parent, declared)
    return special


def _content(entry: object) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _post_processor(processor: object, texts: dict[str, str], special: Special) -> None:
    """Learns from the post-processor which tokens are put around a text; it may rename BOS or EOS too."""
    if not isinstance(processor, dict):
        return
    steps = processor.get("processors", [processor])
    for step in steps if isinstance(steps, list) else []:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            special.add.setdefault("bos", False)
            special.add.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            single, pair = _pieces(step.get("single")), _pieces(step.get("pair"))
            if len(single) > 1 and single[0]:
                special.add["bos"] = texts.setdefault("bos", single[0]) == single[0]
            if len(single) > 1 and single[-1]:
                if texts.get("eos") not in (None, single[-1]):
                    texts["eot"] = texts["eos"]
                texts["eos"] = single[-1]
                special.add["eos"] = True
            ends = [index for index, piece in enumerate(pair) if piece is None]
            if len(ends) == 2 and ends[1] - ends[0] > 1:
                separators = {texts.get("sep"), texts.get("eos")} - {None}
                special.add["sep"] = any(piece in separators for piece in pair[ends[0] + 1 : ends[1]])


def _pieces(template: object) -> list[str | None]:
    """The special token of each piece of a template; None where the text goes."""
    found: list[str | None] = []
    for piece in template if isinstance(template, list) else []:
        token = piece.get("SpecialToken") if isinstance(piece, dict) else None
        found.append(_content({"content": token.get("id")}) if isinstance(token, dict) else None)
    return found


def _templates(directory: Path, declared: Mapping[str, object]) -> dict[str, str]:
    value = declared.get("chat_template")
    jinja = directory / "chat_template.jinja"
    if value is None and jinja.is_file():
        try:
            value = jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{jinja}: not UTF-8 at byte {error.start}") from None
    if isinstance(value, str):
        return {"default": value}
    named: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and name and isinstance(text, str):
            named["".join(c if c.isascii() and c.isalnum() else "_" for c in name)] = text
    return named
