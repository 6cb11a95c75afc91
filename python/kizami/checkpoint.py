"""A published Hugging Face directory of a DeepSeek-V2/V3 model, seen as if it were a GGUF.

Knows: which tensors the architecture has, their shapes, their names on both sides, and what must change on
the way: experts of a layer become one 3-D tensor (their buffers stay where they are), `kv_b_proj` becomes
the two matrices of absorbed MLA, norms and router become F32.
Does not know: the safetensors container (safetensors.py), field by field validation of config.json
(hfconfig.py), the model card (modelcard.py), or how the model runs (models/deepseek2.py).

Every tensor's presence, shape and type is checked when the directory is opened; bytes are touched only when
a tensor is asked for.

Sources: arXiv:2405.04434 (MLA, section 2.1), arXiv:2412.19437 (FP8 blocks, section 3.3), and the tensor
names of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import _core
from .errors import FormatError, InputOutputError
from .gguf import GGUF, TypedMetadata
from .hfconfig import SCALE_BLOCK, Config, architecture_metadata, read_config
from .modelcard import general_metadata
from .safetensors import SafetensorsDirectory

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

WEIGHT_TYPES = ("F8_E4M3", "BF16", "F16", "F32")  # the first for matrices only: its scales are per 128x128
BF16_FILE = 32  # general.file_type "mostly BF16": what the unquantized GGUF of an FP8 checkpoint is
QUANTIZATION_VERSION = 2
# Parts of a layer for multi-token prediction that it shares with the model.
COPIES_OF_MTP = ("embed_tokens.", "shared_head.head.")


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made.

    shape: of the result, (rows, cols), (n, rows, cols) or (cols,).
    names: the checkpoint's tensors it is made of, one per matrix.
    how: "weight" as stored; "f32" widened; "k_b" and "v_b" the halves of kv_b_proj.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    how: str = "weight"


class Checkpoint(Mapping[str, _core.Tensor]):
    """A DeepSeek-V2/V3 directory as a mapping of GGUF tensor names to `Tensor`.

    Args:
        path: directory with config.json, tokenizer.json and safetensors (one file, or shards with an index).
        mtp: whether to keep the layers for multi-token prediction (arXiv:2412.19437, section 2.2), which
            draft tokens and do not change the main model. Their copies of embedding and head are left out:
            readers take the model's own.

    Attributes:
        path: the directory.
        config: the validated configuration.
        metadata: dict of GGUF key to Python value; includes the tokenizer and the chat template.
        typed_metadata: list of (key, type, value) in the order in which a file gets them.
        notes: lines about what was left out on purpose (multi-token-prediction layers).
        paths: the files that hold weights.

    FP8 weights stay E4M3 with their F32 scale per 128x128 block (type `F8_E4M3`); BF16, F16 and F32 stay
    what they are; norms, router and router bias are F32 copies; `attn_k_b` (heads, kv_lora, nope) and
    `attn_v_b` (heads, value, kv_lora) are exact F32 products of the stored weight and its scale.

    Raises:
        InputOutputError: a file is missing or unreadable.
        FormatError: names the file and the field or tensor, what was found and what was expected.
    """

    def __init__(self, path: str | os.PathLike[str], *, mtp: bool = False) -> None:
        self.path = Path(path)
        self.config: Config = read_config(self.path / "config.json")
        self._store = SafetensorsDirectory(self.path)
        self._mtp = mtp
        self._recipes = recipes(self.config, self._store.files.keys(), mtp)
        self.notes: list[str] = []
        self.paths = sorted({file.path for file in self._store.files.values()})
        self._check()
        self._tokenizer: Tokenizer | None = None
        self._typed: TypedMetadata | None = None

    # -- mapping ---------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> _core.Tensor:
        recipe = self._recipes[name]
        if recipe.how == "weight":
            return self._stored(recipe)
        if recipe.how == "f32":
            (source,) = recipe.names
            return _f32_tensor(self._f32(source).reshape(recipe.shape))
        # kv_b_proj holds, head after head, `nope` rows that make keys and `value` rows that make values.
        config = self.config
        (source,) = recipe.names
        heads = self._f32(source).reshape(config.heads, config.nope + config.value, config.kv_lora_rank)
        half = heads[:, : config.nope].transpose(0, 2, 1) if recipe.how == "k_b" else heads[:, config.nope :]
        return _f32_tensor(half)

    def release(self) -> None:
        """Takes the files' pages out of this process's memory; they are read again when needed."""
        for file in {id(file): file for file in self._store.files.values()}.values():
            file.release()

    def __contains__(self, name: object) -> bool:
        return name in self._recipes  # the inherited one would build the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {self.config.layers} layers, {len(self)} tensors)"

    # -- metadata --------------------------------------------------------------------------------------

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json and tokenizer_config.json."""
        from .tokenizer import Tokenizer

        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(self.path / "tokenizer.json", self.config.raw)
            if self._tokenizer.vocab_size > self.config.vocab:
                raise FormatError(
                    f"{self.path / 'tokenizer.json'}: {self._tokenizer.vocab_size:,} tokens, "
                    f"expected at most vocab_size = {self.config.vocab:,}"
                )
        return self._tokenizer

    @property
    def typed_metadata(self) -> TypedMetadata:
        if self._typed is None:
            shapes = {name: recipe.shape for name, recipe in self._recipes.items()}
            self._typed = [
                *general_metadata(self.path, self.config.raw, shapes),
                *architecture_metadata(self.config, self._mtp),
                ("general.file_type", "u32", BF16_FILE),
                ("general.quantization_version", "u32", QUANTIZATION_VERSION),
                *self.tokenizer().to_metadata(self.config.vocab),
            ]
        return self._typed

    @property
    def metadata(self) -> dict[str, object]:
        return {key: value for key, _, value in self.typed_metadata}

    # -- reading ---------------------------------------------------------------------------------------

    def _stored(self, recipe: Recipe) -> _core.Tensor:
        buffers, scales = [], []
        for name in recipe.names:
            file = self._store.files[name]
            buffers.append(file.bytes(name))
            if file.entries[name].dtype == "F8_E4M3":
                scales.append(self._scale(name))
        dtype = self._store.files[recipe.names[0]].entries[recipe.names[0]].dtype
        return _core.Tensor(dtype, recipe.shape, buffers, scales or None)

    def _f32(self, name: str) -> np.ndarray:
        """Stored tensor widened to float32 of its stored shape; FP8 times its scale, one rounding."""
        file = self._store.files[name]
        entry = file.entries[name]
        scales = [self._scale(name)] if entry.dtype == "F8_E4M3" else None
        return _core.Tensor(entry.dtype, entry.shape, [file.bytes(name)], scales).dequantize()

    def _scale(self, name: str) -> np.ndarray:
        """float32 [ceil(rows/128), ceil(cols/128)] of an FP8 tensor."""
        scale = scale_name(name)
        file = self._store.files[scale]
        # The container promises no alignment; NumPy copies only where it must.
        values = np.require(file.bytes(scale).view("<f4"), np.float32, ["C_CONTIGUOUS", "ALIGNED"])
        return values.reshape(file.entries[scale].shape)

    # -- validation ------------------------------------------------------------------------------------

    def _check(self) -> None:
        files, used = self._store.files, set[str]()
        for gguf_name, recipe in self._recipes.items():
            types = {self._check_tensor(name, recipe) for name in recipe.names}
            if len(types) > 1:
                raise FormatError(
                    f"{self.path}: {gguf_name}: experts of types {sorted(types)}, expected one type"
                )
            used.update(recipe.names)
            used.update(
                scale_name(name) for name in recipe.names if files[name].entries[name].dtype == "F8_E4M3"
            )
        dropped = set[int]()
        for name in files.keys() - used:
            parts = name.split(".")
            layer = int(parts[2]) if name.startswith("model.layers.") and parts[2].isdecimal() else -1
            if layer >= self.config.layers:
                if not self._mtp:
                    dropped.add(layer)
                elif not name.startswith(COPIES_OF_MTP, len(f"model.layers.{layer}.")):
                    raise FormatError(f"{files[name].path}: tensor {name!r} is not part of this architecture")
            elif not name.endswith(".rotary_emb.inv_freq") and not (
                self.config.tied and name == "lm_head.weight"
            ):
                raise FormatError(f"{files[name].path}: tensor {name!r} is not part of this architecture")
        if dropped:
            which = ", ".join(map(str, sorted(dropped)))
            self.notes.append(
                f"multi-token-prediction layer {which} left out: it does not change the main model "
                "(--mtp keeps it)"
            )

    def _check_tensor(self, name: str, recipe: Recipe) -> str:
        config, file = self.config, self._store.files.get(name)
        if recipe.how in ("k_b", "v_b"):
            expected: tuple[int, ...] = (config.heads * (config.nope + config.value), config.kv_lora_rank)
        else:
            expected = recipe.shape[1:] if len(recipe.shape) == 3 else recipe.shape
        if file is None:
            raise FormatError(f"{self.path}: tensor {name!r} is missing, expected shape {list(expected)}")
        entry = file.entries[name]
        if entry.shape != expected:
            raise FormatError(
                f"{file.path}: tensor {name!r}: shape {list(entry.shape)}, expected {list(expected)}",
                hint="by the widths in config.json",
            )
        allowed = WEIGHT_TYPES if len(expected) == 2 else WEIGHT_TYPES[1:]
        if entry.dtype not in allowed:
            raise FormatError(
                f"{file.path}: tensor {name!r}: type {entry.dtype}, expected {' or '.join(allowed)}"
            )
        if entry.dtype == "F8_E4M3":
            self._check_scale(name, expected)
        return entry.dtype

    def _check_scale(self, name: str, shape: tuple[int, ...]) -> None:
        scale = scale_name(name)
        blocks = tuple(-(-dim // SCALE_BLOCK) for dim in shape)
        file = self._store.files.get(scale)
        if file is None:
            where = self._store.files[name].path
            raise FormatError(
                f"{where}: tensor {scale!r} is missing, expected F32 {list(blocks)} beside {name!r}"
            )
        entry = file.entries[scale]
        if not self.config.fp8:
            raise FormatError(
                f"{self.path / 'config.json'}: no 'quantization_config', but tensor {name!r} is F8_E4M3"
            )
        if entry.dtype != "F32" or entry.shape != blocks:
            raise FormatError(
                f"{file.path}: tensor {scale!r}: {entry.dtype} {list(entry.shape)}, "
                f"expected F32 {list(blocks)}"
            )


def scale_name(name: str) -> str:
    """`X.weight` to `X.weight_scale_inv`. It multiplies, despite its name: weight = e4m3 x scale."""
    return name + "_scale_inv"


def _f32_tensor(values: np.ndarray) -> _core.Tensor:
    data = np.ascontiguousarray(values, np.float32)
    return _core.Tensor("F32", data.shape, [data.reshape(-1).view(np.uint8)], None)


def recipes(config: Config, present: Container[str], mtp: bool = False) -> dict[str, Recipe]:
    """GGUF name to Recipe for every tensor of the model, in GGUF order (embedding, layers, output).

    `present` is consulted only for the one tensor a configuration may leave open: the router's bias. With
    `mtp` layers for multi-token prediction follow the others.
    """
    table = {"token_embd.weight": Recipe((config.vocab, config.hidden), ("model.embed_tokens.weight",))}
    for layer in range(config.layers + (config.mtp_layers if mtp else 0)):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        for name, recipe in _attention(config, source).items():
            table[target + name] = recipe
        feed_forward = _experts(config, source, present) if config.is_moe(layer) else _dense(config, source)
        for name, recipe in feed_forward.items():
            table[target + name] = recipe
        if layer >= config.layers:
            for name, recipe in _next_token(config, source).items():
                table[target + name] = recipe
    table["output_norm.weight"] = Recipe((config.hidden,), ("model.norm.weight",), "f32")
    if not config.tied:
        table["output.weight"] = Recipe((config.vocab, config.hidden), ("lm_head.weight",))
    return table


def _attention(config: Config, source: str) -> dict[str, Recipe]:
    attention, hidden, latent = source + "self_attn.", config.hidden, config.kv_lora_rank
    queries = config.heads * (config.nope + config.rope)
    kv_b = (attention + "kv_b_proj.weight",)
    table = {"attn_norm.weight": Recipe((hidden,), (source + "input_layernorm.weight",), "f32")}
    if rank := config.q_lora_rank:
        table |= {
            "attn_q_a.weight": Recipe((rank, hidden), (attention + "q_a_proj.weight",)),
            "attn_q_a_norm.weight": Recipe((rank,), (attention + "q_a_layernorm.weight",), "f32"),
            "attn_q_b.weight": Recipe((queries, rank), (attention + "q_b_proj.weight",)),
        }
    else:
        table["attn_q.weight"] = Recipe((queries, hidden), (attention + "q_proj.weight",))
    return table | {
        "attn_kv_a_mqa.weight": Recipe(
            (latent + config.rope, hidden), (attention + "kv_a_proj_with_mqa.weight",)
        ),
        "attn_kv_a_norm.weight": Recipe((latent,), (attention + "kv_a_layernorm.weight",), "f32"),
        "attn_k_b.weight": Recipe((config.heads, latent, config.nope), kv_b, "k_b"),
        "attn_v_b.weight": Recipe((config.heads, config.value, latent), kv_b, "v_b"),
        "attn_output.weight": Recipe((hidden, config.heads * config.value), (attention + "o_proj.weight",)),
        "ffn_norm.weight": Recipe((hidden,), (source + "post_attention_layernorm.weight",), "f32"),
    }


def _dense(config: Config, source: str) -> dict[str, Recipe]:
    return _gated(source + "mlp.", "", config.dense_width, config.hidden)


def _experts(config: Config, source: str, present: Container[str]) -> dict[str, Recipe]:
    hidden, width, count = config.hidden, config.expert_width, config.experts
    table = {"ffn_gate_inp.weight": Recipe((count, hidden), (source + "mlp.gate.weight",), "f32")}
    bias = source + "mlp.gate.e_score_correction_bias"
    if config.correction_bias or bias in present:
        table["exp_probs_b.bias"] = Recipe((count,), (bias,), "f32")
    for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
        names = tuple(f"{source}mlp.experts.{expert}.{part}_proj.weight" for expert in range(count))
        table[f"ffn_{part}_exps.weight"] = Recipe((count, *shape), names)
    if config.shared_experts:
        table |= _gated(source + "mlp.shared_experts.", "_shexp", width * config.shared_experts, hidden)
    return table


def _next_token(config: Config, source: str) -> dict[str, Recipe]:
    """What joins the last hidden state and the next token's embedding, and the norm before the head."""
    hidden = config.hidden
    return {
        "nextn.eh_proj.weight": Recipe((hidden, 2 * hidden), (source + "eh_proj.weight",)),
        "nextn.enorm.weight": Recipe((hidden,), (source + "enorm.weight",), "f32"),
        "nextn.hnorm.weight": Recipe((hidden,), (source + "hnorm.weight",), "f32"),
        "nextn.shared_head_norm.weight": Recipe((hidden,), (source + "shared_head.norm.weight",), "f32"),
    }


def _gated(source: str, suffix: str, width: int, hidden: int) -> dict[str, Recipe]:
    return {
        f"ffn_gate{suffix}.weight": Recipe((width, hidden), (source + "gate_proj.weight",)),
        f"ffn_up{suffix}.weight": Recipe((width, hidden), (source + "up_proj.weight",)),
        f"ffn_down{suffix}.weight": Recipe((hidden, width), (source + "down_proj.weight",)),
    }


def open_source(path: str | os.PathLike[str], *, mtp: bool = False) -> GGUF | Checkpoint:
    """Opens a model for reading: a directory as a Checkpoint, a file as a GGUF.

    Args:
        path: of either.
        mtp: of a directory, as in :class:`Checkpoint`; a file has what it has.

    Raises:
        InputOutputError: nothing is there.
        FormatError: it is something else (a git-lfs pointer, a pickle, ...); the hint says what to do.
    """
    where = Path(path)
    if where.is_dir():
        if not (where / "config.json").exists():
            raise InputOutputError(
                f"{where}: no config.json in this directory",
                hint="give a Hugging Face model directory or a GGUF file",
            )
        return Checkpoint(where, mtp=mtp)
    return GGUF(where)
