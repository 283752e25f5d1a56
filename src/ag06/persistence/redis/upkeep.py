"""Housekeeping: what is due is appended, what everybody is done with is trimmed, in bounded bites."""

from __future__ import annotations

from ag06.persistence.redis.wire import Wire

_TRIM_SECONDS = 10
_TRIM_ENTRIES = 10_000
"""Most entries to trim of one stream in one script call: some milliseconds of the server's time."""


class Upkeep:
    """The housekeeping of one log; of all processes that do it, one trims at a time."""

    def __init__(self, wire: Wire, retention: float) -> None:
        """Keep fully acknowledged events for `retention` seconds; 0: for ever."""
        self._wire = wire
        self._prefix = wire.address.prefix
        self._retention_ms = int(retention * 1000)
        self._cursors: dict[str, bytes] = {}

    async def run(self) -> None:
        """Append what is due; trim, if nobody did for a while."""
        await self._wire.run("promote")
        seconds = max(1, min(_TRIM_SECONDS * 1000, self._retention_ms or _TRIM_SECONDS * 1000))
        if not await self._wire.run_command("SET", f"{self._prefix}trimming", "1", "NX", "PX", seconds):
            return
        for event_type in await self._wire.run_command("HKEYS", f"{self._prefix}added"):
            trimmed = await self._wire.run("trim", event_type, self._retention_ms, _TRIM_ENTRIES)
            if trimmed:
                cursor = self._cursors.get(event_type, b"0")
                self._cursors[event_type] = await self._wire.run("tails", event_type, cursor)
