"""A Hugging Face directory as a mapping: values, metadata, and everything that can be wrong with one."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kizami.checkpoint import Checkpoint, open_source
from kizami.errors import FormatError, InputOutputError, KizamiError
from kizami.modelcard import front_matter, size_label, split_name, title
from kizami.safetensors import SafetensorsFile
from synthetic import CONFIG, bf16, e4m3, shard, weights, write_model, write_safetensors


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hf") / "tiny-model")


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def widened(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What the stored tensor means, computed with NumPy alone."""
    stored = tensors[name]
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if stored.dtype == np.uint8:
        scale = (
            tensors[name + "_scale_inv"].repeat(128, 0).repeat(128, 1)[: stored.shape[0], : stored.shape[1]]
        )
        return e4m3()[stored] * scale
    return stored


def edit(path: Path, name: str, **changes: object) -> None:
    values = json.loads((path / name).read_text())
    values.update(changes)
    (path / name).write_text(json.dumps({key: value for key, value in values.items() if value != "remove"}))


def test_tensors(directory: Path) -> None:
    source, tensors = Checkpoint(directory), weights(CONFIG)
    heads, nope, value, latent = 2, 32, 48, 128
    attention = "model.layers.1.self_attn."
    kv_b = widened(tensors, attention + "kv_b_proj.weight").reshape(heads, nope + value, latent)
    experts = [widened(tensors, f"model.layers.1.mlp.experts.{i}.down_proj.weight") for i in range(4)]
    expected = {
        "token_embd.weight": ("BF16", widened(tensors, "model.embed_tokens.weight")),
        "output.weight": ("BF16", widened(tensors, "lm_head.weight")),
        "output_norm.weight": ("F32", widened(tensors, "model.norm.weight")),
        "blk.0.ffn_down.weight": ("F8_E4M3", widened(tensors, "model.layers.0.mlp.down_proj.weight")),
        "blk.1.attn_q_a.weight": ("F8_E4M3", widened(tensors, attention + "q_a_proj.weight")),
        "blk.1.attn_q_a_norm.weight": ("F32", widened(tensors, attention + "q_a_layernorm.weight")),
        "blk.1.attn_kv_a_mqa.weight": ("F8_E4M3", widened(tensors, attention + "kv_a_proj_with_mqa.weight")),
        "blk.1.attn_k_b.weight": ("F32", kv_b[:, :nope].transpose(0, 2, 1)),
        "blk.1.attn_v_b.weight": ("F32", kv_b[:, nope:]),
        "blk.1.ffn_gate_inp.weight": ("F32", widened(tensors, "model.layers.1.mlp.gate.weight")),
        "blk.1.exp_probs_b.bias": ("F32", tensors["model.layers.1.mlp.gate.e_score_correction_bias"]),
        "blk.1.ffn_down_exps.weight": ("F8_E4M3", np.stack(experts)),
        "blk.1.ffn_up_shexp.weight": (
            "F8_E4M3",
            widened(tensors, "model.layers.1.mlp.shared_experts.up_proj.weight"),
        ),
    }
    for name, (kind, values) in expected.items():
        tensor = source[name]
        assert tensor.type == kind, name
        assert tuple(tensor.shape) == values.shape, name
        np.testing.assert_array_equal(tensor.dequantize(), values, err_msg=name)
    assert len(source) == len(set(source)) == 3 + 13 + 18
    assert "blk.0.ffn_gate_inp.weight" not in source
    assert source.notes == []


def test_shards_give_the_same_tensors(directory: Path, fresh: Path) -> None:
    shard(fresh, 3)
    whole, parts = Checkpoint(directory), Checkpoint(fresh)
    assert list(whole) == list(parts)
    for name in whole:
        np.testing.assert_array_equal(whole[name].dequantize(), parts[name].dequantize())


