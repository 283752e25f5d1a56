"""SQLite: notes in files of earlier releases, beside others who write, and between processes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ag06.errors import StoreUnavailable
from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.sqlite import SqliteLog, schema
from records import events, eventually, record

_OTHER = """
import asyncio, sys
from ag06.persistence.log import LogOptions
from ag06.persistence.sqlite import SqliteLog

async def main() -> None:
    log = SqliteLog(sys.argv[1], LogOptions())
    await log.open()
    print(await log.read_note("state"), flush=True)
    await log.write_note("state", b"theirs")
    sys.stdin.readline()
    print(await log.read_note("state"))
    await log.close()

asyncio.run(main())
"""


async def _opened(path: Path, **options: object) -> SqliteLog:
    log = SqliteLog(str(path), LogOptions(**options))  # type: ignore[arg-type]
    await log.open()
    return log


@pytest.mark.parametrize("version", range(1, schema.VERSION))
async def test_a_file_of_any_earlier_schema_takes_notes(tmp_path: Path, version: int) -> None:
    path = tmp_path / "events.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for step in schema._STEPS[:version]:
            connection.executescript(step)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    log = await _opened(path)
    assert await log.read_note("state") is None
    await log.write_note("state", b"1")
    assert await log.append([record(1)]) == [Appended.STORED]
    await log.close()
    log = await _opened(path)
    assert await log.read_note("state") == b"1"
    assert len(await events(log)) == 1
    await log.close()


async def test_a_note_is_read_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    log = await _opened(path, timeout=0.2)
    await log.write_note("state", b"1")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await log.read_note("state") == b"1"
        with pytest.raises(StoreUnavailable, match="another process wrote"):
            await log.write_note("state", b"2")
        other.execute("ROLLBACK")
    assert await log.read_note("state") == b"1"
    await log.close()


@pytest.mark.parametrize(("durability", "level"), [(None, "FULL"), ("fsync", "FULL"), ("server", "NORMAL")])
async def test_notes_are_written_with_the_sync_that_was_promised(
    tmp_path: Path, durability: object, level: str
) -> None:
    log = await _opened(tmp_path / "events.db", durability=durability)
    for body in (b"1", None):
        await log.lead("a role", "a", 60)  # needs no sync
        await log.write_note("state", body)
        assert log.writer._synchronous == level
    await log.close()


async def test_processes_see_what_another_one_wrote_last(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    log = await _opened(path)
    await log.write_note("state", b"ours")
    command = [sys.executable, "-c", _OTHER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "b'ours'\n"

        async def is_theirs() -> bool:
            return await log.read_note("state") == b"theirs"

        await eventually(is_theirs)
        await log.write_note("state", b"ours again")
        said, _ = await asyncio.to_thread(process.communicate, "\n", 20)
        assert said == "b'ours again'\n"
    await log.close()
