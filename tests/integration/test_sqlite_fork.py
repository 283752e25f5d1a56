from __future__ import annotations

import asyncio
import ctypes
import itertools
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import Event, StoreError, Workflow
from ag06.errors import StoreReplaced
from ag06.monitoring import observability
from ag06.persistence import EventStore
from ag06.persistence.sqlite import SqliteLog, forks
from forking import Forked, content
from records import eventually

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def store(path: Path) -> EventStore:
    return EventStore(f"sqlite:///{path}", dedup_window=0)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


def publish(store: EventStore, source: str, count: int = 1) -> list[str]:
    """Publish in a loop of its own, and return the ids."""

    async def all_of_them() -> list[str]:
        ids = []
        for number in range(count):
            members = [{"event_type": "a", "source": source, "data": [number, n]} for n in range(5)]
            ids += await store.persist_events(members)
        await store.close()
        return [event_id for event_id in ids if event_id is not None]

    return asyncio.run(all_of_them())


def refusal(store: EventStore) -> str:
    """Publish where that must be refused, and return the error."""
    with pytest.raises(StoreError) as refused:
        publish(store, "refused")
    return str(refused.value)


# Whoever writes beside whom


def test_a_child_writes_beside_others_after_its_parent_has_closed_the_file(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    ids = [loop.run_until_complete(store.persist_event("a", "parent"))]
    begin, go = os.pipe()

    def work() -> list[str]:
        first = publish(store, "child")
        os.read(begin, 1)
        return first + publish(store, "child", 20)

    child = Forked(work)
    loop.run_until_complete(store.close())
    os.write(go, b"x")
    for _ in range(20):
        ids += publish(store, "beside")  # opened and closed each time: the last one folds the write-ahead log
    ids += child.answer()
    assert len(ids) == 1 + 105 + 100
    assert content(path) == ("ok", set(ids))


def test_forks_at_any_moment_lose_no_id(store: EventStore, path: Path, loop: asyncio.AbstractEventLoop) -> None:
    """Forks by the thread of the loop and by another one, under load, with commands and grandchildren beside them."""
    ids: list[str | None] = []
    stopped = threading.Event()
    children: list[Forked] = []

    def with_a_child_of_its_own(name: str) -> list[str]:
        first = publish(store, name)
        inner = Forked(lambda: publish(store, f"{name}'s child"))
        return first + publish(store, name) + inner.answer()

    async def load(line: int) -> None:
        for number in itertools.count():
            if stopped.is_set():
                return
            ids.append(await store.persist_event("a", f"line {line}", number))

    async def fork_now_and_then(thread: str) -> None:
        for number in range(3):
            await asyncio.sleep(random.uniform(0, 0.05))
            children.append(Forked(lambda number=number: with_a_child_of_its_own(f"{thread} {number}")))

    async def run() -> None:
        lines = [asyncio.create_task(load(line)) for line in range(5)]
        await store.log()
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ag06", "events", "list", "--store", f"sqlite:///{path}", stdout=subprocess.DEVNULL
        )
        await asyncio.gather(fork_now_and_then("loop"), asyncio.to_thread(asyncio.run, fork_now_and_then("thread")))
        assert await command.wait() == 0
        stopped.set()
        await asyncio.gather(*lines)
        await store.close()

    loop.run_until_complete(run())
    for child in children:
        ids += child.answer()
    assert None not in ids
    assert content(path) == ("ok", set(ids))


def test_a_worker_goes_on_while_its_process_forks(path: Path, loop: asyncio.AbstractEventLoop) -> None:
    app = Workflow("forks", store=f"sqlite:///{path}", dedup_window=0)
    done: list[Any] = []

    @app.step("a")
    async def note(event: Event) -> None:
        done.append(event.data)

    async def run() -> list[str]:
        async with app.running():
            children = []
            for number in range(5):
                await app.publish("a", data=["parent", number])
                children.append(Forked(lambda: publish(app.events, "child")))

            async def all_done() -> bool:  # what another process commits wakes a fetch that waits
                return len(done) == 5 + 25

            await eventually(all_done)
            return [event_id for child in children for event_id in child.answer()]

    assert len(loop.run_until_complete(run())) == 25
    assert len(done) == 30


