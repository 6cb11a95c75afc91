"""Text to token ids and back, from a tokenizer.json or from the metadata of a GGUF; both give the same ids.

Knows: byte-level BPE vocabularies, special tokens, and the `tokenizer.ggml.*` keys in both directions.
Does not know: how text is cut into pieces (pretokenizer.py), how merges are applied (the `tokenizers`
library), or how a conversation becomes a prompt (template.py).

Token types are GGUF's: 1 normal, 3 control (never shown, parsed only on request), 4 user-defined (always
parsed, shown), 5 unused. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (tokenizer).
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from .errors import FormatError, UsageError
from .gguf import TypedMetadata
from .hftokenizer import Special, read_special
from .pretokenizer import RULES, pipeline, recognize
from .safetensors import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Key of each special id; the odd spelling is the format's.
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
ADD_KEYS = ("bos", "eos", "sep")

# Control tokens that end a turn whatever the metadata calls them.
END_OF_TURN = frozenset(
    (
        "<｜end▁of▁sentence｜>",
        "<|EOT|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
    )
)


def _byte_table() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_table()
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class Tokenizer:
    """Byte-level BPE with special tokens. Build one with `from_file` or `from_metadata`.

    Attributes:
        vocab_size: number of ids.
        bos, eos: ids, or None.
        eog: set of ids after which generation stops.
        add_bos: whether a bare prompt should start with BOS.
        chat_template: Jinja source, or None. `chat_templates` holds the named ones besides the default.
        pre: name of the cutting rules (`tokenizer.ggml.pre`), or None when they have no name.
    """

    def __init__(
        self,
        spec: dict[str, object],
        tokens: list[str],
        types: list[int],
        merges: list[str],
        pre: str | None,
        special: Special,
        source: str,
    ) -> None:
        self._spec_text = json.dumps(spec)
        self._backend = _load(self._spec_text, source)
        self._literal: tokenizers.Tokenizer | None = None
        self._tokens, self._types, self._merges = tokens, types, merges
        self.pre, self.special, self.source = pre, special, source
        missing = {c for c, byte in BYTE_OF.items() if byte not in NEVER_IN_UTF8} - set(tokens)
        if missing:
            raise FormatError(
                f"{source}: not byte-level BPE: no token for byte {BYTE_OF[min(missing)]:#04x}"
                + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            )
        for name, token in special.ids.items():
            if not 0 <= token < len(tokens):
                raise FormatError(f"{source}: {name} token id {token} is outside the {len(tokens):,} tokens")
        self.vocab_size = len(tokens)
        self.bos, self.eos = special.ids.get("bos"), special.ids.get("eos")
        stops = {special.ids[name] for name in ("eos", "eot", "eom") if name in special.ids}
        stops |= {i for i, text in enumerate(tokens) if types[i] == CONTROL and text in END_OF_TURN}
        self.eog: set[int] = stops
        self.add_bos = special.add.get("bos", RULES[pre].add_bos if pre else False) and self.bos is not None
        self.chat_template = special.templates.get("default")
        self.chat_templates = {name: text for name, text in special.templates.items() if name != "default"}

    # -- construction ----------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], config: Mapping[str, object] | None = None) -> Tokenizer:
        """Reads tokenizer.json; tokenizer_config.json and chat_template.jinja beside it if they are there.

        Args:
            path: tokenizer.json.
            config: parsed config.json, for special ids that tokenizer_config.json does not name.

        Raises:
            InputOutputError: the file is missing or unreadable.
            FormatError: it is not a byte-level BPE tokenizer.
        """
        path = Path(path)
        spec = read_json(path)
        model = spec.get("model") if isinstance(spec, dict) else None
        vocab = model.get("vocab") if isinstance(model, dict) else None
        added = spec.get("added_tokens", []) if isinstance(spec, dict) else None
        if not isinstance(vocab, dict) or model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
            raise FormatError(f"{path}: field 'model': expected byte-level BPE without byte fallback")
        if not isinstance(added, list) or not all(
            isinstance(t, dict) and isinstance(t.get("content"), str) and type(t.get("id")) is int
            for t in added
        ):
            raise FormatError(
                f"{path}: field 'added_tokens': expected a list of objects with 'id' and 'content'"
            )

        by_id: dict[int, tuple[str, int]] = {}
        for text, token in vocab.items():
            if type(token) is not int or not 0 <= token < 1 << 24 or token in by_id:
                raise FormatError(f"{path}: token {text!r}: id {token!r} is not a number of its own")
            by_id[token] = (text, NORMAL)
        for entry in added:
            text, token = entry["content"], entry["id"]
            if not 0 <= token < 1 << 24 or by_id.get(token, (text,))[0] != text:
                raise FormatError(f"{path}: added token {text!r}: id {token} is out of range or taken")
            kind = CONTROL if entry.get("special") or _looks_special(text) else USER_DEFINED
            entry["special"] = kind == CONTROL
            by_id[token] = (text, kind)
        tokens, types = _dense(by_id, max(by_id, default=-1) + 1)

        special = read_special(path, spec, config or {})
        bos = special.ids.get("bos")
        pre = recognize(
            spec.get("pre_tokenizer"), tokens[bos] if bos is not None and bos < len(tokens) else None
        )
        if pre and bool(model.get("ignore_merges", False)) != RULES[pre].ignore_merges:
            pre = None  # the name would promise a reader something else
        # What is left of the file would add tokens on its own, or cut the text short.
        spec |= {"post_processor": None, "truncation": None, "padding": None}
        merges = _merge_strings(model.get("merges"), path)
        return cls(spec, tokens, types, merges, pre, special, str(path))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], source: str = "metadata") -> Tokenizer:
        """Builds the tokenizer a GGUF describes.

        Args:
            metadata: GGUF key to Python value.
            source: what to call it in messages, usually the file.

        Raises:
            FormatError: no tokenizer, one of another kind, unknown cutting rules, or inconsistent tables.
        """

        def table(key: str, kind: type) -> list:
            value = metadata.get(f"tokenizer.ggml.{key}")
            if not isinstance(value, list) or not all(type(item) is kind for item in value):
                raise FormatError(
                    f"{source}: field 'tokenizer.ggml.{key}': expected an array of {kind.__name__}"
                )
            return value

        model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if model != "gpt2":
            raise FormatError(
                f"{source}: field 'tokenizer.ggml.model': found {model!r}, expected 'gpt2' (byte-level BPE)"
            )
        if not isinstance(pre, str) or pre not in RULES:
            raise FormatError(
                f"{source}: field 'tokenizer.ggml.pre': found {pre!r}, expected one of {' '.join(RULES)}",
                hint="without these rules the ids would be wrong, so kizami does not guess",
            )
        tokens, merges = table("tokens", str), table("merges", str)
        types = (
            table("token_type", int) if "tokenizer.ggml.token_type" in metadata else [NORMAL] * len(tokens)
        )
        if len(types) != len(tokens):
            raise FormatError(f"{source}: {len(types):,} token types for {len(tokens):,} tokens")
        if odd := set(types) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED}:
            raise FormatError(
                f"{source}: field 'tokenizer.ggml.token_type': type {min(odd)} has no place in this model"
            )
        vocab = {text: token for token, text in enumerate(tokens)}
        if len(vocab) != len(tokens):
            twice = next(text for token, text in enumerate(tokens) if vocab[text] != token)
            raise FormatError(f"{source}: field 'tokenizer.ggml.tokens': {twice!r} appears twice")
        for merge in merges:
            left, _, right = merge.partition(" ")
            if not left or not right or left not in vocab or right not in vocab or left + right not in vocab:
                raise FormatError(f"{source}: merge {merge!r} is not of two tokens that make a third")

        spec = pipeline(pre) | {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": token,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": types[token] != USER_DEFINED,
                }
                for token, text in enumerate(tokens)
                if types[token] in (UNKNOWN, CONTROL, USER_DEFINED) and text
            ],
            "model": {
                "type": "BPE",
                "ignore_merges": RULES[pre].ignore_merges,
                "vocab": vocab,
                "merges": [merge.split(" ", 1) for merge in merges],
            },
        }
        return cls(
            spec, list(tokens), list(types), list(merges), pre, _special_from(metadata, source), source
        )

    # -- text and ids ----------------------------------------------------------------------------------

    def encode(self, text: str, bos: bool = False, special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any valid Unicode.
            bos: put the BOS id in front.
            special: read control tokens written out in the text (`<｜User｜>`) as such; False takes them
                literally, as text from an untrusted hand must be.
        """
        if bos and self.bos is None:
            raise UsageError(f"{self.source}: has no BOS token")
        if not special and self._literal is None:
            self._literal = _load(self._spec_text, self.source)
            self._literal.encode_special_tokens = True
        backend = self._backend if special else self._literal
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"text is not valid Unicode: lone surrogate at character {error.start}"
            ) from None
        ids = backend.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if bos else ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, control tokens nothing unless `special`."""
        return b"".join(self.token_bytes(token, special) for token in ids).decode("utf-8", errors="replace")

    def stream(self, special: bool = False) -> TokenStream:
        """A decoder for ids that arrive one by one."""
        return TokenStream(self, special)

    def token(self, token: int) -> str:
        """The vocabulary entry of an id, as the file spells it; UsageError when there is no such id."""
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"token id {token} is outside 0..{self.vocab_size - 1}")
        return self._tokens[token]

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes an id stands for; b"" for control and unused ids unless `special`."""
        text, kind = self.token(token), self._types[token]
        if kind in (NORMAL, BYTE):
            return b"".join(bytes((BYTE_OF[c],)) if c in BYTE_OF else c.encode("utf-8") for c in text)
        return text.encode("utf-8") if special or kind == USER_DEFINED else b""

    # -- to a GGUF -------------------------------------------------------------------------------------

    def to_metadata(self, vocab_size: int | None = None) -> TypedMetadata:
        """The `tokenizer.*` keys as llama.cpp's converter writes them.

        Args:
            vocab_size: rows of the embedding; ids beyond the vocabulary become unused `[PADn]` tokens.

        Raises:
            FormatError: the cutting rules have no name a GGUF could carry.
        """
        if self.pre is None:
            raise FormatError(
                f"{self.source}: field 'pre_tokenizer': rules not recognized, known are {' '.join(RULES)}",
                hint="a GGUF carries only the name of the rules, so the file would tokenize wrongly",
            )
        tokens, types = list(self._tokens), list(self._types)
        for token in range(len(tokens), vocab_size or 0):
            tokens.append(f"[PAD{token}]")
            types.append(UNUSED)
        # A user-defined token is matched against plain text, where a space is a space.
        tokens = [t.replace("▁", " ") if k == USER_DEFINED else t for t, k in zip(tokens, types, strict=True)]
        keys: TypedMetadata = [
            ("tokenizer.ggml.model", "str", "gpt2"),
            ("tokenizer.ggml.pre", "str", self.pre),
            ("tokenizer.ggml.tokens", "[str]", tokens),
            ("tokenizer.ggml.token_type", "[i32]", types),
            ("tokenizer.ggml.merges", "[str]", list(self._merges)),
        ]
        keys += [
            (f"tokenizer.ggml.{ID_KEYS[name]}", "u32", token) for name, token in self.special.ids.items()
        ]
        keys += [(f"tokenizer.ggml.add_{name}_token", "bool", add) for name, add in self.special.add.items()]
        keys += [
            (f"tokenizer.chat_template.{name}", "str", text) for name, text in self.chat_templates.items()
        ]
        if self.chat_templates:
            keys.append(("tokenizer.chat_templates", "[str]", sorted(self.chat_templates)))
        if self.chat_template is not None:
            keys.append(("tokenizer.chat_template", "str", self.chat_template))
        return keys

    def __repr__(self) -> str:
        return f"Tokenizer({self.source!r}, {self.vocab_size:,} tokens, pre={self.pre!r})"


