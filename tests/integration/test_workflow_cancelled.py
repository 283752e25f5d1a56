"""A workflow whose caller is cancelled, at any moment, once or twice: it leaves no task, thread, file or lease."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from ag06 import Event, Workflow
from ag06.persistence.log import Acknowledge, EventLog
from ag06.runtime import grace
from conftest import OpenLog
from flows import SECONDS, until

HOUR = 3600.0
MOMENTS = (0, 1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 60, 100, 200, 400, None)
"""Turns of the event loop; at last until the step runs."""


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
        async with self.app.running(http_port=0):
            await self.app.publish("order", dedup=False)
            while not self.started.is_set():
                await asyncio.sleep(0)

    async def moment(self, turns: int | None) -> None:
        """Wait so many turns of the loop, or until the step runs."""
        while turns is None and not self.started.is_set():
            await asyncio.sleep(0)
        for _ in range(turns or 0):
            await asyncio.sleep(0)

    async def cancelled_after(self, *moments: int | None) -> None:
        """Live, and be cancelled after so many turns of the loop, and again after so many more."""
        self.started.clear()
        self.leave.clear()
        task = asyncio.create_task(self.live())
        for turns in moments:
            await self.moment(turns)
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


async def traces_of(log: EventLog, hanging: Hanging) -> Traces:
    """Return the traces of now, when the test's own log has opened all it needs.

    SQLite keeps the descriptor of a closed connection for the next one while the file is open elsewhere in the process.
    """
    await log.stats()
    await log.release_worker("nobody")
    await hanging.app.publish("order", dedup=False)
    await hanging.app.events.stats()
    await hanging.app.close()
    assert await settle_everything(log) == 1
    return Traces()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave calls no second after a cancellation, for the sake of the tests' time."""
    monkeypatch.setattr(grace, "_SHORT", 0.0)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("again", [(), (2,)], ids=["once", "twice"])
async def test_a_workflow_cancelled_at_any_moment_leaves_nothing_behind(
    store_url: str, open_store: OpenLog, kind: str, again: tuple[int, ...]
) -> None:
    log = await open_store()
    hanging = Hanging(store_url, kind)
    before = await traces_of(log, hanging)
    found = 0
    for turns in MOMENTS:
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
    before = await traces_of(log, hanging)
    found = 0
    for turns in MOMENTS:
        hanging.started.clear()
        hanging.leave.clear()
        task = asyncio.create_task(hanging.live())
        if leaving:
            await hanging.moment(None)
            task.cancel()
        await hanging.moment(turns)
        tasks = before.new_tasks()
        for one in tasks:
            one.cancel()
        await asyncio.wait([asyncio.gather(*tasks, return_exceptions=True)], timeout=SECONDS)
        assert task.cancelled()
        hanging.leave.set()
        await before.are_all()
        found += await settle_everything(log)
    assert found, "no event was in flight"


async def test_a_context_manager_that_is_closed_from_outside_leaves_nothing_behind(
    store_url: str, open_store: OpenLog
) -> None:
    """A generator that holds `running()` open and is dropped, as a fixture or a lifespan may be."""
    log = await open_store()
    hanging = Hanging(store_url, "async")
    hanging.app.grace = 0.0
    before = await traces_of(log, hanging)

    async def lifespan() -> AsyncIterator[None]:
        async with hanging.app.running():
            await hanging.app.publish("order", dedup=False)
            await hanging.moment(None)
            yield

    opened = lifespan()
    await anext(opened)
    await opened.aclose()
    await before.are_all()
    assert await settle_everything(log) == 1


async def test_a_timeout_around_a_running_workflow_is_a_timeout() -> None:
    app = Workflow("shop", store="memory://")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), app.running():
            await asyncio.sleep(HOUR)
    async with app.running():
        await app.drain(SECONDS)


async def test_a_workflow_may_be_entered_in_one_task_and_left_in_another() -> None:
    app = Workflow("shop", store="memory://")
    before = asyncio.all_tasks()
    running = app.running()
    await asyncio.create_task(running.__aenter__())
    await asyncio.create_task(running.__aexit__(None, None, None))
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("adapter", ["sqlite", "redis"])
async def test_two_interrupts_of_asyncio_run_lose_nothing(store_url: str, open_store: OpenLog) -> None:
    """The first one cancels the program, the second one everything."""
    log = await open_store()
    program = f"""
import asyncio, os, signal, threading
from ag06 import Event, Workflow

app = Workflow("shop", store={store_url!r}, grace=3600, visibility_timeout=3600)

@app.step("order")
async def bill(event: Event):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    await asyncio.sleep(3600)

async def main():
    async with app.running():
        await app.publish("order", dedup=False)
        await asyncio.sleep(3600)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert b"KeyboardInterrupt" in errors, errors
    assert b"never retrieved" not in errors, errors
    assert b"was destroyed" not in errors, errors
    assert await settle_everything(log) == 1
