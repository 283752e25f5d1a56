"""Power is cut under a log at work: what was not synced is gone, and what was promised is there.

Publishers, steps and the server run on a disk that keeps what they synced and nothing else (`power.py`). The controls
run the same on stores that promise less; if they lost nothing, the disk would prove nothing.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from crash.life import Life
from crash.power import PowerDisk
from crash.results import Toll, cycles, toll
from servers import ValkeyServer

FAULT = "power loss"
CYCLES = cycles(FAULT, 4)
SLOW_CYCLES = cycles(FAULT, 1)
"""Where a sync takes a second."""
ROUND = 10
"""Cycles on one log, before everything is worked off and another one begins."""

Config = dict[str, str] | None
"""Of the server; `None` where SQLite needs none."""
ALWAYS = {"appendonly": "yes", "appendfsync": "always"}
EVERY_SECOND = {"appendonly": "yes", "appendfsync": "everysec"}
NEVER = {"appendonly": "yes", "appendfsync": "no"}


class Machine:
    """A disk, a server where there is one, and the processes: all of them lose their power at once."""

    def __init__(self, directory: Path, rng: random.Random, level: str, config: Config) -> None:
        directory.mkdir()
        self.disk = PowerDisk(directory)
        self.rng = rng
        self.server: ValkeyServer | None = None
        self._copy = directory / "copy"
        url = f"sqlite:///{self.disk.live}/log/life.db"
        if config is not None:
            self.server = ValkeyServer(self.disk.live, environment=self.disk.environment, **config)
            # Valkey syncs what it puts into its directory, and never the directory's own name. A disk that was
            # unmounted once has it, and ext4 writes it with the first file that is synced.
            self.server.start()
            self.server.stop()
            self.disk.settle()
            url = self.server.url
        environment = self.disk.environment | {"AG06_JOURNAL": str(self.disk.live / "journal")}
        self.life = Life(url, level, directory / "told", environment)

    async def start(self) -> None:
        if self.server is not None:
            await asyncio.to_thread(self.server.start)

    async def kill(self) -> None:
        for process in self.life.processes:
            process.kill()
        if self.server is not None:
            await asyncio.to_thread(self.server.kill)
        await self.life.kill()

    async def cut_power(self) -> None:
        await self.kill()
        self.disk.cut(self.rng if self.rng.random() < 0.7 else None)

    def look_at_the_file(self) -> None:
        """Open a copy of an SQLite file as it was left, so that the next life is the one that mends it."""
        if self.server is None and (self.disk.live / "log").exists():
            shutil.copytree(self.disk.live / "log", self._copy)
            connection = sqlite3.connect(self._copy / "life.db")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
            shutil.rmtree(self._copy)


async def cut_again_and_again(directory: Path, counted: Toll, level: str, config: Config, count: int) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)  # pytest shows it when the test fails
    rng = random.Random(seed)
    while counted.cycles < count:
        machine = Machine(directory / f"round-{counted.cycles}", rng, level, config)
        try:
            for _ in range(min(ROUND, count - counted.cycles)):
                await machine.start()
                slow = config == EVERY_SECOND
                await machine.life.begin(2, 20 if slow else rng.choice([1, 4, 20]))
                await machine.life.some_more(rng.randint(1, 40 if slow else 200))
                if machine.server is not None and config == ALWAYS and rng.random() < 0.3:
                    machine.server.command("BGREWRITEAOF")
                if machine.server is not None and config == ALWAYS and rng.random() < 0.3:
                    await asyncio.to_thread(machine.server.kill)
                    await machine.life.some_more(rng.randint(1, 100))  # into the journals
                await asyncio.sleep(rng.uniform(0.0, 0.1))
                await machine.cut_power()
                machine.look_at_the_file()
                counted.cycles += 1
            await machine.start()
            await machine.life.finish(counted)
        finally:
            await machine.kill()
        shutil.rmtree(directory / f"round-{counted.cycles}", ignore_errors=True)


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(
    ("store", "config"), [("SQLite", None), ("Valkey, always", ALWAYS), ("Valkey, everysec", EVERY_SECOND)]
)
async def test_power_loss_takes_nothing_that_was_confirmed_as_synced(
    store: str, config: Config, tmp_path: Path
) -> None:
    with toll(FAULT, store) as counted:
        count = SLOW_CYCLES if config == EVERY_SECOND else CYCLES
        await cut_again_and_again(tmp_path, counted, "fsync", config, count)
    assert counted.clean(), counted


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(("store", "config"), [("SQLite", None), ("Valkey", NEVER)])
async def test_the_controls_lose_what_they_never_promised_to_keep(store: str, config: Config, tmp_path: Path) -> None:
    with toll(FAULT, f"{store}, control", expected=True) as counted:
        await cut_again_and_again(tmp_path, counted, "server", config, max(3, CYCLES // 10))
    assert counted.lost, counted
