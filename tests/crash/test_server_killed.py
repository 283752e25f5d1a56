from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.load import Load
from crash.results import cycles, toll
from servers import ValkeyServer

FAULT = "SIGKILL of the server"


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("journal", ["with journal", "without journal"])
async def test_a_killed_server_loses_nothing_and_its_workers_go_on(
    journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if journal == "without journal":
        monkeypatch.setenv("AG06_JOURNAL", "off")
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always").start()
    try:
        with toll(FAULT, f"Valkey, {journal}") as counted:
            async with Load(server.url, durability="fsync").running(counted) as load:
                for _ in range(cycles(FAULT, 2)):
                    await load.some_more(random.randint(1, 300))
                    await asyncio.to_thread(server.kill)
                    await asyncio.sleep(random.uniform(0.0, 0.5))
                    await asyncio.to_thread(server.start)
                    counted.cycles += 1
                await load.some_more(100)
    finally:
        server.stop()
    assert counted.clean(), counted
