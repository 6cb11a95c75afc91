"""Presets: llama.cpp's names for mixes of types, as the bits per weight that such a file of a model has.

Who asks for Q4_K_M knows its size. So a preset is a budget: what llama-quantize's file of that name takes,
made with an imatrix; the plan decides where the bits go. The table says which types a mix is made of, layer
by layer. Left out are rules for exactly 8 experts; layers are counted where llama-quantize counts tensors.

Knows names and shapes of tensors, and the mixes; neither errors nor plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kizami.errors import UsageError
from kizami.formats import fitting, nbytes, quantizable

# Whether a part has another type in layer i of n.
Where = Callable[[int, int], bool]
Others = tuple[tuple[str, Where], ...]


def every(_i: int, _n: int) -> bool:
    """All layers."""
    return True


def eighth(i: int, n: int) -> bool:
    """The first eighth."""
    return i < n // 8


def sixteenth(i: int, n: int) -> bool:
    """The first sixteenth."""
    return i < n // 16


def middle(i: int, n: int) -> bool:
    """All but the first and the last eighth."""
    return n // 8 <= i < 7 * n // 8


def more(i: int, n: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    return not middle(i, n) or (i - n // 8) % 3 == 2


def four(i: int, _n: int) -> bool:
    """The first four."""
    return i < 4


def two(i: int, _n: int) -> bool:
    """The first two."""
    return i < 2


@dataclass(frozen=True)
class Mix:
    """The types of a preset: one for most, and for some parts others, the first whose layers apply."""

    base: str
    output: str = "Q6_K"
    token_embd: str | None = None
    attn_v: Others = ()
    attn_q_k: Others = ()
    attn_output: Others = ()
    ffn_down: Others = ()
    ffn_gate_up: Others = ()

    def type(self, name: str, layers: int, tied: bool) -> str:
        """The type of a tensor of a model of that many layers; ``tied`` if its embedding is its head."""
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            return self.output
        if name == "token_embd.weight":
            return self.token_embd or self.base
        part = name.removesuffix(".weight").rpartition(".")[2]
        others: Others = ()
        if part in ("attn_q", "attn_k"):
            others = self.attn_q_k
        elif part in ("attn_v", "attn_output"):
            others = getattr(self, part)
        elif part.startswith("ffn_down"):
            others = self.ffn_down
        elif part.startswith(("ffn_gate", "ffn_up")):
            others = self.ffn_gate_up
        return next((t for t, where in others if where(_layer(name), layers)), self.base)


def _low(base: str, *, token_embd: str = "Q2_K", down: str = "Q2_K", attn_output: Others = ()) -> Mix:
    """The mixes below three bits, which are alike."""
    return Mix(
        base,
        "Q5_K",
        token_embd,
        attn_v=(("Q4_K", every),),
        attn_output=attn_output,
        ffn_down=((down, eighth),),
    )


# Where a rule depends on how many heads share a key, it is that of four or more.
PRESETS = {
    "IQ1_S": _low("IQ1_S", attn_output=(("IQ2_XXS", every),)),
    "IQ1_M": _low("IQ1_M", attn_output=(("IQ2_XXS", every),)),
    "IQ2_XXS": _low("IQ2_XXS"),
    "IQ2_XS": _low("IQ2_XS"),
    "IQ2_S": _low("IQ2_XS", token_embd="IQ3_S", down="IQ3_S", attn_output=(("IQ3_S", every),)),
    "IQ2_M": _low("IQ2_S", token_embd="IQ3_S", down="IQ3_S", attn_output=(("IQ3_S", every),)),
    "Q2_K_S": Mix("Q2_K", attn_v=(("Q4_K", every),), ffn_down=(("Q4_K", eighth),)),
    "Q2_K": Mix(
        "Q2_K", attn_v=(("Q4_K", every),), attn_output=(("Q3_K", every),), ffn_down=(("Q3_K", every),)
    ),
    "IQ3_XXS": Mix(
        "IQ3_XXS",
        "Q5_K",
        "IQ3_S",
        attn_v=(("Q4_K", every),),
        attn_q_k=(("IQ2_S", every),),
        attn_output=(("IQ3_S", every),),
    ),
    "IQ3_XS": Mix(
        "IQ3_S",
        attn_v=(("Q4_K", every),),
        attn_q_k=(("IQ3_XXS", every),),
        ffn_gate_up=(("IQ3_XXS", middle),),
    ),
    "Q3_K_S": Mix("Q3_K"),
    "IQ3_S": Mix("IQ3_S", attn_v=(("Q4_K", every),)),
    "IQ3_M": Mix(
        "IQ3_S", attn_v=(("Q4_K", every),), attn_output=(("Q4_K", every),), ffn_down=(("Q4_K", eighth),)
    ),
    "Q3_K_M": Mix(
        "Q3_K",
        attn_v=(("Q5_K", two), ("Q4_K", every)),
        attn_output=(("Q4_K", every),),
        ffn_down=(("Q5_K", sixteenth), ("Q4_K", every)),
    ),
    "Q3_K_L": Mix(
        "Q3_K", attn_v=(("Q5_K", every),), attn_output=(("Q5_K", every),), ffn_down=(("Q5_K", every),)
    ),
    "IQ4_XS": Mix("IQ4_XS", attn_v=(("Q5_K", every),)),
    "IQ4_NL": Mix("IQ4_NL", attn_v=(("Q5_K", every),)),
    "Q4_0": Mix("Q4_0", ffn_down=(("Q4_1", eighth),)),
    "Q4_K_S": Mix("Q4_K", attn_v=(("Q5_K", four),), ffn_down=(("Q5_K", eighth),)),
    "Q4_K_M": Mix("Q4_K", attn_v=(("Q6_K", more),), ffn_down=(("Q6_K", more),)),
    "Q4_1": Mix("Q4_1"),
    "Q5_0": Mix("Q5_0", ffn_down=(("Q5_1", eighth),)),
    "Q5_K_S": Mix("Q5_K"),
    "Q5_K_M": Mix("Q5_K", attn_v=(("Q6_K", more),), ffn_down=(("Q6_K", more),)),
    "Q5_1": Mix("Q5_1"),
    "Q6_K": Mix("Q6_K"),
    "Q8_0": Mix("Q8_0", "Q8_0"),
}


def preset_bpw(name: str, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Bits per weight, over all tensors, of llama.cpp's file of that name.

    Args:
        name: the preset.
        shapes: of all tensors of the model, by name.

    Raises:
        UsageError: there is no such preset.
    """
    mix = PRESETS.get(name.upper().replace("-", "_"))
    if mix is None:
        raise UsageError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    layers = 1 + max((_layer(n) for n in shapes), default=-1)
    tied = "output.weight" not in shapes
    total = 0
    for n, shape in shapes.items():
        wanted = mix.type(n, layers, tied) if quantizable(n, shape) else "F32"
        total += nbytes(fitting(wanted, shape), shape) or 0
    return total * 8 / sum(map(math.prod, shapes.values()))


def _layer(name: str) -> int:
    """The number of the layer a tensor is part of; -1 for one of none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1
