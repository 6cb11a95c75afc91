"""What the architectures have in common: two ends, a stack of layers, and shapes that are checked first.

Knows the order in which a decoder runs; which blocks its layers are made of is each model file's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kizami import _core
from kizami.errors import FormatError
from kizami.layers import Batch, Cache, FfnBlock, Gqa, Head, Mla

Shapes = dict[str, tuple[int, ...]]


class Layer:
    """Attention, then a feed-forward network; both add to the residual stream."""

    attention: Mla | Gqa
    feed_forward: FfnBlock

    def __call__(self, x: np.ndarray, batch: Batch) -> None:
        batch.attend(x, self.attention)
        batch.feed_forward(x, self.feed_forward)


class Decoder:
    """Embedding, layers, logits."""

    def __init__(
        self, config: Any, tensors: Mapping[str, _core.Tensor], layers: Iterable[Layer], cache_width: int
    ) -> None:
        """Binds weights; reads none of them yet.

        Args:
            config: with ``eps``, the norms' constant.
            tensors: of shapes that fit together.
            layers: from first to last.
            cache_width: numbers that a token leaves behind in each layer.
        """
        self.config = config
        embedding = tensors["token_embd.weight"]
        self.head = Head(
            embedding=embedding,
            norm=tensors["output_norm.weight"],
            output=tensors.get("output.weight", embedding),
            eps=config.eps,
        )
        self.layers: Sequence[Layer] = list(layers)
        self._cache_width = cache_width

    def new_cache(self, cache_type: str) -> Cache:
        """An empty cache for one sequence."""
        return Cache(len(self.layers), self._cache_width, cache_type)

    def forward(self, batch: Batch) -> np.ndarray:
        """Logits ``[wanted tokens, vocab]`` of one step."""
        x = batch.embed(self.head)
        for layer in self.layers:
            layer(x, batch)
        return batch.logits(x, self.head)


def check_shapes(tensors: Mapping[str, _core.Tensor], needed: Shapes, optional: Shapes, origin: str) -> None:
    """Compares the tensors' shapes (rows before columns) with those a model demands.

    Args:
        needed, optional: of the tensors that must be there, and of those that must fit if they are.

    Raises:
        FormatError: naming the first tensor that is missing or has another shape.
    """
    shapes = needed | {name: shape for name, shape in optional.items() if name in tensors}
    for name, shape in shapes.items():
        if name not in tensors:
            raise FormatError(f"{origin}: tensor {name}: missing, expected shape {list(shape)}")
        found = tuple(tensors[name].shape)
        if found != shape:
            raise FormatError(f"{origin}: tensor {name}: found shape {list(found)}, expected {list(shape)}")
    for name in tensors:
        # Those that fit a matrix are part of it, and no tensors of their own.
        if name.endswith(".scale"):
            tensor = tensors[name]
            raise FormatError(
                f"{origin}: tensor {name}: found {tensor.type} {list(tensor.shape)}, expected F32 beside the "
                "weight of that name, one for each of its matrices"
            )
