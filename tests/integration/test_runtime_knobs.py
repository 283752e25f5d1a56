"""What the runtime's own knobs promise: they move a running workflow at once, from any thread, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ag06 import ConfigurationError, Context, Event, Knob, Retry, Workflow
from ag06.monitoring import observability
from ag06.persistence.archive import Retention
from ag06.persistence.log import Delivery, Settlement, Subscription
from ag06.runtime.knobs import Following
from ag06.runtime.status import knob_status
from archives import later
from flows import SECONDS, said, until


class Hall:
    """Holds every call that enters until the test lets it go, and counts how many are inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered = 0
        self._lock = threading.Lock()
        self._leave = threading.Semaphore(0)
        self._open = False

    def enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1

    def let_go(self, count: int) -> None:
        self._leave.release(count)

    def open(self) -> None:
        self._open = True

    def may_go(self) -> bool:
        return self._open or self._leave.acquire(blocking=False)

    async def visit(self) -> None:
        self.enter()
        while not self.may_go():
            await asyncio.sleep(0.002)
        self.leave()

    def visit_in_a_thread(self) -> None:
        self.enter()
        while not (self._open or self._leave.acquire(timeout=0.01)):
            pass
        self.leave()


async def publish(app: Workflow, count: int, *, first: int = 0, subjects: int = 0) -> None:
    """Store so many events of type `t`; their data is their number, and their subject the number's remainder."""
    await app.events.persist_events(
        [
            {"event_type": "t", "source": "test", "data": n, "subject": f"s{n % subjects}" if subjects else None}
            for n in range(first, first + count)
        ]
    )


def busy_step(app: Workflow, hall: Hall, *, plain: bool, **settings: Any) -> None:
    if plain:

        @app.step("t", name="work", **settings)
        def in_threads(event: Event) -> None:
            hall.visit_in_a_thread()
    else:

        @app.step("t", name="work", **settings)
        async def in_tasks(event: Event) -> None:
            await hall.visit()


def subscription_of(app: Workflow) -> Subscription:
    assert app._worker is not None
    (runner,) = app._worker.runners
    return runner.subscription


def callers(app: Workflow) -> int:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return sum(name.startswith(f"{app.name}.work: call") for name in names)


@pytest.mark.parametrize("plain", [False, True])
async def test_more_calls_run_as_soon_as_there_may_though_all_that_run_hang(plain: bool, store_url: str) -> None:
    app, hall = Workflow("busy", store=store_url), Hall()
    busy_step(app, hall, plain=plain)
    concurrency = app.runtime_knobs["work.concurrency"]
    concurrency.set(2)
    await publish(app, 40)
    async with app.running():
        for limit in (2, 7, 30):
            concurrency.set(limit)
            await until(lambda limit=limit: hall.inside == limit)
            assert app.steps["work"].concurrency == limit
        hall.open()
        await app.drain(SECONDS)
    assert (hall.entered, hall.most) == (40, 30)


@pytest.mark.parametrize("plain", [False, True])
async def test_fewer_calls_run_once_those_that_are_too_many_have_ended_by_themselves(
    plain: bool, store_url: str
) -> None:
    app, hall = Workflow("busy", store=store_url), Hall()
    width = app.knob("width", low=1, high=12, default=12, integer=True)
    busy_step(app, hall, plain=plain, concurrency=width)
    await publish(app, 60)
    async with app.running():
        await until(lambda: hall.inside == 12)
        width.set(3)
        hall.let_go(9)
        await until(lambda: hall.inside == 3)
        await until(lambda: callers(app) == 3)
        hall.most = 0
        for entered in range(13, 20):
            hall.let_go(1)
            await until(lambda entered=entered: hall.entered == entered)
        assert hall.most == 3
        width.set(6)
        await until(lambda: hall.inside == 6)
        hall.open()
        await app.drain(SECONDS)
    assert (hall.entered, hall.most) == (60, 6)


async def test_tasks_that_are_idle_and_too_many_end_and_the_others_go_on(store_url: str) -> None:
    app = Workflow("idle", store=store_url)
    done: list[int] = []

    @app.step("t")
    async def work(event: Event[int]) -> None:
        done.append(event.data)

    concurrency = app.runtime_knobs["work.concurrency"]
    async with app.running():
        await until(lambda: callers(app) == 10)
        concurrency.set(1)
        await until(lambda: callers(app) == 1)
        await publish(app, 50)
        await app.drain(SECONDS)
        concurrency.set(200)
        await until(lambda: callers(app) == 200)
    assert sorted(done) == list(range(50))


