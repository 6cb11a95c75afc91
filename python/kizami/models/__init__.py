"""One file per architecture, named like the GGUF architecture it implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kizami import _core
from kizami.errors import FormatError
from kizami.layers import Batch
from kizami.models import decoder, deepseek2, qwen2


class Architecture(Protocol):
    """What the engine asks of a model."""

    config: Any
    as_rows: tuple[str, ...]
    """Matrices whose rows are looked up, or that meet float activations: repacking them would not pay."""

    head: _core.Head
    layers: Sequence[decoder.Layer]
    """From first to last; :meth:`forward` is the head's embedding, all of them, and the head's logits."""

    def new_cache(self, cache_type: str) -> _core.Cache:
        """An empty cache for one sequence, of a type from `_core.cache_types()`."""
        ...

    def forward(self, batch: Batch) -> np.ndarray:
        """Logits ``[wanted tokens, vocab]`` of one step."""
        ...


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any], Mapping[str, _core.Tensor], str], Architecture]] = {
    "deepseek2": deepseek2.DeepSeek2,
    "qwen2": qwen2.Qwen2,
}


def build(metadata: Mapping[str, Any], tensors: Mapping[str, _core.Tensor], origin: str) -> Architecture:
    """The model that ``metadata`` describes, on the weights of ``tensors``.

    Raises:
        FormatError: the architecture is unknown, or a value or tensor is missing or wrong.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise FormatError(f"{origin}: general.architecture: found {name!r}, expected one of {known}")
    return ARCHITECTURES[name](metadata, tensors, origin)
