"""Patience with a connection: an exchange ends when no byte has moved for a while, not when it is long."""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
from types import TracebackType
from typing import Any

_LOOKS = 4
"""How often to look at a connection while its patience lasts."""
_SLOWEST_LINK = 128 * 1024
_LONGEST_CARRY = 10.0


def carrying_time(size: int) -> float:
    """Return how many seconds a request of `size` bytes may be on its way behind this machine, where nothing is seen.

    A proxy takes it at once and passes it on as its link allows: 128 KiB a second are assumed, and at most 10 s.
    """
    return min(size / _SLOWEST_LINK, _LONGEST_CARRY)


class Meter:
    """Tells whether bytes move on an open connection, in either direction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count what `reader` is given from now on, and look at what waits behind `writer`."""
        self._received = 0
        self._ceiling = math.inf
        self._transport = writer.transport
        feed = reader.feed_data

        def counted(data: Any) -> None:
            self._received += len(data)
            feed(data)
            if self._received > self._ceiling:
                writer.transport.abort()

        reader.feed_data = counted  # type: ignore[method-assign]

    def allow(self, size: int | None) -> None:
        """Cut the connection once more than `size` bytes come from now on; `None`: however many."""
        self._ceiling = math.inf if size is None else self._received + size

    def read(self) -> tuple[int, int, int]:
        """Return figures that differ from the last ones if bytes have moved since.

        They are the bytes received, those that wait in this process, and those that wait in the operating system for
        the other side to take them, where the system tells that.
        """
        return self._received, self._transport.get_write_buffer_size(), _queued(self._transport)


def _queued(transport: asyncio.BaseTransport) -> int:
    """Return how many bytes the other side has not taken yet; 0 where the system does not count them."""
    sock = transport.get_extra_info("socket")
    queued = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    except (OSError, ValueError):  # this system does not count, or the socket is closed
        return 0
    return int.from_bytes(queued, sys.byteorder)


class Patience:
    """Ends what it encloses with `TimeoutError` once nothing has moved on a connection for some seconds.

    What it costs an exchange that ends soon is one timer: nothing is measured before a part of the time is over.
    """

    def __init__(self, meter: Meter, seconds: float) -> None:
        """Give up after `seconds` without progress."""
        self._meter = meter
        self._seconds = seconds
        self._figures: tuple[int, int, int] | None = None
        self._looks = 0
        self.moved_at = 0.0
        """When progress was last seen, by the loop's clock; 0: never."""

    async def __aenter__(self) -> Patience:
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds / _LOOKS, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _look(self) -> None:
        figures = self._meter.read()
        if self._figures is not None and figures != self._figures:
            self._looks, self.moved_at = 0, self._loop.time()
        else:
            self._looks += 1
        self._figures = figures
        if self._looks >= _LOOKS:
            self._limit.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(self._seconds / _LOOKS, self._look)
