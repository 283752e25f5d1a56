"""What a workflow promises about what a dead worker held, and about a worker that is merely slow."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ag06 import Context, Event, Outcome, Retry, Workflow
from ag06.persistence.log import EventLog
from ag06.runtime import quarantine
from flows import SECONDS, letters, until
from records import collect, events


async def leave_behind(app: Workflow, count: int, *, group: str = "shop.bill") -> None:
    """Publish events and let a worker die that holds them all."""
    for n in range(count):
        await app.publish("order", data=f"left {n}")
    log = await app.events.log()
    await collect(log.subscribe(group, "dead", 3600), count)
    assert await log.release_worker("dead") == count


async def test_what_a_dead_worker_held_is_processed_and_the_step_is_told(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    seen: list[tuple[str, int, bool]] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        seen.append((event.data, ctx.attempt, ctx.taken_over))

    await leave_behind(app, 3)
    async with app.running():
        await app.publish("order", data="fresh")
        await app.drain(SECONDS)
    assert sorted(seen) == [("fresh", 1, False), ("left 0", 1, True), ("left 1", 1, True), ("left 2", 1, True)]
    assert sum(outcome.taken_over for outcome in outcomes) == 3


async def test_what_one_more_death_would_end_runs_one_at_a_time_and_nothing_else_waits_for_it(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PATIENCE", 3600)
    app = Workflow("shop", store=store_url)
    leave = asyncio.Event()
    running = highest = 0
    seen: list[str] = []

    @app.step("order", concurrency=4, retry=Retry(attempts=2))
    async def bill(event: Event, ctx: Context) -> None:
        nonlocal running, highest
        if ctx.taken_over:
            running += 1
            highest = max(highest, running)
            await leave.wait()
            running -= 1
        seen.append(event.data)

    await leave_behind(app, 12)
    async with app.running():
        for n in range(10):
            await app.publish("order", data=f"fresh {n}")
        await until(lambda: len(seen) == 10)
        assert all(name.startswith("fresh") for name in seen)
        leave.set()
        await app.drain(SECONDS)
    assert len(seen) == 22
    assert highest == 1


async def test_what_must_run_alone_starts_only_when_the_end_of_the_one_before_is_stored(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the death that the next one brings would be charged to the one before as well."""
    monkeypatch.setattr(quarantine, "PATIENCE", 3600)
    app = Workflow("shop", store=store_url)
    left: list[int] = []

    @app.step("order", retry=Retry(attempts=2))
    async def bill(event: Event) -> None:
        (group,) = (await app.events.stats()).groups
        left.append(group.backlog)

    await leave_behind(app, 3)
    async with app.running():
        await app.drain(SECONDS)
    assert left == [3, 2, 1]


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_a_taken_over_event_that_hangs_holds_up_only_its_subject(
    store_url: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PATIENCE", 0.1)
    app = Workflow("shop", store=store_url, grace=0.1)
    seen: list[object] = []

    @app.step("order", concurrency=2, retry=Retry(attempts=attempts))
    async def bill(event: Event) -> None:
        if event.data == "hangs":
            await asyncio.sleep(3600)
        seen.append(event.data)

    @app.step("order", retry=Retry(attempts=attempts))
    async def ship(event: Event) -> None:
        seen.append(f"ship {event.data}")

    await app.publish("order", data="hangs", subject="one")
    await app.publish("order", data="behind it", subject="one")
    for n in range(5):
        await app.publish("order", data=n, subject=f"other {n}")
    log = await app.events.log()
    await collect(log.subscribe("shop.bill", "dead", 3600), 6)
    await collect(log.subscribe("shop.ship", "dead", 3600), 6)
    assert await log.release_worker("dead") == 12
    async with app.running():
        await until(lambda: len(seen) == 12)
        assert set(seen) == {*range(5), *(f"ship {n}" for n in range(5)), "ship hangs", "ship behind it"}


@pytest.mark.parametrize("plain", [False, True])
async def test_what_was_taken_over_counts_as_one_of_the_calls_that_run_at_once(plain: bool) -> None:
    """A step with concurrency=1 may rely on it; and a plain one must not time out while it waits for its thread."""
    app = Workflow("shop", store="memory://")
    lock = threading.Lock()
    running = highest = 0

    def enter() -> None:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    if plain:

        @app.step("order", name="bill", concurrency=1, timeout=SECONDS)
        def in_thread(event: Event) -> None:
            enter()
            time.sleep(0.002)
            leave()
    else:

        @app.step("order", name="bill", concurrency=1)
        async def in_task(event: Event) -> None:
            enter()
            await asyncio.sleep(0.002)
            leave()

    await leave_behind(app, 5)
    async with app.running():
        for n in range(5):
            await app.publish("order", data=f"fresh {n}")
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert highest == 1


async def test_an_event_that_killed_as_many_workers_as_it_has_attempts_is_a_dead_letter(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    seen: list[str] = []

    @app.step("order", retry=Retry(attempts=3))
    async def bill(event: Event) -> None:
        seen.append(event.data)

    event_id = await app.publish("order", data="killer")
    log = await app.events.log()
    for death in range(3):
        subscription = log.subscribe("shop.bill", f"dead-{death}", 3600)
        (delivery,) = await collect(subscription, 1)
        if death:  # the first start is not noted
            await subscription.mark_started([delivery])
        assert await log.release_worker(f"dead-{death}") == 1
    async with app.running():
        await app.publish("order", data="fresh")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert seen == ["fresh"]
    assert (letter.event.id, letter.reason, letter.error, letter.attempts) == (
        event_id, "worker_died", "WorkerDied", 3,
    )  # fmt: skip
    assert letter.traceback == ""


BLOCK = {"blocks the loop": 0.5, "awaits": 1.1, "runs in a thread": 1.1}
VISIBILITY = 0.7


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        ("memory", "blocks the loop"),
        ("sqlite", "blocks the loop"),
        ("redis", "blocks the loop"),
        ("sqlite", "awaits"),
        ("redis", "runs in a thread"),
    ],
)
async def test_a_step_that_outlasts_its_lease_is_renewed_and_not_run_twice(
    store_url: str, log: EventLog, kind: str
) -> None:
    app = Workflow("shop", store=store_url, visibility_timeout=VISIBILITY)
    calls: list[str] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    async def on_the_loop(event: Event, ctx: Context) -> None:
        calls.append(kind)
        if kind == "awaits":
            await asyncio.sleep(BLOCK[kind])
        else:
            time.sleep(BLOCK[kind])
        await ctx.publish("billed")

    def in_a_thread(event: Event, ctx: Context) -> None:
        calls.append(kind)
        time.sleep(BLOCK[kind])
        ctx.publish("billed")

    app.step("order", name="bill")(in_a_thread if kind == "runs in a thread" else on_the_loop)

    async def run() -> None:
        await app.publish("order")
        async with app.running():
            await app.drain(SECONDS)

    ended = asyncio.create_task(asyncio.to_thread(asyncio.run, run()))  # a loop of its own, which the step may block
    await until(lambda: calls)
    heir = log.subscribe("shop.bill", "heir", 3600)
    while not ended.done():
        assert await heir.fetch(1, 0.05) == []
    await ended
    assert calls == [kind]
    assert [outcome.kind for outcome in outcomes] == ["processed"]
    assert len(await events(log, types=("billed",))) == 1
    await heir.close()


