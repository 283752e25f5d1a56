"""What the optimizer is told of workflows that really run: each event in exactly one window."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from ag06 import Context, Event, Reject, Retry, Workflow
from ag06.ml.collector import MetricsCollector, OpenWindow
from ag06.ml.windows import Window
from ag06.monitoring import fine
from ag06.monitoring.metrics import Registry
from ag06.monitoring.realtime_observer import MetricsFacade
from flows import SECONDS, until
from workers import ag06_run, write_flow

_numbers = itertools.count()


def workflow(store_url: str) -> Workflow:
    """A workflow whose steps no other test has counted for."""
    return Workflow(f"windows{os.getpid()}x{next(_numbers)}", store=store_url, dedup_window=0)


async def begun(app: Workflow) -> None:
    """Wait until the worker is known to be one."""
    await until(lambda: any(sum(child.numbers) for child in fine.BEGAN.samples() if app.name in child.labels[0]))


async def publish(app: Workflow, said: str, count: int) -> None:
    await asyncio.gather(*(app.publish("order", data=said) for _ in range(count)))


async def test_a_window_counts_exactly_what_was_settled_in_it(store_url: str) -> None:
    app = workflow(store_url)

    @app.step("order", retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        if event.data == "bad":
            raise Reject("no")
        if event.data == "flaky" and ctx.attempt == 1:
            raise ConnectionError("away")
        await ctx.publish("billed")

    @app.batch_step("billed", max_size=10)
    async def note(events: list[Event]) -> None: ...

    async with app.running():
        log = await app.events.log()
        await begun(app)
        steps = [f"{app.name}.bill", f"{app.name}.note"]
        collector = MetricsCollector(steps=steps, groups=log.groups, load_factor=1e9)
        first = await collector.open_window()
        await publish(app, "good", 50)
        await app.drain(SECONDS)
        await settled(first, 100)
        second = await collector.open_window(await closed(first))
        await publish(app, "flaky", 7)
        await publish(app, "bad", 3)
        await app.drain(SECONDS)
        await settled(second, 17)
        third = await collector.open_window(await closed(second))
        await closed(third)
        outside = await collector.collect_metrics()

    good, bad, idle = [await window.close() for window in (first, second, third)]
    assert (good.processed, good.failed, good.dead, good.events) == (100, 0, 0, 100)
    assert (good.steps[f"{app.name}.bill"].processed, good.steps[f"{app.name}.note"].processed) == (50, 50)
    assert (bad.processed, bad.failed, bad.dead, bad.events) == (14, 10, 3, 17)
    assert bad.error_rate == 10 / 24
    assert (idle.events, idle.throughput, idle.latency_p99_ms, idle.error_rate) == (0, 0.0, None, None)
    assert (good.flags, bad.flags) == ((), ("too_few_events",))
    assert idle.flags == ("idle", "too_few_events")
    assert good.throughput == pytest.approx(100 / good.seconds)
    assert good.arrival_rate == good.throughput
    assert sum(good.ages.values()) == 100
    assert (outside.events, outside.queue_size, outside.queue_age_seconds) == (117, 0, 0.0)
    assert good.memory_mb > 1
    assert good.cpu_percent > 0


async def closed(window: OpenWindow) -> OpenWindow:
    await window.close()
    return window


async def test_windows_one_after_the_other_miss_no_event_and_count_none_twice(store_url: str) -> None:
    app = workflow(store_url)

    @app.step("order", concurrency=4)
    async def bill(event: Event) -> None:
        await asyncio.sleep(0)

    found: list[Window] = []
    async with app.running():
        log = await app.events.log()
        collector = MetricsCollector(steps=[f"{app.name}.bill"], groups=log.groups)
        window = await collector.open_window()
        publishing = asyncio.create_task(publish(app, "good", 400))
        async with asyncio.timeout(SECONDS):
            while sum(each.processed for each in found) < 400:
                await asyncio.sleep(0.003)
                found.append(await window.close())
                window = await collector.open_window(window)
        await publishing
        await app.drain(SECONDS)
    found.append(await window.close())  # after the worker's end: nothing came later
    assert sum(each.processed for each in found) == 400
    assert len(found) > 2


async def test_what_waits_is_seen_while_a_step_holds_on_to_it(store_url: str) -> None:
    app = workflow(store_url)
    go = asyncio.Event()

    @app.step("order", concurrency=2)
    async def bill(event: Event) -> None:
        await go.wait()

    async with app.running():
        log = await app.events.log()
        collector = MetricsCollector(steps=[f"{app.name}.bill"], groups=log.groups)
        window = await collector.open_window()
        await publish(app, "good", 20)
        seen = await window.close()
        go.set()
        await app.drain(SECONDS)
    assert (seen.queue_size, seen.events) == (20, 0)
    assert seen.queue_age_seconds > 0
    assert "stalled" in seen.flags
    assert "idle" not in seen.flags
    assert seen.arrival_rate == pytest.approx(20 / seen.seconds)


async def test_a_window_in_which_the_workflow_was_started_says_so(store_url: str) -> None:
    app = workflow(store_url)

    @app.step("order")
    async def bill(event: Event) -> None: ...

    collector = MetricsCollector(steps=[f"{app.name}.bill"])
    window = await collector.open_window()
    async with app.running():
        await publish(app, "good", 5)
        await app.drain(SECONDS)
        await begun(app)
        started = await window.close()
        await begun(app)
        window = await collector.open_window()
        await publish(app, "good", 5)
        await app.drain(SECONDS)
        steady = await window.close()
        window = await collector.open_window()
    stopped = await window.close()
    assert ("restarted" in started.flags, "restarted" in steady.flags, "restarted" in stopped.flags) == (
        True,
        False,
        True,
    )


async def test_before_any_workflow_runs_there_are_figures_of_an_idle_process() -> None:
    seen = await MetricsCollector(steps=["nobody.nothing"]).collect_metrics()
    assert seen.flags == ("idle", "too_few_events")
    assert (seen.events, seen.throughput, seen.queue_size, seen.queue_age_seconds) == (0, 0.0, 0, 0.0)
    assert (seen.latency_p50_ms, seen.latency_p95_ms, seen.latency_p99_ms, seen.error_rate) == (None,) * 4


FLOW = """
    app = Workflow("many", dedup_window=0)

    @app.step("order", concurrency=2)
    async def bill(event: Event) -> None:
        note("billed", os.getpid())
        await asyncio.sleep(0.001)