def test_metadata(directory: Path) -> None:
    source = Checkpoint(directory)
    typed = {key: (kind, value) for key, kind, value in source.typed_metadata}
    assert len(typed) == len(source.typed_metadata)
    assert typed["general.architecture"] == ("str", "deepseek2")
    assert typed["general.name"] == ("str", "Tiny Model")
    assert typed["deepseek2.attention.head_count_kv"] == ("u32", 1)
    assert typed["deepseek2.attention.key_length"] == ("u32", 128 + 16)
    assert typed["deepseek2.attention.value_length_mla"] == ("u32", 48)
    assert typed["deepseek2.expert_gating_func"] == ("u32", 2)
    assert typed["deepseek2.expert_weights_scale"] == ("f32", 2.5)
    assert typed["deepseek2.expert_weights_norm"] == ("bool", True)
    assert typed["tokenizer.ggml.pre"] == ("str", "deepseek-v3")
    assert len(typed["tokenizer.ggml.tokens"][1]) == CONFIG["vocab_size"]
    assert not any("rope.scaling" in key for key in typed)
    assert source.metadata == {key: value for key, (_, value) in typed.items()}


def test_yarn_and_v2(fresh: Path) -> None:
    scaling = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }
    config = CONFIG | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "q_lora_rank": None,
        "rope_scaling": scaling,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "topk_method": "greedy",
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": True,
    }
    tensors = weights(config)
    del tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    write_model(fresh, config, tensors)
    source = Checkpoint(fresh)
    assert "output.weight" not in source and "blk.1.exp_probs_b.bias" not in source
    assert tuple(source["blk.0.attn_q.weight"].shape) == (2 * (32 + 16), 256)
    assert len(source.notes) == 1 and "layer 2" in source.notes[0]
    metadata = source.metadata
    assert metadata["deepseek2.rope.scaling.type"] == "yarn"
    assert metadata["deepseek2.rope.scaling.factor"] == 40.0
    assert metadata["deepseek2.rope.scaling.original_context_length"] == 4096
    assert metadata["deepseek2.rope.scaling.yarn_beta_fast"] == 32.0
    assert metadata["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert metadata["deepseek2.expert_gating_func"] == 1
    assert (
        "deepseek2.expert_weights_norm" not in metadata and "deepseek2.attention.q_lora_rank" not in metadata
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "256"}, "'hidden_size'"),
        ({"hidden_size": 0}, "'hidden_size'"),
        ({"hidden_size": True}, "'hidden_size'"),
        ({"num_hidden_layers": 513}, "'num_hidden_layers'"),
        ({"kv_lora_rank": "remove"}, "'kv_lora_rank': found nothing"),
        ({"architectures": ["LlamaForCausalLM"]}, "'architectures'"),
        ({"rms_norm_eps": 0.0}, "'rms_norm_eps'"),
        ({"num_experts_per_tok": 5}, "'num_experts_per_tok'"),
        ({"n_group": 3}, "'n_group'"),
        ({"topk_group": 3}, "'topk_group'"),
        ({"num_key_value_heads": 1}, "'num_key_value_heads'"),
        ({"qk_rope_head_dim": 15}, "'qk_rope_head_dim'"),
        ({"attention_bias": True}, "'attention_bias'"),
        ({"scoring_func": "tanh"}, "'scoring_func'"),
        ({"routed_scaling_factor": "remove"}, "'routed_scaling_factor': found nothing"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling: field 'type'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "'original_max_position_embeddings'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'quant_method'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            "'weight_block_size': found [64, 64], expected [128, 128]",
        ),
        ({"quantization_config": "remove"}, "no 'quantization_config'"),
        ({"v_head_dim": 64}, "shape [160, 128], expected [192, 128]"),
    ],
)
def test_bad_config(fresh: Path, changes: dict, words: str) -> None:
    edit(fresh, "config.json", **changes)
    with pytest.raises(FormatError) as error:
        Checkpoint(fresh)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 65


