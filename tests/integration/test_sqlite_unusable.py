"""Files and places that no log can live in: each is refused by its name, with what to do, and left as it is."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Workflow
from ag06.errors import StoreDamaged
from ag06.persistence import EventStore


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def refusal(path: Path) -> str:
    """Return how a log at `path` is refused; the same words by every way in."""
    with pytest.raises(ConfigurationError) as refused:
        await EventStore().initialize(url(path))
    app = Workflow("w", store=url(path))
    with pytest.raises(ConfigurationError) as again:
        async with app.running():
            raise AssertionError("it runs without a store")
    assert str(again.value) == str(refused.value)
    assert path.name in str(refused.value)
    return str(refused.value)


async def made(path: Path, count: int = 500) -> bytes:
    """Make a log with some events; return the bytes of its file."""
    store = EventStore(url(path))
    await store.persist_events({"event_type": "t", "source": "s", "data": [n, "x" * 500]} for n in range(count))
    await store.close()
    return path.read_bytes()


async def test_a_directory_is_no_log(tmp_path: Path) -> None:
    assert "is a directory; name a file" in await refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_what_is_no_regular_file_is_no_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "fifo", tmp_path / "loop", Path("/dev/null")):
        assert "is not a regular file" in await refusal(path)


async def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    assert "cannot be opened for writing" in await refusal(tmp_path / "notes.txt" / "events.db")
    assert (tmp_path / "notes.txt").read_text() == "notes"


async def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "cannot be opened for writing (File name too long)" in await refusal(tmp_path / ("x" * 300))


@pytest.mark.parametrize("damage", ["scribbled", "halved", "cut short", "header alone"])
async def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    whole = await made(tmp_path / "whole.db")
    broken = {
        "scribbled": whole[:100] + b"\xa5" * 8000 + whole[8100:],
        "halved": whole[: len(whole) // 2],
        "cut short": whole[:2000],
        "header alone": whole[:16] + bytes(84),
    }[damage]
    path = tmp_path / "events.db"
    path.write_bytes(broken)
    words = await refusal(path)
    assert "not a usable SQLite file" in words
    assert "look at it with ag06 check, then move it away or restore a backup" in words
    assert path.read_bytes() == broken


async def test_damage_in_the_middle_is_an_error_of_those_who_meet_it(tmp_path: Path) -> None:
    """A file is not read through when it is opened: that would take as long as it is large."""
    whole = await made(tmp_path / "whole.db")
    path = tmp_path / "events.db"
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + b"\xff" * 16384 + whole[middle + 16384 :])
    store = EventStore(url(path))
    with pytest.raises(StoreDamaged, match=r"events\.db: the file is damaged .*malformed.*ag06 check"):
        await store.replay_from(0)
    await store.close()


async def test_a_write_ahead_log_that_was_torn_loses_nothing_that_precedes_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    await made(path, 10)
    store = EventStore(url(path))
    ids = [await store.persist_event("t", "s", n) for n in range(20)]
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    torn = (tmp_path / "events.db-wal").read_bytes()
    await store.close()
    everything = None
    for rest in (b"", torn[-5000:], b"\x00" * 5000, b"garbage" * 999):
        everything = await _with_log(copy, torn + rest)
        assert everything[10:] == ids
    assert everything is not None
    for tenth in range(10):
        found = await _with_log(copy, torn[: len(torn) * tenth // 10])
        assert len(found) >= 10
        assert found == everything[: len(found)]


async def _with_log(path: Path, log: bytes) -> list[str]:
    """Return the ids in a copy of the file with this write-ahead log, and leave the copy as it was."""
    before = path.read_bytes()
    path.with_name(f"{path.name}-wal").write_bytes(log)
    store = EventStore(url(path))
    found = [event.id for event in await store.replay_from(0)]
    await store.close()
    path.write_bytes(before)
    return found


async def test_a_file_of_another_program_is_refused_by_every_way_in(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (id TEXT)")  # a name that ours has too
    connection.close()
    before = path.read_bytes()
    assert "is an SQLite file, but not an event log; choose another path" in await refusal(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["theirs.db"]


# Without the right to write. Since 3.12 Python warns of every fork in a process with threads.

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user reaches."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        for path in [Path(name), *Path(name).rglob("*")]:
            path.chmod(0o755)


def _open_as_nobody(path: Path, answers: Connection) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    async def use() -> None:
        store = EventStore(url(path))
        await store.persist_event("t", "s", 1)
        await store.close()

    try:
        asyncio.run(use())
        answers.send(("stored", ""))
    except Exception as error:
        answers.send((type(error).__name__, str(error)))
    answers.close()
    os._exit(0)


def opened_as_nobody(path: Path) -> tuple[str, str]:
    """Use a log in a process that may not do everything, as a superuser may."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_open_as_nobody, args=(path, there))
    child.start()
    there.close()
    answer: tuple[str, str] = here.recv()
    child.join(20)
    return answer


@forks
def test_a_place_that_may_not_be_written_is_named(shared: Path) -> None:
    shared.chmod(0o555)
    kind, words = opened_as_nobody(shared / "events.db")
    assert kind == "ConfigurationError"
    assert "events.db: cannot be opened for writing (Permission denied)" in words
    kind, words = opened_as_nobody(shared / "new" / "events.db")
    assert kind == "ConfigurationError"
    assert "cannot be opened for writing" in words
    assert list(shared.iterdir()) == []


@forks
@pytest.mark.parametrize(("file_mode", "directory_mode"), [(0o444, 0o777), (0o666, 0o555), (0o444, 0o555), (0, 0o777)])
def test_a_log_that_may_not_be_written_is_named_and_left_as_it_is(
    shared: Path, file_mode: int, directory_mode: int
) -> None:
    path = shared / "events.db"
    asyncio.run(made(path, 10))
    before = path.read_bytes()
    path.chmod(file_mode)
    shared.chmod(directory_mode)
    kind, words = opened_as_nobody(path)
    assert kind == "ConfigurationError"
    assert "cannot be opened for writing" in words
    assert "read-only for this user" in words
    shared.chmod(0o755)
    path.chmod(0o644)
    assert path.read_bytes() == before
    assert [entry.name for entry in shared.iterdir()] == ["events.db"]


@forks
def test_a_log_that_may_be_written_is_used(shared: Path) -> None:
    shared.chmod(0o777)
    assert opened_as_nobody(shared / "events.db") == ("stored", "")
