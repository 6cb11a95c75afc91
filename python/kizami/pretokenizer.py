"""How text is cut before byte-pair merges, per `tokenizer.ggml.pre`.

Knows: the published rules of the model families kizami runs, as the components of a tokenizer.json; which
name llama.cpp gives them; how to tell them from a tokenizer.json.
Does not know: vocabularies, special tokens, or files (tokenizer.py).

The rules are recognized by their own structure, not by hashing what they make of a sample text: the same
rules over another vocabulary are the same rules. A GGUF carries only the name, so a rule that is not in
this table cannot be written, and a name that is not cannot be read.

Sources: the tokenizer.json files published with DeepSeek-LLM, DeepSeek-Coder, DeepSeek-V3, Qwen2.5 and
Llama 3; names from https://github.com/ggml-org/llama.cpp (`tokenizer.ggml.pre`).
"""

from __future__ import annotations

from dataclasses import dataclass

Component = dict[str, object]


def _split(regex: str) -> Component:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_DIGIT: Component = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL: Component = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}

_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
# Letters of the scripts with case (Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, ...), as published;
# escaped because some, such as the Kelvin sign, do not survive an editor that normalizes Unicode.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)


def _words(number: str) -> Component:
    return _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_QWEN2 = (_words(r"\p{N}"), _BYTE_LEVEL)


@dataclass(frozen=True)
class Rules:
    """One way of cutting text.

    components: of the tokenizer.json's pre-tokenizer sequence, in order.
    nfc: whether the text is normalized to NFC first.
    ignore_merges: whether a piece that is a token as a whole is taken without merging.
    add_bos: whether BOS is put in front when the file does not say.
    """

    components: tuple[Component, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


RULES: dict[str, Rules] = {
    "deepseek-v3": Rules(
        (
            _split(r"\p{N}{1,3}"),
            _split("[一-龥぀-ゟ゠-ヿ]+"),
            _split(
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
            ),
            _BYTE_LEVEL,
        )
    ),
    "deepseek-llm": Rules(
        (
            _split("[\r\n]"),
            _split(rf"\s?[{_CASED}]+"),
            _split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            _split(r"\s+$"),
            _split(_CJK),
            _DIGIT,
            _BYTE_LEVEL,
        )
    ),
    "deepseek-coder": Rules(
        (_split("[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split(_CJK), _DIGIT, _BYTE_LEVEL)
    ),
    "qwen2": Rules(_QWEN2, nfc=True),
    "deepseek-r1-qwen": Rules(_QWEN2),
    "llama-bpe": Rules((_words(r"\p{N}{1,3}"), _BYTE_LEVEL), ignore_merges=True, add_bos=True),
}


def recognize(pre_tokenizer: object, bos: str | None) -> str | None:
    """The name of a tokenizer.json's `pre_tokenizer`, or None when it is not in the table.

    `bos` tells the two models that share Qwen's rules apart: the distilled one has DeepSeek's tokens.
    """
    if not isinstance(pre_tokenizer, dict):
        return None
    found = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not isinstance(found, list):
        return None
    # Digits one by one are written in two ways that cut alike; offsets do not change ids.
    key = [_canonical(component) for component in found]
    names = [name for name, rules in RULES.items() if [_canonical(c) for c in rules.components] == key]
    if names == ["qwen2", "deepseek-r1-qwen"]:
        return names[1] if bos is not None and bos.startswith("<｜") else names[0]
    return names[0] if names else None


def _canonical(component: object) -> object:
    if not isinstance(component, dict):
        return component
    settings = {"invert": False} | {key: value for key, value in component.items() if key != "trim_offsets"}
    return {"invert": False} | _DIGIT if settings == _split(r"\p{N}") else settings


def pipeline(name: str) -> dict[str, object]:
    """`normalizer`, `pre_tokenizer` and `decoder` of the tokenizer.json with this name's rules."""
    rules = RULES[name]
    return {
        "normalizer": {"type": "NFC"} if rules.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rules.components)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    }
