"""Processes that publish and work until they are killed (`life_app.py`), and what they were told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from ag06.persistence import EventStore
from ag06.persistence.log import StepSpec
from crash.account import count_up, read
from crash.processes import HERE
from crash.results import Toll

GROUPS = ["life.first", "life.second"]


class Life:
    """Processes on one store, one generation after the other."""

    def __init__(self, url: str, level: str, told: Path, environment: dict[str, str]) -> None:
        """Their `environment` is added to that of the test; they write to `told` which ids were returned to them."""
        self.url = url
        self.processes: list[asyncio.subprocess.Process] = []
        self._told = told
        self._told.touch()
        self._environment = {
            "AG06_STORE": url,
            "AG06_LIFE_DURABILITY": level,
            "AG06_LIFE_TOLD": str(told),
        } | environment
        self._runs = 0

    async def begin(self, processes: int, callers: int) -> None:
        """Start so many processes, each with so many callers that publish."""
        for _ in range(processes):
            self._runs += 1
            own = {"AG06_WORKER": f"life-{self._runs}", "AG06_LIFE_RUN": str(self._runs)}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / "life_app.py"),
                env=os.environ | self._environment | own | {"AG06_LIFE_CALLERS": str(callers)},
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.processes.append(process)

    async def some_more(self, count: int) -> None:
        """Wait until about so many more ids were returned."""
        size = self._told.stat().st_size + 50 * count
        async with asyncio.timeout(60):
            while self._told.stat().st_size < size:
                await asyncio.sleep(0.002)

    async def kill(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            await process.wait()
        self.processes.clear()

    async def finish(self, counted: Toll) -> None:
        """Work everything off with processes that do not publish, and count what it cost."""
        events = EventStore(self.url, journal="off")
        log = await events.log()
        await log.register("life", [StepSpec("life.first", "a"), StepSpec("life.second", "b")])
        await self.begin(2, 0)
        async with asyncio.timeout(60):
            while await log.pending(GROUPS) or self._journals():
                await asyncio.sleep(0.05)
        count_up(counted, await read(events), self._returned())
        counted.lost += len(await log.dead_letters())
        await events.close()
        await self.kill()

    def _journals(self) -> list[Path]:
        return list(Path(self._environment.get("AG06_JOURNAL") or os.environ["AG06_JOURNAL"]).rglob("*.db"))

    def _returned(self) -> list[str]:
        lines = self._told.read_text().split("\n")[:-1]  # the last line may be cut off
        return [line.partition(" ")[0] for line in lines]
