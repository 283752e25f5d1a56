"""Appends: concurrent callers share one script call a round trip. What gathers during one round goes into the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ag06.errors import AG06Error, OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Appended, Durability, Record
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.durability import check_waited, waiting_command
from ag06.persistence.redis.receipts import Call, Receipts
from ag06.persistence.redis.wire import Command, Wire

_CHUNK_RECORDS = 500
_CHUNK_BYTES = 1 << 20
_ROUND_CHUNKS = 8

_pack = msgspec.msgpack.Encoder().encode
_OUTCOMES = {48 + outcome.value: outcome for outcome in Appended}

Row = tuple[Any, ...]


def row(record: Record, max_backlog: int = 0) -> Row:
    """Return a record as the scripts expect it: all text, for the server's msgpack knows no binary type."""
    identity, content = record.identity, record.content
    return (
        record.type,
        record.level,
        record.subject,
        record.body.decode(),
        record.id,
        None if identity is None else identity.decode("latin-1"),
        record.window_ms,
        None if content is None else content.decode("latin-1"),
        record.due_ms,
        max_backlog,
    )


class _Waiting(msgspec.Struct, gc=False):
    """One caller's records and where its outcome goes."""

    rows: list[Row]
    size: int
    outcome: asyncio.Future[bytes]


class Lane:
    """Appends at one level of durability, over one connection."""

    def __init__(self, address: Address, timeout: float, level: Durability) -> None:
        """Append to the log at `address`; each round may take `timeout` seconds."""
        self._wire = Wire(address, timeout)
        self._level: Durability = level
        self._receipts = Receipts(self._wire)
        self._tail: Command | None = None
        self._checked = False
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._runner: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and check that the server can give the level; raise `StoreUnavailable`, `ConfigurationError`."""
        if not self._checked:
            self._tail = await waiting_command(self._wire, self._level)
            self._checked = True
        await self._wire.open()

    async def append(self, records: Sequence[Record], max_backlog: int) -> list[Appended]:
        """Return what became of each record, once the round that carried them is durable."""
        if not self._checked:
            await self.open()
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="ag06 redis append")
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        rows = [row(record, max_backlog) for record in records]
        self._queue.append(_Waiting(rows, sum(len(record.body) for record in records), outcome))
        self._arrived.set()
        self._idle.clear()
        return [_OUTCOMES[digit] for digit in await outcome]

    async def close(self) -> None:
        """Finish what was accepted, then disconnect."""
        await self._idle.wait()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        await self._wire.close()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            callers = self._gather()
            try:
                await self._round(callers)
            except AG06Error as error:
                _fail(callers, error)
            except asyncio.CancelledError:
                _fail(callers, OutcomeUnknown("the log was closed before the server's reply"))
                raise
            if not self._queue:
                self._arrived.clear()
                self._idle.set()

    def _gather(self) -> list[_Waiting]:
        callers: list[_Waiting] = []
        records = size = 0
        while self._queue and records < _CHUNK_RECORDS * _ROUND_CHUNKS and size < _CHUNK_BYTES * _ROUND_CHUNKS:
            waiting = self._queue.popleft()
            callers.append(waiting)
            records += len(waiting.rows)
            size += waiting.size
        return callers

    async def _round(self, callers: list[_Waiting]) -> None:
        rows = callers[0].rows if len(callers) == 1 else [row for waiting in callers for row in waiting.rows]
        chunks = list(_chunks(rows, sum(waiting.size for waiting in callers)))
        calls = [Call("append", (), (_pack(chunk),), tuple(row[4] for row in chunk)) for chunk in chunks]
        replies = await self._receipts.send(calls, self._tail)
        if self._tail is not None:
            check_waited(self._tail, replies.pop(), self._wire.address.shown)
        refusal = next((reply for reply in replies if isinstance(reply, Exception)), None)
        digits = b"".join(
            b"?" * len(chunk) if isinstance(reply, Exception) else reply
            for chunk, reply in zip(chunks, replies, strict=True)
        )
        at = 0
        for waiting in callers:
            own = digits[at : at + len(waiting.rows)]
            at += len(waiting.rows)
            if refusal is not None and b"?" in own:
                _fail([waiting], _refused(self._wire.explain(refusal), own))
            elif not waiting.outcome.done():
                waiting.outcome.set_result(own)


def _chunks(rows: list[Row], size: int) -> Iterable[list[Row]]:
    """Cut rows into pieces that one script call may carry: it must not hold the server for more than milliseconds."""
    if len(rows) <= _CHUNK_RECORDS and size <= _CHUNK_BYTES:
        yield rows
        return
    chunk: list[Row] = []
    filled = 0
    for one in rows:
        if chunk and (len(chunk) == _CHUNK_RECORDS or filled + len(one[3]) > _CHUNK_BYTES):
            yield chunk
            chunk, filled = [], 0
        chunk.append(one)
        filled += len(one[3])
    yield chunk


def _refused(error: AG06Error, digits: bytes) -> AG06Error:
    if digits.strip(b"?") and isinstance(error, StoreUnavailable):
        return OutcomeUnknown(f"{error}; a part of this call was stored before")
    return error


def _fail(callers: Sequence[_Waiting], error: AG06Error) -> None:
    for waiting in callers:
        if not waiting.outcome.done():
            # An exception of its own for each caller: tracebacks must not pile up on a shared one.
            waiting.outcome.set_exception(type(error)(*error.args))
