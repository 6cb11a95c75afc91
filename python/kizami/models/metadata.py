"""Typed, range-checked reading of an architecture's metadata keys. Knows no architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kizami.errors import FormatError


class Reader:
    """Reads ``{architecture}.{key}`` values.

    Every method takes a ``default``; without one, a missing key raises FormatError.
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str, origin: str) -> None:
        self._metadata = metadata
        self._prefix = architecture
        self._origin = origin

    def _get(self, key: str, expected: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            raise FormatError(f"{self._origin}: {self._prefix}.{key}: missing, expected {expected}")
        return value

    def _fail(self, key: str, value: Any, expected: str) -> FormatError:
        return FormatError(f"{self._origin}: {self._prefix}.{key}: found {value!r}, expected {expected}")

    def int(self, key: str, low: int, high: int, *, default: int | None = None, even: bool = False) -> int:
        """A whole number within ``low..=high``, even if asked."""
        expected = f"a{'n even' if even else ''} whole number from {low} to {high}"
        value = self._get(key, expected, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not low <= value <= high
            or (even and value % 2)
        ):
            raise self._fail(key, value, expected)
        return value

    def float(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number within ``low..=high``."""
        expected = f"a number from {low:g} to {high:g}"
        value = self._get(key, expected, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._fail(key, value, expected)
        if not math.isfinite(value) or not low <= value <= high:
            raise self._fail(key, value, expected)
        return float(value)

    def bool(self, key: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, "true or false", default)
        if not isinstance(value, bool):
            raise self._fail(key, value, "true or false")
        return value

    def str(self, key: str, *, default: str | None = None) -> str:
        """A text."""
        value = self._get(key, "a text", default)
        if not isinstance(value, str):
            raise self._fail(key, value, "a text")
        return value
