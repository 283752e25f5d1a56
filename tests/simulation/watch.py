"""An observer at the store's own side: it follows every lease and settlement, and objects at the first wrong one.

It is told what the store did, not how. Of `MemoryLog` it reads the entries of the log, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ag06.event import id_and_subject
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Record, Settlement

Key = tuple[str, str]
"""A step's group and an event's id."""


class PromiseBroken(AssertionError):  # noqa: N818 - reads as what happened
    """The simulation saw something that must never happen."""


class Entry(msgspec.Struct):
    """One event as it lies in the log."""

    position: int
    recorded_ms: int
    id: str
    type: str
    subject: str | None
    body: bytes


class Lease(msgspec.Struct):
    """A delivery in a worker's hands; `lost` once the store may hand it to another."""

    worker: str
    delivery: Delivery
    until_ms: float
    started: bool = False
    unsure: bool = False
    """Said to have started when it may have been lost already."""
    lost: bool = False


class Open(msgspec.Struct):
    """What a step knows of an event that it has seen and not settled: what the next delivery must say."""

    attempts: int = 0
    first_failed_ms: int = 0
    deaths: int = 0
    absolved: int = 0
    """How often a worker that lost it came back: each may have taken a death back, at the price of an attempt."""
    due_ms: float = 0.0
    waits_ms: int = 0
    lease: Lease | None = None


class Cause(msgspec.Struct):
    """Which event and step an output comes from."""

    source: str
    causation_id: str | None = None


causation_of = msgspec.json.Decoder(Cause).decode


