"""Events that a step gave up on: look at them, deliver them again, or delete them."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypedDict, Unpack, get_args

import msgspec

from ag06.errors import ConfigurationError
from ag06.event import Event, from_millis, read_event
from ag06.monitoring.traceparent import MOST_LINKS, is_sampled
from ag06.monitoring.tracing import TRACING
from ag06.persistence.log import EventLog, Reason, StoredDeadLetter

_PAGE = 200
_REASONS = get_args(Reason)


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


class Filters(TypedDict, total=False):
    """Which dead letters are meant; all that is given must hold.

    `step`: of this step. `type`: events of this type. `reason`, `error`: as in `DeadLetter`; `error` may be the class
    itself, and is its name. `since`, `until`: the last attempt failed in `[since, until)`, aware datetimes or seconds
    since the epoch. `ids`: these events.
    """

    step: str | None
    type: str | None
    reason: str | None
    error: str | type[BaseException] | None
    since: dt.datetime | float | None
    until: dt.datetime | float | None
    ids: Iterable[str] | None


class DeadLetters:
    """The dead letters of a workflow, or of a whole store. Reading takes pages, so there may be any number of them."""

    def __init__(self, log: Callable[[], Awaitable[EventLog]], workflow: str | None = None) -> None:
        """Look in the log that `log` returns, for `workflow` alone where one is given."""
        self._log = log
        self._workflow = workflow

    async def read(self, **filters: Unpack[Filters]) -> AsyncIterator[DeadLetter]:
        """Yield those that the filters name, oldest first.

        Raises `ConfigurationError` for a filter that nothing can match, such as a step that the store does not know.
        """
        group, chosen = self._chosen(filters)
        log = await self._log()
        after = ""
        while page := await log.dead_letters(group, _PAGE, after):
            after = page[-1].place
            for stored in page:
                letter = _open(stored)
                if chosen(letter):
                    yield letter
        if group is not None and not after and group not in {known.group for known in await log.groups()}:
            raise ConfigurationError(f"the store knows no step {group!r}; see: ag06 steps list")

    async def list(self, limit: int = 1000, **filters: Unpack[Filters]) -> list[DeadLetter]:
        """Return up to `limit` of them, 1 or more, oldest first."""
        if not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"dead letters: limit={limit!r}; a whole number, 1 or more")
        found: list[DeadLetter] = []
        async for letter in self.read(**filters):
            found.append(letter)
            if len(found) >= limit:
                break
        return found

    async def retry(self, **filters: Unpack[Filters]) -> int:
        """Deliver those that the filters name now again, each to the step that gave up on it; return how many.

        An event keeps its id and its correlation and has all its attempts again. Not counted: those whose step was
        removed from the store or listens to another type now, and those that somebody else took meanwhile.
        """
        keys: list[tuple[str, str]] = []
        origins = _Origins()
        async for letter in self.read(**filters):
            keys.append((letter.step, letter.event.id))
            origins.add(letter.event)
        return await _retry(await self._log(), keys, origins)

    async def discard(self, **filters: Unpack[Filters]) -> int:
        """Delete those that the filters name now for good; the events stay in the log. Return how many."""
        return await discard_keys(await self._log(), await self.keys(**filters))

    async def keys(self, **filters: Unpack[Filters]) -> Sequence[tuple[str, str]]:
        """Return step and event id of those that the filters name: these fit into memory where letters do not."""
        return [(letter.step, letter.event.id) async for letter in self.read(**filters)]

    def _chosen(self, filters: Filters) -> tuple[str | None, Callable[[DeadLetter], bool]]:
        """Return the group to ask the store for, if it is one, and the test for the rest of the filters."""
        unknown = sorted(filters.keys() - Filters.__annotations__.keys())
        if unknown:
            raise ConfigurationError(
                f"dead letters: no filter {unknown[0]!r}; use {', '.join(Filters.__annotations__)}"
            )
        group, kind = self._group(filters.get("step")), _name("type", filters.get("type"))
        reason, error = filters.get("reason"), filters.get("error")
        if reason is not None and reason not in _REASONS:
            raise ConfigurationError(f"dead letters: reason={reason!r}; use one of {', '.join(_REASONS)}")
        if isinstance(error, type) and issubclass(error, BaseException):
            error = error.__name__
        error = _name("error", error)
        since, until = _moment("since", filters.get("since")), _moment("until", filters.get("until"))
        if since is not None and until is not None and since > until:
            raise ConfigurationError(
                f"dead letters: since={since.isoformat()} is later than until={until.isoformat()}; the other way round?"
            )
        wanted = _ids(filters.get("ids"))

        def chosen(letter: DeadLetter) -> bool:
            return (
                (self._workflow is None or letter.step.startswith(f"{self._workflow}."))
                and (kind is None or letter.event.type == kind)
                and (reason is None or letter.reason == reason)
                and (error is None or letter.error == error)
                and (since is None or letter.last_failed >= since)
                and (until is None or letter.last_failed < until)
                and (wanted is None or letter.event.id in wanted)
            )

        return group, chosen

    def _group(self, step: object) -> str | None:
        """Return the full name of a step, which may be given without the workflow that is looked at."""
        group = _name("step", step)
        if group is None or self._workflow is None or group.startswith(f"{self._workflow}."):
            return group
        if "." in group:
            raise ConfigurationError(f"dead letters: step={group!r} is not one of the workflow {self._workflow!r}")
        return f"{self._workflow}.{group}"


def _name(what: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        kind = "text, or the class of an exception" if what == "error" else "text"
        raise ConfigurationError(f"dead letters: {what}={value!r}; give {kind}, not empty")
    return value


def _ids(ids: object) -> frozenset[str] | None:
    if ids is None:
        return None
    wanted = [ids] if isinstance(ids, str) else list(ids) if isinstance(ids, Iterable) else None
    if wanted is None or not all(isinstance(event_id, str) for event_id in wanted):
        raise ConfigurationError(f"dead letters: ids={ids!r}; ids of events as text, such as ids=[event.id]")
    return frozenset(wanted)


def _moment(name: str, moment: dt.datetime | float | None) -> dt.datetime | None:
    if isinstance(moment, dt.datetime):
        if moment.tzinfo is None:
            raise ConfigurationError(
                f"dead letters: {name}={moment.isoformat()} has no time zone; use datetime.now(timezone.utc)"
            )
        return moment
    if moment is None:
        return None
    try:
        return from_millis(round(moment * 1000))
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(
            f"dead letters: {name}={moment!r}; an aware datetime or seconds since the epoch"
        ) from None


def _open(letter: StoredDeadLetter) -> DeadLetter:
    failure = letter.failure
    return DeadLetter(
        step=letter.group,
        event=read_event(letter.body, letter.recorded_ms),
        reason=failure.reason,
        error=failure.error_type,
        message=failure.message,
        traceback=failure.traceback,
        attempts=failure.attempts,
        first_failed=from_millis(failure.first_ms),
        last_failed=from_millis(failure.last_ms),
    )


class _Origins:
    """What a trace says of the events that are delivered again: their type, if it is one, and their own traces."""

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.traces: list[str] = []

    def add(self, event: Event[Any]) -> None:
        self.types.add(event.type)
        if is_sampled(event.traceparent) and event.traceparent is not None and len(self.traces) < MOST_LINKS:
            self.traces.append(event.traceparent)


async def _retry(log: EventLog, keys: Sequence[tuple[str, str]], origins: _Origins) -> int:
    """Deliver again, and record it as one operation, linked to the traces of the events."""
    span = TRACING.again("retry", next(iter(origins.types)) if len(origins.types) == 1 else None)
    if span is None:
        return await retry_keys(log, keys)
    for trace in origins.traces:
        span.link(trace)
    try:
        count = await retry_keys(log, keys)
    except BaseException as error:
        span.end(error)
        raise
    span.end(count=count)
    return count


async def list_dead_letters(log: EventLog, step: str | None = None, limit: int = 1000) -> list[DeadLetter]:
    """Return up to `limit` dead letters of a step (`workflow.step`), or of all; oldest first."""
    return [_open(letter) for letter in await log.dead_letters(step, limit)]


async def retry_dead_letters(log: EventLog, letters: Sequence[DeadLetter]) -> int:
    """Deliver each again to the step that gave up on it, with all its attempts; return how many were found."""
    origins = _Origins()
    for letter in letters:
        origins.add(letter.event)
    return await _retry(log, [(letter.step, letter.event.id) for letter in letters], origins)


async def discard_dead_letters(log: EventLog, letters: Sequence[DeadLetter]) -> int:
    """Delete dead letters for good; return how many were found."""
    return await discard_keys(log, [(letter.step, letter.event.id) for letter in letters])


async def retry_keys(log: EventLog, keys: Sequence[tuple[str, str]]) -> int:
    """Deliver `(step, event id)` again, a bounded number in one operation of the store; return how many were found."""
    return sum([await log.retry_dead_letters(keys[at : at + _PAGE]) for at in range(0, len(keys), _PAGE)])


async def discard_keys(log: EventLog, keys: Sequence[tuple[str, str]]) -> int:
    """Delete `(step, event id)`, a bounded number in one operation of the store; return how many were found."""
    return sum([await log.discard_dead_letters(keys[at : at + _PAGE]) for at in range(0, len(keys), _PAGE)])
