"""Events that a step gave up on: look at them, deliver them again, or delete them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from ag06.event import Event, decode_event, from_millis
from ag06.persistence.log import EventLog, Reason, StoredDeadLetter


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One event that a step gave up on, and why.

    Attributes:
        step: `workflow.step`.
        event: the event as it was published.
        reason: `"failed"` (attempts used up), `"rejected"` (`Reject`), `"invalid"` (data does not fit the step's
            type) or `"worker_died"` (it killed as many workers as it had attempts).
        error, message, traceback: the last error.
        attempts: how often it was tried.
        first_failed, last_failed: aware UTC.
    """

    step: str
    event: Event[Any]
    reason: Reason
    error: str
    message: str
    traceback: str
    attempts: int
    first_failed: dt.datetime
    last_failed: dt.datetime


def _open(letter: StoredDeadLetter) -> DeadLetter:
    failure = letter.failure
    return DeadLetter(
        step=letter.group,
        event=decode_event(letter.body, letter.recorded_ms),
        reason=failure.reason,
        error=failure.error_type,
        message=failure.message,
        traceback=failure.traceback,
        attempts=failure.attempts,
        first_failed=from_millis(failure.first_ms),
        last_failed=from_millis(failure.last_ms),
    )


async def list_dead_letters(log: EventLog, step: str | None = None, limit: int = 1000) -> list[DeadLetter]:
    """Return up to `limit` dead letters of a step (`workflow.step`), or of all; oldest first."""
    return [_open(letter) for letter in await log.dead_letters(step, limit)]


async def retry_dead_letters(log: EventLog, letters: Sequence[DeadLetter]) -> int:
    """Deliver each again to the step that gave up on it, with all its attempts; return how many were found."""
    return await log.retry_dead_letters([(letter.step, letter.event.id) for letter in letters])


async def discard_dead_letters(log: EventLog, letters: Sequence[DeadLetter]) -> int:
    """Delete dead letters for good; return how many were found."""
    return await log.discard_dead_letters([(letter.step, letter.event.id) for letter in letters])
