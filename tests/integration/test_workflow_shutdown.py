"""What a worker promises about its end: SIGTERM finishes or gives back what is in flight, and loses nothing."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from ag06 import Context, Event, Workflow
from ag06.persistence.log import EventLog
from ag06.persistence.memory.log import MemorySubscription
from conftest import OpenLog
from flows import SECONDS, letters, said, until
from records import collect, events, eventually, numbers
from workers import Worker, ag06_run, write_flow

# Leases that nobody outlives: what a second worker gets was given back, not taken over.
FLOW = """
app = Workflow("shop", visibility_timeout=3600, grace={grace})

@app.step("order", concurrency=3)
{step}
"""


async def ask_to_stop(worker: Worker) -> None:
    """Send SIGTERM as a supervisor does, and again as whoever stopped the supervisor does."""
    worker.process.send_signal(signal.SIGTERM)
    await until(lambda: "shuts down" in worker.said or worker.process.returncode is not None)
    worker.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("adapter", ["sqlite", "redis"])
async def test_nothing_is_discarded_on_shutdown(store_url: str, tmp_path: Path) -> None:
    """What runs is finished, what waits is given back, and the next worker has it at once (faststream#2462)."""
    step = """
async def bill(event: Event, ctx: Context):
    note("start", event.data, ctx.attempt, ctx.taken_over)
    while event.data >= 0 and not Path("go").exists():
        await asyncio.sleep(0.005)
    await ctx.publish("billed", event.data)
"""
    write_flow(tmp_path, FLOW.format(grace=SECONDS, step=step))
    app = Workflow("shop", store=store_url)
    await app.events.persist_events([{"event_type": "order", "source": "test", "data": -n} for n in range(1, 201)])
    async with ag06_run(tmp_path, store_url) as first:
        await first.noted("start", 200)  # a worker that was fast holds a few events in advance
        for n in range(12):
            await app.publish("order", data=n)
        await eventually(lambda: more_held_than_running(app))
        await until(lambda: len(first.notes("start")) == 203)
        await ask_to_stop(first)
        (tmp_path / "go").touch()
        assert await first.ended() == 0, first.said
    assert len(first.notes("start")) == 203, "it went on after it was asked to stop"
    running = {int(words[1]) for words in first.notes("start")[-3:]}
    assert {n for n in await said(app, "billed") if n >= 0} == running
    async with ag06_run(tmp_path, store_url) as second:
        await second.noted("start", 212)
        assert await second.terminate() == 0, second.said
    assert sorted(await said(app, "billed")) == list(range(-200, 0)) + list(range(12))
    starts = second.notes("start")
    assert len(starts) == 212, "one was started twice"
    assert {tuple(words[2:]) for words in starts} == {("1", "False")}
    assert await letters(app) == []
    await app.close()


async def more_held_than_running(app: Workflow) -> bool:
    (group,) = (await app.events.stats()).groups
    return group.in_flight > 3


@pytest.mark.parametrize(
    ("adapter", "how"),
    [("redis", "awaits"), ("sqlite", "swallows its cancellation"), ("sqlite", "is stuck in a thread")],
)
async def test_what_does_not_finish_in_time_is_given_back(store_url: str, tmp_path: Path, how: str) -> None:
    step = {
        "awaits": """
async def bill(event: Event, ctx: Context):
    note("start", event.data, ctx.attempt, ctx.taken_over)
    await ctx.publish("billed", event.data)
    if not Path("go").exists():
        await asyncio.sleep(3600)
""",
        "swallows its cancellation": """
async def bill(event: Event, ctx: Context):
    note("start", event.data, ctx.attempt, ctx.taken_over)
    try:
        if not Path("go").exists():
            await asyncio.sleep(3600)
    except asyncio.CancelledError:
        pass
    await ctx.publish("billed", event.data)
""",
        "is stuck in a thread": """
def bill(event: Event, ctx: Context):
    note("start", event.data, ctx.attempt, ctx.taken_over)
    if not Path("go").exists():
        time.sleep(3600)
    ctx.publish("billed", event.data)
""",
    }[how]
    write_flow(tmp_path, FLOW.format(grace=0.2, step=step))
    app = Workflow("shop", store=store_url)
    for n in range(5):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url) as first:
        await first.noted("start", 3)
        await ask_to_stop(first)
        assert await first.ended() == 0, first.said
    kept = await said(app, "billed")
    assert kept == [] or how == "swallows its cancellation"
    (tmp_path / "go").touch()
    async with ag06_run(tmp_path, store_url) as second:
        await second.noted("start", 8 - len(kept))
        assert await second.terminate() == 0, second.said
    assert sorted(await said(app, "billed")) == [0, 1, 2, 3, 4]
    assert {tuple(words[2:]) for words in second.notes("start")} == {("1", "False")}
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_a_worker_that_has_nothing_to_do_ends_at_once_and_well(store_url: str, tmp_path: Path) -> None:
    write_flow(tmp_path, FLOW.format(grace=3600, step="def bill(event: Event):\n    note('start')"))
    app = Workflow("shop", store=store_url)
    await app.publish("order")
    async with ag06_run(tmp_path, store_url) as worker:
        await worker.noted("start")
        assert await worker.terminate() == 0, worker.said
    assert "Traceback" not in worker.said
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_a_second_interrupt_ends_a_worker_that_will_not_finish(store_url: str, tmp_path: Path) -> None:
    step = """
async def bill(event: Event):
    note("start")
    await asyncio.sleep(3600)
"""
    write_flow(tmp_path, FLOW.format(grace=3600, step=step))
    app = Workflow("shop", store=store_url)
    await app.publish("order")
    async with ag06_run(tmp_path, store_url) as worker:
        await worker.noted("start")
        worker.process.send_signal(signal.SIGINT)
        await until(lambda: "shuts down" in worker.said)
        worker.process.send_signal(signal.SIGINT)
        assert await worker.ended() == 130, worker.said
    assert "Traceback" not in worker.said
    assert await said(app, "order") == [None], "the event is still there, for whoever comes"
    await app.close()


