"""The model that an output in the making is, as far as it is written.

Knows how its tensors come from a plan and from bytes. Does not know who writes them, nor what it is run
for (passage.py, verify.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kizami import _core
from kizami.engine import Model
from kizami.gguf import scale_name
from kizami.memory import Cut
from kizami.models import Architecture, build
from kizami.plan import Plan


class Written(Mapping[str, _core.Tensor]):
    """The tensors of an output that is being written: right as soon as their bytes are.

    Args:
        plan: says what they are.
        read: the bytes of one of them.
    """

    def __init__(self, plan: Plan, read: Callable[[str], np.ndarray]) -> None:
        self._planned, self._read = {t.name: t for t in plan.tensors}, read

    def __getitem__(self, name: str) -> _core.Tensor:
        planned = self._planned[name]
        scales = None
        if planned.scales:
            scales = [one.reshape(1, 1) for one in self._read(scale_name(name)).view(np.float32)]
        return _core.Tensor(planned.type, planned.shape, [self._read(name)], scales)

    def __contains__(self, name: object) -> bool:
        return name in self._planned

    def __iter__(self) -> Iterator[str]:
        return iter(self._planned)

    def __len__(self) -> int:
        return len(self._planned)


class Output:
    """What runs the part of a model that is written.

    Args:
        model: the source.
        written: the tensors of the output, by name. Those of a layer are read when it is passed.
        cut: whether weights leave memory when they have been used.
        release: takes what was read of the output out of memory.

    Attributes:
        tensors: those that were given as ``written``.
    """

    def __init__(
        self,
        model: Model,
        written: Mapping[str, _core.Tensor],
        cut: Cut,
        release: Callable[[], None],
    ) -> None:
        self._model, self.tensors, self._cut, self._release = model, written, cut, release

    def decoder(self) -> Architecture:
        """Its blocks, to be asked for anew when more is written: norms are read when a model is built."""
        return build(self._model.source.metadata, self.tensors, str(self._model.source.path))

    def let_go(self) -> None:
        """Lets go of the pages of source and output, where memory is short."""
        self._cut.release(self._model.source)
        if self._cut.lean:
            self._release()
