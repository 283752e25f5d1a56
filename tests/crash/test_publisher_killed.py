from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from crash.processes import Killable
from crash.results import cycles, toll
from servers import ValkeyServer

FAULT = "SIGKILL of the publisher"
AT_ONCE = 4
"""Publishers that are killed together: each of them waits longer for its interpreter than for its end."""

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


async def _publish_and_die(url: str, told: Path, run: str) -> list[str]:
    """Start a publisher, kill it soon after its first id, and return the ids that it was given."""
    with told.open("wb") as sink:  # a file: asyncio ends no wait for a process whose pipe is full
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PUBLISHER, url, "fsync", run, stdout=sink)
    deadline = time.monotonic() + 20
    while not told.stat().st_size and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    await asyncio.sleep(random.uniform(0.01, 0.3))
    await Killable(process, "publisher").kill()
    return told.read_text().split("\n")[:-1]  # the last line may be cut off


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("store", ["SQLite", "Valkey"])
async def test_every_id_that_a_killed_publisher_returned_is_in_the_log(store: str, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always")
    url = f"sqlite:///{tmp_path}/killed.db" if store == "SQLite" else server.start().url
    returned: list[str] = []
    try:
        with toll(FAULT, store) as counted:
            count = cycles(FAULT, 8)
            while counted.cycles < count:
                runs = range(counted.cycles, min(counted.cycles + AT_ONCE, count))
                ended = await asyncio.gather(*(_publish_and_die(url, tmp_path / f"{n}", str(n)) for n in runs))
                assert all(ended)
                returned += itertools.chain.from_iterable(ended)
                counted.cycles += len(ended)
            if store == "Valkey":
                server.kill()
                server.start()
            events = EventStore(url)
            stored = [event.id async for event in events.replay()]
            await events.close()
            counted.events = len(returned)
            counted.lost = len(set(returned) - set(stored))
            counted.doubled = len(stored) - len(set(stored))
    finally:
        server.stop()
    assert counted.clean(), counted
