"""What every log promises about notes: what its processes share besides events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ag06.errors import InvalidEvent, StoreError
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.log import JournaledLog
from ag06.persistence.log import MOST_NOTE_BYTES, EventLog, LogOptions
from ag06.persistence.stores import open_log
from conftest import OpenLog
from records import record

BODIES = [b"", b"\x00", bytes(range(256)), b"\r\n$-1\r\n", "{ag06}:ä".encode(), b"0", b"12", b"1.50"]
NAMES = ["optimizer.mixer", "a b", "ä/\U0001f39a", "{x}:y", "%s'\"?*[a]", "n" * 255, "ü" * 127, "0"]


@pytest.fixture(params=["straight", "journalled"])
async def log(request: pytest.FixtureRequest, open_store: OpenLog, tmp_path: Any) -> EventLog:
    """The log itself, and the same behind a journal."""
    inner = await open_store()
    if request.param == "straight":
        return inner
    return JournaledLog(inner, Claims(str(tmp_path / "journal"), "test"), LogOptions())


async def test_a_note_is_read_as_it_was_written(log: EventLog) -> None:
    for body in BODIES:
        await log.write_note("state", body)
        assert await log.read_note("state") == body


async def test_a_note_that_nobody_wrote_is_none(log: EventLog) -> None:
    assert await log.read_note("state") is None
    await log.write_note("state", None)
    assert await log.read_note("state") is None


async def test_a_note_that_is_removed_is_gone_and_may_come_back(log: EventLog) -> None:
    await log.write_note("state", b"1")
    await log.write_note("other", b"kept")
    await log.write_note("state", None)
    assert await log.read_note("state") is None
    assert await log.read_note("other") == b"kept"
    await log.write_note("state", b"2")
    assert await log.read_note("state") == b"2"


async def test_every_name_has_a_note_of_its_own(log: EventLog) -> None:
    for name in NAMES:
        await log.write_note(name, name.encode())
    assert [await log.read_note(name) for name in NAMES] == [name.encode() for name in NAMES]
    assert await log.read_note("OPTIMIZER.MIXER") is None


@pytest.mark.parametrize("name", ["", "n" * 256, "ü" * 128, "a\x00b", "a\nb", "\x7f", "\ud800"])
async def test_what_is_no_name_is_refused_and_the_error_says_so(log: EventLog, name: str) -> None:
    with pytest.raises(InvalidEvent, match="note"):
        await log.write_note(name, b"1")
    with pytest.raises(InvalidEvent, match="note"):
        await log.read_note(name)


async def test_a_note_has_a_largest_size_and_what_is_refused_leaves_the_old_one(log: EventLog) -> None:
    largest = b"\xff" * MOST_NOTE_BYTES
    await log.write_note("state", largest)
    with pytest.raises(InvalidEvent, match=r"'state' is 1048577 bytes; the limit is 1048576"):
        await log.write_note("state", largest + b"\xff")
    assert await log.read_note("state") == largest
    text: Any = "text"
    with pytest.raises(InvalidEvent, match="must be bytes or None, got str"):
        await log.write_note("state", text)


async def test_every_handle_sees_what_another_one_wrote_last(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    for turn in range(20):
        writer, reader = (one, two) if turn % 2 else (two, one)
        await writer.write_note("state", b"%d" % turn)
        assert await reader.read_note("state") == b"%d" % turn
        await reader.write_note("state", None)
        assert await writer.read_note("state") is None


async def test_notes_of_one_handle_take_effect_in_the_order_of_the_calls(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    for turn in range(5):
        names = [f"{turn}-{n % 3}" for n in range(30)]
        await asyncio.gather(*[one.write_note(name, b"%d" % n) for n, name in enumerate(names)])
        assert [await two.read_note(f"{turn}-{n}") for n in range(3)] == [b"27", b"28", b"29"]


async def test_of_handles_that_write_at_once_every_one_reads_the_same(open_store: OpenLog) -> None:
    logs = [await open_store() for _ in range(4)]
    for turn in range(10):
        bodies = [bytes([65 + n]) * 5_000 for n in range(4)]
        await asyncio.gather(*[log.write_note("state", body) for log, body in zip(logs, bodies, strict=True)])
        read = {await log.read_note("state") for log in logs}
        assert len(read) == 1, f"turn {turn}"
        assert read <= set(bodies)


async def test_logs_have_notes_of_their_own(log: EventLog, store_url: str) -> None:
    url = store_url.replace(".db", "-b.db") if ".db" in store_url else store_url + "-b"
    other = open_log(url, LogOptions())
    await other.open()
    try:
        await log.write_note("state", b"mine")
        assert await other.read_note("state") is None
        await other.write_note("state", b"theirs")
        await other.write_note("only theirs", b"1")
        assert await log.read_note("state") == b"mine"
        assert await log.read_note("only theirs") is None
    finally:
        await other.close()


async def test_notes_are_there_when_the_log_is_opened_again(open_store: OpenLog, adapter: str) -> None:
    holder = await open_store()
    log = await open_store()
    await log.write_note("state", b"1")
    await log.write_note("gone", b"1")
    await log.write_note("gone", None)
    await log.close()
    if adapter != "memory":  # a log in memory lives as long as someone holds it
        await holder.close()
    again = await open_store()
    assert await again.read_note("state") == b"1"
    assert await again.read_note("gone") is None


async def test_notes_are_no_events_and_housekeeping_leaves_them(log: EventLog) -> None:
    await log.write_note("state", b"1")
    await log.append([record(1)])
    await log.maintain()
    for cut in await log.settled(1 << 42):
        await log.drop(cut)
    stats = await log.stats()
    assert (stats.scheduled, stats.dead_letters, stats.groups) == (0, 0, ())
    assert await log.read_note("state") == b"1"


async def test_a_log_that_is_closed_takes_and_gives_no_notes(open_store: OpenLog) -> None:
    log = await open_store()
    await log.close()
    with pytest.raises(StoreError):
        await log.write_note("state", b"1")
    with pytest.raises(StoreError):
        await log.read_note("state")