class Watch:
    """Everything the store has done so far."""

    def __init__(self, entries: Callable[[], Iterable[Any]]) -> None:
        """`entries` gives the store's entries, the last one first."""
        self._entries = entries
        self.log: dict[str, Entry] = {}
        self.open: dict[Key, Open] = {}
        self.settled: dict[Key, str] = {}
        """`"acknowledged"` or `"dead"`."""
        self.dead: dict[Key, Bury] = {}
        self.lost: Counter[Key] = Counter()
        """How often a delivery was taken from a worker that neither settled nor released it."""
        self.due: dict[str, tuple[int, int]] = {}
        """When an event is due, and its delay: 0 for a given time; both in milliseconds."""
        self.latest_ms = 0
        """The highest time that the store's clock has shown since it was set back."""
        self._last = -1
        self._turns: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._running: dict[tuple[str, str, str], str] = {}
        self._moved: dict[Key, tuple[int, int]] = {}
        self._moves = 0
        self._tails: dict[tuple[str, str], int] = {}

    # Log

    def look(self) -> list[Entry]:
        """Take note of what was appended since; return it."""
        new = []
        for entry in self._entries():
            if entry.stored.position <= self._last:
                break
            new.append(entry)
        for entry in reversed(new):
            self._take(entry)
        return [self.log[entry.id] for entry in reversed(new)]

    def _take(self, entry: Any) -> None:
        if entry.id in self.log:
            raise PromiseBroken(f"event {entry.id} is in the log twice")
        cause = causation_of(entry.stored.body)
        if cause.causation_id is not None and self.settled.get((cause.source, cause.causation_id)) != "acknowledged":
            raise PromiseBroken(f"an output of {cause} is in the log, and its parent is not acknowledged")
        if entry.stored.recorded_ms < self.due.get(entry.id, (0, 0))[0]:
            raise PromiseBroken(f"event {entry.id} was appended before it was due")
        stored = entry.stored
        self.log[entry.id] = Entry(
            stored.position, stored.recorded_ms, entry.id, entry.type, entry.subject, stored.body
        )
        self._last = stored.position
        if entry.subject is not None:
            self._tails[entry.type, entry.subject] = stored.position

    def records(self, records: Iterable[Record], now_ms: int) -> None:
        """Take note of when records are due, before they are stored."""
        for record in records:
            due = record.due_by(now_ms), record.delay_ms
            self.due[record.id] = min(due, self.due.get(record.id, due))

    def set_back(self, now_ms: int, visibility_ms: float) -> None:
        """The store's clock shows `now_ms` and was ahead: what it has begun meanwhile begins now."""
        self.due = {
            event_id: (min(due_ms, now_ms + delay_ms) if delay_ms else due_ms, delay_ms)
            for event_id, (due_ms, delay_ms) in self.due.items()
        }
        for known in self.open.values():
            # What had ended by the clock that was ahead has ended.
            is_over = known.due_ms <= self.latest_ms
            known.due_ms = 0.0 if is_over else min(known.due_ms, now_ms + known.waits_ms)
            if known.lease is not None:
                until_ms = known.lease.until_ms
                known.lease.until_ms = 0.0 if until_ms <= self.latest_ms else min(until_ms, now_ms + visibility_ms)
        self.latest_ms = now_ms

    # Leases

    def handed(self, group: str, worker: str, deliveries: Sequence[Delivery], now_ms: int, until_ms: float) -> None:
        """Check what the store hands to a worker."""
        self.look()
        self.latest_ms = max(self.latest_ms, now_ms)
        for delivery in deliveries:
            event_id, subject = id_and_subject(delivery.body)
            entry = self.log[event_id]
            key = group, event_id
            if key in self.settled:
                raise PromiseBroken(f"{group}: {event_id} is handed out although it is settled: {self.settled[key]}")
            known = self.open.setdefault(key, Open())
            self._check_lease(key, known, delivery)
            if subject is not None:
                self._check_turn((group, entry.type, subject), key, entry)
            known.lease = Lease(worker, delivery, until_ms)

    def _check_lease(self, key: Key, known: Open, delivery: Delivery) -> None:
        lease = known.lease
        if lease is not None:
            if not lease.lost and lease.until_ms > self.latest_ms:
                raise PromiseBroken(f"{key}: handed out while {lease.worker} holds it for another while")
            self.lost[key] += 1
            known.deaths += lease.started or (lease.unsure and delivery.deaths > known.deaths)
            if not delivery.suspect:
                raise PromiseBroken(f"{key}: a worker was lost with it, and the next is not told that it is suspect")
        if known.due_ms > self.latest_ms:
            raise PromiseBroken(f"{key}: handed out {known.due_ms - self.latest_ms:.0f} ms before its wait is over")
        told = delivery.attempts, delivery.first_failed_ms, delivery.deaths
        more, less = delivery.attempts - known.attempts, known.deaths - delivery.deaths
        if 0 <= more <= known.absolved and 0 <= less <= known.absolved:
            known.attempts, known.deaths = delivery.attempts, delivery.deaths
        if told != (known.attempts, known.first_failed_ms, known.deaths):
            raise PromiseBroken(
                f"{key}: handed out with (attempts, first failed, deaths) {told}, but it is "
                f"{(known.attempts, known.first_failed_ms, known.deaths)}"
            )

    def _check_turn(self, line: tuple[str, str, str], key: Key, entry: Entry) -> None:
        running = self._running.get(line)
        if running not in (None, entry.id):
            raise PromiseBroken(f"{line}: {entry.id} is handed out before {running} is settled")
        turn = self._moved.get(key, (entry.position, 0))
        if turn < self._turns.get(line, (-1, 0)):
            raise PromiseBroken(f"{line}: {entry.id} is handed out after a later one was settled")
        self._running[line] = entry.id

    def renewed(self, worker: str, group: str, now_ms: int, until_ms: float) -> None:
        """A worker extended its leases; those that ended already may be lost."""
        self.latest_ms = max(self.latest_ms, now_ms)
        for (other, _), known in self.open.items():
            lease = known.lease
            if lease is not None and other == group and lease.worker == worker and lease.until_ms > self.latest_ms:
                lease.until_ms = until_ms

    def started(self, group: str, worker: str, deliveries: Sequence[Delivery], now_ms: int) -> None:
        """A worker said that it runs these now."""
        self.latest_ms = max(self.latest_ms, now_ms)
        for delivery in deliveries:
            known, lease = self._holds(group, worker, delivery)
            if known is not None and lease is not None and not lease.lost:
                lease.started = lease.started or lease.until_ms > self.latest_ms
                lease.unsure = True

    def released(self, group: str, worker: str, deliveries: Sequence[Delivery]) -> None:
        """A worker gave these back."""
        for delivery in deliveries:
            known, lease = self._holds(group, worker, delivery)
            if known is not None and lease is not None and not lease.lost:
                known.lease = None

    def survived(self, group: str, deliveries: Sequence[Delivery]) -> None:
        """A worker came back that had lost these."""
        for delivery in deliveries:
            known = self.open.get((group, id_and_subject(delivery.body)[0]))
            if known is not None:
                known.absolved += 1

    def left(self, group: str, worker: str) -> None:
        """A worker gave back everything it had of a group."""
        for (other, _), known in self.open.items():
            lease = known.lease
            if lease is not None and other == group and lease.worker == worker and not lease.lost:
                known.lease = None

    def dismissed(self, worker: str) -> None:
        """Somebody saw a worker die."""
        for known in self.open.values():
            if known.lease is not None and known.lease.worker == worker:
                known.lease.lost = True

    def _holds(self, group: str, worker: str, delivery: Delivery) -> tuple[Open | None, Lease | None]:
        known = self.open.get((group, id_and_subject(delivery.body)[0]))
        lease = None if known is None else known.lease
        held = lease is not None and (lease.worker, lease.delivery.token) == (worker, delivery.token)
        return known, lease if held else None

    # Settlements

    def committed(
        self, group: str, worker: str, settlements: Sequence[Settlement], kept: Sequence[bool], now_ms: int
    ) -> None:
        """Check what the store accepted."""
        for settlement, accepted in zip(settlements, kept, strict=True):
            if accepted:
                deliveries = settlement.deliveries if isinstance(settlement, Acknowledge) else (settlement.delivery,)
                for delivery in deliveries:
                    self._settle(group, worker, settlement, delivery, now_ms)
        self.look()
        for settlement, accepted in zip(settlements, kept, strict=True):
            if accepted and isinstance(settlement, Acknowledge):
                missing = [r.id for r in settlement.outputs if r.id not in self.log and not r.due_ms]
                if missing:
                    raise PromiseBroken(f"{group}: acknowledged, and the outputs {missing} are not in the log")

    def _settle(self, group: str, worker: str, settlement: Settlement, delivery: Delivery, now_ms: int) -> None:
        event_id, subject = id_and_subject(delivery.body)
        key = group, event_id
        known, lease = self._holds(group, worker, delivery)
        if known is None or lease is None or lease.lost:
            raise PromiseBroken(f"{key}: {worker} settled it, but holds it no more: {settlement}")
        if isinstance(settlement, Postpone):
            known.attempts, known.first_failed_ms = settlement.attempts, settlement.first_failed_ms
            known.due_ms, known.waits_ms = now_ms + settlement.delay_ms, settlement.delay_ms
            known.lease = None
            return
        del self.open[key]
        self.settled[key] = "acknowledged"
        if isinstance(settlement, Bury):
            self.settled[key] = "dead"
            self.dead[key] = settlement
        if subject is not None:
            entry = self.log[event_id]
            line = group, entry.type, subject
            self._turns[line] = self._moved.get(key, (entry.position, 0))
            del self._running[line]

    def retried(self, letters: Sequence[Key]) -> None:
        """Dead letters were delivered again: they come behind what their subject has now."""
        self.look()
        for key in letters:
            del self.settled[key], self.dead[key]
            entry = self.log[key[1]]
            if entry.subject is not None:
                self._moves += 1
                self._moved[key] = self._tails[entry.type, entry.subject], self._moves