def test_a_replay_goes_on_after_a_fork_between_two_pages(store: EventStore, loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> list[Any]:
        members = [{"event_type": f"t{n % 3}", "source": "s", "data": n} for n in range(2500)]
        await store.persist_events(members)
        found = []
        async for event in store.replay(types=["t0", "t1", "t2"]):
            found.append(event.data)
            if len(found) in (1, 1500):
                assert len(Forked(lambda: publish(store, "child")).answer()) == 5
        await store.close()
        return found

    assert loop.run_until_complete(run()) == list(range(2500))


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["python", "c"])
def test_a_fork_keeps_the_content_of_a_removed_file_in_reach(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop, fork: Callable[[], int]
) -> None:
    async def run() -> list[str]:
        event_id = await store.persist_event("a", "parent")
        log = await opened(store)
        inode = path.stat().st_ino
        for name in path.parent.glob("events.db*"):
            name.unlink()

        def work() -> list[str]:
            ids = publish(store, "child")  # to a new file, and not through what the parent has open
            with pytest.raises(StoreReplaced), log.writer._database:
                pass
            return ids

        ids = await asyncio.to_thread(Forked(work, fork).answer)
        with log.writer._database as connection:
            assert connection.execute("SELECT id FROM events").fetchall() == [(event_id,)]
        assert inode in {found for _, found in forks._open_files()}
        with pytest.raises(StoreReplaced, match=f"file inode {inode} "):
            await store.persist_event("a", "parent")
        await store.close()
        return list(ids)

    ids = loop.run_until_complete(run())
    assert content(path) == ("ok", set(ids))


_inherited: list[EventStore] = []


def _publish_inherited(source: str) -> list[str]:
    return publish(_inherited[-1], source)


def test_children_of_a_pool_publish(store: EventStore, path: Path) -> None:
    ids = publish(store, "parent")
    with multiprocessing.get_context("fork").Pool(3, _inherited.append, (store,)) as pool:
        told = pool.map(_publish_inherited, [f"child {n}" for n in range(9)])
    ids += itertools.chain.from_iterable(told)
    assert content(path) == ("ok", set(ids))


# In the middle of work


def busy(log: SqliteLog, began: threading.Event, end: threading.Event) -> asyncio.Future[int]:
    """Begin a transaction that lasts until `end`."""

    def work(connection: sqlite3.Connection) -> int:
        began.set()
        return int(end.wait(20))

    return log.writer.submit(work)


async def opened(store: EventStore) -> SqliteLog:
    log = await store.log()
    assert isinstance(log, SqliteLog)
    return log


