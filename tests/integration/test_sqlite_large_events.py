"""How much of large events the log in SQLite holds in memory at once."""

from __future__ import annotations

from pathlib import Path

from ag06.persistence.log import LogOptions, Query
from ag06.persistence.sqlite import SqliteLog
from records import TYPE, record, registered

_COUNT = 40
_SIZE = 500_000


async def test_a_fetch_and_a_page_end_after_some_bytes_however_many_events_are_asked_for(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "events.db", LogOptions())
    await log.open()
    subscription = await registered(log)
    await log.append([record([n, "x" * _SIZE]) for n in range(_COUNT)])
    assert 1 <= len(await subscription.fetch(1000, 1.0)) < _COUNT // 2
    for query in (Query(), Query(types=(TYPE,))):
        pages = [len(page) async for page in log.read(query)]
        assert sum(pages) == _COUNT
        assert max(pages) < _COUNT
    await log.close()
