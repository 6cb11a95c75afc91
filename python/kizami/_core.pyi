"""The Rust core: containers, weights, transformer blocks, encoders. Private; `kizami` is the public face.

Calls that compute let other Python threads run meanwhile. Classes are immutable from Python unless a method
says otherwise. Errors are those of `kizami.errors`. Results are the same to the last bit for every instruction
set, thread count and batch.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Cache",
    "Curvature",
    "FfnBlock",
    "GgufFile",
    "GgufWriter",
    "Gqa",
    "Head",
    "Mla",
    "Observer",
    "Tensor",
    "after_fork",
    "cache_types",
    "isa",
    "isa_available",
    "isa_levels",
    "output_errors",
    "profile",
    "profile_take",
    "read_bandwidth",
    "set_isa",
    "set_threads",
    "solve",
    "threads",
    "types",
]

# -- weights -----------------------------------------------------------------------------------------------

@final
class Tensor:
    """Weights of one format: a vector `(cols,)`, a matrix `(rows, cols)` or a stack `(n, rows, cols)`.

    The bytes belong to somebody else, a mapped file or NumPy arrays; nothing is copied. Arrays handed in must
    not be written to while the tensor lives.
    """

    def __new__(
        cls,
        type_name: str,
        shape: Sequence[int],
        buffers: Sequence[NDArray[np.uint8]],
        scales: Sequence[NDArray[np.float32]] | None = None,
    ) -> Tensor:
        """Binds bytes to a format and a shape.

        Args:
            type_name: a name from `types()`, in any case.
            shape: rows before columns.
            buffers: contiguous bytes, one array for the whole tensor or one per matrix of the stack.
            scales: one array per matrix. For F8_E4M3 float32 `[ceil(rows / 128), ceil(cols / 128)]`, each of
                which multiplies a block of 128 x 128 weights; for other types `[1, 1]`, the matrix's `scale`.

        Raises:
            UsageError: the type is unknown, or an array is not contiguous.
            FormatError: bytes, shape and scales do not fit together.
        """

    @property
    def type(self) -> str:
        """Name of the format: `Q4_K`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, scales that are kept apart included."""

    @property
    def bpw(self) -> float:
        """Bits per weight."""

    @property
    def scale(self) -> NDArray[np.float32] | None:
        """What each matrix is multiplied with besides the format's own scales, float32 `[n]`: NVFP4's second level."""

    @property
    def repacked(self) -> bool:
        """Whether rows lie side by side, in memory of their own."""

    @property
    def repacked_nbytes(self) -> int | None:
        """Bytes that `repack` takes; None for float formats."""

    def repack(self) -> Tensor:
        """The same weights with sixteen rows side by side, as products like them (`docs/kernels.md`).

        They take memory of their own, large pages where the system has them, and products return the same bits.

        Raises:
            UsageError: the format is of floats, or the weights are repacked already.
            MemoryError: there is not enough.
        """

    def at(self, index: int) -> Tensor:
        """One matrix of a stack, in place.

        Raises:
            UsageError: there is none.
        """

    def part(self, index: int, start: int, count: int) -> Tensor:
        """Some consecutive rows of one matrix of a stack, in place: a matrix.

        Raises:
            UsageError: there are none of these numbers, rows are repacked, or `start` parts a block of F8_E4M3's
                128 rows.
        """

    def rows(self, index: int, rows: Sequence[int]) -> Tensor:
        """Rows of one matrix of a stack, decoded: an F32 matrix of them.

        Raises:
            UsageError: there are none of these numbers.
        """

    def bytes(self) -> NDArray[np.uint8]:
        """A copy of the bytes as they stand in a GGUF file, uint8; `scale` is not in them.

        Raises:
            UsageError: the format is F8_E4M3, which keeps its scales apart and has no such form, or the weights
                are repacked.
        """

    def dequantize(self) -> NDArray[np.float32]:
        """The weights as float32 of the tensor's shape, `scale` included."""

    def matmul(self, x: NDArray[np.float32], activations: str = "int8") -> NDArray[np.float32]:
        """`x @ W.T`: float32 `[n, cols]` in, float32 `[n, rows]` out.

        Args:
            x: contiguous.
            activations: `"int8"` rounds x to 8 bits where the weights are quantized; `"f32"` does not.

        Raises:
            UsageError: shape or layout of x is wrong.
            FormatError: this is a stack of matrices.
        """

    def encode(
        self,
        type_name: str,
        imatrix: NDArray[np.float32] | None = None,
        curvatures: Sequence[Curvature] | None = None,
    ) -> NDArray[np.uint8]:
        """The weights rounded to another format: its bytes, uint8, in GGUF order.

        Args:
            type_name: a format that GGUF files can hold.
            imatrix: importance of each column, float32 `[n, cols]` with one row per matrix; all alike without.
            curvatures: for rounding with error feedback, in place of the imatrix: one per matrix, or one for all.

        Raises:
            UsageError: the type is unknown.
            FormatError: a weight is not finite, rows do not divide into blocks, or the imatrix has another
                shape.
        """

    def distortion(
        self, type_name: str, imatrix: NDArray[np.float32] | None = None, weights: int = 1 << 20
    ) -> tuple[float, float, float]:
        """What rounding to a format does, on a sample of about `weights` weights in whole rows.

        Returns:
            The importance-weighted sums of original squared, original times rounded, and rounded squared.

        Raises:
            UsageError, FormatError: as `encode`.
        """

    def output_power(self, curvature: Curvature) -> float:
        """The mean squares of a matrix's outputs, by the moments behind the curvature, summed over rows.

        Raises:
            FormatError: this is no matrix, or the curvature has not as many columns.
        """

    def output_error(self, type_name: str, curvature: Curvature, feedback: bool = True) -> float:
        """What rounding all rows of a matrix to a format does to its outputs: as `output_power`, of their errors.

        Args:
            feedback: whether codes make up for each other, as `encode` with curvatures.

        Raises:
            UsageError: the type is unknown.
            FormatError: this is no matrix, or as `encode`.
        """

    def __repr__(self) -> str: ...