def test_missing_tensor_and_shard(fresh: Path) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors = weights(CONFIG)
    write_safetensors(fresh / "model.safetensors", {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(FormatError, match="experts.3.up_proj.weight' is missing, expected shape"):
        Checkpoint(fresh)
    write_safetensors(
        fresh / "model.safetensors", {k: v for k, v in tensors.items() if k != name + "_scale_inv"}
    )
    with pytest.raises(FormatError, match=r"weight_scale_inv' is missing, expected F32 \[2, 2\]"):
        Checkpoint(fresh)
    write_safetensors(fresh / "model.safetensors", tensors | {name: bf16(np.zeros((256, 256)))})
    with pytest.raises(FormatError, match="blk.1.ffn_up_exps.weight: experts of types"):
        Checkpoint(fresh)
    write_safetensors(
        fresh / "model.safetensors", tensors | {"model.layers.0.q_proj.bias": bf16(np.zeros(4))}
    )
    with pytest.raises(FormatError, match="q_proj.bias' is not part of this architecture"):
        Checkpoint(fresh)
    write_safetensors(fresh / "model.safetensors", tensors)
    where = shard(fresh, 2)
    (fresh / where[name]).unlink()
    with pytest.raises(FormatError, match=f"{where[name]}: shard is missing"):
        Checkpoint(fresh)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("model.norm.weight", "../model.safetensors", "not a plain file name"),
        ("model.norm.weight", "/etc/passwd", "not a plain file name"),
        ("model.norm.weight", 3, "not a plain file name"),
        ("invented", "model-00001-of-00002.safetensors", "'invented' is missing"),
    ],
)
def test_bad_index(fresh: Path, name: str, target: object, words: str) -> None:
    where = shard(fresh, 2)
    edit(fresh, "model.safetensors.index.json", weight_map=where | {name: target})
    with pytest.raises(FormatError, match=words):
        Checkpoint(fresh)
    edit(
        fresh,
        "model.safetensors.index.json",
        weight_map={k: v for k, v in where.items() if k != "lm_head.weight"},
    )
    with pytest.raises(FormatError, match="'lm_head.weight' is not assigned"):
        Checkpoint(fresh)


