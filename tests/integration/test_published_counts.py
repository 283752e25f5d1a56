"""What became of events that were handed in: each is counted once, under its type."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from ag06 import Backpressure, InvalidEvent, OutcomeUnknown, StoreUnavailable
from ag06.monitoring.instruments import DUPLICATES, PUBLISHED
from ag06.monitoring.names import OTHER
from ag06.persistence import EventStore
from ag06.persistence.admission import Admission
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.dead_letter_file import Letters
from ag06.persistence.journal.draining import Draining
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.log import Appended, EventLog, LogOptions, StepSpec
from ag06.persistence.memory import MemoryLog
from ag06.persistence.published import Published

_types = (f"counted.{number}" for number in itertools.count())


@pytest.fixture
def kind() -> str:
    """A type that nobody has published before."""
    return next(_types)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = EventStore(store_url)
    yield opened
    await opened.close()


def counted(kind: str) -> dict[str, float]:
    """What was counted of a type, by outcome; nothing that is 0."""
    found = {sample.labels[1]: sample.numbers[0] for sample in PUBLISHED.samples() if sample.labels[0] == kind}
    return {outcome: number for outcome, number in found.items() if number}


def duplicates() -> float:
    return DUPLICATES.sample().numbers[0]


async def test_each_event_is_counted_as_what_its_publisher_was_told(store: EventStore, kind: str) -> None:
    before = duplicates()
    await store.persist_event(kind, "s", 1)
    await store.persist_event(kind, "s", 2, id="mine")
    assert await store.persist_event(kind, "s", 1) is None
    assert await store.persist_event(kind, "s", 2, id="mine") == "mine"
    with pytest.raises(InvalidEvent):
        await store.persist_event(kind, "s", 3, id="mine")
    with pytest.raises(InvalidEvent):
        await store.persist_event(kind, "s", float("nan"))
    assert counted(kind) == {"stored": 2, "duplicate": 1, "repeated": 1, "refused": 2}
    assert duplicates() == before + 1, "a repeated id is no duplicate"


async def test_members_of_a_call_are_counted_one_by_one(store: EventStore, kind: str) -> None:
    before, other = duplicates(), next(_types)
    members = [
        {"event_type": name, "source": "s", "data": n} for name, n in ((kind, 1), (other, 1), (kind, 1), (kind, 2))
    ]
    await store.persist_events(members)
    with pytest.raises(InvalidEvent):
        await store.persist_events([{"event_type": kind, "source": "s", "data": 3}, {"event_type": other}])
    assert counted(kind) == {"stored": 2, "duplicate": 1, "refused": 1}
    assert counted(other) == {"stored": 1, "refused": 1}
    assert duplicates() == before + 1


async def test_what_a_full_step_refuses_is_counted_as_refused(store_url: str, kind: str) -> None:
    store = EventStore(store_url, max_backlog=2)
    await (await store.log()).register("w", [StepSpec("w.slow", kind)])
    for number in range(2):
        await store.persist_event(kind, "s", number)
    with pytest.raises(Backpressure):
        await store.persist_event(kind, "s", 3)
    await store.close()
    assert counted(kind) == {"stored": 2, "refused": 1}


@pytest.mark.parametrize("wrong", [None, 7, "", "x" * 300, "a\nb", b"a"])
async def test_a_type_that_is_none_makes_no_label(store: EventStore, wrong: object) -> None:
    before, labels = counted(OTHER).get("refused", 0), {sample.labels for sample in PUBLISHED.samples()}
    with pytest.raises(InvalidEvent):
        await store.persist_event(wrong, "s")  # type: ignore[arg-type]
    assert counted(OTHER)["refused"] == before + 1
    assert {sample.labels for sample in PUBLISHED.samples()} - labels <= {(OTHER, "refused")}


class _Log:
    """A log whose appends end as a test says."""

    def __init__(self, end: BaseException) -> None:
        self._end = end

    async def append(self, *_: object, **__: object) -> list[Appended]:
        raise self._end


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreUnavailable("away"), "refused"),
        (OutcomeUnknown("no reply"), "unknown"),
        (asyncio.CancelledError(), "unknown"),
        (RuntimeError("a bug"), "unknown"),
    ],
)
async def test_only_what_is_known_not_to_be_stored_counts_as_refused(
    kind: str, error: BaseException, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore("memory://never-opened")

    async def log() -> EventLog:
        return _Log(error)  # type: ignore[return-value]

    monkeypatch.setattr(store, "log", log)
    with pytest.raises(type(error)):
        await store.persist_event(kind, "s")
    with pytest.raises(type(error)):
        await store.persist_events([{"event_type": kind, "source": "s"}] * 2)
    assert counted(kind) == {outcome: 3}


async def test_what_a_drained_journal_turns_out_to_repeat_or_to_contradict_is_counted(
    tmp_path: Path, kind: str
) -> None:
    now = 1_000.0
    log = MemoryLog("drained", LogOptions(), lambda: now)
    await log.open()
    admission = Admission(dedup_window=10.0, clock=lambda: now)
    stored = [admission.admit(kind, "s", data, id=event_id) for data, event_id in (("same", "a"), ("mine", "taken"))]
    assert await log.append(stored) == [Appended.STORED] * 2
    journalled = [
        admission.admit(kind, "s", "same", id="late"),
        admission.admit(kind, "s", "theirs", id="taken"),
        admission.admit(kind, "s", "new"),
        admission.admit(kind, "s", "mine", id="taken"),
    ]
    file = JournalFile(Claims(str(tmp_path), "place").new())
    await file.open()
    await file.append([structs.replace(found, persisted_ms=1_005_000) for found in journalled], synced=False)
    before, now = duplicates(), 1_100.0
    await log.maintain()  # the log forgets what is the same
    recent = admission.admit(kind, "s", "recent")
    await log.append([recent])
    await file.append([structs.replace(recent, id="again", persisted_ms=1_099_000)], synced=False)
    draining = Draining(log, lambda: now, Letters(tmp_path))
    assert await draining.some(file)
    assert (draining.late, draining.found_late) == (2, 1)
    assert counted(kind) == {"duplicate": 2, "refused": 1}
    assert duplicates() == before + 2
    await file.close()
    await log.close()


def test_more_types_than_labels_are_counted_all_the_same() -> None:
    published = Published()
    before = sum(sample.numbers[0] for sample in PUBLISHED.samples())
    for number in range(1_500):
        published.stored[f"many.{number}"]()
        published.stored[f"many.{number}"]()
    assert sum(sample.numbers[0] for sample in PUBLISHED.samples()) == before + 3_000
    assert len(published.stored) == 1_000
