"""What long work calls as it goes on: who listens, a terminal or a server, is nobody's business here."""

from __future__ import annotations

from collections.abc import Callable

# Called with (stage, steps done, steps in total).
Progress = Callable[[str, int, int], None]
