"""The memory limit of the server, and how much memory it uses."""

from __future__ import annotations

import msgspec

from ag06.errors import AG06Error
from ag06.persistence.log import StoreFull
from ag06.persistence.redis.wire import Wire

_MB = 1 << 20  # as the server counts: `maxmemory 100mb`


class Memory(msgspec.Struct, frozen=True):
    """Bytes that a server uses, and its limit `maxmemory`; 0: it has none."""

    used: int
    limit: int

    @property
    def is_over(self) -> bool:
        """Whether the server is over its limit: it takes no new events then."""
        return 0 < self.limit < self.used

    def __str__(self) -> str:
        return f"it uses {_amount(self.used)} of {_amount(self.limit)} (maxmemory)"


async def read_memory(wire: Wire) -> Memory:
    """Ask the server of a connection; raise `StoreUnavailable` or what an error reply means."""
    text = await wire.run_command("INFO", "memory")
    lines = dict(line.partition(":")[::2] for line in text.decode().splitlines())
    return Memory(int(lines.get("used_memory", "0")), int(lines.get("maxmemory", "0")))


async def with_amounts(error: StoreFull, wire: Wire) -> StoreFull:
    """Return an error that names use and limit; the same one if the server does not tell them."""
    try:
        memory = await read_memory(wire)
    except AG06Error:
        return error
    if not memory.limit:
        return error
    return StoreFull(
        f"{wire.address.shown} is over its memory limit and takes no new events: {memory}; its workers go on and can "
        "drain it; shorten the retention, archive, or raise maxmemory; nothing was stored"
    )


def _amount(size: int) -> str:
    return f"{size:,} bytes ({size / _MB:.1f} MB)"
