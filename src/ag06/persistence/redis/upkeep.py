"""Housekeeping: what is due is appended, what everybody is done with is trimmed, in bounded bites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ag06.errors import AG06Error
from ag06.persistence.log import Cut
from ag06.persistence.redis.reading import id_of, position_of
from ag06.persistence.redis.registry import Registry
from ag06.persistence.redis.wire import Wire

_TRIM_SECONDS = 10
_TRIM_ENTRIES = 10_000
"""About the most entries to trim of one stream in one script call: some milliseconds of the server's time."""
_BITES = 50
"""Script calls for one type in one run; others have their turn between two of them."""
_LATEST_MS = 1 << 42
_ABSENT_MS = 3_600_000
"""A worker that was not here for so long and holds nothing is forgotten."""


class Upkeep:
    """The housekeeping of one log; of all processes that do it, one trims at a time."""

    def __init__(self, wire: Wire, registry: Registry, retention: float, by_type: Mapping[str, float]) -> None:
        """Keep fully acknowledged events for `retention` seconds, or as `by_type` says; 0: for ever."""
        self._wire = wire
        self._registry = registry
        self._prefix = wire.address.prefix
        self._retention_ms = int(retention * 1000)
        self._by_type_ms = {event_type: int(seconds * 1000) for event_type, seconds in by_type.items()}
        self._cursors: dict[str, bytes] = {}

    async def run(self) -> None:
        """Append what is due; trim, if nobody did for a while."""
        for _ in range(_BITES):
            if await self._wire.run("promote") != 0:
                break
        times = [_TRIM_SECONDS * 1000, self._retention_ms, *self._by_type_ms.values()]
        turn_ms = min([millis for millis in times if millis > 0])
        if not await self._wire.run("turn", turn_ms):
            return
        failures: list[AG06Error] = []
        for raw in await self._wire.run_command("HKEYS", f"{self._prefix}added"):
            try:
                await self._trim(raw.decode())
            except AG06Error as error:  # one type that cannot be trimmed must not let the others grow
                failures.append(error)
        for group, event_type in await self._registry.types():
            await self._wire.run("forget", group, event_type, _ABSENT_MS)
        if failures:
            raise failures[0]

    async def settled(self, before_ms: int, types: Sequence[str] | None) -> list[Cut]:
        """Return up to where every group is done with each stream, where it has events before that; see the port."""
        known = sorted(raw.decode() for raw in await self._wire.run_command("HKEYS", f"{self._prefix}added"))
        return [
            Cut(event_type, int(level), position_of(below))
            for event_type in known
            if types is None or event_type in types
            for level, below in await self._wire.run("settled", event_type, min(max(before_ms, 0), _LATEST_MS))
        ]

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut, a bite in each call; return how many."""
        total = 0
        while count := await self._wire.run("drop", cut.type, cut.level, id_of(cut.below), _TRIM_ENTRIES):
            total += count
            self._cursors.setdefault(cut.type, b"0")
        await self._forget_subjects(cut.type)
        return total

    async def _trim(self, event_type: str) -> None:
        retention_ms = self._by_type_ms.get(event_type, self._retention_ms)
        for _ in range(_BITES):
            if not await self._wire.run("trim", event_type, retention_ms, _TRIM_ENTRIES):
                break
            self._cursors.setdefault(event_type, b"0")
        await self._forget_subjects(event_type)

    async def _forget_subjects(self, event_type: str) -> None:
        """Forget subjects whose last event is gone: a whole turn over all of them after something was trimmed."""
        for _ in range(_BITES):
            if event_type not in self._cursors:
                return
            cursor = await self._wire.run("tails", event_type, self._cursors.pop(event_type))
            if cursor != b"0":
                self._cursors[event_type] = cursor
