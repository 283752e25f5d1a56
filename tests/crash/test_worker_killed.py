from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from ag06 import Priority
from ag06.persistence import EventStore
from ag06.persistence.log import StepSpec
from crash.processes import Killable, account, by_subject, start_worker
from servers import ValkeyServer

KILLS = int(os.environ.get("AG06_CRASH_CYCLES", "20"))
SUBJECTS = 6


async def _publish(events: EventStore, stopped: asyncio.Event) -> int:
    """Publish with any priority until told to stop; return how many. One event in six has no subject."""
    number = 0
    while not stopped.is_set():
        for _ in range(5):
            subject = number % SUBJECTS
            await events.persist_event(
                "a",
                "test",
                {"n": number, "subject": subject},
                random.choice(list(Priority)),
                subject=None if subject == 0 else f"s{subject}",
            )
            number += 1
        await asyncio.sleep(0.02)
    return number


async def _kill_again_and_again(url: str, events: EventStore, rng: random.Random) -> list[Killable]:
    """Kill workers at random moments; half of the time nobody sees it, and the visibility timeout must do."""
    log = await events.log()
    workers = [await start_worker(url, number) for number in range(2)]
    for kill in range(KILLS):
        await asyncio.sleep(rng.uniform(0.0, 0.4))
        victim = workers.pop(0)
        await victim.kill()
        if kill % 2:
            await log.release_worker(victim.name)
        workers.append(await start_worker(url, kill + 2))
    return workers


async def _pause_again_and_again(url: str, rng: random.Random) -> list[Killable]:
    """Stop workers for longer than their lease, so that they wake up with deliveries that are no longer theirs."""
    workers = [await start_worker(url, number) for number in range(2)]
    for pause in range(max(2, KILLS // 10)):
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        sleeper = workers[pause % 2].process
        sleeper.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(1.5, 2.5))
        sleeper.send_signal(signal.SIGCONT)
    return workers


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, valkey: ValkeyServer) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/crash.db"
    return f"{valkey.url}?log=crash-{os.getpid()}-{random.randrange(10**9)}"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_workers_killed_or_paused_at_random_points_lose_nothing_and_are_heard_once(url: str, fault: str) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    events = EventStore(url, dedup_window=0)
    log = await events.log()
    await log.register("chain", [StepSpec("chain.first", "a"), StepSpec("chain.second", "b")])
    stopped = asyncio.Event()
    publishing = asyncio.create_task(_publish(events, stopped))
    if fault == "killed":
        workers = await _kill_again_and_again(url, events, rng)
    else:
        workers = await _pause_again_and_again(url, rng)
    stopped.set()
    published = await publishing
    async with asyncio.timeout(120):
        while await log.pending(["chain.first", "chain.second"]):
            await asyncio.sleep(0.05)
    assert [await worker.terminate() for worker in workers] == [0, 0], f"seed {seed}"
    found = await account(events)
    expected = list(range(published))
    for event_type in ("a", "b", "c"):
        numbers = sorted(entry["n"] for entry in found[event_type])
        assert numbers == expected, f"seed {seed}: {event_type} lost or doubled something"
    lines = by_subject(found["b"])
    assert all(lines[subject] == sorted(lines[subject]) for subject in range(1, SUBJECTS)), f"seed {seed}"
    assert await log.dead_letters() == []
    await events.close()
