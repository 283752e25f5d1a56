"""What it costs to see everything: a workflow with all its metrics, logs and traces against one with none of them.

There is no switch for it in the package, so the hooks are taken out of the process that is measured.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.payload import TYPE, payload, timed
from benchmarks.report import Row, bounded
from benchmarks.rounds import in_turns, median, ratio


def _nothing(*_: Any, **__: Any) -> None:
    """Take the place of what counts."""


class _Unwatched:
    """Takes the place of `Monitor`."""

    url = None
    sampler = None

    def __init__(self, workflow: object, listen: object) -> None: ...
    async def open(self) -> None: ...
    async def watch(self, worker: object, log: object) -> None: ...
    def stopping(self) -> None: ...
    async def close(self) -> None: ...


class _Unobserved:
    """Takes the place of `StepObserver`."""

    def __init__(self, workflow: str, step: object) -> None: ...

    begin = begin_batch = end = abandon = refused = taken_over = trace = settled = staticmethod(_nothing)


def _switch_off() -> None:
    from ag06.monitoring import children, tracing
    from ag06.runtime import monitor, step_runner

    for kind, methods in (
        (children.Counter, ("inc",)),
        (children.Gauge, ("inc", "dec", "set")),
        (children.Histogram, ("observe", "observe_all")),
    ):
        for method in methods:
            setattr(kind, method, _nothing)
    monitor.Monitor = _Unwatched  # type: ignore[assignment, misc]
    step_runner.StepObserver = _Unobserved  # type: ignore[assignment, misc]
    tracing.Tracing.start_send = lambda *_, **__: (None, None)  # type: ignore[assignment, return-value, method-assign]
    tracing.Tracing.output = _nothing  # type: ignore[method-assign]


async def end_to_end(url: str, count: int, on: bool) -> dict[str, float]:
    """Publish with 500 callers to a step that does nothing and runs meanwhile, until the last acknowledgement.

    `rate` is events a second, `micros` the processor time of this process for one event.
    """
    if not on:
        _switch_off()
    from ag06 import Event, Workflow

    app = Workflow("bench", store=url)

    @app.step(TYPE)
    async def noop(event: Event) -> None:
        """Nothing to do."""

    async with app.running(http_port=0 if on else None):
        began, used = time.perf_counter(), _processor_seconds()
        await timed(500, count, lambda n: app.publish(TYPE, "bench", payload(n)))
        await app.drain()
        took, used = time.perf_counter() - began, _processor_seconds() - used
    return {"rate": count / took, "micros": used / count * 1e6}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def an_event(count: int = 20_000, rounds: int = 20) -> dict[str, float]:
    """Return the microseconds of all that is done for one event of a step, by part; the least of `rounds`.

    Metrics, the fields of log lines with debug off, and a trace that is not recorded; an acknowledgement settles 100.
    """
    from ag06 import Workflow
    from ag06.event import Event
    from ag06.monitoring.tracing import TRACING
    from ag06.persistence.log import Acknowledge, Delivery
    from ag06.persistence.published import Published
    from ag06.runtime.observing import StepObserver

    app = Workflow("bench", store="memory://")
    events: list[Event[Any]] = []

    @app.step(TYPE)
    async def noop(event: Event[Any]) -> None:
        events.append(event)

    async with app.running():
        await app.publish(TYPE, "bench", payload(1))
        await app.drain()
    event, observer = events[0], StepObserver("bench", app.steps["noop"])
    delivery = Delivery("1", int(time.time() * 1000), 1, b"{}")
    published = Published()
    settlements = [Acknowledge((delivery,), ())] * 100
    accepted = [True] * 100

    def publish() -> None:
        TRACING.start_send(TYPE)
        published.stored[TYPE]()

    def call() -> None:
        observer.end(observer.begin(event, 1), None, 1)

    def settle() -> None:
        observer.settled(settlements, accepted, time.time() * 1000)

    parts: dict[str, tuple[Callable[[], None], int]] = {
        "publish": (publish, 1), "call": (call, 1), "settle": (settle, 100)
    }  # fmt: skip
    found: dict[str, float] = {}
    for _ in range(rounds):
        for name, (work, settled) in parts.items():
            calls = count // rounds // settled
            began = time.perf_counter()
            for _ in range(calls):
                work()
            micros = (time.perf_counter() - began) / calls / settled * 1e6
            found[name] = min(found.get(name, micros), micros)
    return found | {"all": sum(found.values())}


async def scrape(series: int = 5_000, scrapes: int = 20) -> dict[str, float]:
    """Return for how many milliseconds a scrape of so many series held the loop at most, and took in all.

    `tick` is the same for a loop that has nothing else to do: what the machine itself takes.
    """
    from ag06.monitoring import observability

    counter = observability.metrics.registry.counter("orders", "By shop and kind.", ("shop", "kind"))
    histogram = observability.metrics.registry.histogram("wait_seconds", "By shop.", ("shop",))
    for number in range(series // 20):
        histogram.labels(number).observe(0.1)  # 17 series each: buckets, sum and count
        for kind in range(3):
            counter.labels(number, kind).inc()
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            gaps.append(time.perf_counter() - began)

    async def longest(work: Callable[[], Awaitable[None]]) -> float:
        gaps.clear()
        ticking = asyncio.create_task(tick())
        await work()
        ticking.cancel()
        return max(gaps) * 1000

    async def take() -> None:
        _, parts = observability.metrics.stream()
        async for _ in parts:
            pass

    await take()  # the first one makes the heads of all lines, which are kept
    found: list[tuple[float, float]] = []
    for _ in range(scrapes):
        began = time.perf_counter()
        held = await longest(take)
        found.append((held, (time.perf_counter() - began) * 1000))
    tick_alone = await longest(lambda: asyncio.sleep(0.05))
    return {
        "held": statistics.median(held for held, _ in found),
        "took": statistics.median(took for _, took in found),
        "tick": tick_alone,
    }


def rows(redis: str, *, rounds: int, scale: float) -> list[Row]:
    """Throughput with everything on beside everything off, and the cost of each part."""
    found: list[Row] = []
    count = int(30_000 * scale)
    for store, url in (("SQLite", ""), ("Valkey", f"{redis}/9?log=seen")):
        on, off = f"{store}: published and processed, all seen", f"{store}: nothing seen"
        results: dict[str, list[dict[str, float]]] = {on: [], off: []}
        for turn in range(rounds):
            with tempfile.TemporaryDirectory() as directory:
                at = [f"{url}{turn}-{way}" if url else f"sqlite:///{directory}/{way}.db" for way in ("on", "off")]
                measurements = {
                    on: ("observability.end_to_end", {"url": at[0], "count": count, "on": True}),
                    off: ("observability.end_to_end", {"url": at[1], "count": count, "on": False}),
                }
                for label, result in in_turns(1, measurements).items():
                    results[label] += result
        times = ratio(results[on], results[off])
        beside = f"{median(results[off]):,.0f}/s, {median(results[off], 'micros'):.1f} us of processor"
        measured = f"{median(results[on]):,.0f}/s, {median(results[on], 'micros'):.1f} us of processor"
        found.append(Row(on, measured, beside, f"{times:.2f}", ">= 0.9", times >= 0.9))
    return found + _parts(scale)


def _parts(scale: float) -> list[Row]:
    labels = ("one event", "a scrape of 5,000 series", "a log line", "a trace")
    works = ("observability.an_event", "observability.scrape", "logs.cost", "tracing.cost")
    results = in_turns(1, {label: (work, {}) for label, work in zip(labels, works, strict=True)})
    event, held, line, trace = (results[label][0] for label in labels)
    info = line["info"]
    return [
        bounded("metrics, log context and trace ids of one event", event["all"], "us", "<= 5 us", event["all"] <= 5),
        Row(
            "longest hold of the loop by a scrape of 5,000 series",
            f"{held['held']:.2f} ms",
            f"an idle loop: {held['tick']:.2f} ms; the scrape takes {held['took']:.0f} ms",
            must="<= 5 ms",
            met=held["held"] <= 5,
        ),
        bounded("an info line", info, "us", "<= 10 us", info <= 10),
        bounded("a debug line that is off", line["debug, off"], "us", "", True),
        Row(
            "a recorded trace: send, process, settle",
            f"{trace['recorded']:.1f} us",
            f"not recorded: {trace['traces on, not recorded']:.2f} us",
        ),
    ]


if __name__ == "__main__":
    for part, microseconds in asyncio.run(an_event()).items():
        sys.stdout.write(f"{part:<12}{microseconds:8.2f} us\n")