async def test_a_batch_that_waits_for_more_goes_as_it_is_when_its_worker_stops(
    store_url: str, open_store: OpenLog
) -> None:
    log = await open_store()
    app = Workflow("shop", store=store_url)
    batches: list[int] = []

    @app.batch_step("order", max_size=10, max_wait=3600)
    async def bill(events: list[Event]) -> None:
        batches.append(len(events))

    for n in range(3):
        await app.publish("order", data=n)
    async with app.running():
        await eventually(lambda: in_flight(log, 3))
    assert batches == [3]
    assert await log.pending(["shop.bill"]) == 0


@pytest.mark.parametrize("alone", [False, True])
async def test_a_batch_that_does_not_finish_in_time_is_given_back_unharmed(
    store_url: str, open_store: OpenLog, alone: bool
) -> None:
    log = await open_store()
    app = Workflow("shop", store=store_url, grace=0.0)
    stuck = asyncio.Event()

    @app.batch_step("order", max_size=3, max_wait=3600)
    async def bill(events: list[Event], ctx: Context) -> None:
        if alone and len(events) > 1:
            raise ConnectionError
        await ctx.publish("billed")
        stuck.set()
        await asyncio.sleep(SECONDS)

    for n in range(3):
        await app.publish("order", data={"number": n})
    async with app.running():
        await asyncio.wait_for(stuck.wait(), SECONDS)
    again = await collect(log.subscribe("shop.bill", "heir", 3600), 3)
    assert sorted(numbers(again)) == [0, 1, 2]
    assert {(delivery.attempts, delivery.suspect) for delivery in again} == {(0, False)}
    assert await events(log, types=("billed",)) == []


async def test_a_worker_whose_inner_works_fail_says_so_instead_of_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> list[object]:
        raise RuntimeError("a bug in the store's adapter")

    app = Workflow("shop", store="memory://")
    app.step("order", name="bill")(lambda event: None)
    monkeypatch.setattr(MemorySubscription, "fetch", broken)
    with pytest.raises(RuntimeError, match="a bug in the store's adapter"):
        await asyncio.wait_for(app.serve(), SECONDS)
    async with app.running():
        await app.publish("order")
        with pytest.raises(RuntimeError, match="a bug in the store's adapter"):
            await app.drain(SECONDS)
    assert "shop.bill: fetch stopped" in caplog.text


async def in_flight(log: EventLog, count: int) -> bool:
    return [group.in_flight for group in await log.groups()] == [count]


@pytest.mark.parametrize("adapter", ["sqlite"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigterm_again_while_the_process_ends_does_not_kill_it(
    store_url: str, tmp_path: Path, workers: str
) -> None:
    """Its exit code says that the shutdown went well, whenever the last of many signals came."""
    write_flow(
        tmp_path,
        """
def at_the_end():
    note("ending")
    while not Path("go").exists():
        time.sleep(0.005)

if "AG06_SUPERVISOR" not in os.environ:
    atexit.register(at_the_end)
app = Workflow("shop")

@app.step("order")
async def bill(event: Event):
    note("billed")
""",
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order", data=1)
    async with ag06_run(tmp_path, store_url, "--workers", workers) as worker:
        await worker.noted("billed")
        worker.process.send_signal(signal.SIGTERM)
        await worker.noted("ending")
        worker.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert await worker.ended() == 0, worker.said
    await app.close()
