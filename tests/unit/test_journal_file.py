"""One journal file: what it confirmed is there until the store has it, whatever becomes of those who asked."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence import EventStore
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.log import Appended, Record
from disks import disk
from records import record

STORED, DUPLICATE, REPEATED, CLASH = Appended.STORED, Appended.DUPLICATE, Appended.REPEATED, Appended.CLASH


def journalled(number: Any, persisted_ms: int = 1_000_000, **settings: Any) -> Record:
    return msgspec.structs.replace(record(number, **settings), persisted_ms=persisted_ms)


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(str(tmp_path), "redis://somewhere/0")


@pytest.fixture
async def file(claims: Claims) -> JournalFile:
    opened = JournalFile(claims.new())
    await opened.open()
    return opened


async def reopened(claims: Claims) -> JournalFile:
    (claim,) = claims.orphans()
    opened = JournalFile(claim)
    await opened.open()
    return opened


async def drained(file: JournalFile) -> list[str]:
    found = []
    while entries := await file.read():
        found += [entry.record.id for entry in entries]
        await file.mark([entry.number for entry in entries])
    return found


async def test_what_a_cancelled_caller_wrote_is_counted_and_does_not_hide_what_comes_later(
    file: JournalFile, claims: Claims
) -> None:
    given_up = asyncio.create_task(file.append([journalled(1)], synced=False))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await file.append([journalled(2)], synced=False) == [STORED]
    assert file.events == 2
    assert len(await drained(file)) == 2
    assert file.events == 0
    kept = journalled(3)
    assert await file.append([kept], synced=False) == [STORED]
    assert file.events == 1
    assert await file.close() == 1
    again = await reopened(claims)
    assert await drained(again) == [kept.id]
    assert await again.close() == 0


async def test_a_journal_that_is_closed_while_it_writes_keeps_what_it_confirms(
    file: JournalFile, claims: Claims
) -> None:
    late = journalled(1)
    writing = asyncio.create_task(file.append([late], synced=False))
    await asyncio.sleep(0)
    assert await file.close() == 1
    assert await writing == [STORED]
    again = await reopened(claims)
    assert await drained(again) == [late.id]
    await again.close()


async def test_a_closed_journal_takes_nothing_and_says_so(file: JournalFile) -> None:
    await file.close()
    with pytest.raises(StoreUnavailable, match=f"{file.path}: is closed"):
        await file.append([journalled(1)], synced=False)
    assert await file.read() == []


async def test_an_empty_journal_is_deleted_with_all_its_files(file: JournalFile, claims: Claims) -> None:
    await file.append([journalled(1)], synced=False)
    await drained(file)
    assert await file.close() == 0
    assert [path.name for path in claims.directory.iterdir()] == ["store"]


async def test_records_come_out_as_they_went_in_and_in_order(file: JournalFile, claims: Claims) -> None:
    records = [
        journalled(n, subject=f"s{n % 3}", priority=n % 4, **({"id": f"mine-{n}"} if n % 5 == 0 else {}))
        for n in range(1200)
    ]
    records[7] = msgspec.structs.replace(records[7], due_ms=5_000, doubt=b"\x00\x01")
    for at in range(0, len(records), 100):
        assert await file.append(records[at : at + 100], synced=at >= 1000) == [STORED] * 100
    assert await file.close() == len(records)
    again = await reopened(claims)
    assert (again.events, again.oldest_ms) == (1200, 1_000_000)
    found = []
    while entries := await again.read():
        found += entries
        await again.mark([entry.number for entry in entries])
    assert [entry.record for entry in found] == records
    assert [entry.synced for entry in found] == [n >= 1000 for n in range(1200)]
    await again.close()


async def test_a_large_journal_is_read_in_pages_of_bounded_size(file: JournalFile) -> None:
    big = [msgspec.structs.replace(journalled(n), body=b"x" * 300_000) for n in range(12)]
    await file.append(big, synced=False)
    pages = []
    while entries := await file.read():
        pages.append(len(entries))
        await file.mark([entry.number for entry in entries])
    assert sum(pages) == 12
    assert max(pages) <= 5
    await file.close()


async def test_duplicates_are_judged_by_when_they_were_persisted(file: JournalFile) -> None:
    first = journalled(1, persisted_ms=1_000_000)
    within, beyond = journalled(1, persisted_ms=1_299_000), journalled(1, persisted_ms=1_300_000)
    assert await file.append([first, within, beyond], synced=False) == [STORED, DUPLICATE, STORED]
    await drained(file)
    assert await file.append([journalled(1, persisted_ms=1_301_000)], synced=False) == [DUPLICATE]
    uncompared = [journalled(1, dedup=False) for _ in range(3)]
    assert await file.append(uncompared, synced=False) == [STORED] * 3
    outputs = [msgspec.structs.replace(journalled(1), identity=None, window_ms=0) for _ in range(3)]
    assert await file.append(outputs, synced=False) == [STORED] * 3
    await file.close()


async def test_an_identity_of_a_clock_that_was_ahead_is_remembered_for_its_window_at_most(file: JournalFile) -> None:
    ahead = [journalled(1, persisted_ms=90_000_000), journalled(2, persisted_ms=1_060_000)]
    assert await file.append(ahead, synced=False) == [STORED, STORED]
    back = [journalled(1, persisted_ms=1_000_000), journalled(2, persisted_ms=1_000_000)]
    assert await file.append(back, synced=False) == [STORED, DUPLICATE]
    later = [journalled(1, persisted_ms=1_300_001), journalled(2, persisted_ms=1_300_001)]
    assert await file.append(later, synced=False) == [STORED, STORED]


async def test_an_identity_counts_for_the_whole_of_its_own_window_beside_publishers_with_shorter_ones(
    file: JournalFile,
) -> None:
    def published(at_ms: int, window_ms: int) -> Record:
        return msgspec.structs.replace(journalled(1, persisted_ms=1_000_000 + at_ms), window_ms=window_ms)

    assert await file.append([published(0, 500_000)], synced=False) == [STORED]
    assert await file.append([published(1_000, 300_000)], synced=False) == [DUPLICATE]
    assert await file.append([published(400_000, 500_000)], synced=False) == [DUPLICATE]
    assert await file.append([published(500_000, 86_400_000)], synced=False) == [STORED]
    later = [published(501_000, 300_000), published(86_000_000, 500_000)]
    assert await file.append(later, synced=False) == [DUPLICATE, DUPLICATE]
    await file.close()


async def test_an_id_is_stored_once_and_its_other_content_refused(file: JournalFile) -> None:
    mine = journalled(1, id="mine")
    assert await file.append([mine, mine, journalled(2, id="mine")], synced=False) == [STORED, REPEATED, CLASH]
    await drained(file)
    assert await file.append([mine, journalled(2, id="mine")], synced=False) == [REPEATED, CLASH]
    assert file.events == 0
    await file.close()


async def test_the_oldest_time_is_that_of_the_first_record_the_store_does_not_have(file: JournalFile) -> None:
    await file.append([journalled(n, persisted_ms=1_000 + n) for n in range(700)], synced=False)
    assert file.oldest_ms == 1_000
    first = await file.read()
    await file.read(first[-1].number)  # a look ahead changes nothing
    assert file.oldest_ms == 1_000
    await file.mark([entry.number for entry in first])
    (entry, *_) = await file.read()
    assert file.oldest_ms == entry.record.persisted_ms == 1_000 + len(first)
    await drained(file)
    assert file.oldest_ms is None
    await file.close()


async def test_what_a_dead_process_had_handed_on_is_not_handed_on_again(file: JournalFile, claims: Claims) -> None:
    await file.append([journalled(n) for n in range(800)], synced=False)
    first = await file.read()
    await file.mark([entry.number for entry in first])
    file.abandon()
    again = await reopened(claims)
    assert again.events == 800 - len(first)
    assert not {entry.record.id for entry in first} & set(await drained(again))
    await again.close()


async def test_a_full_disk_does_not_hold_the_draining_up(
    file: JournalFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk("files", tmp_path / "other") as full:
        full.directory = file.path.parent
        await file.append([journalled(n) for n in range(1100)], synced=False)
        await full.fill(EventStore())
        with caplog.at_level(logging.WARNING, "ag06"):
            assert len(await drained(file)) == 1100
        assert len([entry for entry in caplog.records if "cannot be noted" in entry.message]) == 1
        assert file.events == 0
        assert await file.close() == 0
    assert not file.path.exists()


async def test_an_append_whose_operation_cannot_be_queued_is_refused_at_once_and_so_is_the_next(
    file: JournalFile,
) -> None:
    assert file._writer is not None
    file._writer.finish()
    for number in range(3):
        with pytest.raises(StoreError, match="is closed"):
            await asyncio.wait_for(file.append([journalled(number)], synced=False), 20)
    assert not file._calls