class TokenStream:
    """Text from ids that arrive one by one. A character is given out when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text completed by this id; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token, self._special))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _load(spec: str, source: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(spec)
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise FormatError(f"{source}: the tokenizers library rejects it: {error}") from None


def _looks_special(text: str) -> bool:
    """Tokens that files forget to mark: anything in the brackets that chat markers wear."""
    return (
        text in ("<pad>", "<mask>")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _dense(by_id: Mapping[int, tuple[str, int]], count: int) -> tuple[list[str], list[int]]:
    entries = [by_id.get(token, (f"[PAD{token}]", UNUSED)) for token in range(count)]
    return [text for text, _ in entries], [kind for _, kind in entries]


def _merge_strings(merges: object, path: Path) -> list[str]:
    """Merges as `left right`; files spell them so, or as pairs."""
    found: list[str] = []
    for merge in merges if isinstance(merges, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise FormatError(f"{path}: merge {merge!r} is not a pair of tokens")
        found.append(" ".join(part.replace(" ", "Ġ") for part in pair))
    return found


def _special_from(metadata: Mapping[str, object], source: str) -> Special:
    special = Special()
    for name, key in ID_KEYS.items():
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value is not None:
            if type(value) is not int:
                raise FormatError(f"{source}: field 'tokenizer.ggml.{key}': found {value!r}, expected an id")
            special.ids[name] = value
    for name in ADD_KEYS:
        value = metadata.get(f"tokenizer.ggml.add_{name}_token")
        if isinstance(value, bool):
            special.add[name] = value
    for key, value in metadata.items():
        if key.startswith("tokenizer.chat_template") and isinstance(value, str):
            name = key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"
            special.templates[name] = value
    return special