def test_a_fork_waits_for_the_transaction_under_way(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    async def run() -> list[str]:
        began, end = threading.Event(), threading.Event()
        done = busy(await opened(store), began, end)
        await asyncio.to_thread(began.wait, 20)
        threading.Timer(0.2, end.set).start()
        child = Forked(lambda: publish(store, "child"))
        assert end.is_set(), "it did not wait"
        assert await done == 1
        event_id = await store.persist_event("a", "parent")
        await store.close()
        return [str(event_id), *child.answer()]

    ids = loop.run_until_complete(run())
    assert content(path) == ("ok", set(ids))


def test_a_child_of_a_fork_that_could_not_wait_longer_refuses_the_store(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_PATIENCE", 0.05)

    async def run() -> str | None:
        began, end = threading.Event(), threading.Event()
        done = busy(await opened(store), began, end)
        await asyncio.to_thread(began.wait, 20)
        child = Forked(lambda: [refusal(store), Forked(lambda: refusal(store)).answer()])
        for said in child.answer():
            assert "its parent was still inside SQLite" in said
            assert "spawn" in said
        end.set()
        assert await done == 1
        assert Forked(lambda: len(publish(store, "child"))).answer() == 5
        event_id = await store.persist_event("a", "parent")
        await store.close()
        return event_id

    event_id = loop.run_until_complete(run())
    found, ids = content(path)
    assert (found, len(ids)) == ("ok", 6)
    assert event_id in ids


def test_a_fork_is_not_held_up_by_a_writer_that_waits_for_another_process(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_PATIENCE", 20.0)
    holding = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""

    async def run() -> list[str | None]:
        await store.persist_event("a", "parent")
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", holding, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        await holder.stdout.readline()
        waiting = asyncio.create_task(store.persist_event("a", "parent"))
        await asyncio.sleep(0.05)
        child = Forked(lambda: publish(store, "child"))  # at once, though the holder holds on
        assert not waiting.done()
        await holder.communicate(b"\n")
        ids = [await waiting, *await asyncio.to_thread(child.answer)]
        await store.close()
        return ids

    ids = loop.run_until_complete(run())
    found, stored = content(path)
    assert found == "ok"
    assert set(ids) < stored


# What other code does


def test_a_child_refuses_a_file_that_other_code_of_its_parent_had_open(store: EventStore, path: Path) -> None:
    publish(store, "parent")
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM events").fetchone() == (5,)
    said = Forked(lambda: refusal(store)).answer()
    assert "had the file open" in said
    assert str(path) in said
    assert len(publish(store, "parent")) == 5
    other.close()
    assert len(Forked(lambda: publish(store, "child")).answer()) == 5


def test_other_code_of_a_child_may_open_the_file_first(store: EventStore, path: Path) -> None:
    publish(store, "parent")

    def work() -> int:
        other = sqlite3.connect(path)
        other.execute("SELECT count(*) FROM events").fetchone()
        return len(publish(store, "child"))

    assert Forked(work).answer() == 5


def test_a_child_that_was_forked_unknown_to_python_refuses_what_was_open(
    store: EventStore, path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    """An embedding server forks in C: no handler runs, before or after."""
    loop.run_until_complete(store.persist_event("a", "parent"))

    def work() -> str:
        with pytest.raises(StoreError) as refused:
            forks.check(str(path)) if forks._gate._pid == os.getpid() else _enter(path)
        return str(refused.value)

    assert "unknown to Python" in Forked(work, ctypes.PyDLL(None).fork).answer()
    loop.run_until_complete(store.close())


def _enter(path: Path) -> None:
    with forks.uninterrupted():
        forks.check(str(path))


# A workflow that runs


def test_a_child_of_a_running_workflow_publishes_and_runs_it_itself(
    path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    app = Workflow("forks", store=f"sqlite:///{path}", dedup_window=0)
    done: list[Any] = []

    @app.step("a")
    async def note(event: Event) -> None:
        done.append(event.data)

    async def in_child() -> list[Any]:
        assert (app.http_url, await app.status()) == (None, {})
        assert await app.publish("a", data="child") is not None
        async with app.running(http_port=0):
            assert await app.publish("a", data="child") is not None
            await app.drain(timeout=20)
            report = await observability.health.check_health()
            return [report.status, app.http_url is not None]

    async def run() -> None:
        async with app.running(http_port=0):
            await app.publish("a", data="parent")
            await app.drain(timeout=20)
            child = Forked(lambda: asyncio.run(in_child()))
            assert await asyncio.to_thread(child.answer) == ["pass", True]
            await app.publish("a", data="parent again")
            await app.drain(timeout=20)
            assert (await observability.health.check_health()).status == "pass"

    loop.run_until_complete(run())
    assert done[0] == "parent"
    assert done[-1] == "parent again"


def test_the_port_of_a_workflow_is_free_when_it_ends_though_a_child_lives_on(
    path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    app = Workflow("forks", store=f"sqlite:///{path}")
    end, go = os.pipe()
    up, lives = os.pipe()
    children: list[Forked] = []

    def live() -> int:
        os.write(lives, b"x")
        return len(os.read(end, 1))

    async def run(port: int) -> int:
        async with app.running(http_port=port):
            assert app.http_url is not None
            if not port:
                children.append(Forked(live))
                os.read(up, 1)  # a child that has not run yet still has all that its parent had
            return int(app.http_url.rpartition(":")[2])

    port = loop.run_until_complete(run(0))
    assert loop.run_until_complete(run(port)) == port
    os.write(go, b"x")
    assert children[0].answer() == 1
