"""Appends: concurrent callers share one script call a round trip. What gathers during one round goes into the next."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from ag06.errors import AG06Error, OutcomeUnknown, StoreUnavailable, TooLarge
from ag06.persistence.log import Appended, Disconnected, Durability, Record, StoreFull
from ag06.persistence.measuring import APPEND, begin
from ag06.persistence.own_error import own_error
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.durability import Sync, confirm, find_sync
from ag06.persistence.redis.memory_limit import with_amounts
from ag06.persistence.redis.receipts import Call, Doubt, Receipts
from ag06.persistence.redis.records import Chunk, cut_chunks, doubt
from ag06.persistence.redis.wire import Wire
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.persistence.redis")

_LANES = 2
"""Rounds under way at once, each over its own connection: one is prepared here while the server does the other."""
_SMALLEST_SHARE = 32
_LARGEST_ROUND = 2_000
_ROUND_BYTES = 4 << 20

_OUTCOMES = {48 + outcome.value: outcome for outcome in Appended}


class _Waiting(msgspec.Struct, gc=False):
    """One caller's records and where their outcome goes."""

    records: Sequence[Record]
    max_backlog: int
    outcome: asyncio.Future[bytes]


class _Lane:
    """One connection for rounds, and the task that does them."""

    def __init__(self, wire: Wire, doubts: list[Doubt]) -> None:
        self.wire = wire
        self.receipts = Receipts(wire, doubts)
        self.called = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Appender:
    """Appends at one level of durability."""

    def __init__(self, address: Address, timeout: float, level: Durability, longest: float | None = None) -> None:
        """Append to the log at `address`; give a round up after `timeout` seconds in which nothing moves.

        Where that was too soon, the next rounds have more time, up to `longest` seconds, until one succeeds.
        """
        self._level: Durability = level
        self._timeout = self._patience = timeout
        self._longest = max(timeout, longest or 0.0)
        doubts: list[Doubt] = []
        self._lanes = [_Lane(Wire(address, timeout), doubts) for _ in range(_LANES)]
        self._free = self._lanes[::-1]
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._sync: Sync | None = None
        self._checked = False
        self._closed = False

    async def open(self) -> None:
        """Connect and check that the server can give the level; raise `StoreUnavailable`, `ConfigurationError`."""
        wire = self._lanes[0].wire
        if not self._checked:
            self._sync = await find_sync(wire, self._level)
            self._checked = True
        await wire.open()

    async def append(self, records: Sequence[Record], max_backlog: int) -> list[Appended]:
        """Return what became of each record, once the round that carried them is durable."""
        if not self._checked:
            await self.open()
        if self._closed:
            raise StoreUnavailable("this log is closed; nothing was stored")
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(records, max_backlog, outcome)
        if len(self._free) == _LANES and not self._queue:
            await self._alone(self._free.pop(), waiting)
        else:
            self._queue.append(waiting)
            self._queued += len(records)
            if self._free:
                self._call(self._free.pop())
        return [_OUTCOMES[digit] for digit in await outcome]

    async def _alone(self, lane: _Lane, waiting: _Waiting) -> None:
        """Do a round in the caller's own task: where nobody else is, handing over would take longer than it saves."""
        self._idle.clear()
        self._under_way += len(waiting.records)
        try:
            await self._round(lane, [waiting])
        finally:
            self._under_way -= len(waiting.records)
            if self._queue:
                self._call(lane)
            else:
                self._set_free(lane)

    def _set_free(self, lane: _Lane) -> None:
        self._free.append(lane)
        if len(self._free) == _LANES:
            self._idle.set()

    def _call(self, lane: _Lane) -> None:
        self._idle.clear()
        if lane.task is None:
            lane.task = start_task(self._serve(lane), "ag06 redis append")
        lane.called.set()

    async def close(self) -> None:
        """Finish what was accepted, then disconnect."""
        self._closed = True
        await self._idle.wait()
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for lane in self._lanes:
            await lane.wire.close()

    def abandon(self) -> None:
        """Count the connections off: their event loop has ended."""
        for lane in self._lanes:
            lane.wire.abandon()

    async def _serve(self, lane: _Lane) -> None:
        while True:
            await lane.called.wait()
            callers, records = self._gather()
            if not callers:
                lane.called.clear()
                self._set_free(lane)
                continue
            self._under_way += records
            try:
                await self._rounds(lane, callers)
            except AG06Error as error:
                _fail(callers, error)
            except asyncio.CancelledError:
                _fail(callers, OutcomeUnknown("the log was closed before the server's reply"))
                raise
            except Exception as error:  # whatever was not foreseen, publishers must be told and the next ones served
                _logger.exception("an append failed")
                _fail(callers, OutcomeUnknown(f"an append failed ({error!r}); whether it was stored is unknown"))
            finally:
                self._under_way -= records

    def _gather(self) -> tuple[list[_Waiting], int]:
        """Take a fair share of what is outstanding, so that two lanes are busy in turn, not one after the other."""
        share = min(_LARGEST_ROUND, max(_SMALLEST_SHARE, (self._queued + self._under_way) // _LANES))
        callers: list[_Waiting] = []
        records = size = 0
        while self._queue and records < share and size < _ROUND_BYTES:
            waiting = self._queue.popleft()
            callers.append(waiting)
            records += len(waiting.records)
            size += len(waiting.records[0].body) * len(waiting.records)
        self._queued -= records
        return callers, records

    async def _rounds(self, lane: _Lane, callers: list[_Waiting]) -> None:
        """Do a round for all callers; if that is too large for the server, one for each, so that one fails alone."""
        try:
            await self._round(lane, callers)
        except TooLarge:
            if len(callers) == 1:
                raise
            for caller in callers:
                try:
                    await self._round(lane, [caller])
                except AG06Error as error:
                    _fail([caller], error)

    async def _round(self, lane: _Lane, callers: list[_Waiting]) -> None:
        began = begin()
        chunks = cut_chunks([(waiting.records, waiting.max_backlog) for waiting in callers])
        calls = [Call(chunk.script, (), chunk.arguments(), chunk.ids) for chunk in chunks]
        lane.wire.timeout = self._patience
        try:
            replies = await lane.receipts.send(calls, None if self._sync is None else self._sync.command)
            if self._sync is not None:
                await confirm(self._sync, lane.wire, replies.pop())
        except OutcomeUnknown as error:
            if not isinstance(error, Disconnected):  # a link may be slower than a proxy before it lets us see
                self._patience = min(self._longest, self._patience * 4)
            error.doubts = _doubts(lane.receipts, chunks)
            raise
        self._patience = self._timeout
        APPEND.done(began, sum([len(waiting.records) for waiting in callers]))
        refusal = await _first_refusal(lane.wire, replies)
        digits = b"".join(
            b"?" * len(chunk.records) if isinstance(reply, Exception) else reply
            for chunk, reply in zip(chunks, replies, strict=True)
        )
        at = 0
        for waiting in callers:
            own = digits[at : at + len(waiting.records)]
            at += len(waiting.records)
            if refusal is not None and b"?" in own:
                doubts = _doubts(lane.receipts, chunks)[at - len(own) : at]
                _fail([waiting], _refused(refusal, own, doubts))
            elif not waiting.outcome.done():
                waiting.outcome.set_result(own)


def _doubts(receipts: Receipts, chunks: Sequence[Chunk]) -> tuple[bytes, ...]:
    """Return, for each record of a round that ended in doubt, where its outcome can be found later."""
    latest = receipts.latest
    receipts.keep()
    return tuple(
        doubt(latest.slot(index), latest.number, place)
        for index, chunk in enumerate(chunks)
        for place in range(len(chunk.records))
    )


async def _first_refusal(wire: Wire, replies: Sequence[Any]) -> AG06Error | None:
    """Return what the first error among replies means."""
    reply = next((reply for reply in replies if isinstance(reply, Exception)), None)
    if reply is None:
        return None
    error = wire.explain(reply)
    return await with_amounts(error, wire) if isinstance(error, StoreFull) else error


def _refused(error: AG06Error, digits: bytes, doubts: tuple[bytes, ...]) -> AG06Error:
    if digits.strip(b"?") and isinstance(error, StoreUnavailable):
        return OutcomeUnknown(f"{error}; a part of this call was stored before", doubts=doubts)
    return error


def _fail(callers: Sequence[_Waiting], error: AG06Error) -> None:
    doubts = error.doubts if isinstance(error, OutcomeUnknown) else ()
    for waiting in callers:
        own, doubts = doubts[: len(waiting.records)], doubts[len(waiting.records) :]
        if not waiting.outcome.done():
            # An exception of its own for each caller: tracebacks must not pile up on a shared one.
            told = own_error(error)
            if isinstance(told, OutcomeUnknown):
                told.doubts = own
            waiting.outcome.set_exception(told)
