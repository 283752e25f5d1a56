from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from crash.processes import Killable
from servers import ValkeyServer

KILLS = max(3, int(os.environ.get("AG06_CRASH_CYCLES", "20")) // 6)

PUBLISHER = """
import asyncio, itertools, sys
from ag06.persistence import EventStore

async def main():
    events = EventStore(sys.argv[1], durability=sys.argv[2])
    numbers = itertools.count()
    async def caller():
        for n in numbers:
            print(await events.persist_event("killed", "test", {"n": n, "run": sys.argv[3]}), flush=True)
    await asyncio.gather(*(caller() for _ in range(50)))

asyncio.run(main())
"""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_every_id_that_a_killed_publisher_returned_is_in_the_log(store: str, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always")
    url = f"sqlite:///{tmp_path}/killed.db" if store == "sqlite" else server.start().url
    returned: list[str] = []
    try:
        for run in range(KILLS):
            told = tmp_path / f"told-{run}"  # a file: asyncio ends no wait for a process whose pipe is full
            with told.open("wb") as sink:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", PUBLISHER, url, "fsync", str(run), stdout=sink
                )
            deadline = time.monotonic() + 20
            while not told.stat().st_size and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            await asyncio.sleep(random.uniform(0.01, 0.3))
            await Killable(process, "publisher").kill()
            returned += told.read_text().split("\n")[:-1]  # the last line may be cut off
        if store == "redis":
            server.kill()
            server.start()
        events = EventStore(url)
        stored = [event.id async for event in events.replay()]
        await events.close()
    finally:
        server.stop()
    assert len(returned) > KILLS
    assert set(returned) <= set(stored)
    assert len(stored) == len(set(stored))