@pytest.mark.parametrize("attempts", [1, 5])
async def test_a_blocked_loop_loses_its_leases_and_what_it_lost_is_not_run_twice_here(
    store_url: str, log: EventLog, attempts: int
) -> None:
    """Others take over after the visibility timeout; the worker that comes back is not taken for dead."""
    app = Workflow("shop", store=store_url, visibility_timeout=0.4)
    calls: list[str] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    go = threading.Event()

    @app.step("order", concurrency=2, retry=Retry(attempts=attempts))
    async def bill(event: Event) -> None:
        calls.append(event.data)
        if event.data == "blocks":
            go.wait(SECONDS)

    async def run() -> None:
        for data in ["blocks", "one", "two", "three"]:
            await app.publish("order", data=data)
        async with app.running():
            while not (go.is_set() and len(outcomes) >= 1):
                await asyncio.sleep(0.01)
            await app.drain(SECONDS)

    ended = asyncio.create_task(asyncio.to_thread(asyncio.run, run()))
    await until(lambda: calls)
    heir = log.subscribe("shop.bill", "heir", 3600)
    try:
        taken = await collect(heir, 4)
    finally:
        go.set()
    await until(lambda: outcomes)
    await heir.close()
    await ended
    assert outcomes[0].kind == "fenced"
    (blocked,) = [delivery for delivery in taken if b"blocks" in delivery.body]
    assert calls[0] == "blocks"
    assert calls.count("blocks") == (1 if attempts == 1 else 2)
    assert [calls.count(data) for data in ("one", "two", "three")] == [1, 1, 1]
    assert [letter.error for letter in await letters(app)] == (["LeaseLost"] if attempts == 1 else [])
    assert (blocked.lapsed, blocked.deaths) == (True, int(attempts == 1))


@pytest.mark.parametrize("size", [1, 2])
async def test_a_worker_without_others_runs_each_event_once_however_long_it_blocks_its_loop(
    store_url: str, size: int
) -> None:
    app = Workflow("shop", store=store_url, visibility_timeout=0.3)
    calls: list[int] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.step("order", concurrency=size)
    async def bill(event: Event) -> None:
        calls.append(event.data)
        time.sleep(0.7)

    for n in range(3):
        await app.publish("order", data=n)
    async with app.running():
        await app.drain(SECONDS)
    assert sorted(calls) == [0, 1, 2]
    assert {(outcome.kind, outcome.attempt) for outcome in outcomes} == {("processed", 1)}
