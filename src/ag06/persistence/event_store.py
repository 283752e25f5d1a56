"""`EventStore`: the facade `persistence`, one log behind it for each event loop that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from ag06.content import MAX_DATA_BYTES
from ag06.errors import Backpressure, ConfigurationError, InvalidEvent, OutcomeUnknown
from ag06.event import Event, Priority, to_millis
from ag06.knob import Knob
from ag06.monitoring.tracing import TRACING
from ag06.persistence.admission import Admission
from ag06.persistence.archive.compression import compression_level
from ag06.persistence.archive.retention import (
    Retention,
    RetentionKeeper,
    check_archive,
    check_lasting,
    check_retention,
    keeper_of,
)
from ag06.persistence.archive.run import Archived, Progress, archive_settled
from ag06.persistence.archive.selection import Selection
from ag06.persistence.archive.tiers import read_tiers
from ag06.persistence.journal.state import JournalState
from ag06.persistence.log import Appended, Durability, EventLog, LogOptions, LogStats, Record
from ag06.persistence.loops import LogsByLoop
from ag06.persistence.published import Published
from ag06.persistence.published import count as count_published
from ag06.persistence.stores import is_journaled, journal_letters, journal_state, locate, masked, open_log
from ag06.settings import check_count, check_seconds, located, resolve, seconds_of

if TYPE_CHECKING:
    from ag06.persistence.journal.dead_letters import JournalDeadLetters

Moment = dt.datetime | float | int
"""A point in time: an aware datetime, or seconds since the epoch."""

_logger = logging.getLogger("ag06.persistence")
_MOST_AHEAD = 86_400.0
_STORED = Appended.STORED
_EVENT_FIELDS = frozenset(Event.__struct_fields__) - {"type", "recorded"}


class _Settings(msgspec.Struct, frozen=True):
    """What a store is configured with."""

    url: str
    """As the user wrote it."""
    place: str
    """The same from the working directory of that moment on."""
    options: LogOptions
    retention: float | Retention | None
    dedup_window: float
    max_backlog: int
    max_event_bytes: int


class EventStore:
    """Persists events and reads them back, on the store that a URL names.

    One object serves a whole process: every event loop that uses it (in whatever thread) gets a log of its own on
    first use and closes it, and so does a child process after `fork`.
    """

    def __init__(self, store: str | None = None, **settings: Any) -> None:
        """Take the settings of `initialize` at once; nothing is opened before the first use."""
        self._settings: _Settings | None = None
        self._logs: LogsByLoop | None = None
        self._replaced: list[LogsByLoop] = []
        self._keeper: RetentionKeeper | None = None
        self._compression = compression_level()
        self._published = Published()
        if store is not None or settings:
            self.configure(store, **settings)

    def configure(
        self,
        store: str | None = None,
        *,
        durability: Durability | None = None,
        retention: float | Retention | None = None,
        dedup_window: float = 300.0,
        max_backlog: int = 0,
        max_event_bytes: int = MAX_DATA_BYTES,
        timeout: float = 10.0,
        journal: str | None = None,
    ) -> None:
        """Set what `initialize` sets, without opening anything."""
        _check_durability(durability)
        retention = _retention(retention)
        seconds, by_type, policies = check_retention(retention)
        check_seconds("timeout", timeout, "how long to wait for the store's answer", least=0.001, longest=86_400.0)
        check_count("max_backlog", max_backlog, 0, "events; 0 switches it off")
        admission = Admission(dedup_window, max_event_bytes)
        if store is not None and not isinstance(store, str):
            raise ConfigurationError(f"store={store!r}: a URL as text, such as sqlite:///events.db")
        url = resolve("store", store).value
        place = locate(url)
        if not _is_memory(url):
            for policy in policies:
                check_lasting(policy.archive)
        options = LogOptions(
            durability=durability,
            retention=seconds,
            retention_by_type=by_type,
            timeout=timeout,
            journal=_journal(journal),
        )
        settings = _Settings(url, place, options, retention, dedup_window, max_backlog, max_event_bytes)
        if settings == self._settings:
            return
        if self._logs is not None:
            self._replaced.append(self._logs)
        self.admission = admission
        self._max_backlog = max_backlog
        self._keeper = keeper_of(policies, self._compression)
        self._settings = settings
        self._logs = LogsByLoop(lambda: open_log(place, options))

    @property
    def url(self) -> str | None:
        """The store's URL without its password; `None` before `initialize`."""
        return None if self._settings is None else masked(self._settings.url)

    @property
    def has_journal(self) -> bool:
        """Whether events wait in a journal while the store is away."""
        return self._settings is not None and is_journaled(self._settings.url, self._settings.options)

    async def journal_state(self) -> JournalState | None:
        """Return how the journal of the running event loop stands; `None` where there is none. Asks no store."""
        return journal_state(await self.log()) if self.has_journal else None

    @property
    def journal_dead_letters(self) -> JournalDeadLetters:
        """Events that were published while the store was away and that it refused for good later.

        They are those of every process that keeps its journals in this directory for this store.

        Raises `ConfigurationError` where there is no journal.
        """
        settings = self._settings
        letters = None if settings is None else journal_letters(settings.url, settings.options)
        if letters is None:
            raise ConfigurationError(
                f"store {self.url or '(not open)'} has no journal: a local store needs none, and journal='off' is none"
            )
        from ag06.persistence.journal.dead_letters import JournalDeadLetters

        return JournalDeadLetters(letters, self.log)

    @property
    def journal_directory(self) -> str | None:
        """Where events wait while the store is away; `None` where there is no journal."""
        return self._settings.options.journal if self._settings is not None and self.has_journal else None

    def check(self) -> None:
        """Raise `ConfigurationError` if the URL names no store; nothing is opened."""
        if self._settings is not None:
            open_log(self._settings.url, self._settings.options)

    async def initialize(
        self,
        store: str | None = None,
        *,
        durability: Durability | None = None,
        retention: float | Retention | None = None,
        dedup_window: float = 300.0,
        max_backlog: int = 0,
        max_event_bytes: int = MAX_DATA_BYTES,
        timeout: float = 10.0,
        journal: str | None = None,
    ) -> None:
        """Open the store; needed once before anything else.

        Again with the same settings it changes nothing. With others it closes what is open and opens anew; the event
        loops of other threads do so at their next use.

        Args:
            store: its URL; `None`: `$AG06_STORE`, then `ag06.toml`, then `sqlite:///.ag06/events.db`.
            durability: `"server"`, `"fsync"` or `"replicated"`; `None`: the store's default.
            retention: seconds that acknowledged events stay, 0 for ever, or a `Retention` that archives them; `None`:
                `$AG06_ARCHIVE_AFTER` and `$AG06_DELETE_AFTER`, then `ag06.toml`, then the store's default.
            dedup_window: seconds in which an equal event is a duplicate; 0 switches deduplication off.
            max_backlog: events a step may be behind before publishing raises `Backpressure`; 0: no bound.
            max_event_bytes: largest data of an event, in bytes of JSON.
            timeout: seconds to wait for the store's answer.
            journal: the directory where events wait while a remote store is away, or `"off"`; `None`: `$AG06_JOURNAL`,
                then `ag06.toml`, then `.ag06/journal`.

        Raises:
            ConfigurationError: the URL is wrong, or the store cannot give the durability asked for.
            StoreUnavailable: the store cannot be reached, and has no journal to begin with.
        """
        self.configure(
            store,
            durability=durability,
            retention=retention,
            dedup_window=dedup_window,
            max_backlog=max_backlog,
            max_event_bytes=max_event_bytes,
            timeout=timeout,
            journal=journal,
        )
        try:
            await self.log()
        finally:
            await self._close_replaced()

    async def log(self) -> EventLog:
        """Return the log that belongs to the running event loop, opened on first use."""
        while True:
            logs = self._logs
            if logs is None:
                raise ConfigurationError("the event store is not open; call `await persistence.initialize()` first")
            log = logs.opened.get(asyncio.get_running_loop())
            if log is not None:
                return log
            log = await logs.open()
            if self._replaced:
                await self._close_replaced()
            if logs is self._logs:
                return log
            await logs.close()  # other settings came while it was opened

    async def persist_event(
        self,
        event_type: str,
        source: str,
        data: Any = None,
        priority: Priority | int | str = Priority.NORMAL,
        *,
        id: str | None = None,  # noqa: A002 - a name of the contract
        subject: str | None = None,
        idempotency_key: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        time: dt.datetime | None = None,
        durability: Durability | None = None,
        dedup: bool = True,
        delay: float | None = None,
        at: dt.datetime | None = None,
    ) -> str | None:
        """Store one event; return its id once it is durable, or `None` if it is a duplicate.

        `id` is one of the publisher's own: repeated with the same content it is returned again. `idempotency_key` says
        which events of a type and source are the same; without one their content says it, and `dedup=False` that none
        are. `correlation_id` is the event's own id unless given; `time` (aware) is when it happened, now unless given.
        `delay` (seconds) or `at` (aware) keep the event back, durably. `Event` describes the other fields.

        Raises `InvalidEvent` (a limit is broken, or the id is taken by other content), `Backpressure` (a step is
        `max_backlog` behind), `StoreUnavailable` (the store does not answer): nothing was stored. Raises
        `OutcomeUnknown` when the reply was lost: publish again with `id=error.event_id`.
        """
        if durability is not None:
            _check_durability(durability)
        trace, span = TRACING.start_send(event_type, traceparent)
        try:
            record = self._admission().admit(
                event_type,
                source,
                data,
                priority,
                id=id,
                subject=subject,
                idempotency_key=idempotency_key,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=traceparent,
                time=time,
                dedup=dedup,
                delay=delay,
                at=at,
                trace=trace,
            )
            log = await self.log()
            try:
                (outcome,) = await log.append((record,), durability=durability, max_backlog=self._max_backlog)
            except OutcomeUnknown as error:
                error.event_id = record.id
                raise
            stored = record.id if outcome is _STORED else self._outcome(record, outcome)
        except BaseException as error:
            self._published.failed(event_type, error)
            if span is not None:
                span.end(error, message_id=id)
            raise
        if outcome is _STORED:
            self._published.stored[record.type]()
        else:
            count_published(record.type, outcome)
        if span is not None:
            span.end(message_id=stored, conversation_id=correlation_id or stored)
        return stored

    async def persist_events(
        self, events: Iterable[Event[Any] | Mapping[str, Any]], *, durability: Durability | None = None
    ) -> list[str | None]:
        """Store many events in order; return for each its id, or `None` for a duplicate.

        A member is an `Event` (its id is kept) or a mapping of `persist_event`'s arguments. All are checked before
        any is stored. Where the store refuses a member (`Backpressure`, or `InvalidEvent` for an id that is taken by
        other content), those it did not refuse are stored; the call may be repeated.
        """
        return [event_id for event_id, _ in await self._append(events, durability)]

    async def merge_events(self, events: Iterable[Event[Any] | Mapping[str, Any]]) -> int:
        """Store many events that have ids, as `persist_events` does; return how many were not there yet."""
        return sum(outcome is _STORED for _, outcome in await self._append(events, None))

    async def _append(
        self, events: Iterable[Event[Any] | Mapping[str, Any]], durability: Durability | None
    ) -> list[tuple[str | None, Appended]]:
        _check_durability(durability)
        members = list(events)
        if not members:
            self._admission()
            return []
        trace, span = TRACING.start_send(_common_type(members), count=len(members))
        try:
            told = await self._append_members(members, trace, durability)
        except BaseException as error:
            if span is not None:
                span.end(error)
            raise
        if span is not None:
            span.end()
        return told

    async def _append_members(
        self, members: Sequence[Event[Any] | Mapping[str, Any]], trace: str, durability: Durability | None
    ) -> list[tuple[str | None, Appended]]:
        try:
            admission = self._admission()
            records = [_admit_member(admission, index, member, trace) for index, member in enumerate(members)]
            log = await self.log()
            try:
                outcomes = await log.append(records, durability=durability, max_backlog=self._max_backlog)
            except OutcomeUnknown as error:
                error.event_id = records[0].id
                raise
        except BaseException as error:
            for member in members:
                self._published.failed(_type_of(member), error)
            raise
        self._published.many(records, outcomes)
        return [
            (self._outcome(record, outcome, f"events[{index}]."), outcome)
            for index, (record, outcome) in enumerate(zip(records, outcomes, strict=True))
        ]

    def _admission(self) -> Admission:
        if self._settings is None:
            raise ConfigurationError("the event store is not open; call `await persistence.initialize()` first")
        return self.admission

    def _outcome(self, record: Record, outcome: Appended, where: str = "") -> str | None:
        if outcome is Appended.STORED or outcome is Appended.REPEATED:
            return record.id
        if outcome is not Appended.DUPLICATE:
            _refuse(record, outcome, self._max_backlog, where)
        return None

    async def replay(
        self,
        start: Moment | None = None,
        end: Moment | None = None,
        types: Sequence[str] | str | None = None,
        sources: Sequence[str] | str | None = None,
        correlation_id: str | None = None,
        limit: int | None = None,
        salvage: bool = False,
    ) -> AsyncIterator[Event[Any]]:
        """Yield stored events, archived ones too, in the order of the log, up to what was recorded when the call began.

        `[start, end)` is over `recorded`: aware datetimes or seconds since the epoch; `start` is floored to the
        millisecond. `types` and `sources` select by name, `limit` ends after so many events. Memory stays flat.

        Raises `ArchiveUnavailable` when an archive cannot be reached that holds events of the range, `ArchiveDamaged`
        (one of those) when a file of it is damaged; `salvage` reads on behind both, and logs what that was.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise InvalidEvent("limit", f"is {limit!r}; a whole number of events, or None")
        selection = Selection(
            start_ms=0 if start is None else _floor_ms("start", start),
            end_ms=None if end is None else _ceil_ms("end", end),
            types=_names("types", types),
            sources=_names("sources", sources),
            correlation_id=correlation_id,
        )
        if start is not None and end is not None and _micros("end", end) < _micros("start", start):
            raise InvalidEvent("end", f"{end} lies before start {start}; the range is [start, end)")
        if limit is not None and limit <= 0:
            return
        count, failure, span = 0, None, TRACING.again("replay")
        try:
            async with contextlib.aclosing(read_tiers(await self.log(), selection, salvage=salvage)) as pages:
                async for page in pages:
                    for _, event in page:
                        if span is not None:
                            span.link(event.traceparent)
                        count += 1
                        yield event
                        if count == limit:
                            return
        except Exception as error:
            failure = error
            raise
        finally:
            if span is not None:
                span.end(failure, count=count)

    async def replay_from(self, timestamp: Moment) -> list[Event[Any]]:
        """Return every event recorded at `timestamp` or later; for long ranges use `replay`, which streams."""
        return [event async for event in self.replay(start=timestamp)]

    async def archive_before(
        self,
        timestamp: Moment,
        url: str,
        types: Sequence[str] | str | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> Archived:
        """Move what was recorded before `timestamp` and is acknowledged by every step into the archive at `url`.

        Any URL of fsspec that leads to the folder by itself: `file:///var/ag06/archive`, `s3://bucket/folder`. Events
        leave the live log only after they were written, read back and compared; `replay` finds them in the archive from
        then on. What a killed run left is finished by the next one. `progress` is called now and then. Where another
        process archives this log, the call waits for its turn.

        Raises `InvalidEvent` (a moment more than a day ahead: milliseconds?), `ConfigurationError` (the URL, what is
        not installed, or a copy of this log archives there too) and `ArchiveUnavailable` (no permission, no space, not
        reachable, not read back as written): what is not archived then stays in the live log.
        """
        selected = _names("types", types)
        before_ms = _ceil_ms("timestamp", timestamp)
        _check_before(before_ms, timestamp)
        if check_archive(url).volatile and self._settings is not None and not _is_memory(self._settings.url):
            _logger.warning("archive %s is this process's memory: what moves there is gone when it ends", masked(url))
        archived = await archive_settled(
            await self.log(),
            before_ms,
            url,
            None if selected is None else sorted(selected),
            watch=progress,
            compression=self._compression,
        )
        return Archived(url) if archived is None else archived

    @property
    def keeper(self) -> RetentionKeeper | None:
        """Who archives and deletes as the `Retention` says; workers let it, about once a second."""
        return self._keeper

    @property
    def archive_compression(self) -> Knob | None:
        """The level of zstd at which the `Retention` archives, and `archive_before`; `None` where none archives."""
        return self._compression if self._keeper is not None and self._keeper.archives else None

    async def stats(self) -> LogStats:
        """Return how the log stands: events, duplicates refused, dead letters, what is due later, each step."""
        return await (await self.log()).stats()

    async def close(self) -> None:
        """Close what the running event loop has open of the store; what was accepted is finished first.

        Other threads' loops keep theirs, each closes its own. What loops that have ended left open is closed too. The
        settings stay: a later use opens it again.
        """
        logs = self._logs
        await self._close_replaced()
        if logs is not None:
            await logs.close()

    async def _close_replaced(self) -> None:
        """Close what the running loop has open with earlier settings."""
        for logs in list(self._replaced):
            await logs.close()
        self._replaced = [logs for logs in self._replaced if not logs.is_empty]


def _is_memory(store: str) -> bool:
    return store.startswith("memory:")


def _check_before(before_ms: int, given: Moment) -> None:
    """Refuse what would be everything by mistake: a moment a little ahead is usual, one in milliseconds is none."""
    if before_ms > (time.time() + _MOST_AHEAD) * 1000:
        raise InvalidEvent("timestamp", f"is {given!r}, more than a day ahead; seconds, not milliseconds?")


def _retention(given: float | Retention | None) -> float | Retention | None:
    """Return what is kept: as the code says; where it says nothing, as the settings do."""
    if given is not None:
        return given
    archive_after, delete_after = (seconds_of(resolve(name)) for name in ("archive_after", "delete_after"))
    if archive_after is None and delete_after is None:
        return None
    archive = resolve("archive").value or None
    return Retention(archive_after=archive_after, delete_after=delete_after, archive=archive)


def _journal(directory: str | None) -> str | None:
    if directory is not None and (not isinstance(directory, str) or not directory.strip()):
        raise ConfigurationError(f"journal={directory!r}: a directory as text, or 'off'")
    value = resolve("journal", directory).value
    return None if value.lower() == "off" else located(value)


def _check_durability(level: object) -> None:
    if level not in (None, "server", "fsync", "replicated"):
        raise ConfigurationError(f"durability={level!r}; use 'server', 'fsync' or 'replicated'")


def _type_of(member: object) -> object:
    if isinstance(member, Mapping):
        return member.get("event_type")
    return member.type if isinstance(member, Event) else None


def _common_type(members: Sequence[object]) -> str | None:
    """Return the type of all members, `None` where they differ."""
    first = _type_of(members[0])
    return first if isinstance(first, str) and all(_type_of(member) == first for member in members) else None


def _admit_member(admission: Admission, index: int, member: Event[Any] | Mapping[str, Any], trace: str) -> Record:
    arguments: Mapping[str, Any]
    if isinstance(member, Event):
        arguments = {field: getattr(member, field) for field in _EVENT_FIELDS} | {"event_type": member.type}
    elif isinstance(member, Mapping):
        arguments = {"data": None, **member}
    else:
        raise InvalidEvent(f"events[{index}]", f"must be an Event or a mapping, got {type(member).__name__}")
    try:
        return admission.admit(**arguments, trace=trace)
    except InvalidEvent as error:
        raise InvalidEvent(f"events[{index}].{error.field}", error.problem) from None
    except TypeError:
        if problem := _misfit(arguments):
            raise InvalidEvent(f"events[{index}]", problem) from None
        raise


def _misfit(arguments: Mapping[str, Any]) -> str | None:
    """Say which argument of a member `persist_event` does not take, or misses."""
    accepted = [name for name in inspect.signature(Admission.admit).parameters if name not in ("self", "trace")]
    for name in arguments:
        if name not in accepted:
            return f"unknown argument {name!r}; use {', '.join(accepted)}"
    missing = next((name for name in ("event_type", "source") if name not in arguments), None)
    return f"argument {missing!r} is missing" if missing else None


def _refuse(record: Record, outcome: Appended, max_backlog: int, where: str) -> NoReturn:
    if outcome is Appended.CLASH:
        raise InvalidEvent(
            f"{where}id", f"{record.id!r} is stored already with other content; leave id out or choose another"
        )
    raise Backpressure(
        f"a step that listens to {record.type!r} is max_backlog={max_backlog} events behind; "
        "publish again later, or add workers"
    )


def _names(field: str, value: Sequence[str] | str | None) -> frozenset[str] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise InvalidEvent(field, f"is {value!r}; a name, a list of names, or None")
    return frozenset(str.__str__(name) for name in names)


def _micros(field: str, moment: Moment) -> int:
    if isinstance(moment, dt.datetime):
        if moment.tzinfo is None:
            raise InvalidEvent(field, f"{moment.isoformat()} has no time zone; use datetime.now(timezone.utc)")
        return to_millis(moment) * 1000 + moment.microsecond % 1000
    if isinstance(moment, bool) or not isinstance(moment, (int, float)) or not abs(moment) <= 1e13:
        raise InvalidEvent(field, f"is {moment!r}; give an aware datetime or seconds since the epoch")
    return round(moment * 1_000_000)


def _floor_ms(field: str, moment: Moment) -> int:
    return max(0, _micros(field, moment) // 1000)


def _ceil_ms(field: str, moment: Moment) -> int:
    return max(0, -(-_micros(field, moment) // 1000))