def types() -> list[dict[str, Any]]:
    """The formats, floats first. Keys: name; description, a sentence; ggml_id (None where GGUF has none); block,
    weights per block; block_bytes; halves, where the f16 scales are in a block, that of its minimums last; bpw;
    quantized (False for floats); family ("super" or "grouped", None for floats); repacked_bpw (None for floats);
    llama_ftype, llama.cpp's number for files made of it (None as ggml_id)."""

def output_errors(
    tensors: Sequence[Tensor], curvatures: Sequence[Curvature], types: Sequence[str]
) -> list[list[float]]:
    """:meth:`Tensor.output_error` with feedback of several matrices, each with its curvature: `[types][matrices]`.

    All in parallel, where a few rows of one matrix would leave most threads idle.

    Raises:
        UsageError: an unknown type, or not one curvature for each matrix.
        FormatError: as there.
    """

def solve(bytes: Sequence[Sequence[int]], cost: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Picks one choice per item so that the bytes fit the budget and the summed cost is least.

    Args:
        bytes, cost: `[items][choices]`, of equal lengths.
        budget: bytes.

    Returns:
        The index of each item's choice.

    Raises:
        UsageError: the smallest choices together exceed the budget.
        FormatError: a cost is not a number, or the lists do not fit together.

    Source: multiple-choice knapsack, Sinha and Zoltners 1979, doi:10.1287/opre.27.3.503.
    """

# -- GGUF --------------------------------------------------------------------------------------------------

@final
class GgufFile:
    """A GGUF file, or the split set that its first file names, mapped and checked.

    Source of the layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """

    def __new__(cls, path: str | PathLike[str]) -> GgufFile:
        """Opens a file.

        Raises:
            InputOutputError: missing or unreadable.
            FormatError: not a GGUF, truncated or damaged; the message names field and offset.
        """

    def release(self) -> None:
        """Takes the file's pages out of this process's memory; they are read again when needed."""

    @property
    def metadata(self) -> list[tuple[str, str, Any]]:
        """(key, type, value) in the file's order. Types: u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str, and
        `[u32]` and so on for arrays, whose values are lists."""

    @property
    def tensors(self) -> list[tuple[str, str, list[int], int]]:
        """(name, type, shape with rows before columns, bytes), also of types that cannot be computed with."""

    @property
    def nbytes(self) -> int:
        """Bytes of the file, or of all files of the set."""

    @property
    def paths(self) -> list[Path]:
        """The file, or those of the set."""

    def tensor(self, name: str, scale: str | None = None) -> Tensor:
        """A tensor on the mapping; the tensor named `scale` holds a scale for each of its matrices.

        Raises:
            FormatError: there is none of that name, its type cannot be computed with, or the scale does not fit.
        """

@final
class GgufWriter:
    """Writes a GGUF file whose layout is known beforehand.

    Bytes go to a partial file beside `path`, which `finish` renames. A writer that is dropped unfinished
    leaves nothing behind.
    """

    def __new__(
        cls,
        path: str | PathLike[str],
        metadata: Sequence[tuple[str, str, Any]],
        tensors: Sequence[tuple[str, str, Sequence[int]]],
    ) -> GgufWriter:
        """Lays out and creates the partial file.

        Args:
            path: the final name.
            metadata: (key, type, value) as in `GgufFile.metadata`.
            tensors: (name, type, shape with rows before columns).

        Raises:
            UsageError: an unknown tensor type.
            FormatError: a key, value, name or shape that a GGUF cannot hold.
            InputOutputError: the file cannot be created.
        """

    @staticmethod
    def size(metadata: Sequence[tuple[str, str, Any]], tensors: Sequence[tuple[str, str, Sequence[int]]]) -> int:
        """Bytes of the file these would make, header and padding included. Raises as the constructor."""

    @staticmethod
    def layout(
        metadata: Sequence[tuple[str, str, Any]], tensors: Sequence[tuple[str, str, Sequence[int]]]
    ) -> tuple[bytes, list[tuple[str, int, int]], int]:
        """Where every byte of the file lies that these would make. Raises as the constructor.

        Returns:
            The header's bytes; name, offset and length in bytes of every tensor, in order; the size of the file.
        """

    def write(self, name: str, data: NDArray[np.uint8]) -> None:
        """Writes a tensor's bytes, contiguous and of the exact length; tensors may come in any order.

        Raises:
            FormatError: an unknown name, a wrong length, or a tensor written before.
            InputOutputError: the write failed.
            UsageError: the writer is closed.
        """

    def finish(self) -> None:
        """Makes the file durable and gives it its name.

        Raises:
            FormatError: a tensor was not written.
            InputOutputError: it cannot be written or renamed.
            UsageError: the writer is closed.
        """

    def abort(self) -> None:
        """Removes the partial file. Does nothing after `finish`."""

# -- transformer blocks ------------------------------------------------------------------------------------

@final
class Curvature:
    """What an error in one input column of a matrix may be traded for in others: second moments, factored."""

    def __new__(
        cls, moments: NDArray[np.float64], damping: float = ..., drift: NDArray[np.float64] | None = None
    ) -> Curvature:
        """Factors moments.

        Args:
            moments: mean of `x xᵀ` over inputs `x`, float64 `[cols, cols]`, symmetric; `cols` is a multiple of 32.
            damping: share of the mean diagonal that is added to the diagonal, 0 to 1; .01 if
                not given.
            drift: mean of `(y - x) xᵀ`, float64 `[cols, cols]`, where outputs are wanted as for inputs `y`: rounding
                then makes up for what inputs have lost, too (GPTAQ, arXiv 2504.02692).

        Raises:
            UsageError: the moments are no square, drift is of another shape, or damping is out of range.
            FormatError: the moments are not finite, not symmetric, or larger than their diagonal allows.
        """

    @property
    def damping(self) -> float:
        """What was used: more than asked for where moments of too few inputs needed it."""

@final
class Observer:
    """Sums of squares of every linear layer's input: the imatrix in the making. Filled by `forward` calls.

    Or, from `of_inputs`, inputs themselves, for another to follow: no method is for those (UsageError).
    """

    def __new__(cls, moments: Sequence[str] | None = None) -> Observer:
        """An empty one, which also collects second moments for the tensors that `moments` names."""

    @staticmethod
    def of_inputs(names: Sequence[str]) -> Observer:
        """One that keeps the inputs of these tensors as they are: of a single pass of some tokens."""

    def follow(self, observer: Observer) -> None:
        """Inputs of the same tokens, which come next, will be compared with those that `observer` has seen; it gives
        them away.

        Raises:
            UsageError: `observer` is not one of inputs.
        """

    def entries(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        """(tensor name, sums float32 `[n_mat, cols]`, tokens float32 `[n_mat]`)."""

    def tokens(self, name: str) -> NDArray[np.float64] | None:
        """Inputs whose second moments each matrix of a tensor has, float64 `[n_mat]`; None where none were asked for."""

    def take(self, name: str, index: int) -> NDArray[np.float64] | None:
        """Sums of `x xᵀ` over the inputs of one matrix of a tensor, float64 `[cols, cols]`; they are forgotten here.

        None where they were not asked for, or nothing was seen.
        """

    def pairs(self, name: str) -> NDArray[np.float64] | None:
        """Inputs of each matrix of a tensor that were compared with others, float64 `[n_mat]`; None where none were."""

    def take_drift(self, name: str, index: int) -> NDArray[np.float64] | None:
        """Sums of `(y - x) xᵀ` over inputs `x` of one matrix and the `y` they were compared with, float64 `[cols, cols]`;
        they are forgotten here. None where nothing was compared."""

@final
class Cache:
    """What one sequence keeps of its tokens, all layers. Changed by `forward`, `advance` and `truncate`."""

    def __new__(cls, layers: int, width: int, cache_type: str = "f32") -> Cache:
        """An empty cache.

        Args:
            layers: number of layers.
            width: numbers per token and layer: `kv_lora_rank + rope_dims`, or `Gqa.cache_width`.
            cache_type: one of `cache_types()`.

        Raises:
            UsageError: there is no such type.
        """

    @property
    def type(self) -> str:
        """How the numbers are stored."""

    def __len__(self) -> int:
        """Tokens whose rows are complete in all layers."""

    def advance(self, tokens: int) -> None:
        """Declares that many more tokens complete."""

    def truncate(self, len: int) -> None:
        """Forgets everything from token `len` on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the complete tokens."""

@final
class Mla:
    """Multi-head latent attention of one layer, with its norm and residual.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    def __new__(
        cls,
        layer: int,
        *,
        norm: Tensor,
        q_a: Tensor | None,
        q_a_norm: Tensor | None,
        q_b: Tensor,
        kv_a: Tensor,
        kv_a_norm: Tensor,
        k_b: Tensor,
        v_b: Tensor,
        output: Tensor,
        eps: float,
        scale: float,
        rope_dims: int,
        rope_base: float,
        yarn: tuple[float, float, float, float, float] | None = None,
    ) -> Mla:
        """Binds the weights.

        Args:
            layer: index in the cache, and in the names an observer files under.
            norm: `(d,)`; q_a: `(q_rank, d)` and q_a_norm: `(q_rank,)`, or both None where queries have no low
                rank; q_b: `(heads * (nope + rope_dims), q_rank or d)`; kv_a: `(kv_rank + rope_dims, d)`;
                kv_a_norm: `(kv_rank,)`; k_b: `(heads, kv_rank, nope)`; v_b: `(heads, v, kv_rank)`; output:
                `(d, heads * v)`.
            eps: of the norms; scale: of the scores; rope_dims, rope_base: of the rotary positions.
            yarn: (factor, original context, beta_fast, beta_slow, magnitude).

        Raises:
            FormatError: tensors that do not go together.
        """

    def forward(
        self,
        x: NDArray[np.float32],
        caches: Sequence[Cache],
        lens: Sequence[int],
        activations: str = "int8",
        observer: Observer | None = None,
    ) -> None:
        """Adds the block's output to `x`, float32 `[n, d]` contiguous, in place; appends to the caches.

        Long segments rebuild keys and values from the cache, short ones and those with an observer work on
        the cached rows themselves: the same formula with its sums in another order.

        Args:
            caches: one per sequence, each a different one.
            lens: tokens of each sequence in x, one sequence after the other; they sum to n.

        Raises:
            UsageError: arguments that do not fit together.
            FormatError: shapes that do not.
        """

@final
class Gqa:
    """Grouped-query attention of one layer, with its norm and residual.

    Source: arXiv:2305.13245; biases and rotation (NeoX order) as in Qwen2, arXiv:2407.10671.
    """

    def __new__(
        cls,
        layer: int,
        *,
        norm: Tensor,
        q: Tensor,
        q_bias: Tensor | None,
        k: Tensor,
        k_bias: Tensor | None,
        v: Tensor,
        v_bias: Tensor | None,
        output: Tensor,
        heads: int,
        groups: int,
        eps: float,
        scale: float,
        rope_dims: int,
        rope_base: float,
    ) -> Gqa:
        """Binds the weights.

        Args:
            layer: index in the cache, and in the names an observer files under.
            norm: `(d,)`; q: `(heads * dims, d)`; k, v: `(groups * dims, d)`; each bias: one number per row;
                output: `(d, heads * dims)`.
            heads: query heads; groups: key and value heads, a divisor of it.
            eps: of the norm; scale: of the scores; rope_dims, rope_base: of the rotary positions.

        Raises:
            FormatError: tensors that do not go together.
        """

    @staticmethod
    def cache_width(groups: int, dims: int) -> int:
        """Numbers per token and layer in a cache: padded keys and values of all groups."""

    def forward(
        self,
        x: NDArray[np.float32],
        caches: Sequence[Cache],
        lens: Sequence[int],
        activations: str = "int8",
        observer: Observer | None = None,
    ) -> None:
        """Adds the block's output to `x`; everything as in `Mla.forward`."""

@final
class FfnBlock:
    """The feed-forward block of one layer, dense or routed experts, with its norm and residual.

    Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
    """

    def __new__(
        cls,
        layer: int,
        *,
        norm: Tensor,
        eps: float,
        shared: Sequence[Tensor] | None = None,
        experts: Sequence[Tensor] | None = None,
        router: Tensor | None = None,
        bias: Tensor | None = None,
        scoring: str = "sigmoid",
        group_score: str = "top2",
        groups: int = 1,
        groups_used: int = 1,
        used: int = 1,
        normalize: bool = False,
        scale: float = 1.0,
    ) -> FfnBlock:
        """Binds the weights.

        Args:
            layer: index in the names an observer files under.
            norm: `(d,)`; shared: gate, up `(ff, d)` and down `(d, ff)` of a dense network or of the shared
                experts; experts: the same as stacks `(n, ...)`; router: `(n, d)`; bias: `(n,)`, added to the
                scores for the choice only.
            groups, groups_used: experts are chosen from the best groups only; group_score says by what.
            used: experts per token; normalize: their weights sum to one; scale: of their sum.

        Raises:
            FormatError: tensors that do not go together, or an unknown scoring.
        """

    def forward(
        self,
        x: NDArray[np.float32],
        activations: str = "int8",
        observer: Observer | None = None,
    ) -> None:
        """Adds the block's output to `x`, float32 `[n, d]` contiguous, in place.

        Raises:
            UsageError: x is not contiguous.
            FormatError: shapes that do not fit together.
        """

    @property
    def experts(self) -> int:
        """How many routed experts there are; 0 in a dense block."""

    def forward_part(
        self,
        x: NDArray[np.float32],
        sums: NDArray[np.float32],
        first: int,
        end: int,
        *,
        last: bool,
        activations: str = "int8",
        observer: Observer | None = None,
    ) -> None:
        """Adds what experts `first` to `end` give to `sums`, float32 `[n, d]` contiguous, in place; zeros at first.

        With the `last` ones `sums` goes to `x`, and with it what all tokens pass; until then `x` stays. Parts in
        ascending order have the bits of :meth:`forward`.

        Raises:
            UsageError: an array is not contiguous.
            FormatError: shapes that do not fit together, or no such experts.
        """

    def show(
        self,
        x: NDArray[np.float32],
        first: int,
        end: int,
        observer: Observer,
        *,
        last: bool,
        hidden: bool,
        activations: str = "int8",
    ) -> None:
        """Shows what experts `first` to `end` would take in if `x` passed, with the `last` ones what all tokens pass, too.

        What gate and up take in, and with `hidden`, which multiplies them, down.

        Raises:
            UsageError: `x` is not contiguous.
            FormatError: shapes that do not fit together, or no such experts.
        """

@final
class Head:
    """Both ends of a model: embedding table, final norm and output matrix."""

    def __new__(cls, *, embedding: Tensor, norm: Tensor, output: Tensor, eps: float) -> Head:
        """Binds the weights: embedding and output `(vocab, d)`, norm `(d,)`."""

    def embed(self, tokens: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Hidden states float32 `[n, d]` of token ids uint32 `[n]`.

        Raises:
            UsageError: an id outside of the vocabulary.
        """

    def logits(
        self,
        x: NDArray[np.float32],
        activations: str = "int8",
        observer: Observer | None = None,
    ) -> NDArray[np.float32]:
        """Logits float32 `[n, vocab]` of hidden states float32 `[n, d]`, contiguous.

        Raises:
            UsageError: x is not contiguous.
            FormatError: x has another width.
        """

    def observe(self, x: NDArray[np.float32], observer: Observer) -> None:
        """Shows what the output matrix takes in for hidden states float32 `[n, d]`, without its product.

        Raises:
            UsageError: x is not contiguous.
            FormatError: x has another width.
        """

# -- the process -------------------------------------------------------------------------------------------

def cache_types() -> list[str]:
    """The types a cache can have, largest first."""

def after_fork() -> None:
    """Forgets the parent's threads; registered with ``os.register_at_fork``."""

def set_threads(n: int) -> None:
    """Computes with `n` threads from now on, in the whole process.

    Raises:
        UsageError: n is not within 1 to 4096.
    """

def threads() -> int:
    """Threads in use."""

def profile(on: bool) -> None:
    """Starts or stops recording what each operation takes, in the whole process. Off at first; recording costs
    some hundred nanoseconds per operation."""

def profile_take() -> list[tuple[str, int, int, int, int]]:
    """What was recorded since the last call: (operation, calls, nanoseconds, multiply-accumulates, bytes of
    weights) in the order in which operations first ran. The times do not overlap."""

def read_bandwidth(bytes: int = 1 << 30, passes: int = 5) -> float:
    """Bytes per second that all threads together read from a buffer of ``bytes``, the best of ``passes``.

    Raises:
        UsageError: there is no memory for the buffer.
    """

def isa() -> str:
    """The instruction set in use: the best this CPU has, or the lower one that KIZAMI_ISA names."""

def isa_levels() -> list[str]:
    """The instruction sets this build knows, lowest first, whether this CPU has them or not."""

def isa_available() -> list[str]:
    """The instruction sets this CPU can run, lowest first."""

def set_isa(name: str) -> None:
    """Uses the named instruction set from now on.

    Raises:
        UsageError: this CPU cannot run it, or there is none of that name.
    """
