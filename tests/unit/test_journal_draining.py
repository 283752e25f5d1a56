"""What a journal does with a store that takes some events and not others, or takes them slowly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from ag06.errors import OutcomeUnknown, StoreError, StoreUnavailable
from ag06.event import decode_event
from ag06.persistence.admission import Admission
from ag06.persistence.journal import log as journal_log
from ag06.persistence.journal.dead_letter_file import CLASHED, Letters
from ag06.persistence.journal.draining import Draining
from ag06.persistence.journal.late import candidate
from ag06.persistence.journal.page import LARGEST, Page
from ag06.persistence.log import Appended, Disconnected, Durability, LogOptions, Query, Record, Stored
from ag06.persistence.memory import MemoryLog
from faulty import AWAY, Both, FaultyLog, kept
from journals import when
from records import record


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "PROBE_SECONDS", 0.02)


class Choosy(FaultyLog):
    """A log that refuses calls with certain events, or with more events than it can take."""

    refusal: Exception = StoreError("no")
    refused: frozenset[int] = frozenset()
    most = LARGEST
    largest = 0

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        if self.error is None:
            if len(records) > self.most:
                raise OutcomeUnknown("this takes too long")
            if any(_number(one) in self.refused for one in records):
                raise type(self.refusal)(*self.refusal.args)
            self.largest = max(self.largest, len(records))
        return await super().append(records, durability=durability, max_backlog=max_backlog)


def _number(one: Record) -> object:
    return decode_event(one.body, 0).data["number"]


@pytest.fixture
async def both(tmp_path: Path) -> Both:
    made = Both(tmp_path / "journal", LogOptions())
    made.inner.__class__ = Choosy
    await made.log.open()
    return made


def choosy(both: Both) -> Choosy:
    assert isinstance(both.inner, Choosy)
    return both.inner


async def set_aside(both: Both, letters: int) -> None:
    async def check() -> bool:
        return not both.state.active and both.state.dead_letters == letters

    await when(check)


def numbers(letters: Letters) -> list[object]:
    return [_number(letter.record) for letter in letters.list(1000)]


@pytest.mark.parametrize(
    "error", [StoreError("WRONG"), Disconnected("closed"), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
async def test_an_event_that_is_refused_alone_is_set_aside_and_the_others_go_on_in_order(
    both: Both, error: Exception
) -> None:
    await kept(both, *range(40), subject="s")
    choosy(both).refusal, choosy(both).refused = error, frozenset({7, 8, 30})
    await kept(both, 40)  # of no subject, so that it may be asked for before the others
    both.fail(None)
    await set_aside(both, 3)
    found = await both.numbers()
    assert sorted(found) == [n for n in range(41) if n not in (7, 8, 30)]
    assert [n for n in found if n != 40] == [n for n in range(40) if n not in (7, 8, 30)]
    assert numbers(both.log.letters) == [7, 8, 30]
    await both.log.close()


async def test_a_duplicate_that_is_sent_to_prove_that_the_store_takes_others_counts_once(both: Both) -> None:
    assert await both.log.append([record(2)]) == [Appended.STORED]
    await kept(both, 1, 2)
    choosy(both).refused = frozenset({1})
    both.fail(None)
    await set_aside(both, 1)
    assert both.state.late_duplicates == 1
    assert await both.numbers() == [2]
    await both.log.close()


@pytest.mark.parametrize(
    "error", [StoreUnavailable("out of memory"), OutcomeUnknown("no answer in time")], ids=["away", "unknown"]
)
async def test_an_event_that_is_not_taken_for_now_is_never_set_aside(both: Both, error: Exception) -> None:
    await kept(both, 1, 2, 3)
    choosy(both).refusal, choosy(both).refused = error, frozenset({1})
    both.fail(None)

    async def held() -> bool:
        return both.state.problem == str(error)

    await when(held)
    assert both.state.dead_letters == 0
    choosy(both).refused = frozenset()
    await set_aside(both, 0)
    assert await both.numbers() == [1, 2, 3]
    await both.log.close()


async def test_a_store_that_refuses_every_event_is_waited_for(both: Both) -> None:
    await kept(both, *range(50))
    choosy(both).refused = frozenset(range(50))
    both.fail(None)

    async def held() -> bool:
        return both.state.problem == "no"

    await when(held)
    assert both.state.events > 30, "only a few are set aside without proof"
    choosy(both).refused = frozenset()
    await when_straight(both)
    assert len(await both.numbers()) + len(numbers(both.log.letters)) == 50
    await both.log.close()


async def when_straight(both: Both) -> None:
    async def check() -> bool:
        return not both.state.active

    await when(check)


async def test_pages_are_cut_until_they_pass(both: Both) -> None:
    await kept(both, *range(100))
    choosy(both).most = 3
    both.fail(None)
    await set_aside(both, 0)
    assert await both.numbers() == list(range(100))
    assert 1 <= choosy(both).largest <= 3
    await both.log.close()


async def test_what_dead_processes_left_behind_is_isolated_alike(both: Both, tmp_path: Path) -> None:
    await kept(both, 1, 2, 3)
    both.fail(AWAY)
    await both.log.close()
    again = Both(tmp_path / "journal", LogOptions())
    again.inner.__class__ = Choosy
    choosy(again).refused = frozenset({2})
    await again.log.open()
    await set_aside(again, 1)
    assert await again.numbers() == [1, 3]
    await again.log.close()


def test_a_page_is_halved_down_to_one_and_grows_again() -> None:
    page = Page()
    records = [record(n) for n in range(LARGEST)]
    for _ in range(12):
        page.failed(records[: page.events], 1.0)
    assert page.events == 1
    for _ in range(12):
        page.passed(records[: page.events], 0.01)
    assert page.events == LARGEST
    page.passed(records, 5.0)
    assert page.events == LARGEST // 2


def test_only_what_passes_soon_is_worth_holding_publishers_for() -> None:
    page = Page()
    records = [record(n) for n in range(100)]
    assert page.passes_soon(records)
    page.passed(records[:10], 1.0)
    assert page.passes_soon(records[:5])
    assert not page.passes_soon(records)


def test_a_damaged_file_of_dead_letters_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    letters = Letters(tmp_path)
    letters.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreUnavailable):
        letters.keep(record(1), CLASHED, 1, synced=False)
    letters.keep(record(1), CLASHED, 1, synced=False)
    assert letters.count() == 1
    assert list(tmp_path.glob("*.corrupt"))


def test_a_dead_letter_that_is_refused_again_stays_one(tmp_path: Path) -> None:
    letters = Letters(tmp_path)
    one = record(1)
    letters.keep(one, CLASHED, 1, synced=False)
    letters.keep(one, CLASHED, 2, synced=False)
    (letter,) = letters.list(10)
    assert (letter.refusal.attempts, letter.first_ms, letter.last_ms) == (2, 1, 2)


class Unreadable(MemoryLog):
    """A store that cannot read events of one type."""

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        if query.types is None or "bad" in query.types:
            raise StoreError("WRONGTYPE")
        async for page in super().read(query):
            yield page


async def test_a_type_that_cannot_be_read_keeps_no_duplicate_of_another_type_from_being_found() -> None:
    now = [1_000_000.0]
    log = Unreadable("", LogOptions(), clock=lambda: now[0])
    await log.open()
    admission = Admission(300.0, clock=lambda: now[0])
    await log.append([admission.admit("good", "s", 1)])
    persisted_ms = int(now[0] * 1000) + 60_000
    late, *others = [
        msgspec.structs.replace(admission.admit(*said), persisted_ms=persisted_ms)
        for said in (("good", "s", 1), ("good", "s", 2), ("bad", "s", 1))
    ]
    now[0] += 1000
    draining = Draining(log, lambda: now[0], Letters(Path("nowhere")))
    candidates = [found for record in (late, *others) if (found := candidate(record)) is not None]
    assert len(candidates) == 3
    assert await draining._late(candidates) == {late.id}
    await log.close()
