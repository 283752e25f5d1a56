"""Recycling: the graceful end of a worker after a number of events or at a size; its supervisor starts another one."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
from collections.abc import Callable, Mapping

import msgspec

from ag06.errors import ConfigurationError
from ag06.monitoring.resources import resident_bytes

_logger = logging.getLogger("ag06.runtime")
EVENTS_VARIABLE, MEMORY_VARIABLE = "AG06_RECYCLE_EVENTS", "AG06_RECYCLE_MEMORY"
"""How a supervisor passes the limits on to its workers."""
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


class Recycling:
    """Ends this process with SIGTERM, as an operator would, once a limit is reached.

    Attributes:
        reason: the limit that was reached, in words; `None` before.
    """

    def __init__(
        self, limits: Limits, settled: Callable[[], int], *, memory: Callable[[], int] = resident_bytes
    ) -> None:
        """Compare `limits` with the deliveries `settled` so far and the bytes of `memory` in use."""
        self._limits = limits.spread()
        self._settled = settled
        self._memory = memory
        self.reason: str | None = None

    async def watch(self) -> None:
        """Look twice a second until a limit is reached."""
        while self.reason is None:
            await asyncio.sleep(_LOOK_SECONDS)
            self.reason = self._limits.reached(self._settled(), self._memory())
        _logger.info("this worker is recycled: %s", self.reason)
        os.kill(os.getpid(), signal.SIGTERM)