async def test_batches_that_may_run_beside_those_that_hang_take_events_at_once(store_url: str) -> None:
    app, hall = Workflow("busy", store=store_url), Hall()
    sizes: list[int] = []

    @app.batch_step("t", max_size=4, max_wait=0.0)
    async def work(events: list[Event]) -> None:
        sizes.append(len(events))
        await hall.visit()

    await publish(app, 20)
    async with app.running():
        await until(lambda: hall.inside == 1)
        app.runtime_knobs["work.concurrency"].set(4)
        await until(lambda: hall.inside == 4)
        hall.open()
        await app.drain(SECONDS)
    assert sum(sizes) == 20


async def test_a_batch_that_waits_for_events_goes_as_soon_as_its_wait_falls(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    patience = app.knob("patience", low=0.001, high=3600, default=3600, scale="log")
    batches: list[int] = []

    @app.batch_step("t", max_size=100, max_wait=patience)
    async def work(events: list[Event]) -> None:
        batches.append(len(events))

    await publish(app, 3)
    async with app.running():
        runner = app._worker.runners[0]  # type: ignore[union-attr]
        await until(lambda: runner.in_flight == 3)
        assert batches == []
        patience.set(0.001)
        await app.drain(SECONDS)
    assert sum(batches) == 3


async def test_a_batch_takes_as_many_events_as_its_knob_says_by_then(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    batches: list[int] = []

    @app.batch_step("t", max_wait=3600)
    async def work(events: list[Event]) -> None:
        batches.append(len(events))

    size = app.runtime_knobs["work.max_size"]
    size.set(5)
    await publish(app, 10)
    async with app.running():
        await until(lambda: batches == [5, 5])
        size.set(200)
        await publish(app, 150, first=10)
        runner = app._worker.runners[0]  # type: ignore[union-attr]
        await until(lambda: runner.in_flight == 150)
        assert batches == [5, 5]
        size.set(150)
        await until(lambda: batches == [5, 5, 150])
        size.set(2)
        await publish(app, 6, first=200)
        await app.drain(SECONDS)
    assert batches == [5, 5, 150, 2, 2, 2]


async def test_a_request_to_the_store_brings_no_more_than_its_knob_says(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Workflow("busy", store=store_url)
    done: list[int] = []

    @app.step("t", concurrency=64)
    async def work(event: Event[int]) -> None:
        done.append(event.data)

    fetched: list[int] = []
    size = app.runtime_knobs["work.fetch_size"]
    size.set(3)
    async with app.running():
        subscription = subscription_of(app)
        fetch = subscription.fetch

        async def watched(limit: int, wait: float) -> list[Delivery]:
            found = await fetch(limit, wait)
            fetched.append(len(found))
            return found

        monkeypatch.setattr(subscription, "fetch", watched)
        await publish(app, 1)  # ends the request that was under way
        await app.drain(SECONDS)
        await publish(app, 200, first=1)
        await app.drain(SECONDS)
        assert max(fetched) == 3
        size.set(1000)
        await publish(app, 1, first=201)
        await app.drain(SECONDS)
        await publish(app, 400, first=202)
        await app.drain(SECONDS)
    assert max(fetched) > 3
    assert len(done) == 602


async def test_a_worker_holds_as_many_seconds_of_work_as_its_knob_says() -> None:
    app = Workflow("busy", store="memory://busy-prefetch")
    most = 0

    @app.step("t")
    async def work(event: Event) -> None:
        nonlocal most
        most = max(most, app._worker.runners[0].in_flight)  # type: ignore[union-attr]
        await asyncio.sleep(0)

    prefetch = app.runtime_knobs["work.prefetch"]
    prefetch.set(0.01)
    await publish(app, 5000)
    async with app.running():
        await app.drain(SECONDS)
        assert most < 1000
        prefetch.set(2.0)
        await publish(app, 5000, first=5000)
        await app.drain(SECONDS)
    assert most >= 1000


async def test_commits_that_wait_for_company_are_fewer(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Workflow("busy", store=store_url)

    @app.step("t", concurrency=20)
    async def work(event: Event, ctx: Context) -> None:
        await asyncio.sleep(random.uniform(0.0, 0.01))
        await ctx.publish("done", None)

    commits = 0
    counts: list[int] = []
    async with app.running():
        subscription = subscription_of(app)
        commit = subscription.commit

        async def counted(settlements: Sequence[Settlement]) -> list[bool]:
            nonlocal commits
            commits += 1
            return await commit(settlements)

        monkeypatch.setattr(subscription, "commit", counted)
        for wait in (0.0, 0.02):
            app.runtime_knobs["commit_wait"].set(wait)
            commits = 0
            await publish(app, 400, first=0 if wait else 400)
            await app.drain(SECONDS)
            counts.append(commits)
        assert len(await said(app, "done")) == 800
    assert counts[1] < counts[0] / 2


def movers(app: Workflow, seed: int) -> Callable[[], None]:
    """Return what moves one knob of a workflow, any of them, to anywhere."""
    rng = random.Random(seed)
    knobs = list((app.knobs | app.runtime_knobs).values())

    def move() -> None:
        knob = rng.choice(knobs)
        share = rng.random()
        low, high = (knob.low, knob.high) if knob.high < 1000 else (knob.low, knob.high / 10)
        knob.set(low * (high / low) ** share if knob.scale == "log" else low + (high - low) * share)

    return move


async def test_whatever_moves_nothing_is_lost_nothing_is_doubled_and_order_stays(store_url: str) -> None:
    app = Workflow("all", store=store_url)
    width = app.knob("width", low=1, high=20, default=4, scale="log", integer=True)
    started: dict[str, list[int]] = defaultdict(list)
    failed: set[int] = set()
    threads: list[int] = []

    @app.step("t", retry=Retry(attempts=3, initial=0.001))
    async def work(event: Event[int], ctx: Context) -> None:
        if event.data % 50 == 7 and event.data not in failed:
            failed.add(event.data)
            raise ConnectionError("away")
        started[str(event.subject)].append(event.data)
        if event.data % 9 == 0:
            await asyncio.sleep(0.001)
        await ctx.publish("worked", event.data, subject=event.subject)

    @app.step("t", concurrency=width)
    def aside(event: Event[int]) -> None:
        threads.append(event.data)

    @app.batch_step("worked", retry=Retry(attempts=2, initial=0.001))
    async def collect(events: list[Event[int]], ctx: Context) -> None:
        for event in events:
            await ctx.publish("collected", event.data, cause=event)

    ended = threading.Event()

    def hammer(seed: int) -> None:
        move = movers(app, seed)
        while not ended.wait(0.001):
            move()

    count, subjects = 3000, 40
    hammers = [threading.Thread(target=hammer, args=(seed,)) for seed in (1, 2)]
    async with app.running():
        for thread in hammers:
            thread.start()
        try:
            await publish(app, count, subjects=subjects)
            await app.drain(60)
        finally:
            ended.set()
            for thread in hammers:
                await asyncio.to_thread(thread.join)
        assert sorted(await said(app, "collected")) == list(range(count))
    assert sorted(threads) == list(range(count))
    for subject in range(subjects):
        assert started[f"s{subject}"] == list(range(subject, count, subjects))


async def test_a_knob_that_another_thread_moves_moves_the_workflow() -> None:
    app, hall = Workflow("busy", store="memory://busy-thread"), Hall()
    busy_step(app, hall, plain=False)
    concurrency = app.runtime_knobs["work.concurrency"]
    concurrency.set(1)
    await publish(app, 20)
    asyncio.get_running_loop().set_debug(True)  # refuses what is not meant to be called from other threads
    try:
        async with app.running():
            await until(lambda: hall.inside == 1)
            await asyncio.to_thread(concurrency.set, 8)
            await until(lambda: hall.inside == 8)
            hall.open()
            await app.drain(SECONDS)
    finally:
        asyncio.get_running_loop().set_debug(False)


def test_a_knob_moves_though_the_loop_that_followed_it_is_gone() -> None:
    knob = Knob("width", low=1, high=8, default=2)

    async def follow() -> None:
        Following([knob], lambda: None)

    asyncio.run(follow())
    assert knob.set(3) == 3


async def test_a_knob_that_a_call_moves_brings_nothing_of_that_call_into_others() -> None:
    app, hall = Workflow("busy", store="memory://busy-context"), Hall()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen: list[str] = []
    concurrency: Knob

    @app.step("t")
    async def work(event: Event[int]) -> None:
        seen.append(variable.get())
        variable.set(f"left by {event.data}")
        concurrency.set(20)
        await hall.visit()

    concurrency = app.runtime_knobs["work.concurrency"]
    concurrency.set(1)
    await publish(app, 20)
    async with app.running():
        await until(lambda: hall.inside == 20)
        hall.open()
        await app.drain(SECONDS)
    assert seen == ["clean"] * 20


async def test_a_knob_stays_where_it_is_from_one_run_to_the_next_and_moves_between_them() -> None:
    app, hall = Workflow("busy", store="memory://busy-runs"), Hall()
    busy_step(app, hall, plain=False)
    concurrency = app.runtime_knobs["work.concurrency"]
    async with app.running():
        concurrency.set(3)
    await asyncio.to_thread(concurrency.set, 5)
    async with app.running():
        await publish(app, 9)
        await until(lambda: hall.inside == 5)
        hall.open()
        await app.drain(SECONDS)
    assert hall.most == 5


def test_a_knob_may_move_after_the_loop_of_its_workflow_was_torn_down() -> None:
    app, hall = Workflow("torn", store="memory://torn"), Hall()
    busy_step(app, hall, plain=False)

    running = app.running()  # held until the loop is gone: dropping it would end the workflow

    async def run() -> None:
        await running.__aenter__()
        await publish(app, 1)
        await until(lambda: hall.inside == 1)

    asyncio.run(run())
    assert app.runtime_knobs["work.concurrency"].set(20) == 20


async def test_a_setter_that_raises_leaves_the_running_workflow_as_it_is() -> None:
    app, hall = Workflow("busy", store="memory://busy-setter"), Hall()

    def resize(size: int) -> None:
        if size > 4:
            raise OSError("the pool has 4 connections")

    width = app.knob("width", low=1, high=8, default=2, integer=True, setter=resize)
    busy_step(app, hall, plain=False, concurrency=width)
    await publish(app, 20)
    async with app.running():
        await until(lambda: hall.inside == 2)
        with pytest.raises(ConfigurationError, match=r"width.*stays at 2.*4 connections"):
            width.set(8)
        width.set(4)
        await until(lambda: hall.inside == 4)
        hall.open()
        await app.drain(SECONDS)
    assert hall.most == 4


async def publish_words(app: Workflow) -> None:
    """Store the same 2,000 texts each time, which a compressor can make much of, or more."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(2000)]
    await app.events.persist_events(
        [{"event_type": "t", "source": "test", "data": text, "dedup": False} for text in texts]
    )


def check_sizes(sizes: list[int]) -> None:
    """The second of three archives of the same events is the one that took the trouble."""
    assert sizes[1] < 0.95 * min(sizes[0], sizes[2])


async def test_segments_are_compressed_as_hard_as_the_knob_says_by_then(store_url: str, tmp_path: Path) -> None:
    archive = f"file://{tmp_path}/archive"
    app = Workflow("kept", store=store_url, retention=Retention(archive_after=0.01, archive=archive))
    sizes = []
    keeper, log = app.events.keeper, await app.events.log()
    assert keeper is not None
    for level in (1, 19, 1):
        app.runtime_knobs["archive_compression"].set(level)
        before = set(tmp_path.rglob("*.parquet"))
        await publish_words(app)
        while not (written := set(tmp_path.rglob("*.parquet")) - before):
            await asyncio.sleep(0.05)  # so that all of them are old enough
            await keeper.keep(log, "test")
        sizes.append(sum(path.stat().st_size for path in written))
    assert len(await said(app, "t")) == 6000
    await app.close()
    check_sizes(sizes)


async def test_by_hand_too_the_archive_is_compressed_as_the_knob_says(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/archive"
    app = Workflow("kept", store="memory://kept", retention=Retention(archive_after=3600.0, archive=url))
    sizes = []
    for level in (1, 19, 1):
        app.runtime_knobs["archive_compression"].set(level)
        await publish_words(app)
        done = await app.events.archive_before(later(), url)
        assert done.events == 2000
        sizes.append(sum(Path(file.removeprefix("file://")).stat().st_size for file in done.files))
    await app.close()
    check_sizes(sizes)


def test_what_archives_nothing_has_no_knob_for_it(tmp_path: Path) -> None:
    archive = f"file://{tmp_path}/archive"
    for retention in (None, 60.0, Retention(delete_after=60.0), Retention(delete_after=60.0, archive=archive)):
        app = Workflow("kept", store="memory://kept-not", retention=retention)
        assert set(app.runtime_knobs) == {"commit_wait"}


async def test_the_status_shows_every_knob_and_which_are_pinned_and_gauges_show_where_they_stand() -> None:
    app = Workflow("seen", store="memory://seen-knobs")

    @app.step("t", concurrency=3)
    async def fixed(event: Event) -> None: ...

    @app.step("t")
    async def free(event: Event) -> None: ...

    async with app.running():
        app.runtime_knobs["free.concurrency"].set(25)
        knobs = (await app.status(metrics=False))["knobs"]
        app._monitor.sampler.sample()  # type: ignore[union-attr]
        gauges = observability.metrics.snapshot()
    assert knobs["fixed.concurrency"] == {
        "value": 3,
        "default": 3,
        "low": 3,
        "high": 3,
        "scale": "linear",
        "pinned": True,
    }
    assert knobs["free.concurrency"] == {
        "value": 25,
        "default": 10,
        "low": 1,
        "high": 256,
        "scale": "log",
        "pinned": False,
    }
    mode = Knob("mode", choices=("fast", "exact"), default="fast")
    assert knob_status(mode)["choices"] == ["fast", "exact"]
    assert {"commit_wait", "free.prefetch", "free.fetch_size", "fixed.prefetch", "fixed.fetch_size"} < set(knobs)
    values = {name: value for name, value in gauges.items() if "knob_value" in name}
    assert 25 in values.values() or any(25 in dict(value).values() for value in values.values())
