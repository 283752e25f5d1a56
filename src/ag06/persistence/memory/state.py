"""What a log in memory holds, and the rules of the port as plain code: the reference for every other adapter.

Nothing here knows of event loops; whoever calls holds the log's lock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from ag06.persistence.admission import says
from ag06.persistence.log import (
    Acknowledge,
    Appended,
    Bury,
    Delivery,
    GroupInfo,
    LogStats,
    Record,
    Settlement,
    StepSpec,
    Stored,
    StoredDeadLetter,
    dispatch_key,
)

_NOBODY = (0.0, "", 0)
_JOURNALLED_MS = 3_600_000  # how long it is remembered when a journal took what has an identity

Token = tuple[int, int]
"""Position of the event, and the serial of the lease: an earlier lease of the same worker settles nothing."""


@dataclass(slots=True, eq=False)
class Entry:
    """One stored event; `open` counts the groups that have not settled it, `prev` is its subject's event before."""

    stored: Stored
    id: str
    type: str
    level: int
    subject: str | None
    prev: int | None
    open: int = 0

    @property
    def key(self) -> int:
        """The sort key for dispatch."""
        return dispatch_key(self.stored.recorded_ms, self.level)


@dataclass(slots=True, eq=False)
class Pending:
    """One event that a group has seen and not settled.

    `worker` is `None` unless it is leased, until `until_ms`, by the subscription `holder`; `lasts_ms` is how long the
    lease, or the wait for the next attempt, was when it began. `behind` is set for a dead letter of a subject: it went
    behind the event that was the subject's last at that time.
    """

    entry: Entry
    worker: str | None = None
    holder: object = None
    serial: int = 0
    until_ms: float = 0.0
    lasts_ms: float = 0.0
    attempts: int = 0
    first_failed_ms: int = 0
    deaths: int = 0
    suspect: bool = False
    lapsed: bool = False
    started: bool = False
    behind: int | None = None


