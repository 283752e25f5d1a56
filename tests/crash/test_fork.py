from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from crash.load import PATIENCE, Load
from crash.results import cycles, toll
from forking import content

FAULT = "fork under load"
_AT_ONCE = 4
_COMMANDS = (("events", "list"), ("events", "replay"), ("steps", "list"), ("dead-letters", "list"))


class Descendants:
    """Children of the process under load, each with a file of the ids that it was given."""

    def __init__(self, load: Load, folder: Path) -> None:
        self._load = load
        self._folder = folder
        self._count = 0

    def fork(self) -> tuple[int, Path]:
        """Fork a child of a random kind; return its process id and its file."""
        self._count += 1
        number, told = self._count, self._folder / f"ids-{self._count}"
        kind = random.choice((self._publisher, self._worker, self._daemon, self._idler))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            _end_with(lambda: kind(number, told))
        return pid, told

    def _publisher(self, number: int, told: Path) -> None:
        """Publish in several loops, one after the other; the store is closed by some of them."""
        for turn in range(3):
            asyncio.run(self._publish([None, number, turn], told, close=turn != 1))

    def _worker(self, number: int, told: Path) -> None:
        """Run the same workflow beside the parent, and publish."""

        async def work() -> None:
            async with self._load.app.running():
                await self._publish([None, number, 0], told, close=False)

        asyncio.run(work())

    def _daemon(self, number: int, told: Path) -> None:
        """Publish, then leave the rest to a child of its own, as daemons do."""
        asyncio.run(self._publish([None, number, 0], told, close=False))
        daemon = os.fork()
        if not daemon:
            os.setsid()
            _end_with(lambda: asyncio.run(self._publish([None, number, 1], told, close=True)))
        os.waitpid(daemon, 0)

    def _idler(self, number: int, told: Path) -> None:
        """Use nothing that it has from its parent."""

    async def _publish(self, line: list[object], told: Path, *, close: bool) -> None:
        with told.open("a") as file:
            for number in range(random.randrange(1, 20)):
                event_id = await self._load.app.publish("a", data=[*line, number])
                file.write(f"{event_id}\n")
                file.flush()
        if close:
            await self._load.app.close()


def _end_with(work: Callable[[], None]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(PATIENCE))
        work()
        code = 0
    finally:
        os._exit(code)


async def _beside(url: str, stopped: threading.Event) -> int:
    """Run commands on the same file until told to stop; return how many there were."""
    count = 0
    while not stopped.is_set():
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ag06", *random.choice(_COMMANDS), "--store", url, stdout=subprocess.DEVNULL
        )
        assert await command.wait() == 0
        count += 1
    return count


async def _other(url: str, stopped: threading.Event) -> list[str]:
    """Publish from a process that is no relation, which opens and closes the file each time."""
    ids: list[str] = []
    store = EventStore(url)
    for number in range(1_000_000):
        if stopped.is_set():
            break
        event_id = await store.persist_event("a", "other", [None, "other", number])
        assert event_id is not None
        ids.append(event_id)
        await store.close()
    return ids


@pytest.mark.timeout(14_400)
async def test_no_id_is_lost_when_processes_fork_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "forks.db"
    url = f"sqlite:///{path}"
    stopped = threading.Event()
    with toll(FAULT, "SQLite") as counted:
        load = Load(url, dedup_window=0)
        descendants = Descendants(load, tmp_path)
        count = cycles(FAULT, 12)
        async with load.running(counted):
            beside = asyncio.create_task(_beside(url, stopped))
            other = asyncio.get_running_loop().run_in_executor(None, asyncio.run, _other(url, stopped))
            await load.some_more(20)
            while counted.cycles < count:
                children = []
                for _ in range(min(_AT_ONCE, count - counted.cycles)):
                    await asyncio.sleep(random.uniform(0, 0.1))
                    in_thread = random.random() < 0.5
                    children.append(await asyncio.to_thread(descendants.fork) if in_thread else descendants.fork())
                killed = random.random() < 0.3 and children.pop()
                if killed:
                    await asyncio.sleep(random.uniform(0, 0.2))
                    os.kill(killed[0], signal.SIGKILL)
                    await asyncio.to_thread(os.waitpid, killed[0], 0)
                for pid, _ in children:
                    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
                    assert status == 0, f"a child ended with {status}"
                for _, told in [*children, *([killed] if killed else [])]:
                    if told.exists():
                        load.returned += told.read_text().split("\n")[:-1]
                counted.cycles += len(children) + bool(killed)
            stopped.set()
            load.returned += await other
            assert await beside
        assert content(path)[0] == "ok"
    assert counted.clean(), counted
