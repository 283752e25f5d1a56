"""A workflow whose caller is cancelled, at any moment, once or twice: it leaves no task, thread, file or lease."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from ag06 import Event, Workflow
from ag06.persistence.log import Acknowledge, EventLog
from ag06.runtime import grace
from conftest import OpenLog
from flows import SECONDS, until

HOUR = 3600.0
EARLY = tuple(range(0, 60, 2))
LATE = (60, 75, 100, 150, 250, 400, 700, 1000, 1500)


class Traces:
    """The tasks, threads and open files of this process at one moment; threads of executors stay for later work."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._files = open_files()

    async def are_all(self) -> None:
        """Fail if there are more by now."""
        assert not self.new_tasks()
        await until(lambda: not self._new_threads())
        await until(lambda: open_files() <= self._files)

    def new_tasks(self) -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - self._tasks

    def _new_threads(self) -> list[str]:
        return [t.name for t in set(threading.enumerate()) - self._threads if not t.name.startswith("asyncio_")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Hanging:
    """A workflow with a step that hangs until `leave`, in a task or in a thread."""

    def __init__(self, store_url: str, kind: str) -> None:
        self.app = Workflow("shop", store=store_url, grace=HOUR, visibility_timeout=HOUR)
        self.started = threading.Event()
        self.leave = threading.Event()
        self.ended = threading.Event()

        async def hang(event: Event) -> None:
            self.started.set()
            await asyncio.sleep(HOUR)

        def hang_in_thread(event: Event) -> None:
            self.started.set()
            self.leave.wait()
            self.ended.set()

        self.app.step("order", name="bill")(hang if kind == "async" else hang_in_thread)

    async def live(self) -> None:
        async with self.app.running():
            await self.app.publish("order", dedup=False)
            while not self.started.is_set():
                await asyncio.sleep(0)

    async def cancelled_after(self, *turns: int) -> None:
        """Live, and be cancelled after so many turns of the loop, and again after so many more."""
        self.started.clear()
        self.leave.clear()
        task = asyncio.create_task(self.live())
        for count in turns:
            for _ in range(count):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
        assert task.cancelled(), task
        self.leave.set()


async def settle_everything(log: EventLog) -> int:
    """Take what is there, at once, and acknowledge it; return how many events that were."""
    groups = await log.groups()
    if not groups:
        return 0
    heir = log.subscribe("shop.bill", f"heir {os.urandom(4).hex()}", HOUR)
    backlog = groups[0].backlog
    taken = []
    while len(taken) < backlog:
        found = await heir.fetch(10, SECONDS)
        assert found, f"{backlog - len(taken)} deliveries are still leased"
        taken += found
    if taken:
        assert await heir.commit([Acknowledge((delivery,)) for delivery in taken]) == [True] * len(taken)
    await heir.close()
    return len(taken)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave calls no second after a cancellation, for the sake of the tests' time."""
    monkeypatch.setattr(grace, "_SHORT", 0.0)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("again", [(), (0,), (1,), (7,)], ids=["once", "twice", "twice-1", "twice-7"])
async def test_a_workflow_cancelled_at_any_moment_leaves_nothing_behind(
    store_url: str, open_store: OpenLog, kind: str, again: tuple[int, ...]
) -> None:
    log = await open_store()
    hanging = Hanging(store_url, kind)
    await hanging.app.publish("order", dedup=False)
    await hanging.app.close()
    assert await settle_everything(log) == 1
    before = Traces()
    found = 0
    for turns in (*EARLY, *LATE):
        await hanging.cancelled_after(turns, *again)
        await before.are_all()
        found += await settle_everything(log)
    assert found, "no event was in flight"


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("leaving", [False, True], ids=["inside", "leaving"])
async def test_a_loop_that_cancels_every_task_at_its_end_leaves_nothing_behind(
    store_url: str, open_store: OpenLog, kind: str, leaving: bool
) -> None:
    """`asyncio.run` does that after an interrupt."""
    log = await open_store()
    hanging = Hanging(store_url, kind)
    before = Traces()
    found = 0
    for turns in (*EARLY, *LATE):
        hanging.started.clear()
        hanging.leave.clear()
        task = asyncio.create_task(hanging.live())
        if leaving:
            while not hanging.started.is_set():
                await asyncio.sleep(0)
            task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks = before.new_tasks()
        for one in tasks:
            one.cancel()
        await asyncio.wait([asyncio.gather(*tasks, return_exceptions=True)], timeout=SECONDS)
        assert task.cancelled()
        hanging.leave.set()
        await before.are_all()
        found += await settle_everything(log)
    assert found, "no event was in flight"