@dataclass(slots=True, eq=False)
class Group:
    """One step: what it has not read by level, what is pending, and in which of the waiting lines."""

    name: str
    type: str
    unread: tuple[deque[Entry], ...] = field(default_factory=lambda: (deque(), deque(), deque(), deque()))
    open: set[int] = field(default_factory=set)
    pending: dict[int, Pending] = field(default_factory=dict)
    ready: list[tuple[int, int]] = field(default_factory=list)
    delayed: list[tuple[float, int]] = field(default_factory=list)
    blocked: dict[int, int] = field(default_factory=dict)
    retried: dict[int, int] = field(default_factory=dict)
    first_expiry_ms: float = float("inf")
    serials: Iterator[int] = field(default_factory=count)

    def add_unread(self, entry: Entry) -> None:
        """Take an event of the group's type that the group has not seen."""
        self.unread[entry.level].append(entry)
        self.open.add(entry.stored.position)
        entry.open += 1

    def make_ready(self, pending: Pending) -> None:
        """Let the next fetch take it."""
        pending.worker = None
        heapq.heappush(self.ready, (pending.entry.key, pending.entry.stored.position))

    def settle(self, position: int) -> None:
        """Forget a pending event; its subject's next event may run."""
        pending = self.pending.pop(position)
        if pending.behind is not None and self.retried.get(pending.behind) == position:
            del self.retried[pending.behind]
        self.open.discard(position)
        pending.entry.open -= 1
        successor = self.blocked.pop(position, None)
        if successor is not None:
            self.make_ready(self.pending[successor])

    def take_over(self, pending: Pending, *, lapsed: bool) -> None:
        """Hand out again what a worker held that died, or whose lease lapsed."""
        pending.deaths += pending.started
        pending.started = False
        pending.suspect, pending.lapsed = True, lapsed
        self.make_ready(pending)

    def vouch(self, worker: str, until_ms: float, names: Collection[str] | None) -> int:
        """Renew what a worker holds of these names, or all of it; give the rest back and return how many that were."""
        count = 0
        for position, pending in self.pending.items():
            if pending.worker != worker:
                continue
            if names is None or str(position) in names:
                pending.until_ms = until_ms
            else:
                pending.started = False
                self.make_ready(pending)
                count += 1
        return count

    def expire(self, now_ms: float) -> None:
        """Take over every lease that ended, and make ready what waited for its time."""
        while self.delayed and self.delayed[0][0] <= now_ms:
            waiting = self.pending.get(heapq.heappop(self.delayed)[1])
            if waiting is not None:
                self.make_ready(waiting)
        if self.first_expiry_ms > now_ms:
            return
        self.first_expiry_ms = float("inf")
        for pending in self.pending.values():
            if pending.worker is None:
                continue
            if pending.until_ms <= now_ms:
                self.take_over(pending, lapsed=True)
            else:
                self.first_expiry_ms = min(self.first_expiry_ms, pending.until_ms)

    def next_runnable(self) -> Pending | None:
        """Return the pending event to be dispatched first; what waits for its subject is noted as blocked."""
        while True:
            best: tuple[int, int] | None = self.ready[0] if self.ready else None
            line: deque[Entry] | None = None
            for unread in self.unread:
                if unread:
                    rank = (unread[0].key, unread[0].stored.position)
                    if best is None or rank < best:
                        best, line = rank, unread
            if best is None:
                return None
            if line is None:
                return self.pending[heapq.heappop(self.ready)[1]]
            pending = Pending(line.popleft())
            self.pending[pending.entry.stored.position] = pending
            before = self.open_before(pending.entry.prev)
            if before is None:
                return pending
            self.blocked[before] = pending.entry.stored.position

    def open_before(self, prev: int | None) -> int | None:
        """Return what the next event of a subject behind `prev` must wait for: the last dead letter retried there."""
        if prev is None:
            return None
        if prev in self.retried:
            return self.retried[prev]
        pending = self.pending.get(prev)
        moved = pending is not None and pending.behind is not None
        return prev if prev in self.open and not moved else None

    def retry(self, entry: Entry, tail: int | None) -> None:
        """Deliver a dead letter again at the end of its subject, whose last event is `tail`."""
        before = self.open_before(tail)
        position = entry.stored.position
        self.open.add(position)
        entry.open += 1
        pending = self.pending[position] = Pending(entry, behind=tail)
        if tail is not None:
            self.retried[tail] = position
        if before is None:
            self.make_ready(pending)
        else:
            self.blocked[before] = position

    def begin_anew(self, now_ms: int) -> None:
        """Let waits and leases that last longer than they may begin now: the clock was ahead when they began."""
        self.delayed = [
            (min(due_ms, now_ms + self.pending[position].lasts_ms), position)
            for due_ms, position in self.delayed
            if position in self.pending
        ]
        heapq.heapify(self.delayed)
        self.first_expiry_ms = float("inf")
        for pending in self.pending.values():
            if pending.worker is not None:
                pending.until_ms = min(pending.until_ms, now_ms + pending.lasts_ms)
                self.first_expiry_ms = min(self.first_expiry_ms, pending.until_ms)

    def lease(self, pending: Pending, worker: str, holder: object, now_ms: float, lasts_ms: float) -> Delivery:
        """Hand a pending event to a worker for `lasts_ms`."""
        pending.worker, pending.holder = worker, holder
        pending.until_ms, pending.lasts_ms = now_ms + lasts_ms, lasts_ms
        pending.serial = next(self.serials)
        self.first_expiry_ms = min(self.first_expiry_ms, pending.until_ms)
        entry = pending.entry
        return Delivery(
            token=(entry.stored.position, pending.serial),
            recorded_ms=entry.stored.recorded_ms,
            level=entry.level,
            body=entry.stored.body,
            ordered=entry.subject is not None,
            attempts=pending.attempts,
            first_failed_ms=pending.first_failed_ms,
            deaths=pending.deaths,
            suspect=pending.suspect,
            lapsed=pending.lapsed,
        )

    def held(self, token: Token, worker: str) -> Pending | None:
        """Return what `token` names if `worker` still holds it."""
        pending = self.pending.get(token[0])
        return pending if pending is not None and (pending.worker, pending.serial) == (worker, token[1]) else None

    def absolve(self, token: Token, worker: str, attempts: int) -> None:
        """Take back the death charged for a worker that lost this delivery and lives; add failed attempts."""
        pending = self.pending.get(token[0])
        if pending is not None and pending.suspect and self.held(token, worker) is None:
            pending.deaths = max(-1, pending.deaths - 1)
            pending.attempts += attempts

    @property
    def backlog(self) -> int:
        """Events not yet settled."""
        return len(self.open)


