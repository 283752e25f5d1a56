"""Handing out inside a transaction: the first deliveries by dispatch key, among what is ready and what is unread."""

from __future__ import annotations

import sqlite3

from ag06.persistence.log import AGEING_MS, Delivery
from ag06.persistence.sqlite.deliveries import BLOCKED, LAPSED, LEASED, LEVELS, GroupRow, next_serial, open_before
from ag06.persistence.sqlite.reading import PAGE_BYTES, some

_FARTHEST = 4000  # events that one transaction may find blocked before others get their turn
_PAGE = 1000

_READY = """
SELECT d.seq, d.rank, d.attempts, d.first_failed, d.deaths, d.suspect, e.stream, e.ordered, e.body
FROM deliveries d JOIN events e ON e.seq = d.seq
WHERE d.grp = ? AND d.state = 1 AND d.state > 0 ORDER BY d.due, d.seq LIMIT ?
"""
_UNREAD = """
SELECT seq, prev, prev_level, ordered, body FROM events WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?
"""
_TAKE = "UPDATE deliveries SET state = 0, due = ?, worker = ? WHERE grp = ? AND seq = ?"
_READ = "INSERT INTO deliveries (grp, seq, state, rank, due, worker) VALUES (?, ?, ?, ?, ?, ?)"
_PLACE = "UPDATE groups SET read0 = ?, read1 = ?, read2 = ?, read3 = ? WHERE id = ?"

_Candidate = tuple[int, int, Delivery, int, int | None]
"""Rank, position, delivery, position of the event before it (-1: none) and its level; `None`: it is ready."""


class Claim:
    """The deliveries of one fetch. `more`: all that was looked at is blocked, and there is more to look at."""

    def __init__(self, connection: sqlite3.Connection, group: GroupRow, worker: int, limit: int) -> None:
        """Claim up to `limit` for the worker with this number."""
        self._connection = connection
        self._execute = connection.execute
        self._many = connection.executemany
        self._group = group
        self._worker = worker
        self._limit = limit
        self._taken: list[tuple[int, int, int, int]] = []
        self._rows: list[tuple[int, int, int, int, int | None, int | None]] = []
        self._new: set[int] = set()
        self._blocked = 0
        self._bytes = 0
        self._seen = _ALL
        self.more = False
        self.deliveries: list[Delivery] = []

    def run(self) -> list[Delivery]:
        """Claim, write down, return."""
        page = self._limit
        while self._look(page) and not self.deliveries:
            if self._blocked >= _FARTHEST:
                self.more = True
                break
            page = max(self._limit, _PAGE)  # one busy subject: look past its line in long strides
        if self._taken:
            self._many(_TAKE, self._taken)
        if self._rows:
            self._many(_READ, self._rows)
            self._execute(_PLACE, (*self._group.read, self._group.id))
        return self.deliveries

    def _look(self, page: int) -> bool:
        """Take what may run of the next events; return whether there were any."""
        self._seen = _ALL
        candidates = self._ready() + self._unread(page)
        candidates.sort(key=_by_rank)
        for rank, seq, delivery, prev, prev_level in candidates:
            if len(self.deliveries) == self._limit or self._bytes >= PAGE_BYTES or (rank, seq) > self._seen:
                break
            taken = len(self.deliveries)
            if prev_level is None:
                self._taken.append((delivery.token[3], self._worker, self._group.id, seq))
                self.deliveries.append(delivery)
            else:
                self._read(rank, seq, delivery, prev, prev_level)
            if len(self.deliveries) > taken:
                self._bytes += len(delivery.body)
        return bool(candidates)

    def _ready(self) -> list[_Candidate]:
        if self._taken:
            return []
        rows, is_cut = some(self._execute(_READY, (self._group.id, self._limit)), PAGE_BYTES)
        if not rows:
            return []
        worker, serial = self._worker, next_serial(self._connection)
        found: list[_Candidate] = [
            (
                rank,
                seq,
                Delivery(
                    (seq, bool(ordered), worker, serial),
                    seq >> 20,
                    stream & 3,
                    body,
                    bool(ordered),
                    a,
                    f,
                    d,
                    bool(s),
                    s == LAPSED,
                ),
                -1,
                None,
            )
            for seq, rank, a, f, d, s, stream, ordered, body in rows
        ]
        if is_cut:
            self._seen = min(self._seen, _by_rank(found[-1]))
        return found

    def _unread(self, page: int) -> list[_Candidate]:
        found: list[_Candidate] = []
        worker = self._worker
        for level in LEVELS:
            cursor = self._execute(_UNREAD, (self._group.type * 4 + level, self._group.read[level], page))
            rows, is_cut = some(cursor, PAGE_BYTES)
            ageing = level * AGEING_MS
            found += [
                (
                    (seq >> 20) - ageing,
                    seq,
                    Delivery((seq, bool(ordered), worker, 0), seq >> 20, level, body, bool(ordered)),
                    -1 if prev is None else prev,
                    -1 if prev_level is None else prev_level,
                )
                for seq, prev, prev_level, ordered, body in rows
            ]
            if is_cut:
                self._seen = min(self._seen, _by_rank(found[-1]))
        return found

    def _read(self, rank: int, seq: int, delivery: Delivery, prev: int, prev_level: int) -> None:
        """Lease what was unread, or note that it waits for the event before it of its subject."""
        self._group.read[delivery.level] = seq
        before = self._open_before(prev, prev_level)
        if before is not None:
            self._rows.append((self._group.id, seq, BLOCKED, rank, before, None))
            self._blocked += 1
        else:
            self._rows.append((self._group.id, seq, LEASED, rank, None, self._worker))
            self.deliveries.append(delivery)
        if delivery.ordered:
            self._new.add(seq)

    def _open_before(self, prev: int, level: int) -> int | None:
        if prev < 0:
            return None
        before = open_before(self._connection, self._group, prev, level)
        return prev if before is None and prev in self._new else before


_ALL = (1 << 63, 0)
"""Rank and position up to which everything was looked at, unless bodies were too large."""


def _by_rank(candidate: _Candidate) -> tuple[int, int]:
    return candidate[0], candidate[1]
