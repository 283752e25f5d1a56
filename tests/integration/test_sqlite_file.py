"""The file of a log in SQLite: what is made, what is refused, what a full disk does."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.sqlite import SqliteLog, schema
from records import collect, done, events, numbers, record, registered


async def _opened(path: Path, **options: object) -> SqliteLog:
    log = SqliteLog(str(path), LogOptions(**options))  # type: ignore[arg-type]
    await log.open()
    return log


async def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "events.db"
    before = os.umask(0)
    try:
        log = await _opened(path)
        await log.append([record(1)])
        modes = {name.name: name.stat().st_mode & 0o777 for name in path.parent.iterdir()}
        await log.close()
    finally:
        os.umask(before)
    assert modes == {"events.db": 0o600, "events.db-wal": 0o600, "events.db-shm": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_foreign_sqlite_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for version in (0, 1):
        path = tmp_path / f"theirs-{version}.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE theirs (a)")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match=f"theirs-{version}.db.*not an event log"):
            await _opened(path)
        assert path.read_bytes() == before


async def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    await (await _opened(path)).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigurationError, match=r"events\.db: written by a newer release"):
        await _opened(path)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, just words\n" * 100)
    with pytest.raises(ConfigurationError, match=r"notes\.txt"):
        await _opened(path)
    assert path.read_text().startswith("not a database")


async def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    connection = sqlite3.connect(path)
    connection.executescript(schema._FIRST)
    connection.execute("INSERT INTO types VALUES (1, 'order.placed', 3)")
    said = record(1)
    connection.execute("INSERT INTO events VALUES (5 << 20, 5, ?, NULL, NULL, 0, NULL, ?)", (said.id, said.body))
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    log = await _opened(path)
    assert await log.append([record(2)]) == [Appended.STORED]
    assert [event.data["number"] for event in await events(log)] == [1, 2]
    assert (await log.stats()).events == 2
    await log.close()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "glusterfs"])
async def test_a_network_filesystem_is_refused_and_nothing_is_made_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounted = tmp_path / "far away"
    mounted.mkdir()
    table = tmp_path / "mountinfo"
    escaped = str(mounted).replace(" ", "\\040")
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"40 22 0:50 / {escaped} rw,relatime shared:2 - {kind} server:/share rw\n"
    )
    monkeypatch.setattr(schema, "MOUNTS", table)
    with pytest.raises(ConfigurationError, match=f"network filesystem.*{kind}"):
        await _opened(mounted / "sub" / "events.db")
    assert list(mounted.iterdir()) == []
    await (await _opened(tmp_path / "near.db")).close()


async def test_replicated_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="replicated"):
        SqliteLog(str(tmp_path / "events.db"), LogOptions(durability="replicated"))
    log = await _opened(tmp_path / "events.db")
    with pytest.raises(ConfigurationError, match="replicated"):
        await log.append([record(1)], durability="replicated")
    await log.close()


async def test_fsync_cannot_be_asked_of_a_log_opened_without_it(tmp_path: Path) -> None:
    log = await _opened(tmp_path / "events.db", durability="server")
    with pytest.raises(ConfigurationError, match="fsync"):
        await log.append([record(1)], durability="fsync")
    assert await log.append([record(1)], durability="server") == [Appended.STORED]
    await log.close()


@pytest.mark.parametrize(("durability", "level"), [(None, 2), ("fsync", 2), ("server", 1)])
async def test_events_are_written_with_the_sync_that_was_promised(
    tmp_path: Path, durability: object, level: int
) -> None:
    log = await _opened(tmp_path / "events.db", durability=durability)
    found = await log.writer.submit(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0])
    assert found == level
    await log.close()


async def test_a_full_disk_refuses_writes_and_the_log_stays_readable_and_goes_on(tmp_path: Path) -> None:
    log = await _opened(tmp_path / "events.db")
    subscription = await registered(log)
    await log.append([record(1)])

    def limit(pages: int) -> object:
        return log.writer.submit(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    await limit(1)  # SQLite rounds up to what is there: not one page more
    large = record("x" * 100_000)
    with pytest.raises(StoreUnavailable, match=r"events\.db: database or disk is full.*make room"):
        await log.append([large])
    assert [event.data["number"] for event in await events(log)] == [1]
    assert (await log.stats()).events == 1
    deliveries = await collect(subscription, 1)
    assert numbers(deliveries) == [1]
    await limit(1_000_000)
    assert await log.append([large]) == [Appended.STORED], "what was refused was remembered"
    assert await subscription.commit([done(*deliveries)]) == [True]
    await log.close()
