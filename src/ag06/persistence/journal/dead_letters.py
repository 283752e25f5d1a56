"""Dead letters of the journal as its users see them: look at them, send them again, or delete them."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from ag06.errors import ConfigurationError
from ag06.event import Event, decode_event, from_millis
from ag06.persistence.journal.dead_letter_file import Letter, Letters, RefusalReason, Retried, retry
from ag06.persistence.journal.log import JournaledLog
from ag06.persistence.log import EventLog

_UNBOUNDED = 1_000_000_000


class JournalDeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One event that was published while the store was away, and that the store refused for good later.

    Attributes:
        event: the event as it was published; `recorded` is when the journal took it.
        reason: `"refused"` (the store answers with an error), `"clash"` (it has another event with this id) or
            `"disconnected"` (the server closes the connection on this event alone).
        error, message: the last error.
        attempts: how often it was sent alone.
        first_failed, last_failed: aware UTC.
    """

    event: Event[Any]
    reason: RefusalReason
    error: str
    message: str
    attempts: int
    first_failed: dt.datetime
    last_failed: dt.datetime


class JournalDeadLetters:
    """The dead letters of the journals of one store in one directory, of all processes."""

    def __init__(self, letters: Letters, log: Callable[[], Awaitable[EventLog]]) -> None:
        """Look at `letters`; send them again to the log that `log` returns."""
        self.letters = letters
        self._log = log

    async def list(self, limit: int = 1000, ids: Iterable[str] | None = None) -> list[JournalDeadLetter]:
        """Return up to `limit` of them, oldest first; `ids`: of these events alone. Asks no store."""
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"dead letters of the journal: limit={limit!r}; a whole number, 1 or more")
        found = await self._find(limit, ids)
        return [_shown(letter) for letter in found]

    async def retry(self, ids: Iterable[str] | None = None) -> Retried:
        """Send them to the store again, oldest first, all or those of `ids`; what it takes is a dead letter no more.

        Each keeps its id and is stored once. Raises `StoreUnavailable` while the store is away; what was sent before
        is done.
        """
        numbers = None if ids is None else [letter.number for letter in await self._find(_UNBOUNDED, ids)]
        log = await self._log()
        if isinstance(log, JournaledLog):
            return await log.retry_letters(numbers)
        return await retry(log, self.letters, numbers, int(time.time() * 1000))

    async def discard(self, ids: Iterable[str] | None = None, *, all: bool = False) -> int:  # noqa: A002 - as elsewhere
        """Delete those of `ids` for good, or `all`; return how many there were. The events are in no log.

        Raises `ConfigurationError` unless exactly one of both is given.
        """
        if (ids is None) != all:
            raise ConfigurationError("dead letters of the journal: discard(ids) or discard(all=True)")
        numbers = [letter.number for letter in await self._find(_UNBOUNDED, ids)]
        return await asyncio.to_thread(self.letters.remove, numbers)

    async def _find(self, limit: int, ids: Iterable[str] | None) -> Sequence[Letter]:
        return await asyncio.to_thread(self.letters.list, limit, None if ids is None else list(ids))


def _shown(letter: Letter) -> JournalDeadLetter:
    refusal = letter.refusal
    return JournalDeadLetter(
        event=decode_event(letter.record.body, letter.record.persisted_ms),
        reason=refusal.reason,
        error=refusal.error,
        message=refusal.message,
        attempts=refusal.attempts,
        first_failed=from_millis(letter.first_ms),
        last_failed=from_millis(letter.last_ms),
    )