"""


async def test_windows_over_several_workers_count_each_event_once_though_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AG06_METRICS_DIR", str(tmp_path / "metrics"))
    write_flow(tmp_path, FLOW)
    url = f"sqlite:///{tmp_path}/many.db"
    publisher = Workflow("many", store=url, dedup_window=0)
    publisher.step("order", name="bill")(nothing)
    collector = MetricsCollector(
        steps=["many.bill"],
        groups=(await publisher.events.log()).groups,
        source=MetricsFacade(Registry(), fine.fine_directory(tmp_path / "metrics")),
    )
    whole = await collector.open_window()
    published = 0
    try:
        async with ag06_run(tmp_path, url) as one, ag06_run(tmp_path, url) as other:
            while len({words[1] for words in one.notes("billed")}) < 2:  # both have a share
                await publish(publisher, "good", 50)
                published += 50
                await publisher.drain(SECONDS)
            await settled(whole, published)
            before = await collector.open_window()
            await other.kill()
            await publish(publisher, "good", 200)
            await publisher.drain(SECONDS)
            await settled(whole, published + 200)
            with_death = await before.close()
            after = await collector.open_window(before)
            await publish(publisher, "good", 100)
            await publisher.drain(SECONDS)
            await settled(after, 100)
            steady = await after.close()
            everything = await whole.close()
    finally:
        await publisher.close()
    assert (with_death.processed, steady.processed, everything.processed) == (200, 100, published + 300)
    assert ("restarted" in with_death.flags, "restarted" in steady.flags) == (True, False)
    assert (everything.failed, everything.queue_size, everything.steps.keys()) == (0, 0, {"many.bill"})


async def nothing(event: Event) -> None:
    """Stands for a step that runs elsewhere."""


async def settled(window: OpenWindow, count: int) -> None:
    """Wait until so many events of a window are counted: a worker counts just after the store has answered."""
    async with asyncio.timeout(SECONDS):
        while (await window.peek()).events < count:
            await asyncio.sleep(0.01)
