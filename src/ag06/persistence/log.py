"""The log port: what every store must do, whatever it is made of.

An `EventLog` takes events and keeps them; a `Subscription` hands them to one step as deliveries and takes back what
became of each. Both speak of deliveries, never of offsets, so that a store that knows single messages (SQLite, Redis
Streams) and one that knows only offsets (Kafka) fit behind the same words. `tests/conformance` holds every adapter to
the contract written in these docstrings.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from ag06.errors import OutcomeUnknown, StoreUnavailable

Durability = Literal["server", "fsync", "replicated"]

AGEING_MS = 10_000
"""Waiting this long raises an event by one level of priority."""

MOST_NOTE_BYTES = 1024 * 1024
"""The largest note, in bytes."""


def dispatch_key(recorded_ms: int, level: int) -> int:
    """Return the sort key for dispatch, lowest first.

    An event of `level` that has waited w ms ranks as `level + w / AGEING_MS`. The order by that rank is the same at
    every instant, so it can be stored: it is the order by `recorded_ms - level * AGEING_MS`.
    """
    return recorded_ms - level * AGEING_MS


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the log, checked and encoded.

    Attributes:
        id, type, source, subject, correlation_id: as in `Event`.
        level: the priority, 0 to 3.
        body: the event as JSON, without `recorded`.
        identity: 16 bytes that another event must not share within `window_ms`; `None`: never compared.
        window_ms: how long the identity is remembered, in milliseconds.
        content: 16 bytes of the content where the publisher chose the id, to tell a repetition from a clash.
        due_ms: when to append it, in milliseconds since the epoch; 0: now.
        delay_ms: how long before `due_ms` that was asked for, in milliseconds; 0 where a time was given. A store whose
            clock is behind the publisher's waits no longer than this.
        persisted_ms: when a journal took it, in milliseconds since the epoch; 0: it comes from its publisher. Such a
            record is a repetition if its id is known, a duplicate if its identity was persisted less than `window_ms`
            before or after it, and its id is remembered for 7 days.
        doubt: for one that was tried before, what `OutcomeUnknown.doubts` said of it.
    """

    id: str
    type: str
    source: str
    level: int
    subject: str | None
    body: bytes
    identity: bytes | None = None
    window_ms: int = 0
    content: bytes | None = None
    due_ms: int = 0
    persisted_ms: int = 0
    doubt: bytes | None = None
    delay_ms: int = 0

    def due_by(self, now_ms: int) -> int:
        """Return when to append it by a clock that shows `now_ms`: a delay counts from then at the latest."""
        return min(self.due_ms, now_ms + self.delay_ms) if self.delay_ms else self.due_ms


class Disconnected(OutcomeUnknown):
    """The server closed the connection instead of replying: it is gone, or it does not take this very request."""