class State:
    """Everything a log holds."""

    def __init__(self) -> None:
        """Start empty."""
        self.entries: dict[int, Entry] = {}
        """By position, in order."""
        self.contents: dict[str, bytes | None] = {}
        self.identities: dict[bytes, tuple[float, str, int]] = {}
        """When each one's window ends, whose it is, and how long the window is."""
        self.journalled: dict[bytes, int] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.groups: dict[str, Group] = {}
        self.scheduled: list[tuple[int, int, Record]] = []
        self.dead: dict[tuple[str, str], tuple[StoredDeadLetter, Entry]] = {}
        self.buried = 0
        self.duplicates = 0
        self.position = 0
        self.latest_ms = 0
        self.archives: dict[str, None] = {}
        self.leaders: dict[str, tuple[str, float, float]] = {}
        self.notes: dict[str, bytes] = {}
        self.serials = count()

    # Time

    def see_clock(self, now_ms: int) -> None:
        """Take note of the time before anything is done at it; let what a clock that was ahead began begin now."""
        if now_ms < self.latest_ms:
            self._begin_anew(now_ms)
        self.latest_ms = now_ms

    def _begin_anew(self, now_ms: int) -> None:
        for group in self.groups.values():
            group.begin_anew(now_ms)
        self.scheduled = [(min(due_ms, record.due_by(now_ms)), n, record) for due_ms, n, record in self.scheduled]
        heapq.heapify(self.scheduled)
        for identity, (expires, event_id, window_ms) in list(self.identities.items()):
            if expires > now_ms + 2 * window_ms:  # all of its window is ahead
                del self.identities[identity]
            elif expires > now_ms + window_ms:
                self.identities[identity] = (now_ms + window_ms, event_id, window_ms)

    # Append

    def append(self, record: Record, now_ms: int, max_backlog: int) -> Appended:
        """Check and store one record."""
        if record.id in self.contents:
            return Appended.REPEATED if record.content is None or self._is_same(record) else Appended.CLASH
        held = None if record.identity is None else self._holder(record, now_ms)
        if held is not None:
            self.duplicates += held is Appended.DUPLICATE
            return held
        groups = self.listening(record.type)
        if max_backlog and any(group.backlog >= max_backlog for group in groups):
            return Appended.FULL
        if record.identity is not None:
            self._take_identity(record.identity, record, now_ms)
        self.contents[record.id] = record.content
        if record.due_ms > now_ms:
            heapq.heappush(self.scheduled, (record.due_by(now_ms), len(self.contents), record))
        else:
            self.store(record, now_ms)
        return Appended.STORED

    def _holder(self, record: Record, now_ms: int) -> Appended | None:
        """Return the outcome if another record has this one's identity: by the time it was persisted."""
        expires, known_id, _ = self.identities.get(record.identity or b"", _NOBODY)
        if not record.persisted_ms:
            within = expires > now_ms
        else:
            others = [expires - record.window_ms, self.journalled.get(record.identity or b"", 0)]
            within = any(abs(record.persisted_ms - other) < record.window_ms for other in others)
        if not within:
            return None
        return Appended.REPEATED if known_id == record.id else Appended.DUPLICATE

    def _take_identity(self, identity: bytes, record: Record, now_ms: int) -> None:
        expires = min(record.persisted_ms or now_ms, now_ms) + record.window_ms
        if expires > self.identities.get(identity, _NOBODY)[0]:
            self.identities[identity] = (expires, record.id, record.window_ms)
        if record.persisted_ms:
            self.journalled[identity] = max(record.persisted_ms, self.journalled.get(identity, 0))

    def _is_same(self, record: Record) -> bool:
        known = self.contents[record.id]
        if known is not None:
            return known == record.content
        bodies = [entry.stored.body for entry in self.entries.values() if entry.id == record.id]
        bodies += [later.body for _, _, later in self.scheduled if later.id == record.id]
        return not bodies or says(bodies[0], record.content)

    def store(self, record: Record, now_ms: int) -> None:
        """Put a checked record at the end of the log."""
        self.position = max(self.position + 1, now_ms << 20)
        prev = None
        if record.subject is not None:
            prev = self.last.get((record.type, record.subject))
            self.last[record.type, record.subject] = self.position
        stored = Stored(self.position, self.position >> 20, record.body)
        entry = Entry(stored, record.id, record.type, record.level, record.subject, prev)
        self.entries[self.position] = entry
        for group in self.listening(record.type):
            group.add_unread(entry)

    def listening(self, event_type: str) -> list[Group]:
        """Return the groups of a type."""
        return [group for group in self.groups.values() if group.type == event_type]

    def promote(self, now_ms: int) -> None:
        """Append what was scheduled and is due."""
        while self.scheduled and self.scheduled[0][0] <= now_ms:
            self.store(heapq.heappop(self.scheduled)[2], now_ms)

    # Groups

    def place(self, spec: StepSpec, start: str | int) -> None:
        """Make a step known, beginning at `start`."""
        group = self.groups[spec.group] = Group(spec.group, spec.type, serials=self.serials)
        if start == "end":
            return
        first_ms = start if isinstance(start, int) else 0
        for entry in self.entries.values():
            if entry.type == spec.type and entry.stored.recorded_ms >= first_ms:
                group.add_unread(entry)

    def remove(self, name: str) -> bool:
        """Forget a group; its dead letters stay, under its name."""
        group = self.groups.get(name)
        if group is None:
            return False
        for unread in group.unread:
            for entry in unread:
                entry.open -= 1
        for pending in group.pending.values():
            pending.entry.open -= 1
        del self.groups[name]
        return True

    # Settle

    def settle(self, group: Group, settlement: Settlement, worker: str, now_ms: int) -> bool:
        """Do one settlement whole, or nothing of it."""
        if isinstance(settlement, Acknowledge):
            tokens = {delivery.token for delivery in settlement.deliveries}
            if any(group.held(token, worker) is None for token in tokens):
                return False
            for position, _ in tokens:
                group.settle(position)
            for record in settlement.outputs:
                self.append(record, now_ms, 0)
            return True
        pending = group.held(settlement.delivery.token, worker)
        if pending is None:
            return False
        position = settlement.delivery.token[0]
        if isinstance(settlement, Bury):
            entry = pending.entry
            self.buried += 1
            letter = StoredDeadLetter(
                group.name, entry.id, entry.stored.recorded_ms, entry.stored.body, settlement.failure, str(self.buried)
            )
            self.dead.pop((group.name, entry.id), None)
            self.dead[group.name, entry.id] = (letter, entry)
            group.settle(position)
            return True
        pending.suspect = pending.suspect and settlement.attempts <= pending.attempts
        pending.attempts, pending.first_failed_ms = settlement.attempts, settlement.first_failed_ms
        pending.started = pending.lapsed = False
        pending.worker = None
        pending.lasts_ms = settlement.delay_ms
        heapq.heappush(group.delayed, (now_ms + settlement.delay_ms, position))
        return True

    def letters(self, name: str | None, limit: int, after: int) -> list[StoredDeadLetter]:
        """Return dead letters of a group, or of all, behind the place `after`; they lie in that order."""
        behind = (letter for letter, _ in self.dead.values() if int(letter.place) > after)
        return list(islice((letter for letter in behind if name in (None, letter.group)), limit))

    def retry(self, name: str, event_id: str) -> bool:
        """Deliver a dead letter again to its group alone."""
        group = self.groups.get(name)
        _, entry = self.dead.get((name, event_id), (None, None))
        if group is None or entry is None or entry.type != group.type:
            return False
        del self.dead[name, event_id]
        if entry.stored.position not in group.open:  # else the step was removed and came back: it has the event still
            tail = None if entry.subject is None else self.last[entry.type, entry.subject]
            group.retry(entry, tail)
        return True

    # Look

    def info(self, group: Group) -> GroupInfo:
        """Describe one group."""
        oldest = [unread[0].stored.recorded_ms for unread in group.unread if unread]
        oldest += [pending.entry.stored.recorded_ms for pending in group.pending.values()]
        dead = sum(name == group.name for name, _ in self.dead)
        return GroupInfo(group.name, group.type, group.backlog, len(group.pending), dead, min(oldest, default=None))

    def stats(self) -> LogStats:
        """Describe the log."""
        groups = tuple(self.info(self.groups[name]) for name in sorted(self.groups))
        return LogStats(len(self.entries), self.duplicates, len(self.scheduled), len(self.dead), groups)

    # Keep

    def forget(self, now_ms: int) -> None:
        """Drop identities whose window ended."""
        for identity in [i for i, (expires, _, _) in self.identities.items() if expires <= now_ms]:
            del self.identities[identity]
        for identity in [i for i, persisted in self.journalled.items() if abs(now_ms - persisted) >= _JOURNALLED_MS]:
            del self.journalled[identity]

    def lead(self, role: str, holder: str, now_ms: int, duration_ms: float) -> bool:
        """Let `holder` have a role until `duration_ms` from now, if it is free or its own.

        A lead that ends later than its own length from now was taken by a clock that was ahead: it begins now.
        """
        leader, until_ms, length_ms = self.leaders.get(role, (holder, 0.0, 0.0))
        if leader != holder and until_ms > now_ms:
            self.leaders[role] = (leader, min(until_ms, now_ms + length_ms), length_ms)
            return False
        self.leaders[role] = (holder, now_ms + duration_ms, duration_ms)
        return True
