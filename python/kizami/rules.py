"""Rules: types that a person fixes for some tensors, whatever a budget or a uniform type says of the rest.

A *pin* is the type of the tensors whose names its pattern is found in; of several the first counts, as in
llama-quantize. A *floor* is a type that none of them may be coarser than; all floors hold, and a pin is above
them. Patterns are Python's regular expressions. Norms and the router become F32 whatever they say.

Knows names, shapes and formats; neither budgets nor errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kizami.errors import UsageError
from kizami.formats import TYPES, fitting, parse_type, quantizable


class Rules:
    """Pins and floors for the tensors of one model."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        pins: Mapping[str, str] | None = None,
        floors: Mapping[str, str] | None = None,
    ) -> None:
        """Checks them against the model.

        Args:
            shapes: of all tensors, by name.
            pins, floors: pattern to type.

        Raises:
            UsageError: a pattern is no regular expression or finds no tensor that may lose bits, or a type is
                unknown.
        """
        self._pins = _compiled("pin", pins or {}, shapes)
        self._floors = _compiled("floor", floors or {}, shapes)

    def __bool__(self) -> bool:
        return bool(self._pins or self._floors)

    def left(self, name: str, shape: tuple[int, ...], types: list[str]) -> list[str]:
        """Those of a tensor's types that the rules leave, at least one.

        Where rows do not divide into the blocks of a pinned type, :func:`kizami.formats.fallback` stands in
        for it; likewise for a floor that none of ``types`` reaches.
        """
        for pattern, pinned in self._pins:
            if pattern.search(name):
                return [fitting(pinned, shape)]
        floors = [floor for pattern, floor in self._floors if pattern.search(name)]
        if not floors:
            return types
        finest = max(floors, key=lambda floor: TYPES[floor]["bpw"])
        fine = [t for t in types if TYPES[t]["bpw"] >= TYPES[finest]["bpw"]]
        return fine or [fitting(finest, shape)]


def _compiled(
    rule: str, given: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(rule, pattern, shapes), _type(rule, pattern, name)) for pattern, name in given.items()]


def _type(rule: str, pattern: str, name: str) -> str:
    try:
        return parse_type(name)
    except UsageError as error:
        raise UsageError(f"{rule} {pattern!r}: {error}", hint=error.hint) from None


def _pattern(rule: str, pattern: str, shapes: Mapping[str, tuple[int, ...]]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{rule} {pattern!r}: not a regular expression: {error}") from None
    found = [name for name in shapes if compiled.search(name)]
    if not any(quantizable(name, shapes[name]) for name in found):
        what = f"only tensors that stay F32, such as {found[0]}" if found else "no tensor"
        raise UsageError(
            f"{rule} {pattern!r}: finds {what}, expected one that may lose bits",
            hint="kizami show lists the names of a model's tensors",
        )
    return compiled