class Appended(enum.IntEnum):
    """What became of one record."""

    STORED = 0
    DUPLICATE = 1
    """Another record with this identity was appended within the window; nothing was stored."""
    REPEATED = 2
    """This id is stored already, with the same content; nothing was stored again."""
    CLASH = 3
    """This id is stored already, with other content; nothing was stored."""
    FULL = 4
    """The type's slowest step is `max_backlog` events behind; nothing was stored."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One event as it lies in the log. `position` grows along the log and is the store's own."""

    position: int
    recorded_ms: int
    body: bytes


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to read: `[start_ms, end_ms)` over `recorded`, of some types, at positions in `(after, below)`."""

    start_ms: int = 0
    end_ms: int | None = None
    types: tuple[str, ...] | None = None
    after: int = -1
    below: int | None = None
    level: int | None = None
    """Only this level of priority."""
    newest: int | None = None
    """Read only about this many of the newest events in the range: a hint for `events list`."""


class Cut(msgspec.Struct, frozen=True):
    """A part of the log that every step is done with: the events of one type and level at positions below `below`."""

    type: str
    level: int
    below: int


class StoreFull(StoreUnavailable):
    """The store is over its memory limit and takes no new events; it answers everything else and can be drained."""


class StepSpec(msgspec.Struct, frozen=True):
    """One step as the store must know it.

    Attributes:
        group: `workflow.step`, the name of its consumer group.
        type: what it listens to.
        start: where it begins if the store does not know it: `"beginning"`, `"end"`, milliseconds since the epoch (in
            the future: `"end"`), or
            `None`: at the beginning if the whole workflow is new to the store, else at the end.
    """

    group: str
    type: str
    start: Literal["beginning", "end"] | int | None = None


class GroupInfo(msgspec.Struct, frozen=True):
    """How a step stands.

    Attributes:
        backlog: events not yet acknowledged, in flight and waiting ones included.
        in_flight: deliveries that a worker holds, or that wait for a retry or for their subject.
        dead_letters: events that ended there.
        oldest_ms: when the oldest unacknowledged event was recorded, in milliseconds since the epoch.
    """

    group: str
    type: str
    backlog: int
    in_flight: int
    dead_letters: int
    oldest_ms: int | None = None

    def oldest_age(self, now: float) -> float:
        """Return the age of the oldest one in seconds, 0 if there is none; `now` is in seconds since the epoch."""
        return 0.0 if self.oldest_ms is None else max(0.0, now - self.oldest_ms / 1000)


class LogStats(msgspec.Struct, frozen=True):
    """How the log stands: events held, duplicates refused since it was made, events due later, steps."""

    events: int
    duplicates: int
    scheduled: int
    dead_letters: int
    groups: tuple[GroupInfo, ...]


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One event handed to one step, until it is settled.

    Attributes:
        token: the store's own name for it and for its lease, with a serial that grows with each hand-over.
        attempts: failed attempts before this one.
        first_failed_ms: when the first of them failed; 0: none did.
        deaths: workers that died while they were known to run this very event, less those that came back: it is
            negative where one came back whose start was not noted.
        suspect: a worker died or lost its lease holding it, though perhaps not because of it.
        lapsed: the last of them lost its lease, and may still live.
    """

    token: Any
    recorded_ms: int
    level: int
    body: bytes
    ordered: bool = False
    attempts: int = 0
    first_failed_ms: int = 0
    deaths: int = 0
    suspect: bool = False
    lapsed: bool = False

    @property
    def key(self) -> int:
        """The sort key for dispatch, lowest first."""
        return dispatch_key(self.recorded_ms, self.level)

    @property
    def name(self) -> str:
        """The event's name within its group, as `EventLog.vouch` takes it: the same in each hand-over."""
        if isinstance(self.token, tuple):
            return str(self.token[0])
        return str(self.token).partition("#")[0]  # a serial of the lease follows it


Reason = Literal["failed", "rejected", "invalid", "worker_died"]


class Failure(msgspec.Struct, frozen=True):
    """Why a delivery failed, as it is kept with a dead letter."""

    reason: Reason
    error_type: str
    message: str
    traceback: str
    attempts: int
    first_ms: int
    last_ms: int


class Acknowledge(msgspec.Struct, frozen=True, gc=False):
    """The deliveries are done; `outputs` enter the log in the same atomic operation, or not at all."""

    deliveries: tuple[Delivery, ...]
    outputs: tuple[Record, ...] = ()


class Postpone(msgspec.Struct, frozen=True):
    """Deliver again after `delay_ms`, with so many failed `attempts` to its account.

    One more attempt than before shows that this worker ran the event and lives: it is no suspect any more. What was
    not even tried stays one, and is `lapsed` no more: its worker had this delay to come back.
    """

    delivery: Delivery
    delay_ms: int
    attempts: int
    first_failed_ms: int


class Bury(msgspec.Struct, frozen=True):
    """Move the delivery to the dead letters."""

    delivery: Delivery
    failure: Failure


