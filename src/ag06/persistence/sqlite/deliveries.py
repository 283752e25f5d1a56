"""Handing out and settling inside a transaction: what a group has read, holds, waits for and is done with."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ag06.persistence.log import AGEING_MS, Acknowledge, Bury, Delivery, Postpone, Settlement, dispatch_key
from ag06.persistence.sqlite.appending import Appender

LEASED, READY, DELAYED, BLOCKED = range(4)
"""States of a delivery. `due` is the dispatch key of a ready one, the time of a delayed one, and the position of the
event before it of a blocked one."""

_encode = msgspec.json.Encoder().encode
_LEVELS = range(4)

_LEASE = "INSERT INTO deliveries (grp, seq, state, rank, due, worker) VALUES (?, ?, ?, ?, ?, ?)"
_READY = """
SELECT d.seq, d.rank, d.attempts, d.first_failed, d.deaths, d.suspect, e.stream, e.ordered, e.body
FROM deliveries d JOIN events e ON e.seq = d.seq WHERE d.grp = ? AND d.state = 1 ORDER BY d.due, d.seq LIMIT ?
"""
_UNREAD = """
SELECT seq, prev, prev_level, ordered, body FROM events WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?
"""
_DONE = "DELETE FROM deliveries WHERE grp = ? AND seq = ? AND state = 0 AND worker = ?"
_UNBLOCK = "UPDATE deliveries SET state = 1, due = rank WHERE grp = ? AND state = 3 AND due = ?"
_TAKE_OVER = """
UPDATE deliveries SET state = 1, due = rank, worker = NULL, suspect = 1, deaths = deaths + started, started = 0
WHERE grp = ? AND state = 0 AND worker = ?
"""
_GIVE_BACK = """
UPDATE deliveries SET state = 1, due = rank, worker = NULL, started = 0 WHERE grp = ? AND state = 0 AND worker = ?
"""

Token = tuple[int, bool]
"""Position of the event, and whether it has a subject."""


class GroupRow(msgspec.Struct):
    """A group as the claim needs it: `read` are the last positions read of each level's stream."""

    id: int
    type: int
    read: list[int]


