"""The facade over its lifetime: where the store comes from, opening and closing, threads, loops and processes."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from ag06 import ConfigurationError, StoreError
from ag06.persistence import EventStore, persistence
from ag06.persistence.stores import locate
from forking import Forked
from records import eventually

# Since 3.12 Python warns of every fork in a process with threads, and a store has threads.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


async def data(store: EventStore) -> list[Any]:
    return [event.data for event in await store.replay_from(0)]


# Where the store comes from


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that says nothing about a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AG06_STORE", raising=False)
    return tmp_path


async def _url_in_use(store: str | None = None) -> str | None:
    await persistence.initialize(store)
    try:
        assert await persistence.persist_event("t", "s", os.urandom(8).hex()) is not None
        return persistence.url
    finally:
        await persistence.close()


async def test_unless_told_otherwise_events_live_in_a_file_below_the_working_directory(elsewhere: Path) -> None:
    assert await _url_in_use() == "sqlite:///.ag06/events.db"
    assert (elsewhere / ".ag06" / "events.db").is_file()


async def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "ag06.toml").write_text('store = "sqlite:///of-the-file.db"\n')
    assert await _url_in_use() == "sqlite:///of-the-file.db"
    monkeypatch.setenv("AG06_STORE", "sqlite:///of-the-environment.db")
    assert await _url_in_use() == "sqlite:///of-the-environment.db"
    assert await _url_in_use("sqlite:///given.db") == "sqlite:///given.db"
    assert {path.name for path in elsewhere.glob("*.db")} == {"of-the-file.db", "of-the-environment.db", "given.db"}


async def test_a_settings_file_that_is_wrong_is_named(elsewhere: Path) -> None:
    for content, words in (("store = ", "not valid TOML"), ('shop = "x"', "unknown setting 'shop'")):
        (elsewhere / "ag06.toml").write_text(content)
        with pytest.raises(ConfigurationError, match=f"ag06.toml: {words}"):
            await EventStore().initialize()
    (elsewhere / "ag06.toml").unlink()
    (elsewhere / "ag06.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"ag06\.toml: cannot be read"):
        await EventStore().initialize()


# Opening and closing


async def test_before_initialize_every_call_says_what_to_do() -> None:
    store = EventStore()
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: store.persist_event("t", "s"),
        lambda: store.persist_events([{"event_type": "t", "source": "s"}]),
        lambda: store.persist_events([]),
        lambda: store.replay_from(0),
        lambda: anext(store.replay()),
        store.stats,
        store.log,
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"await persistence\.initialize\(\)"):
            await call()
    assert store.url is None
    await store.close()


async def test_a_store_that_was_closed_opens_again_with_its_settings(store_url: str, adapter: str) -> None:
    store = EventStore(store_url, max_event_bytes=50)
    kept = [] if adapter == "memory" else [1]
    for _ in range(2):
        await store.persist_event("t", "s", 1, idempotency_key="k")
        with pytest.raises(ValueError, match="the limit is 50"):
            await store.persist_event("t", "s", "x" * 50)
        assert await data(store) == [1]
        await store.close()
        await store.close()
        assert await data(store) == kept
    await store.close()


async def test_initialize_again_with_the_same_settings_keeps_the_log(store_url: str) -> None:
    store = EventStore()
    await store.initialize(store_url)
    log = await store.log()
    await store.persist_event("t", "s", 1)
    replay = store.replay()
    assert (await anext(replay)).data == 1
    await store.initialize(store_url)
    assert await store.log() is log
    assert [event async for event in replay] == []
    assert await data(store) == [1]
    await store.close()


async def test_initialize_with_other_settings_keeps_what_is_stored(store_url: str) -> None:
    store = EventStore()
    await store.initialize(store_url)
    await store.persist_event("t", "s", 1)
    await store.initialize(store_url, dedup_window=0)
    assert await store.persist_event("t", "s", 1) is not None
    assert await data(store) == [1, 1]
    await store.initialize("memory://another")
    assert (store.url, await data(store)) == ("memory://another", [])
    await store.close()


async def test_many_who_initialize_at_once_share_one_log_and_leave_none_open(store_url: str, adapter: str) -> None:
    store = EventStore()
    await asyncio.gather(*(store.initialize(store_url) for _ in range(20)))
    ids = await asyncio.gather(*(store.persist_event("t", "s", n) for n in range(20)))
    assert None not in ids
    await asyncio.gather(*(store.initialize(store_url, dedup_window=n) for n in range(5)))
    assert len(await data(store)) == 20
    await store.close()
    if adapter == "memory":  # it is dropped when nobody holds it any more
        assert await data(store) == []
    await store.close()


async def test_closing_while_events_are_stored_loses_none_that_was_confirmed(store_url: str) -> None:
    store, holder = EventStore(store_url), EventStore(store_url)
    await holder.log()
    confirmed = []

    async def publish(n: int) -> None:
        for attempt in range(10):
            event_id = await store.persist_event("t", "s", [n, attempt])
            assert event_id is not None
            confirmed.append(event_id)

    publishers = [asyncio.create_task(publish(n)) for n in range(30)]
    for enough in (0, 20, 90, 150, 290):
        await eventually(lambda enough=enough: _is_so(len(confirmed) > enough or any(t.done() for t in publishers)))
        await store.close()
    await asyncio.gather(*publishers)
    assert sorted(event.id for event in await holder.replay_from(0)) == sorted(confirmed)
    await store.close()
    await holder.close()


async def test_a_caller_who_gives_up_takes_nothing_from_others_who_wait_for_the_store(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    await _make(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")  # so that opening takes as long as we like
    store = EventStore(f"sqlite:///{path}")
    first = asyncio.create_task(store.persist_event("t", "s", 1))
    others = [asyncio.create_task(store.persist_event("t", "s", n)) for n in range(2, 6)]
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    holder.execute("COMMIT")
    holder.close()
    assert None not in await asyncio.wait_for(asyncio.gather(*others), 20)
    assert sorted(await data(store)) == [2, 3, 4, 5]
    await store.close()


async def test_closing_a_store_that_is_being_opened_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    await _make(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store = EventStore(f"sqlite:///{path}")
    threads = set(threading.enumerate())
    opening = asyncio.create_task(store.initialize(f"sqlite:///{path}"))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    holder.execute("COMMIT")
    holder.close()
    await asyncio.wait_for(asyncio.gather(opening, closing), 20)
    assert await store.persist_event("t", "s", 1) is not None
    await store.close()
    await eventually(lambda: _only_pool_threads_since(threads))


async def _is_so(value: bool) -> bool:
    return value


async def _make(path: Path) -> None:
    store = EventStore(f"sqlite:///{path}")
    await store.log()
    await store.close()


async def _only_pool_threads_since(before: set[threading.Thread]) -> bool:
    return not [t for t in threading.enumerate() if t not in before and t.name.startswith("ag06")]


async def test_a_store_that_could_not_be_opened_is_tried_again_at_the_next_call(tmp_path: Path) -> None:
    blocker = tmp_path / "is"
    blocker.write_text("a file, not a directory")
    store = EventStore()
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await store.initialize(f"sqlite:///{blocker}/events.db")
    refused = await asyncio.gather(*(store.persist_event("t", "s", n) for n in range(5)), return_exceptions=True)
    assert all(isinstance(error, ConfigurationError) for error in refused)
    blocker.unlink()
    assert await store.persist_event("t", "s", 1) is not None
    await store.close()


# Two stores, one log


async def test_two_stores_on_one_url_are_one_log(store_url: str) -> None:
    one, two = EventStore(store_url), EventStore(store_url)
    assert await one.persist_event("t", "s", 1, id="mine") == "mine"
    assert await two.persist_event("t", "s", 1) is None
    assert await two.persist_event("t", "s", 1, id="mine") == "mine"
    with pytest.raises(ValueError, match="other content"):
        await two.persist_event("t", "s", 2, id="mine")
    await two.persist_event("t", "s", 2)
    assert await data(one) == await data(two) == [1, 2]
    both = await asyncio.gather(*(store.persist_event("t", "u", n) for n in range(50) for store in (one, two)))
    assert sum(event_id is not None for event_id in both) == 50
    assert (await one.stats()) == (await two.stats())
    await one.close()
    assert len(await data(two)) == 52
    await two.close()


async def test_each_name_is_a_log_of_its_own_in_memory_and_lives_while_it_is_held() -> None:
    urls = ["memory://a", "memory://b", "memory://", "memory://A", "memory://a/b"]
    stores = {url: EventStore(url) for url in urls}
    for url, store in stores.items():
        await store.persist_event("t", "s", url)
    assert {url: await data(store) for url, store in stores.items()} == {url: [url] for url in urls}
    second = EventStore("memory://a")
    assert await data(second) == ["memory://a"]
    await stores["memory://a"].close()
    assert await data(second) == ["memory://a"]
    await second.close()
    assert await data(second) == []
    for store in (second, *stores.values()):
        await store.close()


async def test_a_relative_and_an_absolute_path_to_one_file_are_one_log(elsewhere: Path) -> None:
    (elsewhere / "link").symlink_to(elsewhere)
    urls = ["sqlite:///a%20b.db", "sqlite:///./a b.db", f"sqlite:///{elsewhere}/a b.db", "SQLITE:///link/a b.db"]
    stores = [EventStore(url) for url in urls]
    for n, store in enumerate(stores):
        await store.persist_event("t", "s", n)
    for store in stores:
        assert await data(store) == [0, 1, 2, 3]
        await store.close()
    assert {path.name for path in elsewhere.iterdir()} == {"a b.db", "link"}


async def test_a_log_in_a_file_that_was_closed_is_that_file_alone(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    for n in range(30):
        await store.persist_event("t", "s", n)
        await store.close()
        assert [path.name for path in tmp_path.iterdir()] == ["events.db"]
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "events.db").read_bytes())
    copied = EventStore(f"sqlite:///{copy}")
    assert await data(copied) == list(range(30))
    await copied.close()


# Threads and loops


async def _publish(store: EventStore, thread: int, count: int) -> list[str | None]:
    return list(await asyncio.gather(*(store.persist_event("t", "s", [thread, n]) for n in range(count))))


async def test_event_loops_of_several_threads_use_one_store_at_once(store_url: str) -> None:
    await persistence.initialize(store_url)
    ready = threading.Barrier(5)

    async def use(thread: int) -> list[str | None]:
        await persistence.initialize(store_url)
        await asyncio.to_thread(ready.wait, 20)
        ids = await _publish(persistence, thread, 50)
        # Said by every thread: one of them is heard.
        ids += [await persistence.persist_event("t", "same", n) for n in range(20)]
        await asyncio.to_thread(ready.wait, 20)
        assert len(await persistence.replay_from(0)) == 5 * 50 + 20
        await asyncio.to_thread(ready.wait, 20)
        return ids

    with ThreadPoolExecutor(4) as pool:
        others = [asyncio.get_running_loop().run_in_executor(pool, asyncio.run, use(n)) for n in range(4)]
        ids = [event_id for found in await asyncio.gather(use(4), *others) for event_id in found]
    stored = [event.id for event in await persistence.replay_from(0)]
    assert sorted(stored) == sorted(event_id for event_id in ids if event_id is not None)
    assert len(stored) == 5 * 50 + 20
    await persistence.close()


async def test_closing_closes_the_log_of_the_calling_loop_and_leaves_other_threads_theirs(store_url: str) -> None:
    store = EventStore(store_url)
    step = threading.Barrier(2)

    async def other() -> None:
        await store.persist_event("t", "s", 1)
        log = await store.log()
        await asyncio.to_thread(step.wait, 20)
        await asyncio.to_thread(step.wait, 20)  # the main thread has closed the store
        assert await store.log() is log
        await store.persist_event("t", "s", 3)
        await asyncio.to_thread(step.wait, 20)
        await asyncio.to_thread(step.wait, 20)
        await store.close()

    with ThreadPoolExecutor(1) as pool:
        running = asyncio.get_running_loop().run_in_executor(pool, asyncio.run, other())
        await asyncio.to_thread(step.wait, 20)
        await store.persist_event("t", "s", 2)
        log = await store.log()
        await asyncio.wait_for(store.close(), 20)
        await asyncio.to_thread(step.wait, 20)
        await asyncio.to_thread(step.wait, 20)
        assert await store.log() is not log
        assert await data(store) == [1, 2, 3]
        await asyncio.to_thread(step.wait, 20)
        await running
    await store.close()


def test_threads_that_publish_and_close_disturb_each_other_in_no_call(store_url: str) -> None:
    store, holder = EventStore(store_url), EventStore(store_url)

    async def publish(number: int) -> str | None:
        event_id = await store.persist_event("t", "s", number)
        await store.close()
        return event_id

    async def publish_all() -> tuple[list[str | None], list[Any]]:
        await holder.log()
        with ThreadPoolExecutor(4) as pool:
            loop = asyncio.get_running_loop()
            ids = await asyncio.gather(*(loop.run_in_executor(pool, asyncio.run, publish(n)) for n in range(40)))
        found = await data(holder)
        await holder.close()
        return ids, found

    ids, found = asyncio.run(publish_all())
    assert None not in ids
    assert sorted(found) == list(range(40))


async def test_closing_releases_what_loops_that_have_ended_left_open(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    threads = set(threading.enumerate())
    await asyncio.to_thread(asyncio.run, store.persist_event("t", "s", 1))
    await store.close()

    async def released() -> bool:
        return [path.name for path in tmp_path.iterdir()] == ["events.db"]

    await eventually(lambda: _only_pool_threads_since(threads))
    await eventually(released)


async def test_other_threads_follow_to_other_settings_at_their_next_use(tmp_path: Path) -> None:
    former, latter = f"sqlite:///{tmp_path}/former.db", f"sqlite:///{tmp_path}/latter.db"
    store = EventStore(former)
    step = threading.Barrier(2)

    async def other() -> None:
        log = await store.log()
        await asyncio.to_thread(step.wait, 20)
        await asyncio.to_thread(step.wait, 20)  # the main thread has switched to the other file
        assert (await log.stats()).events == 0, "what was under way may end"
        assert await store.persist_event("t", "s", 1) is not None
        with pytest.raises(StoreError, match="not open"):
            await log.stats()
        await store.close()

    with ThreadPoolExecutor(1) as pool:
        running = asyncio.get_running_loop().run_in_executor(pool, asyncio.run, other())
        await asyncio.to_thread(step.wait, 20)
        await store.initialize(latter)
        await asyncio.to_thread(step.wait, 20)
        await running
    assert await data(store) == [1]
    await store.close()


async def test_a_thread_that_does_not_let_its_loop_run_is_no_hindrance_to_others() -> None:
    store = EventStore("memory://busy")
    busy, go = threading.Event(), threading.Event()

    async def block() -> None:
        await store.log()
        busy.set()
        go.wait(20)
        await store.close()

    with ThreadPoolExecutor(1) as pool:
        running = asyncio.get_running_loop().run_in_executor(pool, asyncio.run, block())
        await asyncio.to_thread(busy.wait, 20)
        await store.persist_event("t", "s", 1)
        await store.close()
        await store.initialize("memory://other")
        go.set()
        await running
    assert await data(store) == []
    await store.close()


def _handles() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio's, of the connections of a loop that ended
def test_one_loop_after_another_finds_what_was_stored_and_leaks_nothing(store_url: str) -> None:
    store = EventStore(store_url)
    assert asyncio.run(store.persist_event("t", "s", 0)) is not None
    threads, handles = threading.active_count(), _handles()
    for n in range(1, 20):
        assert asyncio.run(store.persist_event("t", "s", n)) is not None
        assert asyncio.run(store.persist_event("t", "s", 0)) is None
    assert asyncio.run(data(store)) == list(range(20))

    async def settled() -> bool:
        return threading.active_count() <= threads + 2 and _handles() <= handles + 8

    asyncio.run(eventually(settled))
    asyncio.run(store.close())
    gc.collect()  # here, where the warnings are expected


def test_a_loop_that_rests_keeps_its_log_when_another_one_closes(store_url: str) -> None:
    store = EventStore(store_url)
    with asyncio.Runner() as resting:
        resting.run(store.persist_event("t", "s", 1))
        asyncio.run(asyncio.wait_for(store.close(), 20))
        assert resting.run(data(store)) == [1]
        resting.run(store.close())


# Processes


def _in_child(answers: Connection, store: EventStore) -> None:
    async def use() -> None:
        stored = await store.persist_event("t", "s", "child")
        answers.send((stored, await data(store)))
        await store.close()

    try:
        asyncio.run(asyncio.wait_for(use(), 20))
    except BaseException as error:
        answers.send((None, repr(error)))
    answers.close()


def _expected(adapter: str) -> tuple[list[str], list[str]]:
    """What a child finds, and then its parent: a log in memory belongs to one process."""
    both = ["parent", "child"]
    return (["child"], ["parent"]) if adapter == "memory" else (both, both)


@forks
async def test_a_child_process_of_multiprocessing_uses_the_store_of_its_parent(store_url: str, adapter: str) -> None:
    await persistence.initialize(store_url)
    await persistence.persist_event("t", "s", "parent")
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(there, persistence))
    child.start()
    there.close()
    stored, found = await asyncio.to_thread(here.recv)
    await asyncio.to_thread(child.join, 20)
    in_child, in_parent = _expected(adapter)
    assert found == in_child
    assert stored is not None
    assert child.exitcode == 0
    assert await data(persistence) == in_parent
    assert await persistence.persist_event("t", "s", "parent again") is not None
    await persistence.close()


def test_a_child_is_told_to_use_an_event_loop_of_its_own(store_url: str) -> None:
    store = EventStore(store_url)

    def work() -> str:
        with pytest.raises(StoreError, match="use a new one here"):
            runner.run(store.persist_event("t", "s", "refused"))
        return str(asyncio.run(store.persist_event("t", "s", os.getpid())))

    with asyncio.Runner() as runner:
        runner.run(store.persist_event("t", "s", "parent"))
        assert Forked(work).answer() != "None"
        assert "refused" not in runner.run(data(store))
        runner.run(store.close())
        assert Forked(work).answer() != "None"


@forks
async def test_a_forked_process_uses_the_store_though_a_thread_held_its_lock(store_url: str, adapter: str) -> None:
    store = EventStore(store_url)
    await store.persist_event("t", "s", "parent")
    here, there = multiprocessing.Pipe()
    logs = store._logs
    assert logs is not None
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with logs._lock:
            held.set()
            go.wait(20)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        held.wait(20)
        pid = os.fork()
        if not pid:
            _in_child(there, store)
            os._exit(0)
        go.set()
        holding.result(20)
    there.close()
    alarm = threading.Timer(20, os.kill, (pid, signal.SIGKILL))  # a child that hangs ends the wait for its answer
    alarm.start()
    stored, found = await asyncio.to_thread(here.recv)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    alarm.cancel()
    in_child, in_parent = _expected(adapter)
    assert found == in_child
    assert (stored is not None, status) == (True, 0)
    assert await data(store) == in_parent
    await store.close()


async def test_a_store_keeps_the_place_that_it_named_when_it_was_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    relative = EventStore("sqlite:///a%3Fb/events.db")
    remote = EventStore("redis://127.0.0.1:1/0", journal="waiting", timeout=1.0)
    monkeypatch.chdir(there)
    await relative.persist_event("t", "s", 1)
    await relative.close()
    await remote.persist_event("t", "s", 1)
    await remote.close()
    await relative.persist_event("t", "s", 2)
    assert [event.data async for event in relative.replay()] == [1, 2]
    await relative.close()
    assert relative.url == "sqlite:///a%3Fb/events.db"
    assert (here / "a?b/events.db").exists()
    assert (here / "waiting").is_dir()
    assert list(there.iterdir()) == []


def test_a_url_names_one_place_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/clerk")
    monkeypatch.chdir(tmp_path)
    assert locate("SQLite:///a b.db") == f"sqlite:///{tmp_path}/a%20b.db"
    assert locate("sqlite:///~/a.db") == "sqlite:////home/clerk/a.db"
    assert locate("Redis://host/0?log=a") == "redis://host/0?log=a"
    tls = locate("rediss://host/0?ssl_ca_certs=~/ca.pem&ssl_keyfile=key.pem&ssl_check_hostname=false")
    assert dict(parse_qsl(urlsplit(tls).query)) == {
        "ssl_ca_certs": "/home/clerk/ca.pem",
        "ssl_keyfile": str(tmp_path / "key.pem"),
        "ssl_check_hostname": "false",
    }
    assert locate("Memory://name") == "memory://name"
