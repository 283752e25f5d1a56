"""Damaged journals: what can be read is handed on, what cannot is kept and reported, nothing passes in silence."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.file import JournalFile
from records import record

COUNT = 60


class Journal:
    """A journal that a process left behind: its files as they were, to be damaged again and again."""

    def __init__(self, directory: Path, name: str) -> None:
        self.claims = Claims(str(directory), "redis://somewhere/0")
        self.name = name
        self.db = b""
        self.wal: bytes | None = None
        self.ids: list[str] = []

    async def write(self, count: int, *, drained: int = 0, folded: bool = False) -> None:
        """Fill it as a killed process leaves it; `folded`: with its write-ahead log in the database already."""
        file = JournalFile(self.claims.new())
        await file.open()
        for n in range(count):
            one = msgspec.structs.replace(record(n, subject=f"s{n % 3}"), persisted_ms=1_000_000 + n)
            await file.append([one], synced=False)
            self.ids.append(one.id)
        if drained:
            entries = await file.read(limit=drained)
            await file.mark([entry.number for entry in entries])
            del self.ids[:drained]
        if folded:
            await file.close()
            self.db = file.path.read_bytes()
        else:
            self.db, self.wal = file.path.read_bytes(), Path(f"{file.path}-wal").read_bytes()
            file.abandon()
        self.lay_out()

    def lay_out(self, *, db: bytes | None = None, wal: bytes | None = None) -> Path:
        shutil.rmtree(self.claims.directory, ignore_errors=True)
        self.claims.directory.mkdir(parents=True)
        path = self.claims.directory / f"{self.name}.db"
        path.write_bytes(self.db if db is None else db)
        wal = self.wal if wal is None else wal
        if wal is not None:
            Path(f"{path}-wal").write_bytes(wal)
        return path

    async def drained(self) -> list[str]:
        """The ids that the next process hands on."""
        (claim,) = self.claims.orphans()
        file = JournalFile(claim)
        await file.open()
        found = []
        while entries := await file.read():
            found += [entry.record.id for entry in entries]
            await file.mark([entry.number for entry in entries])
        assert file.events == 0
        assert await file.close() == 0
        return found

    def kept(self, caplog: pytest.LogCaptureFixture) -> list[Path]:
        """The damaged files that were set aside; each is named by an error in the log."""
        found = sorted(self.claims.directory.glob("*.corrupt*"))
        errors = " ".join(entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR)
        for path in found:
            assert str(path).removesuffix("-wal") in errors
        return found

    async def hands_on_or_reports(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Hold what is handed on against what was written: all of it, or a report of the damage."""
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ag06"):
            found = await self.drained()
        missing = [event_id for event_id in self.ids if event_id not in set(found)]
        assert len(found) == len(set(found))
        assert set(found) <= set(self.ids)
        assert not missing or self.kept(caplog), f"{len(missing)} records vanished without a word"
        assert found == [event_id for event_id in self.ids if event_id in set(found)], "they are out of order"
        return found


@pytest.fixture
async def folded(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path, "1-a")
    await journal.write(COUNT, folded=True)
    return journal


@pytest.fixture
async def unfolded(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path, "1-a")
    await journal.write(COUNT)
    return journal


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


async def test_an_undamaged_journal_is_handed_on_in_whole_without_an_error(
    folded: Journal, unfolded: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for journal in (folded, unfolded):
        journal.lay_out()
        assert await journal.hands_on_or_reports(caplog) == journal.ids
        assert not journal.kept(caplog)
        assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]