def load_group(connection: sqlite3.Connection, name: str) -> GroupRow | None:
    """Return a group's row, or `None` if the store does not know it."""
    row = connection.execute(
        "SELECT id, type, read0, read1, read2, read3 FROM groups WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else GroupRow(row[0], row[1], list(row[2:]))


def has_work(connection: sqlite3.Connection, group: GroupRow, now_ms: int) -> bool:
    """Say, reading only, whether a claim for the group would find anything."""
    execute = connection.execute
    due = execute(
        "SELECT 1 FROM deliveries WHERE grp = ?1 AND state = 1 UNION ALL "
        "SELECT 1 FROM deliveries WHERE grp = ?1 AND state = 2 AND due <= ?2 UNION ALL "
        "SELECT 1 FROM scheduled WHERE due <= ?2 UNION ALL "
        "SELECT 1 FROM workers WHERE grp = ?1 AND expires <= ?2 LIMIT 1",
        (group.id, now_ms),
    ).fetchone()
    if due is not None:
        return True
    return any(
        execute(
            "SELECT 1 FROM events WHERE stream = ? AND seq > ? LIMIT 1", (group.type * 4 + level, group.read[level])
        ).fetchone()
        is not None
        for level in _LEVELS
    )


def next_due_ms(connection: sqlite3.Connection, group_id: int) -> int | None:
    """Return when something falls due for the group by time alone, in milliseconds since the epoch."""
    (due,) = connection.execute(
        "SELECT min(at) FROM (SELECT min(due) AS at FROM deliveries WHERE grp = ?1 AND state = 2 UNION ALL "
        "SELECT min(due) FROM scheduled UNION ALL SELECT min(expires) FROM workers WHERE grp = ?1)",
        (group_id,),
    ).fetchone()
    return None if due is None else int(due)


def worker_row(connection: sqlite3.Connection, group_id: int, worker: str, expires_ms: int) -> int:
    """Return the number of a worker in a group, its lease extended to `expires_ms`."""
    row = connection.execute(
        "INSERT INTO workers (grp, name, expires) VALUES (?, ?, ?) "
        "ON CONFLICT (grp, name) DO UPDATE SET expires = excluded.expires RETURNING id",
        (group_id, worker, expires_ms),
    ).fetchone()
    return int(row[0])


def expire(connection: sqlite3.Connection, group_id: int, now_ms: int) -> None:
    """Make ready what waited for its time, and what workers held whose leases ended."""
    connection.execute(
        "UPDATE deliveries SET state = 1, due = rank WHERE grp = ? AND state = 2 AND due <= ?", (group_id, now_ms)
    )
    for (worker,) in connection.execute(
        "SELECT id FROM workers WHERE grp = ? AND expires <= ?", (group_id, now_ms)
    ).fetchall():
        connection.execute(_TAKE_OVER, (group_id, worker))
        connection.execute("DELETE FROM workers WHERE id = ?", (worker,))


class Claim:
    """Takes the deliveries of one fetch: first by dispatch key among what is ready and what is unread."""

    def __init__(self, connection: sqlite3.Connection, group: GroupRow, worker: int, limit: int) -> None:
        """Claim up to `limit` for the worker with this number."""
        self._execute = connection.execute
        self._many = connection.executemany
        self._group = group
        self._worker = worker
        self._limit = limit
        self._rows: list[tuple[int, int, int, int, int | None, int | None]] = []
        self._new: set[int] = set()
        self.moved = False
        self.deliveries: list[Delivery] = []

    def run(self) -> list[Delivery]:
        """Claim, write down, return."""
        candidates = self._ready() + self._unread()
        candidates.sort(key=_by_rank)
        for rank, seq, delivery, prev, prev_level in candidates:
            if len(self.deliveries) == self._limit:
                break
            if prev_level is None or delivery is None:
                self._take(rank, seq, delivery)
            else:
                self._read(rank, seq, delivery, prev, prev_level)
        self._write()
        return self.deliveries

    def _ready(self) -> list[_Candidate]:
        return [
            (
                rank,
                seq,
                Delivery((seq, bool(ordered)), seq >> 20, stream & 3, body, bool(ordered), a, f, d, bool(s)),
                -1,
                None,
            )
            for seq, rank, a, f, d, s, stream, ordered, body in self._execute(_READY, (self._group.id, self._limit))
        ]

    def _unread(self) -> list[_Candidate]:
        found: list[_Candidate] = []
        for level in _LEVELS:
            rows = self._execute(_UNREAD, (self._group.type * 4 + level, self._group.read[level], self._limit))
            ageing = level * AGEING_MS
            found += [
                (
                    (seq >> 20) - ageing,
                    seq,
                    Delivery((seq, bool(ordered)), seq >> 20, level, body, bool(ordered)),
                    -1 if prev is None else prev,
                    -1 if prev_level is None else prev_level,
                )
                for seq, prev, prev_level, ordered, body in rows
            ]
        return found

    def _take(self, rank: int, seq: int, delivery: Delivery) -> None:
        """Lease what was ready."""
        self._execute(
            "UPDATE deliveries SET state = 0, due = NULL, worker = ? WHERE grp = ? AND seq = ?",
            (self._worker, self._group.id, seq),
        )
        self.moved = True
        self.deliveries.append(delivery)

    def _read(self, rank: int, seq: int, delivery: Delivery, prev: int, prev_level: int) -> None:
        """Lease what was unread, or note that it waits for the event before it of its subject."""
        self._group.read[delivery.level] = seq
        if prev >= 0 and self._is_open(prev, prev_level):
            self._rows.append((self._group.id, seq, BLOCKED, rank, prev, None))
        else:
            self._rows.append((self._group.id, seq, LEASED, rank, None, self._worker))
            self.deliveries.append(delivery)
        if delivery.ordered:
            self._new.add(seq)

    def _is_open(self, seq: int, level: int) -> bool:
        """Whether the group has not settled the event at `seq`."""
        if seq > self._group.read[level] or seq in self._new:
            return True
        row = self._execute("SELECT 1 FROM deliveries WHERE grp = ? AND seq = ?", (self._group.id, seq)).fetchone()
        return row is not None

    def _write(self) -> None:
        if self._rows:
            self.moved = True
            self._many(_LEASE, self._rows)
            self._execute(
                "UPDATE groups SET read0 = ?, read1 = ?, read2 = ?, read3 = ? WHERE id = ?",
                (*self._group.read, self._group.id),
            )


_Candidate = tuple[int, int, Delivery, int, int | None]
"""Rank, position, delivery, position of the event before it (-1: none) and its level; `None`: it is ready."""


def _by_rank(candidate: _Candidate) -> tuple[int, int]:
    return candidate[0], candidate[1]


class Settling:
    """Settles what one worker holds of one group, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, group: GroupRow, name: str, worker: int, now_ms: int) -> None:
        """`worker` is its number in the group, 0 if it has none any more."""
        self._connection = connection
        self._execute = connection.execute
        self._group = group
        self._name = name
        self._worker = worker
        self._now_ms = now_ms
        self._settled = 0
        self._appender: Appender | None = None
        self.released = False

    def run(self, settlements: Sequence[Settlement]) -> tuple[list[bool], set[str]]:
        """Settle all; return which were accepted, and the types that have new events."""
        plain = [s for s in settlements if isinstance(s, Acknowledge)]
        if len(plain) == len(settlements) and self._acknowledge_all(plain):
            kept = [True] * len(settlements)
        else:
            kept = [self._settle(settlement) for settlement in settlements]
        if self._settled:
            self._execute("UPDATE groups SET settled = settled + ? WHERE id = ?", (self._settled, self._group.id))
        return kept, self._appender.finish() if self._appender is not None else set()

    def _acknowledge_all(self, settlements: Sequence[Acknowledge]) -> bool:
        """Acknowledge everything in a few statements if all of it is held; else change nothing."""
        tokens = [delivery.token for settlement in settlements for delivery in settlement.deliveries]
        rows = [(self._group.id, seq, self._worker) for seq, _ in tokens]
        self._execute("SAVEPOINT bulk")
        if self._connection.executemany(_DONE, rows).rowcount != len(rows):
            self._execute("ROLLBACK TO bulk")
            self._execute("RELEASE bulk")
            return False
        self._execute("RELEASE bulk")
        self._after(tokens)
        for settlement in settlements:
            self._append(settlement)
        return True

    def _settle(self, settlement: Settlement) -> bool:
        deliveries = settlement.deliveries if isinstance(settlement, Acknowledge) else (settlement.delivery,)
        if not all(self._holds(delivery) for delivery in deliveries):
            return False
        if isinstance(settlement, Postpone):
            self._execute(
                "UPDATE deliveries SET state = 2, due = ?, worker = NULL, attempts = ?, first_failed = ?, suspect = 0, "
                "started = 0 WHERE grp = ? AND seq = ?",
                (
                    self._now_ms + settlement.delay_ms,
                    settlement.attempts,
                    settlement.first_failed_ms,
                    self._group.id,
                    settlement.delivery.token[0],
                ),
            )
            self.released = True
            return True
        if isinstance(settlement, Bury):
            self._bury(settlement)
        self._connection.executemany(_DONE, [(self._group.id, d.token[0], self._worker) for d in deliveries])
        self._after([delivery.token for delivery in deliveries])
        if isinstance(settlement, Acknowledge):
            self._append(settlement)
        return True

    def _holds(self, delivery: Delivery) -> bool:
        row = self._execute(
            "SELECT 1 FROM deliveries WHERE grp = ? AND seq = ? AND state = 0 AND worker = ?",
            (self._group.id, delivery.token[0], self._worker),
        ).fetchone()
        return row is not None

    def _after(self, tokens: Sequence[Token]) -> None:
        """Count what was settled, and let the next events of their subjects go."""
        self._settled += len(tokens)
        ordered = [(self._group.id, seq) for seq, has_subject in tokens if has_subject]
        if ordered and self._connection.executemany(_UNBLOCK, ordered).rowcount:
            self.released = True

    def _append(self, settlement: Acknowledge) -> None:
        if not settlement.outputs:
            return
        if self._appender is None:
            self._appender = Appender(self._connection, self._now_ms)
        for record in settlement.outputs:
            self._appender.append(record)

    def _bury(self, settlement: Bury) -> None:
        seq = settlement.delivery.token[0]
        self._execute(
            "INSERT OR REPLACE INTO dead_letters (grp, id, seq, stream, body, failure) "
            "SELECT ?, id, seq, stream, body, ? FROM events WHERE seq = ?",
            (self._name, _encode(settlement.failure), seq),
        )


def release(connection: sqlite3.Connection, group_id: int, worker: int, deliveries: Sequence[Delivery] | None) -> None:
    """Give back some of what a worker holds, or all of it; no harm done."""
    if deliveries is None:
        connection.execute(_GIVE_BACK, (group_id, worker))
    else:
        connection.executemany(
            _GIVE_BACK + " AND seq = ?", [(group_id, worker, delivery.token[0]) for delivery in deliveries]
        )


def take_over_worker(connection: sqlite3.Connection, worker: str) -> int:
    """Hand out again what a dead worker held in any group; return how many deliveries."""
    count = 0
    for number, group_id in connection.execute("SELECT id, grp FROM workers WHERE name = ?", (worker,)).fetchall():
        count += connection.execute(_TAKE_OVER, (group_id, number)).rowcount
        connection.execute("DELETE FROM workers WHERE id = ?", (number,))
    return count


def rank_of(seq: int, level: int) -> int:
    """Return the dispatch key of the event at a position."""
    return dispatch_key(seq >> 20, level)
