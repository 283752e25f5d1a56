"""Recycling: the graceful end of a worker after a number of events or at a size; its supervisor starts another one.

A worker that is recycled leaves a mark in the directory that it shares with its supervisor. Its exit code alone proves
nothing: code of the user may end a process with any code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from ag06.errors import ConfigurationError
from ag06.monitoring.resources import resident_bytes

_logger = logging.getLogger("ag06.runtime")
EVENTS_VARIABLE, MEMORY_VARIABLE = "AG06_RECYCLE_EVENTS", "AG06_RECYCLE_MEMORY"
"""How a supervisor passes the limits on to its workers."""
EARLY_SECONDS = 5.0
"""A worker that reaches a limit sooner than this after its start is a sign of a limit that is too low."""
_SUFFIX = ".recycled"
_LONGEST_NAME = 200
_LOOK_SECONDS = 0.5
_SPREAD = 0.2
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LEAST_MEMORY = 1 << 20


class Limits(msgspec.Struct, frozen=True):
    """When a worker is started afresh: after so many settled `events`, above so many bytes of `memory`; 0: never."""

    events: int = 0
    memory: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a worker of the limits."""
        return {EVENTS_VARIABLE: str(self.events), MEMORY_VARIABLE: str(self.memory)} if self else {}

    def __bool__(self) -> bool:
        return bool(self.events or self.memory)

    def spread(self, share: float | None = None) -> Limits:
        """Return limits that are lower by up to a fifth (`share`, 0 to 1, of it): workers do not end together."""
        factor = 1 - _SPREAD * (random.random() if share is None else share)  # noqa: S311 - jitter, not a secret
        # A lower limit on memory could lie below what a worker has at its start.
        return Limits(max(1, round(self.events * factor)) if self.events else 0, self.memory)

    def reached(self, events: int, memory: int) -> str | None:
        """Return the limit that a worker has reached, in words."""
        if self.events and events >= self.events:
            return f"{events} events settled, --max-events"
        if self.memory and memory >= self.memory:
            return f"{memory / 1e6:.0f} MB of memory in use, --max-memory"
        return None


def limits_of(environ: Mapping[str, str]) -> Limits:
    """Return the limits that a supervisor has set for this worker."""
    return Limits(int(environ.get(EVENTS_VARIABLE) or 0), int(environ.get(MEMORY_VARIABLE) or 0))


def read_size(text: str) -> int:
    """Return a size such as `512M`, `1.5G` or a number of bytes; K, M, G and T are powers of 1,024."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < _LEAST_MEMORY:
        raise ConfigurationError(f"--max-memory {text!r}; use a size of 1M or more, such as 512M or 1.5G")
    return size


def mark_recycled(directory: Path, worker: str) -> None:
    """Note that a worker ends because it has reached a limit; raise `OSError` where that cannot be written."""
    _mark(directory, worker).touch()


def take_mark(directory: Path, worker: str) -> bool:
    """Return whether a worker that has ended had noted that it is recycled; remove the note."""
    try:
        _mark(directory, worker).unlink()
    except OSError:
        return False
    return True


def _mark(directory: Path, worker: str) -> Path:
    return directory / (quote(worker, safe="")[:_LONGEST_NAME] + _SUFFIX)


class Recycling:
    """Ends this process with SIGTERM, as an operator would, once a limit is reached.

    Attributes:
        reason: the limit that was reached, in words; `None` before.
    """

    def __init__(
        self,
        limits: Limits,
        settled: Callable[[], int],
        mark: Callable[[], None],
        *,
        memory: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Compare `limits` with the deliveries `settled` so far and the bytes of `memory` in use.

        `mark` tells the supervisor, before the end begins.
        """
        self._limits = limits.spread()
        self._settled = settled
        self._mark = mark
        self._memory = memory
        self._clock = clock
        self._began = clock()
        self.reason: str | None = None

    async def watch(self) -> None:
        """Look twice a second until a limit is reached."""
        while self.reason is None:
            await asyncio.sleep(_LOOK_SECONDS)
            self.reason = self.look()
        _logger.info("this worker is recycled: %s", self.reason)
        try:
            self._mark()
        except OSError as error:
            _logger.warning("the supervisor will take this for an unexpected end: its directory fails: %s", error)
        os.kill(os.getpid(), signal.SIGTERM)

    def look(self) -> str | None:
        """Return the limit that is reached by now, in words; warn of one of memory that leaves no room to work."""
        memory = self._memory()
        lived = self._clock() - self._began
        limit = self._limits.memory
        if limit and memory >= limit and lived < EARLY_SECONDS:
            _logger.warning(
                "--max-memory of %.0f MB is too low: %.1f s after its start this worker has %.0f MB; it is started "
                "afresh, each time after a longer pause",
                limit / 1e6,
                lived,
                memory / 1e6,
            )
        return self._limits.reached(self._settled(), memory)
