from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ag06 import Priority
from ag06.persistence import EventStore
from ag06.persistence.log import EventLog, StepSpec
from crash.account import count_up, read
from crash.processes import Killable, start_worker
from crash.results import Toll, cycles, toll
from servers import ValkeyServer

GROUPS = ["chain.first", "chain.second"]
SUBJECTS = 6
AT_ONCE = 3
"""Workers that something is done to at the same time."""


@pytest.fixture(params=["SQLite", "Valkey"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(store: str, tmp_path: Path, valkey: ValkeyServer) -> str:
    if store == "SQLite":
        return f"sqlite:///{tmp_path}/crash.db"
    return f"{valkey.url}?log=crash-{os.getpid()}-{random.randrange(10**9)}"


class Chain:
    """The chain of `chain_app.py` in processes of its own, and a publisher that goes on."""

    def __init__(self, url: str, events: EventStore, log: EventLog) -> None:
        self.url = url
        self.events = events
        self.log = log
        self.rng = random.Random()
        self.workers: list[Killable] = []
        self.returned: list[str] = []
        self.fenced = False
        self._numbers = itertools.count()

    async def start_worker(self) -> Killable:
        worker = await start_worker(self.url, next(self._numbers))
        self.workers.append(worker)
        return worker

    async def kill(self, seen: bool) -> None:
        """Kill a worker at a random moment, and start another; `seen`: somebody notices that it died."""
        await asyncio.sleep(self.rng.uniform(0.0, 0.4))
        victim = self.workers.pop(0)
        await victim.kill()
        if seen:
            await self.log.release_worker(victim.name)
        await self.start_worker()

    async def publish(self, stopped: asyncio.Event) -> None:
        """Publish with any priority until told to stop. One event in six has no subject."""
        for number in itertools.count():
            if stopped.is_set():
                return
            line = number % SUBJECTS or None
            subject = None if line is None else f"s{line}"
            priority = self.rng.choice(list(Priority))
            event_id = await self.events.persist_event("a", "test", [line, number], priority, subject=subject)
            assert event_id is not None
            self.returned.append(event_id)
            if number % 5 == 0:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def chain(url: str, counted: Toll) -> AsyncIterator[Chain]:
    """Run the chain; at the end wait until everything is worked off, and count what it cost."""
    events = EventStore(url, dedup_window=0)
    log = await events.log()
    await log.register("chain", [StepSpec("chain.first", "a"), StepSpec("chain.second", "b")])
    running = Chain(url, events, log)
    stopped = asyncio.Event()
    publishing = asyncio.create_task(running.publish(stopped))
    try:
        await asyncio.gather(*(running.start_worker() for _ in range(AT_ONCE + 1)))
        yield running
        stopped.set()
        await publishing
        async with asyncio.timeout(120):
            while await log.pending(GROUPS):
                await asyncio.sleep(0.05)
        assert [await worker.terminate() for worker in running.workers] == [0] * len(running.workers)
        running.fenced = any([b"fenced" in await worker.said() for worker in running.workers])
        running.workers.clear()
        count_up(counted, await read(events), running.returned)
        counted.lost += len(await log.dead_letters())
    finally:
        publishing.cancel()
        for worker in running.workers:
            await worker.kill()
        await events.close()


@pytest.mark.timeout(14_400)
async def test_killed_workers_lose_nothing_and_are_heard_once(store: str, url: str) -> None:
    fault = "SIGKILL of a worker"
    with toll(fault, store) as counted:
        count = cycles(fault, 6)
        async with chain(url, counted) as running:
            while counted.cycles < count:
                kills = range(min(AT_ONCE, count - counted.cycles))
                # Half of the time nobody sees it, and the visibility timeout must do.
                await asyncio.gather(*(running.kill(seen=bool((counted.cycles + n) % 2)) for n in kills))
                counted.cycles += len(kills)
    assert counted.clean(), counted


@pytest.mark.timeout(14_400)
async def test_workers_that_were_paused_past_their_lease_are_fenced(store: str, url: str) -> None:
    fault = "SIGSTOP past the lease"
    with toll(fault, store) as counted:
        count = cycles(fault, 6)
        async with chain(url, counted) as running:
            while counted.cycles < count:
                sleepers = running.workers[: min(AT_ONCE, count - counted.cycles)]
                for sleeper in sleepers:
                    await asyncio.sleep(running.rng.uniform(0.0, 0.2))
                    sleeper.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(running.rng.uniform(1.2, 2.2))
                for sleeper in sleepers:
                    sleeper.process.send_signal(signal.SIGCONT)
                counted.cycles += len(sleepers)
    assert counted.clean(), counted
    # A few pauses may all meet workers that hold nothing; the conformance suite fences one without fail.
    assert running.fenced or count < 50, "no worker woke up with deliveries that were no longer its own"
