"""Tokenizer: the same ids from tokenizer.json and from GGUF metadata, and text that survives the way back."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizami.errors import FormatError, UsageError
from kizami.pretokenizer import RULES, pipeline, recognize
from kizami.tokenizer import BYTE_OF, CONTROL, UNUSED, USER_DEFINED, Tokenizer
from synthetic import train_tokenizer

TINY = files("kizami") / "data" / "tiny-deepseek"
TEXTS = [
    "",
    " ",
    "Hello, world! isn't 1234567 x=0.5;\r\n\n\t  end  ",
    "日本語のテキスト、中文字符。 한국어 русский ελληνικά 🚀👩‍👩‍👧 é e\u0301",
    "<｜User｜>hi<｜Assistant｜><think>x</think> <|im_end|> <｜User",
]


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def stored(tiny: Tokenizer) -> Tokenizer:
    return Tokenizer.from_metadata({key: value for key, _, value in tiny.to_metadata()})


def trained(path: Path, pre: str) -> Tokenizer:
    train_tokenizer(path, pre)
    return Tokenizer.from_file(path / "tokenizer.json")


def metadata_of(tokenizer: Tokenizer, size: int | None = None) -> dict[str, object]:
    return {key: value for key, _, value in tokenizer.to_metadata(size)}


@pytest.mark.parametrize("name", ["eval.txt", "calibration.txt"])
def test_same_ids_on_text(tiny: Tokenizer, stored: Tokenizer, name: str) -> None:
    text = (TINY / name).read_text(encoding="utf-8")
    ids = tiny.encode(text)
    assert ids == stored.encode(text)
    assert tiny.decode(ids, special=True) == stored.decode(ids, special=True) == text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=60) | st.text(alphabet="ab 19\n\t'<｜>|日é.", max_size=60), special=st.booleans()
)
def test_same_ids_and_round_trip(tiny: Tokenizer, stored: Tokenizer, text: str, special: bool) -> None:
    ids = tiny.encode(text, special=special)
    assert ids == stored.encode(text, special=special)
    assert tiny.decode(ids, special=True) == text


@pytest.mark.parametrize("pre", RULES)
def test_every_rule(tmp_path: Path, pre: str) -> None:
    tokenizer = trained(tmp_path, pre)
    # Qwen's rules with DeepSeek's markers are those of the distilled model, which does not normalize.
    expected = "deepseek-r1-qwen" if pre == "qwen2" else pre
    assert tokenizer.pre == expected
    assert tokenizer.add_bos and tokenizer.bos == 0 and tokenizer.eos == 1 and tokenizer.eog == {1}
    stored = Tokenizer.from_metadata(metadata_of(tokenizer))
    for text in TEXTS:
        if pre == "qwen2" and "\u0301" in text:
            continue
        for special in (True, False):
            assert tokenizer.encode(text, special=special) == stored.encode(text, special=special), text
        assert stored.decode(stored.encode(text), special=True) == text


def test_rules_are_recognized_by_structure() -> None:
    rules = pipeline("deepseek-v3")["pre_tokenizer"]
    assert recognize(rules, None) == "deepseek-v3"
    changed = json.loads(json.dumps(rules))
    changed["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}"
    assert recognize(changed, None) is None
    coder = json.loads(json.dumps(pipeline("deepseek-coder")["pre_tokenizer"]))
    coder["pretokenizers"][4] = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated"}
    coder["pretokenizers"][-1]["trim_offsets"] = False
    assert recognize(coder, None) == "deepseek-coder"
    assert recognize(pipeline("qwen2")["pre_tokenizer"], "<|endoftext|>") == "qwen2"
    assert recognize(None, None) is recognize({"type": "Whitespace"}, None) is recognize([], None) is None


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "deepseek-v3")
    user = tokenizer.encode("<｜User｜>")
    assert user == [2] and tokenizer.encode("<｜User｜>", special=False) != [2]
    think = tokenizer.encode("<think>", special=False)
    assert len(think) == 1 and tokenizer.decode(think) == "<think>"
    assert tokenizer.decode([0, *tokenizer.encode("hi"), 2]) == "hi"
    assert (
        tokenizer.decode([0, *tokenizer.encode("hi"), 2], special=True)
        == "<｜begin▁of▁sentence｜>hi<｜User｜>"
    )
    assert tokenizer.encode("hi", bos=True) == [0, *tokenizer.encode("hi")]
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match="outside 0"):
            tokenizer.decode([bad])
    with pytest.raises(UsageError, match="lone surrogate"):
        tokenizer.encode("a\ud800")


def test_metadata(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "deepseek-v3")
    typed = {key: (kind, value) for key, kind, value in tokenizer.to_metadata(700)}
    assert typed["tokenizer.ggml.model"] == ("str", "gpt2")
    kind, types = typed["tokenizer.ggml.token_type"]
    tokens, size = typed["tokenizer.ggml.tokens"][1], tokenizer.vocab_size
    assert kind == "[i32]" and len(types) == len(tokens) == 700
    assert types[:4] == [CONTROL] * 4 and types[tokens.index("<think>")] == USER_DEFINED
    assert types[size:] == [UNUSED] * (700 - size) and tokens[size] == f"[PAD{size}]"
    assert typed["tokenizer.ggml.bos_token_id"] == ("u32", 0)
    assert typed["tokenizer.ggml.add_bos_token"] == ("bool", True)
    assert Tokenizer.from_metadata({key: value for key, (_, value) in typed.items()}).vocab_size == 700


def test_bos_from_post_processor(tmp_path: Path) -> None:
    train_tokenizer(tmp_path, "llama-bpe")
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    text, bos = (
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<｜begin▁of▁sentence｜>", "type_id": 0}},
    )
    second = {"Sequence": {"id": "B", "type_id": 1}}
    spec["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [bos, text],
                "pair": [bos, text, bos, second],
                "special_tokens": {},
            },
        ],
    }
    path.write_text(json.dumps(spec), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("hello", encoding="utf-8")
    tokenizer = Tokenizer.from_file(path, {"bos_token_id": 0, "eos_token_id": [1, 2]})
    assert tokenizer.special.add == {"bos": True, "eos": False, "sep": False}
    assert tokenizer.bos == 0 and tokenizer.eos is None and tokenizer.eog == {1}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_stream_gives_the_text(tiny: Tokenizer, text: str) -> None:
    stream = tiny.stream()
    pieces = [stream.push(token) for token in tiny.encode(text, special=False)]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_stream_holds_back_half_a_character(tiny: Tokenizer) -> None:
    byte_token = {byte: tiny.encode("a")[0] for byte in ()}
    for character, byte in BYTE_OF.items():
        if character in tiny._tokens:
            byte_token[byte] = tiny._tokens.index(character)
    rocket = "🚀".encode()
    stream = tiny.stream()
    assert [stream.push(byte_token[byte]) for byte in rocket] == ["", "", "", "🚀"]
    assert stream.push(byte_token[rocket[0]]) == "" and stream.flush() == "\ufffd"


BROKEN = [
    ({"tokenizer.ggml.model": "llama"}, "'tokenizer.ggml.model': found 'llama'"),
    ({"tokenizer.ggml.pre": "tekken"}, "'tokenizer.ggml.pre': found 'tekken'"),
    ({"tokenizer.ggml.pre": None}, "'tokenizer.ggml.pre': found None"),
    ({"tokenizer.ggml.tokens": None}, "'tokenizer.ggml.tokens': expected an array of str"),
    ({"tokenizer.ggml.tokens": []}, "token types for 0 tokens"),
    ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "'a' appears twice"),
    ({"tokenizer.ggml.token_type": [1.0]}, "expected an array of int"),
    ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
    ({"tokenizer.ggml.merges": ["ab"]}, "merge 'ab'"),
    ({"tokenizer.ggml.merges": ["Ġ nonsense"]}, "merge 'Ġ nonsense'"),
    ({"tokenizer.ggml.bos_token_id": 1 << 20}, "bos token id 1048576 is outside"),
    ({"tokenizer.ggml.eos_token_id": "1"}, "'tokenizer.ggml.eos_token_id'"),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN)
def test_broken_metadata(tiny: Tokenizer, changes: dict, words: str) -> None:
    with pytest.raises(FormatError) as error:
        Tokenizer.from_metadata(metadata_of(tiny) | changes, source="model.gguf")
    assert words in str(error.value) and str(error.value).startswith("model.gguf: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "'model'"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True}}, "'model'"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []},
            "not byte-level BPE: no token for byte",
        ),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
            "id 0 is not a number of its own",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 30}, "merges": []}}, "is not a number of its own"),
        ({"added_tokens": [{"id": 300, "content": "x"}]}, "added token 'x': id 300"),
        ({"added_tokens": [1]}, "'added_tokens'"),
        ({"pre_tokenizer": {"type": "Nonsense"}}, "the tokenizers library rejects it"),
    ],
)
def test_broken_tokenizer_json(tmp_path: Path, changes: dict, words: str) -> None:
    train_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(FormatError) as error:
        Tokenizer.from_file(path)
    assert words in str(error.value)


def test_unknown_rules_run_but_do_not_become_a_gguf(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["pre_tokenizer"]["pretokenizers"].pop(0)
    path.write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.pre is None and tokenizer.decode(tokenizer.encode("a 12345")) == "a 12345"
    with pytest.raises(FormatError, match="rules not recognized"):
        tokenizer.to_metadata()
