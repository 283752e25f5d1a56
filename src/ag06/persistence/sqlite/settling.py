"""Settling inside a transaction: acknowledge with outputs, postpone, bury."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Settlement, deliveries_of
from ag06.persistence.sqlite.appending import Appender
from ag06.persistence.sqlite.clocks import note_wait
from ag06.persistence.sqlite.deliveries import GroupRow, Token
from ag06.persistence.sqlite.schema import RESTORED

_encode = msgspec.json.Encoder().encode
_DONE = "DELETE FROM deliveries WHERE grp = ? AND seq = ? AND state = 0 AND worker = ? AND coalesce(due, 0) = ?"
_HELD = "SELECT 1 FROM deliveries WHERE grp = ? AND seq = ? AND state = 0 AND worker = ? AND coalesce(due, 0) = ?"
_UNBLOCK = """
UPDATE deliveries SET state = 1, due = rank WHERE grp = ? AND state = 3 AND state > 0 AND due = ?
"""
_POSTPONE = """
UPDATE deliveries SET state = 2, due = ?1, since = ?6, worker = NULL, suspect = suspect AND attempts >= ?2,
attempts = ?2, first_failed = ?3, started = 0 WHERE grp = ?4 AND seq = ?5
"""


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
        self._noted = False
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
        if any(worker != self._worker for _, _, worker, _ in tokens):
            return False
        rows = [(self._group.id, seq, worker, serial) for seq, _, worker, serial in tokens]
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
        deliveries = {delivery.token: delivery for delivery in deliveries_of(settlement)}.values()
        if not all(self._holds(delivery) for delivery in deliveries):
            return False
        if isinstance(settlement, Postpone):
            due_ms = self._now_ms + settlement.delay_ms
            seq = settlement.delivery.token[0]
            self._execute(
                _POSTPONE,
                (due_ms, settlement.attempts, settlement.first_failed_ms, self._group.id, seq, self._now_ms),
            )
            if not self._noted:
                note_wait(self._connection, self._now_ms)
                self._noted = True
            self.released = True
            return True
        if isinstance(settlement, Bury):
            self._bury(settlement)
        rows = [(self._group.id, seq, worker, serial) for seq, _, worker, serial in [d.token for d in deliveries]]
        self._connection.executemany(_DONE, rows)
        self._after([delivery.token for delivery in deliveries])
        if isinstance(settlement, Acknowledge):
            self._append(settlement)
        return True

    def _holds(self, delivery: Delivery) -> bool:
        seq, _, worker, serial = delivery.token
        if worker != self._worker:
            return False
        return self._execute(_HELD, (self._group.id, seq, worker, serial)).fetchone() is not None

    def _after(self, tokens: Sequence[Token]) -> None:
        """Count what was settled, and let the next events of their subjects go."""
        self._settled += len(tokens)
        ordered = [(self._group.id, seq) for seq, has_subject, _, _ in tokens if has_subject]
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
            "SELECT ?, id, seq, stream + (stream < 0) * ?, body, ? FROM events WHERE seq = ?",
            (self._name, RESTORED, _encode(settlement.failure), seq),
        )
