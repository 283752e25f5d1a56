"""Power is cut under a log at work: what was not synced is gone, and what was promised is there.

Publishers, steps and the server run on a disk that keeps what they synced and nothing else (`power.py`). The controls
run the same on stores that promise less; if they lost nothing, the disk would prove nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from ag06.persistence.log import StepSpec
from crash.power import PowerDisk
from crash.processes import HERE
from crash.results import Toll, cycles, toll
from servers import ValkeyServer

CYCLES = cycles("power loss", 6)
ROUND = 10
"""Cycles on one log, before everything is worked off and another one begins."""
GROUPS = ["life.first", "life.second"]


class Life:
    """What runs between two power cuts: processes that publish and work, and a server where there is one."""

    def __init__(self, directory: Path, rng: random.Random, level: str, config: dict[str, str] | None) -> None:
        directory.mkdir()
        self.directory = directory
        self.disk = PowerDisk(directory)
        self.rng = rng
        self.level = level
        self.told = directory / "told"
        self.told.touch()
        self.server: ValkeyServer | None = None
        self.processes: list[asyncio.subprocess.Process] = []
        self._runs = 0
        if config is not None:
            self.server = ValkeyServer(self.disk.live, environment=self.disk.environment, **config)
            # Valkey syncs what it puts into its directory, and never the directory's own name. A disk that was
            # unmounted once has it, and ext4 writes it with the first file that is synced.
            self.server.start()
            self.server.stop()
            self.disk.settle()
        self.url = f"sqlite:///{self.disk.live}/log/life.db" if self.server is None else self.server.url

    async def begin(self, processes: int, callers: int) -> None:
        if self.server is not None:
            await asyncio.to_thread(self.server.start)
        for _ in range(processes):
            self._runs += 1
            self.processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(HERE / "life_app.py"),
                    env=os.environ
                    | self.disk.environment
                    | {
                        "AG06_STORE": self.url,
                        "AG06_JOURNAL": str(self.disk.live / "journal"),
                        "AG06_WORKER": f"life-{self._runs}",
                        "AG06_LIFE_DURABILITY": self.level,
                        "AG06_LIFE_RUN": str(self._runs),
                        "AG06_LIFE_CALLERS": str(callers),
                        "AG06_LIFE_TOLD": str(self.told),
                    },
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )

    async def some_more(self, count: int) -> None:
        """Wait until so many more ids were returned."""
        size = self.told.stat().st_size + 50 * count
        async with asyncio.timeout(60):
            while self.told.stat().st_size < size:
                await asyncio.sleep(0.002)

    async def kill(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        if self.server is not None:
            await asyncio.to_thread(self.server.kill)
        for process in self.processes:
            await process.wait()
        self.processes.clear()

    async def cut_power(self) -> None:
        await self.kill()
        self.disk.cut(self.rng if self.rng.random() < 0.7 else None)

    def returned(self) -> dict[str, tuple[int, int, int]]:
        """Return run, caller and number of each id that was returned."""
        lines = self.told.read_text().split("\n")[:-1]  # the last line may be cut off
        return {event_id: (int(run), int(caller), int(n)) for event_id, run, caller, n in map(str.split, lines)}

    async def look_at_the_file(self) -> None:
        """Open a copy of an SQLite file as it was left, so that the next life is the one that mends it."""
        if self.server is None and (self.disk.live / "log").exists():
            copy = self.directory / "copy"
            shutil.copytree(self.disk.live / "log", copy)
            connection = sqlite3.connect(copy / "life.db")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
            shutil.rmtree(copy)

    async def finish(self) -> dict[str, list[tuple[str, list[int]]]]:
        """Work everything off; return id and data of each event in the log by type, in log order."""
        await self.begin(2, 0)
        events = EventStore(self.url, journal="off")
        log = await events.log()
        await log.register("life", [StepSpec("life.first", "a"), StepSpec("life.second", "b")])
        async with asyncio.timeout(120):
            while not (self.processes and await log.pending(GROUPS) == 0 and self._journals_are_empty()):
                await asyncio.sleep(0.05)
        found: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
        async for event in events.replay():
            found[event.type].append((event.id, event.data))
        assert await log.dead_letters() == []
        await events.close()
        await self.kill()
        return found

    def _journals_are_empty(self) -> bool:
        return not list((self.disk.live / "journal").rglob("*.db"))


def count_up(found: dict[str, list[tuple[str, list[int]]]], life: Life, counted: Toll) -> None:
    """Compare what was returned with what is there."""
    returned = life.returned()
    stored = {event_id for event_id, _ in found["a"]}
    counted.events += len(returned)
    counted.lost += len(returned.keys() - stored)
    inputs = Counter(tuple(data) for _, data in found["a"])
    for event_type in ("a", "b", "c"):
        times = Counter(tuple(data) for _, data in found[event_type])
        counted.lost += len(inputs.keys() - times.keys())
        counted.doubled += sum(count - 1 for count in times.values())
        lines: dict[tuple[int, int], list[int]] = defaultdict(list)
        for _, (run, caller, number) in found[event_type]:
            lines[run, caller].append(number)
        counted.disordered += sum(line != sorted(line) for line in lines.values())


async def cut_again_and_again(
    directory: Path, counted: Toll, level: str, config: dict[str, str] | None, count: int
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)  # pytest shows it when the test fails
    rng = random.Random(seed)
    while counted.cycles < count:
        life = Life(directory / f"round-{counted.cycles}", rng, level, config)
        try:
            for _ in range(min(ROUND, count - counted.cycles)):
                await life.begin(2, rng.choice([1, 4, 20]))
                await life.some_more(rng.randint(1, 200))
                if config == ALWAYS and rng.random() < 0.3:
                    life.server.command("BGREWRITEAOF")
                await asyncio.sleep(rng.uniform(0.0, 0.1))
                await life.cut_power()
                await life.look_at_the_file()
                counted.cycles += 1
            count_up(await life.finish(), life, counted)
        finally:
            await life.kill()
        shutil.rmtree(life.directory)


ALWAYS = {"appendonly": "yes", "appendfsync": "always"}
NEVER = {"appendonly": "yes", "appendfsync": "no"}


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(("store", "config"), [("SQLite", None), ("Valkey", ALWAYS)])
async def test_power_loss_takes_nothing_that_was_confirmed_as_synced(
    store: str, config: dict[str, str] | None, tmp_path: Path
) -> None:
    with toll("power loss", store) as counted:
        await cut_again_and_again(tmp_path, counted, "fsync", config, CYCLES)
    assert counted.clean(), counted


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize(("store", "config"), [("SQLite", None), ("Valkey", NEVER)])
async def test_the_controls_lose_what_they_never_promised_to_keep(
    store: str, config: dict[str, str] | None, tmp_path: Path
) -> None:
    with toll("power loss", f"{store}, control", expected=True) as counted:
        await cut_again_and_again(tmp_path, counted, "server", config, max(3, CYCLES // 10))
    assert counted.lost, counted