@pytest.mark.parametrize("seed", range(2))
async def test_a_flipped_bit_in_the_database_loses_no_record_in_silence(
    folded: Journal, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = random.Random(seed)
    saved = 0
    for _ in range(20):
        at, bit = chosen.randrange(len(folded.db)), chosen.randrange(8)
        folded.lay_out(db=flipped(folded.db, at, bit))
        saved += len(await folded.hands_on_or_reports(caplog))
    assert saved > 10 * COUNT, "damage to a bit costs far more than a page"


@pytest.mark.parametrize("seed", range(1))
async def test_a_flipped_bit_in_the_write_ahead_log_loses_no_record_in_silence(
    unfolded: Journal, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert unfolded.wal is not None
    chosen = random.Random(seed)
    for _ in range(15):
        at, bit = chosen.randrange(len(unfolded.wal)), chosen.randrange(8)
        unfolded.lay_out(wal=flipped(unfolded.wal, at, bit))
        await unfolded.hands_on_or_reports(caplog)


async def test_a_flipped_bit_in_any_field_of_a_frame_header_is_seen(
    unfolded: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    assert unfolded.wal is not None
    last = len(unfolded.wal) - 4096 - 24
    for at in [*range(0, 32, 8), *range(last, last + 24, 3)]:
        unfolded.lay_out(wal=flipped(unfolded.wal, at, at % 8))
        await unfolded.hands_on_or_reports(caplog)


CUTS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("to nothing", lambda data: b""),
    ("within the header", lambda data: data[:50]),
    ("at the first page", lambda data: data[:4096]),
    ("in the middle", lambda data: data[: len(data) // 2]),
    ("by a byte", lambda data: data[:-1]),
    ("at a page", lambda data: data[: len(data) // 8192 * 4096]),
    ("to garbage", lambda data: random.Random(1).randbytes(len(data))),
    ("to zeros", lambda data: bytes(len(data))),
]


@pytest.mark.parametrize("cut", [cut for _, cut in CUTS], ids=[name for name, _ in CUTS])
async def test_a_database_cut_off_or_overwritten_is_kept_and_reported(
    folded: Journal, cut: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    damaged = cut(folded.db)
    folded.lay_out(db=damaged)
    await folded.hands_on_or_reports(caplog)
    (kept,) = [path for path in folded.kept(caplog) if not path.name.endswith("-wal")]
    assert kept.read_bytes() == damaged


@pytest.mark.parametrize("cut", [10, 31, 33, 60, 5_000, 100_001])
async def test_a_write_ahead_log_cut_within_a_frame_is_kept_and_reported(
    unfolded: Journal, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert unfolded.wal is not None
    unfolded.lay_out(wal=unfolded.wal[:cut])
    await unfolded.hands_on_or_reports(caplog)
    assert [path.name.endswith("-wal") for path in unfolded.kept(caplog)] == [False, True]


async def test_a_database_cut_to_nothing_beside_its_write_ahead_log_is_kept_and_reported(
    unfolded: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    unfolded.lay_out(db=b"")
    await unfolded.hands_on_or_reports(caplog)
    assert unfolded.kept(caplog)[-1].read_bytes() == unfolded.wal


async def test_every_record_but_the_damaged_one_is_handed_on(folded: Journal, caplog: pytest.LogCaptureFixture) -> None:
    at = folded.db.index(b'"number":31}')
    folded.lay_out(db=flipped(folded.db, at + 10, 0))
    found = await folded.hands_on_or_reports(caplog)
    assert found == [event_id for n, event_id in enumerate(folded.ids) if n != 31]
    assert "the records number 32 do not have the content that was written" in caplog.text
    assert folded.kept(caplog)


async def test_pages_that_are_broken_do_not_take_those_between_them_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "1-a")
    await journal.write(200, folded=True)
    places = [journal.db.index(b'"number":%d}' % n) // 4096 * 4096 for n in (50, 150)]
    db = bytearray(journal.db)
    for place in places:
        db[place : place + 100] = bytes(100)
    journal.lay_out(db=bytes(db))
    found = await journal.hands_on_or_reports(caplog)
    assert len(found) > 170
    assert journal.ids[100] in found


async def test_what_the_store_had_already_is_not_handed_on_again_from_a_damaged_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "1-a")
    await journal.write(100, drained=40, folded=True)
    place = journal.db.index(b'"number":70}') // 4096 * 4096
    journal.lay_out(db=journal.db[:place] + bytes(100) + journal.db[place + 100 :])
    assert len(await journal.hands_on_or_reports(caplog)) > 40


async def test_a_copy_of_damage_never_replaces_an_earlier_one(
    folded: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        path = folded.claims.directory / "1-a.db"
        path.write_bytes(b"garbage")
        with caplog.at_level(logging.ERROR, "ag06"):
            assert await folded.drained() == []
    assert len(folded.kept(caplog)) == 3