Settlement = Acknowledge | Postpone | Bury


def deliveries_of(settlement: Settlement) -> Sequence[Delivery]:
    """Return the deliveries that a settlement is about."""
    return settlement.deliveries if isinstance(settlement, Acknowledge) else (settlement.delivery,)


class StoredDeadLetter(msgspec.Struct, frozen=True):
    """One event that a step gave up on.

    `place` is where it stands among all dead letters, oldest first; it keeps its place until it is retried or
    discarded. It is the store's own.
    """

    group: str
    event_id: str
    recorded_ms: int
    body: bytes
    failure: Failure
    place: str = ""


class Subscription(Protocol):
    """One step's end of the log, in one worker. Not shared between event loops."""

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return up to `limit` deliveries, by `dispatch_key`; wait up to `wait` seconds for the first one.

        A delivery belongs to this worker until it is settled, released, or not renewed for the visibility timeout. Of
        events that share a subject, the later one is not handed out before the earlier one is settled, by whichever
        worker. May return nothing early. Raises nothing for a store that is away: it reconnects with backoff.
        """
        ...

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; each settlement is one atomic operation in the store.

        Returns, for each, whether it was accepted: `False` if this worker no longer has the lease that one of its
        deliveries was handed out with (it was taken over, and may have come back since, or it was settled); then
        nothing of that settlement was done. The other operations pass over such a delivery. Raises `Unstorable`,
        with the answers so far, at a settlement that the store refuses however often it is repeated.
        """
        ...

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        """Note durably that these run now, so that a death of this worker counts against them."""
        ...

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        """Report that this worker lives, and ran these until after it had lost them (`attempts=0`: did not run them).

        For each that is still open and that this worker holds no more, the death charged to it is taken back (`deaths`,
        not below -1) and so many failed `attempts` are added. It is not idempotent: do not repeat it.
        """
        ...

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back, unharmed, to be handed out at once to whoever asks."""
        ...

    def renew(self) -> None:
        """Extend the lease of everything this subscription holds. Blocking; called from a thread of its own."""
        ...

    async def close(self) -> None:
        """Give back everything still held and leave the group; from now on `fetch` returns nothing."""
        ...


class EventLog(Protocol):
    """A durable, ordered log of events with consumer groups."""

    async def open(self) -> None:
        """Connect, create what is missing, check that the store can give the durability asked for."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and disconnect."""
        ...

    def abandon(self) -> None:
        """Let go of threads and files without waiting: the event loop that the log belongs to has ended."""
        ...

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        """Append records in order; return when they are durable. Check and append are one atomic operation each.

        Raises `StoreUnavailable` when nothing was stored, `StoreFull` where the store refuses nothing but that, and
        `OutcomeUnknown` when it cannot be known; its `doubts` then let a later append of the same records find out, as
        `Record.doubt`.
        """
        ...

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make the steps known; idempotent. A known step that listens to another type now is a `ConfigurationError`."""
        ...

    def subscribe(self, group: str, worker: str, visibility: float) -> Subscription:
        """Return `worker`'s end for a registered group; leases last `visibility` seconds unless renewed."""
        ...

    async def release_worker(self, worker: str) -> int:
        """Hand out again, at once, what a worker held that is known to be dead; return how many deliveries."""
        ...

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None = None,
        groups: Collection[str] | None = None,
    ) -> int:
        """Renew the leases of a worker that is known to live and cannot do it.

        `visibility` in seconds is what the worker leases with; a store that has it from the worker itself uses that.
        `groups` are those in which the worker takes part, `None`: not known. One that fails does not stop the others.

        Without `running` of everything it holds; else of those deliveries alone, `Delivery.name` by group: the others
        are given back, unharmed, to be handed out at once. Returns how many that were.
        """
        ...

    def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events in the order of the log, up to what was recorded when the call began."""
        ...

    async def groups(self) -> list[GroupInfo]:
        """Return every step the store knows."""
        ...

    async def remove_group(self, group: str) -> bool:
        """Forget a step: its place, its waiting deliveries, its hold on the log. Its dead letters stay."""
        ...

    async def pending(self, groups: Sequence[str]) -> int:
        """Return how many events these groups have not acknowledged, plus all events that are due later."""
        ...

    async def stats(self) -> LogStats:
        """Return how the log stands."""
        ...

    async def dead_letters(
        self, group: str | None = None, limit: int = 1000, after: str = ""
    ) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters, oldest first, that stand behind the place `after`."""
        ...

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver `(group, event id)` again to that group alone, attempts at zero; return how many were found.

        It goes to the end of its subject: behind what is in the log now and not settled, before what comes later. Not
        found, and left where it is: one whose group is not known or listens to another type. One whose event the
        group has still before it is found and not delivered twice.
        """
        ...

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters for good; return how many were found."""
        ...

    async def settled(self, before_ms: int, types: Sequence[str] | None = None) -> list[Cut]:
        """Return what was recorded before `before_ms` and is acknowledged by every step of its type.

        Only types and levels that have such events are named. A type without a step is settled as far as it goes. No
        cut covers what is appended later.
        """
        ...

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut, in bounded bites that let others have their turn; return how many.

        What a step has not acknowledged stays, though it was settled when the cut was made: a step that was registered
        since, with a start before the cut, finds what is still there. A store may keep the newest event of the log.
        Positions and the memory of chosen ids live on.
        """
        ...

    async def archives(self) -> list[str]:
        """Return the URLs of the archives that hold events of this log, in the order they were added."""
        ...

    async def add_archive(self, url: str) -> None:
        """Remember, at the log's level of durability, that an archive holds events of this log; idempotent."""
        ...

    async def remove_archive(self, url: str) -> None:
        """Forget an archive, at the log's level of durability; idempotent."""
        ...

    async def write_note(self, name: str, body: bytes | None) -> None:
        """Keep `body` under `name` at the log's level of durability, in place of what was there; `None` removes it.

        Notes are for what the processes of a log share besides events: a small state that is replaced as a whole. The
        last write counts. A write that raised `OutcomeUnknown` may still come, but never after a later one of this
        log object. No journal takes notes: while the store is away this raises `StoreUnavailable`.

        Raises `InvalidEvent` for a name that `check_name` refuses (1 to 255 bytes, no control characters) and for a
        body of more than `MOST_NOTE_BYTES`. A store that knows only topics keeps notes in a compacted one, the name as
        the key, and a tombstone for `None`.
        """
        ...

    async def read_note(self, name: str) -> bytes | None:
        """Return what was last written under `name`, by whichever process; `None` if nothing is there.

        Cheap enough to be asked every second by every worker. Never answered by a replica, which may lag behind.
        """
        ...

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        """Take or renew the leadership of a role for `seconds`, 0: give it up; `False` while another holder has it."""
        ...

    async def maintain(self) -> None:
        """Do the housekeeping that is due: append what was scheduled, forget old identities, trim."""
        ...

    async def durability_report(self) -> list[str]:
        """Say in plain words what a crash of the store can lose, given the store's own settings."""
        ...


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is opened with.

    Attributes:
        durability: the level of every append and commit unless a call asks for another; `None`: the store's default.
        retention: seconds that fully acknowledged events stay; `None`: the store's default; 0: for ever.
        retention_by_type: the same for some types, which beats `retention`.
        timeout: seconds to wait for the store to answer.
        append_timeout: seconds to wait for it to take an append, to which comes the time of a sync; `None`: `timeout`.
        journal: the directory for events that a remote store cannot take; `None`: publishers are told instead.
    """

    durability: Durability | None = None
    retention: float | None = None
    retention_by_type: Mapping[str, float] = {}
    timeout: float = 10.0
    append_timeout: float | None = None
    journal: str | None = None
