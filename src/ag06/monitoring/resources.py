"""What this process takes of the machine: processor time and memory. The only import of psutil, which is optional."""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

SHORTEST_SPAN = 0.1
"""Seconds; over less than that a share of processor time says nothing."""


class Resources(msgspec.Struct, frozen=True):
    """What the process took.

    Attributes:
        cpu_percent: of one core, since the sample before; above 100 where several threads compute at once.
        memory_mb: resident memory now, in millions of bytes.
    """

    cpu_percent: float
    memory_mb: float


def resident_bytes() -> int:
    """Return the resident memory of this process, from psutil, else from /proc, else the most it ever was."""
    try:
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        return _resident_without_psutil()
    return int(psutil.Process().memory_info().rss)


class ResourceMeter:
    """Measures this process from one call of `sample` to the next. Its child processes measure themselves."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        memory: Callable[[], int] = resident_bytes,
    ) -> None:
        """Begin now; the arguments tell seconds, seconds of processor time, and bytes."""
        self._wall = wall
        self._cpu = cpu
        self._memory = memory
        self._at = wall()
        self._used = cpu()
        self._percent = 0.0

    def sample(self) -> Resources:
        """Return the memory now and the share of a core since the last call, or that one's if it was a moment ago."""
        now, used = self._wall(), self._cpu()
        span = now - self._at
        if span >= SHORTEST_SPAN:
            self._percent = max(0.0, used - self._used) / span * 100
            self._at, self._used = now, used
        return Resources(self._percent, self._memory() / 1e6)


def _resident_without_psutil() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
