"""What several processes, and several logs of one process, may expect of one SQLite file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.sqlite import SqliteLog
from records import record

_COUNT = """
import asyncio, sys
from ag06.persistence.log import LogOptions
from ag06.persistence.sqlite import SqliteLog

async def count():
    log = SqliteLog(sys.argv[1], LogOptions())
    await log.open()
    print((await log.stats()).events)
    await log.close()

asyncio.run(count())
"""


def _seen_by_another_process(path: Path) -> int:
    ended = subprocess.run([sys.executable, "-c", _COUNT, str(path)], capture_output=True, text=True, check=True)
    return int(ended.stdout)


async def test_a_second_log_in_a_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    first, second = SqliteLog(str(path), LogOptions()), SqliteLog(str(path), LogOptions())
    await first.open()
    await first.append([record(1)])
    await second.open()
    assert _seen_by_another_process(path) == 1
    assert path.with_name("events.db-wal").exists(), "another process took the write-ahead log away when it left"
    assert await first.append([record(2)]) == [Appended.STORED]
    assert _seen_by_another_process(path) == 2
    await second.close()
    await first.close()