def header(text: str, data: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


TENSOR = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"\1\0\0\0\0\0\0\0{", "header length 1"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header length"),
        (struct.pack("<Q", 99) + b"{}", "truncated: the header alone needs 107"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (header(" {}", b""), "starts with"),
        (header("{ ", b""), "not valid JSON"),
        (header("{" + TENSOR + "," + TENSOR + "}"), "'a' appears twice"),
        (header("{" + TENSOR.replace("F32", "F4") + "}"), "type 'F4' is unknown"),
        (header("{" + TENSOR.replace("[2]", "[3]") + "}"), "8 bytes, expected 12 for F32"),
        (header("{" + TENSOR.replace("[2]", "[-2]") + "}"), "not a list"),
        (header("{" + TENSOR.replace("[2]", "[2.0]") + "}"), "not a list"),
        (header("{" + TENSOR.replace("[2]", "[4611686018427387904,4]") + "}"), "not a list"),
        (header("{" + TENSOR.replace("[0,8]", "[8,0]") + "}"), "not [begin, end]"),
        (header("{" + TENSOR.replace("[0,8]", "[4,12]") + "}", b"\0" * 12), "a hole after the header"),
        (header("{" + TENSOR + "," + TENSOR.replace('"a"', '"b"') + "}"), "an overlap after tensor 'a'"),
        (header("{" + TENSOR + "}", b"\0" * 7), "truncated: needs"),
        (header("{" + TENSOR + "}", b"\0" * 9), "1 bytes after the last tensor"),
        (header('{"__metadata__":{"a":1},' + TENSOR + "}"), "__metadata__"),
        (header('{"a":[]}', b""), "record is a list"),
        (struct.pack("<Q", 2) + b"{\xff", "not UTF-8"),
        (header('{"a":' + "[" * 100_000, b""), "nested too deeply"),
    ],
)
def test_bad_safetensors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        SafetensorsFile(path)
    assert words in str(error.value) and str(path) in str(error.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    """Any change of a byte, and any truncation, is either an error of ours or a file that still adds up."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.uint8)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        file = SafetensorsFile(path)
    except KizamiError:
        return
    assert sum(file.bytes(name).nbytes for name in file.entries) <= len(content)


def test_open_source(directory: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(directory), Checkpoint)
    with pytest.raises(InputOutputError, match="no such file") as error:
        open_source(tmp_path / "nothing.gguf")
    assert error.value.exit_code == 74
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputOutputError, match="no config.json"):
        open_source(tmp_path / "empty")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FormatError, match="git-lfs pointer") as pointer:
        open_source(tmp_path / "pointer.gguf")
    assert "git lfs pull" in pointer.value.hint
    (tmp_path / "zero.gguf").write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        open_source(tmp_path / "zero.gguf")
    with pytest.raises(FormatError, match="safetensors"):
        open_source(directory / "model.safetensors")


def test_missing_files(fresh: Path) -> None:
    (fresh / "tokenizer.json").unlink()
    with pytest.raises(InputOutputError, match=r"tokenizer.json: no such file"):
        Checkpoint(fresh).tokenizer()
    (fresh / "model.safetensors").unlink()
    with pytest.raises(InputOutputError, match="no model.safetensors"):
        Checkpoint(fresh)


def test_vocabulary_larger_than_embedding(fresh: Path) -> None:
    config = copy.deepcopy(CONFIG) | {"vocab_size": 256}
    tensors = weights(config)
    write_safetensors(fresh / "model.safetensors", tensors)
    edit(fresh, "config.json", vocab_size=256)
    with pytest.raises(FormatError, match="expected at most vocab_size = 256"):
        Checkpoint(fresh).tokenizer()


def test_model_card(fresh: Path) -> None:
    card = '---\nlicense: other\nlicense_name: deepseek\nlanguage:\n- en\n- "ja"\ntags: [moe, "fp8"]\n'
    card += "base_model: deepseek-ai/DeepSeek-V3-Base\n"
    (fresh / "README.md").write_text(card + "nested:\n  - {a: b}\n---\n# text\n")
    (fresh / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.95, "top_k": 40}')
    metadata = {key: (kind, value) for key, kind, value in Checkpoint(fresh).typed_metadata}
    assert metadata["general.license"] == ("str", "other")
    assert metadata["general.license.name"] == ("str", "deepseek")
    assert metadata["general.languages"] == ("[str]", ["en", "ja"])
    assert metadata["general.tags"] == ("[str]", ["moe", "fp8"])
    assert metadata["general.base_model.count"] == ("u32", 1)
    assert metadata["general.base_model.0.organization"] == ("str", "Deepseek Ai")
    assert (
        metadata["general.base_model.0.repo_url"][1] == "https://huggingface.co/deepseek-ai/DeepSeek-V3-Base"
    )
    assert metadata["general.sampling.temp"] == ("f32", 0.6)
    assert metadata["general.sampling.top_k"] == ("i32", 40)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="-abc: \n[]'\"{}|>", max_size=60))
def test_any_front_matter_is_read_or_left(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text("---\n" + text + "\n---\n", encoding="utf-8")
    for value in front_matter(tmp_path / "README.md").values():
        assert isinstance(value, str) or all(isinstance(item, str) for item in value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("DeepSeek-V3-0324", ("DeepSeek", None, None, "V3-0324")),
        ("DeepSeek-V2-Lite-Chat", ("DeepSeek-V2-Lite", None, "Chat", None)),
        ("DeepSeek-V2-Chat-0628", ("DeepSeek-V2", None, "Chat", "0628")),
        ("DeepSeek-R1", (None, None, None, None)),
        ("Mixtral-8x7B-Instruct-v0.1", ("Mixtral", "8x7B", "Instruct", "v0.1")),
    ],
)
def test_names(name: str, parts: tuple) -> None:
    found = split_name(name)
    assert (found.basename, found.size_label, found.finetune, found.version) == parts


def test_titles_and_sizes() -> None:
    assert title("tiny-deepseek") == "Tiny Deepseek" and title("DeepSeek-V3") == "DeepSeek V3"
    assert size_label({"a.weight": (1000, 2000), "b_exps.weight": (8, 100, 1000)}) == "8x2.1M"
    assert size_label({"a.weight": (671, 10**9)}) == "671B"
