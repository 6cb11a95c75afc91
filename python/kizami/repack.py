"""Weights in the order products like: which are repacked when a model is loaded, and when that is worth it.

Repacked weights lie in memory of their own, sixteen rows side by side (`docs/kernels.md`): products return
the same bits and take less time, loading takes a little more. Files stay as they are.
Knows: the choice, the memory it takes. Does not know: the layout, models.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Iterator, Mapping

from kizami import _core, system
from kizami.errors import UsageError
from kizami.progress import Progress

CHOICES = ("auto", "always", "never")
# Of the memory that is free, what weights may take: the rest is for the cache and everybody else.
SHARE = 0.85


class Reads(Mapping[str, _core.Tensor]):
    """A mapping that remembers which of its tensors were asked for."""

    def __init__(self, source: Mapping[str, _core.Tensor]) -> None:
        self._source = source
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> _core.Tensor:
        tensor = self._source[name]
        self.names[name] = None
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def repacked(
    reads: Reads, as_rows: tuple[str, ...], choice: str, progress: Progress | None = None
) -> Mapping[str, _core.Tensor]:
    """The tensors a model reads, quantized matrices repacked if `choice` says so or memory allows it.

    Args:
        reads: the tensors that the model asked for when it was built.
        as_rows: parts that stay as they are (`token_embd`). An embedding that is also the output is repacked
            once more under the output's name.
        choice: ``"always"``, ``"never"``, or ``"auto"``: if the weights fit the memory that is free.
        progress: called with (stage, done, total), in megabytes, once this has taken a second.

    Returns:
        `reads` itself where nothing is repacked.

    Raises:
        UsageError: there is no such choice, or the machine has less memory than the weights take.
        MemoryError: the system gives no more memory.
    """
    if choice not in CHOICES:
        raise UsageError(f"repack: found {choice!r}, expected one of {', '.join(CHOICES)}")
    if choice == "never":
        return reads
    wanted = {name: reads[name] for name in reads.names if name.split(".")[-2] not in as_rows}
    if "output.weight" not in reads:
        wanted["output.weight"] = reads["token_embd.weight"]
    sizes = {
        name: size
        for name, tensor in wanted.items()
        if len(tensor.shape) > 1 and (size := tensor.repacked_nbytes) is not None
    }
    total = sum(sizes.values())
    if choice == "always" and total > system.memory():
        memory = system.memory()
        raise UsageError(
            f"repack: found weights that take {total} bytes, expected no more than the memory of {memory}",
            hint="--repack never leaves them in the file",
        )
    if not total or (choice == "auto" and total > SHARE * system.free_memory()):
        return reads
    done, made, began = 0, {}, time.perf_counter()
    for name, size in sizes.items():
        made[name] = wanted[name].repack()
        done += size
        if progress and time.perf_counter() - began > 1:
            # Rounded up, the last but one would look like the last.
            progress("repack MB", done // 10**6 if done < total else -(-total // 10**6), -(-total // 10**6))
    return ChainMap(made, reads)  # type: ignore[arg-type]  # nobody writes to it
