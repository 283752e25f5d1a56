"""Time and chance: every source of them that the package uses, replaced in this one place.

Import this module before `ag06`: there many a default argument keeps the function itself. Outside a simulation the
replacements hand on to what they replace.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol


class Sources(Protocol):
    """Where a simulation takes time and chance from."""

    def wall(self) -> float:
        """Seconds since the epoch, as the process that asks sees them."""

    def monotonic(self) -> float:
        """Seconds since the simulation began."""

    def entropy(self, size: int) -> bytes:
        """So many random bytes."""


_sources: Sources | None = None
_time, _monotonic, _urandom = time.time, time.monotonic, os.urandom


def use(sources: Sources | None) -> None:
    """Take time and chance from `sources`, or from the system again."""
    global _sources
    _sources = sources


def _virtual_time() -> float:
    return _time() if _sources is None else _sources.wall()


def _virtual_monotonic() -> float:
    return _monotonic() if _sources is None else _sources.monotonic()


def _virtual_urandom(size: int) -> bytes:
    return _urandom(size) if _sources is None else _sources.entropy(size)


if "ag06" in sys.modules:
    raise ImportError("import simulation.clocks before ag06: its modules keep the clocks they find")
time.time, time.monotonic, os.urandom = _virtual_time, _virtual_monotonic, _virtual_urandom
