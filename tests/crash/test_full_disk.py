from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.load import Load
from crash.results import Toll, cycles, toll
from disks import KINDS, Disk, ServerFiles, disk
from faults import running_server
from servers import ValkeyServer

FAULT = "disk full, then room"
MEGABYTES = 64


async def fill_again_and_again(small: Disk, load: Load, counted: Toll, server: ValkeyServer | None = None) -> None:
    """Fill the disk until publishers are refused, make room, and wait until they go on."""
    for _ in range(cycles(FAULT, 2)):
        await load.some_more(random.randint(20, 200))
        await small.fill(load.app.events)
        await load.some_refused(10)
        await asyncio.sleep(random.uniform(0.0, 0.5))
        await small.make_room(load.app.events)
        if server is not None and server.process is not None and server.process.poll() is not None:
            await asyncio.to_thread(server.start)
        counted.cycles += 1
    await load.some_more(50)


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_disk_under_sqlite_costs_nothing_but_time(kind: str, tmp_path: Path) -> None:
    with disk(kind, tmp_path / "disk", MEGABYTES) as small:
        with toll(FAULT, f"SQLite, {kind}") as counted:
            async with Load(f"sqlite:///{small.directory}/events.db").running(counted) as load:
                await fill_again_and_again(small, load, counted)
    assert counted.clean(), counted


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
async def test_a_full_disk_under_the_server_costs_nothing_but_time(
    appendfsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `everysec` the server refuses writes meanwhile; under `always` it ends itself, and is started again."""
    monkeypatch.setenv("AG06_JOURNAL", "off")
    with disk("disk" if "disk" in KINDS else "files", tmp_path / "disk", MEGABYTES) as place:
        async with running_server(place.directory, appendonly="yes", appendfsync=appendfsync) as server:
            small = place if "disk" in KINDS else ServerFiles(server)
            with toll(FAULT, f"Valkey, {appendfsync}") as counted:
                async with Load(server.url).running(counted) as load:
                    await fill_again_and_again(small, load, counted, server)
    assert counted.clean(), counted
