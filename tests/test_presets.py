"""Presets: as large as llama.cpp's files of these names, and budgets for a plan."""

from __future__ import annotations

import pytest

import kizami
from kizami.checkpoint import open_source
from kizami.demo import EMBEDDED
from kizami.errors import UsageError
from kizami.formats import CANDIDATES, TYPES
from kizami.presets import PRESETS, preset_bpw


def deepseek_v3():
    """Shapes of DeepSeek-V3's tensors, from the published config.json."""
    hidden, experts, width, heads = 7168, 256, 2048, 128
    shapes = {"token_embd": (129280, hidden), "output": (129280, hidden), "output_norm": (hidden,)}
    for i in range(61):
        attention = {"attn_norm": (hidden,), "attn_q_a_norm": (1536,), "attn_kv_a_norm": (512,)}
        attention |= {"attn_q_a": (1536, hidden), "attn_q_b": (heads * 192, 1536), "ffn_norm": (hidden,)}
        attention |= {"attn_kv_a_mqa": (576, hidden), "attn_output": (hidden, heads * 128)}
        attention |= {"attn_k_b": (heads, 512, 128), "attn_v_b": (heads, 128, 512)}
        parts = {"": (18432,)} if i < 3 else {"_exps": (experts, width), "_shexp": (width,)}
        for kind, (*many, rows) in parts.items():
            attention |= {f"ffn_{part}{kind}": (*many, rows, hidden) for part in ("gate", "up")}
            attention |= {f"ffn_down{kind}": (*many, hidden, rows)}
        if i >= 3:
            attention |= {"ffn_gate_inp": (experts, hidden)}
        shapes |= {f"blk.{i}.{part}": shape for part, shape in attention.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("preset", "bpw"),
    # From the types in llama.cpp's tests/snapshots/deepseek-v3.1.schema, which are those without an imatrix.
    # Left out are the five that differ with one.
    [
        ("IQ1_S", 1.5944),
        ("IQ1_M", 1.7770),
        ("IQ2_XXS", 2.0813),
        ("IQ2_XS", 2.3275),
        ("IQ2_S", 2.3502),
        ("IQ2_M", 2.5937),
        ("Q2_K_S", 2.6798),
        ("Q2_K", 2.9107),
        ("IQ3_XS", 3.2532),
        ("Q3_K_S", 3.4472),
        ("IQ3_S", 3.4472),
        ("IQ3_M", 3.4831),
        ("Q3_K_M", 3.8062),
        ("Q3_K_L", 4.1430),
        ("Q4_K_S", 4.5311),
        ("Q4_K_M", 4.8223),
        ("Q4_1", 5.0065),
        ("Q5_K_S", 5.5061),
        ("Q5_K_M", 5.6680),
        ("Q5_1", 6.0049),
        ("Q6_K", 6.5681),
        ("Q8_0", 8.5038),
    ],
)
def test_a_preset_is_as_large_as_llama_cpps_file(preset, bpw):
    counts_tensors = preset.startswith(("IQ1", "IQ2"))  # not layers: two fewer of them have more bits
    assert preset_bpw(preset, deepseek_v3()) == pytest.approx(bpw, rel=0.008 if counts_tensors else 0.0005)


def test_every_mix_is_of_known_types():
    shapes = deepseek_v3()
    for preset, mix in PRESETS.items():
        assert {mix.type(name, 61, tied) for name in shapes for tied in (True, False)} <= set(CANDIDATES)
        assert preset_bpw(preset.lower().replace("_", "-"), shapes) > 0.9 * TYPES[mix.base]["bpw"]


def test_a_tied_embedding_has_the_type_of_the_head():
    shapes = {"token_embd.weight": (512, 256), "blk.0.attn_q.weight": (256, 256)}
    assert preset_bpw("Q4_K_M", shapes) == pytest.approx((2 * 6.5625 + 4.5) / 3)


def test_a_preset_is_a_budget(tmp_path, monkeypatch):
    source = open_source(EMBEDDED)
    monkeypatch.setattr("kizami.formats.CANDIDATES", ["IQ4_NL", "Q5_0", "Q5_K", "Q6_K", "Q8_0"])
    report = kizami.quantize(EMBEDDED, tmp_path / "out.gguf", preset="q4-k-m", dry_run=True)
    budget = preset_bpw("Q4_K_M", {name: tuple(t.shape) for name, t in source.items()})
    assert 0.99 * budget < report.bpw <= budget and report.predicted_kld is not None
    with pytest.raises(UsageError, match=r"'Q4_K_X', expected one of .*Q4_K_M"):
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", preset="Q4_K_X")
    with pytest.raises(UsageError, match="exactly one"):
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", preset="Q4_K_M", bpw=3.0)
    with pytest.raises(UsageError, match="a mix of types") as error:
        kizami.quantize(EMBEDDED, tmp_path / "out.gguf", type="Q4_K_M")
    assert "--preset Q4_K_M" in error.value.hint
