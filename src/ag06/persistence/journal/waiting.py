"""Events that wait in memory, because neither the store nor a disk can take them: their publishers wait with them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from ag06.errors import AG06Error, Backpressure
from ag06.persistence.log import Appended, Record
from ag06.persistence.own_error import own_error

MOST_EVENTS = 10_000
MOST_BYTES = 64 << 20


class Waiting(msgspec.Struct):
    """The records of one call, and the future of its outcome; `synced`: more than the server's word was asked for."""

    records: Sequence[Record]
    synced: bool
    outcome: asyncio.Future[list[Appended]]

    @property
    def size(self) -> int:
        """The bytes of its events."""
        return sum(len(record.body) for record in self.records)


class WaitingRoom:
    """A bounded queue of calls that are durable nowhere yet."""

    def __init__(self, most_events: int = MOST_EVENTS, most_bytes: int = MOST_BYTES) -> None:
        """Hold at most so many events and bytes of events."""
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._calls: deque[Waiting] = deque()
        self.events = 0
        self._bytes = 0

    async def wait(self, records: Sequence[Record], why: str, *, synced: bool) -> list[Appended]:
        """Wait until these records are durable somewhere; raise `Backpressure` at once if there is no room.

        A caller that is cancelled leaves its events here: they are stored later all the same.
        """
        call = Waiting(records, synced, asyncio.get_running_loop().create_future())
        if self.events and (
            self.events + len(records) > self._most_events or self._bytes + call.size > self._most_bytes
        ):
            raise Backpressure(
                f"the store is away and the journal cannot be written ({why}); {self.events} events wait in memory, "
                "which is all it holds; make room on the disk, or publish again later"
            )
        self._calls.append(call)
        self.events += len(records)
        self._bytes += call.size
        return await call.outcome

    def first(self) -> Waiting | None:
        """Return the call that has waited longest."""
        return self._calls[0] if self._calls else None

    def done(self, call: Waiting, outcomes: list[Appended]) -> None:
        """Take out the first call: its records are durable now."""
        self._take(call)
        if not call.outcome.done():
            call.outcome.set_result(outcomes)

    def refuse(self, call: Waiting, error: BaseException) -> None:
        """Take out the first call: the store does not take its records at all."""
        self._take(call)
        if not call.outcome.done():
            call.outcome.set_exception(error)

    def end(self, error: AG06Error) -> None:
        """Tell everyone that there is nothing to wait for any more."""
        while self._calls:
            call = self._calls[0]
            self._take(call)
            if not call.outcome.done():
                call.outcome.set_exception(own_error(error))

    def _take(self, call: Waiting) -> None:
        self._calls.remove(call)
        self.events -= len(call.records)
        self._bytes -= call.size
