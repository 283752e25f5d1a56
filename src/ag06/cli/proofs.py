"""The proofs behind `ag06 validate`: each does the thing and raises `AssertionError` if the promise does not hold.

They take names of their own in the store and remove their steps afterwards, so that a store in use is not disturbed.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable

from ag06 import CircuitBreaker, CircuitOpen, Context, Event, Retry
from ag06.cli.monitoring_proofs import health, logs, metrics, server, traces
from ag06.cli.proving import Bench, check, line, process
from ag06.cli.tuning_proof import tuning
from ag06.persistence.log import Query

_PUBLISHER = """
import asyncio, sys
from ag06.persistence import EventStore
from ag06.persistence.log import Query
async def main():
    events = EventStore()
    await events.initialize(journal="off")
    number = 0
    while True:
        numbers = range(number, number + 20)
        ids = await asyncio.gather(*(events.persist_event(sys.argv[1], "validate", {"n": n}) for n in numbers))
        number += 20
        print("\\n".join(ids), flush=True)
asyncio.run(main())
"""

_WORKER = """
import asyncio, sys
from ag06 import Workflow
app = Workflow(sys.argv[1], visibility_timeout=1.0, journal="off")
@app.step(sys.argv[2], name="work")
async def work(event):
    print("started", flush=True)
    await asyncio.sleep(3600)
app.run()
"""


async def durability(bench: Bench) -> str:
    """Every id that a publisher was given before SIGKILL is in the log."""
    event_type = bench.name()
    async with process(bench, _PUBLISHER, event_type) as publisher:
        ids = [await line(publisher) for _ in range(500)]
        publisher.kill()
        rest = b"" if publisher.stdout is None else await publisher.stdout.read()
        await publisher.wait()
    ids += rest.decode().split("\n")[:-1]  # the last line may be cut off
    stored = [event.id async for event in bench.events.replay(types=event_type)]
    missing = set(ids) - set(stored)
    check(not missing, f"{len(missing)} of {len(ids)} returned ids are not in the log")
    check(len(stored) == len(set(stored)), "an event is stored twice")
    return f"publisher killed: {len(ids)} ids returned, all in the log"


async def deduplication(bench: Bench) -> str:
    """Equal events within the window are stored once, whoever publishes them at once."""
    event_type = bench.name()
    found = await asyncio.gather(*(bench.events.persist_event(event_type, "validate", {"n": 1}) for _ in range(200)))
    stored = [event async for event in bench.events.replay(types=event_type)]
    check(len(stored) == 1 and sum(x is not None for x in found) == 1, f"{len(stored)} of 200 equal events stored")
    return "200 equal events at once: 1 stored, 199 refused"


async def replay(bench: Bench) -> str:
    """A range comes back whole, in order."""
    event_type = bench.name()
    started = time.time()
    await bench.events.persist_events(
        [{"event_type": event_type, "source": "validate", "data": {"n": n}} for n in range(5000)]
    )
    begun = time.perf_counter()
    seen = [event.data["n"] async for event in bench.events.replay(start=started - 1, types=event_type)]
    took = time.perf_counter() - begun
    check(seen == list(range(5000)), f"{len(seen)} of 5000 events came back, or in another order")
    return f"5000 events in order, {5000 / took:,.0f}/s"


async def archive(bench: Bench) -> str:
    """Events leave the store for compressed files, and are replayed from there as they were."""
    event_type, count = bench.name(), 5000
    await bench.events.persist_events(
        [{"event_type": event_type, "source": "validate", "data": {"n": n}} for n in range(count)]
    )
    before = [event async for event in bench.events.replay(types=event_type)]
    log = await bench.events.log()
    known = set(await log.archives())
    with tempfile.TemporaryDirectory(prefix="ag06-validate-") as directory:
        try:
            begun = time.perf_counter()
            done = await bench.events.archive_before(time.time() + 60, f"file://{directory}/archive", event_type)
            took = time.perf_counter() - begun
            live = [len(page) async for page in log.read(Query(types=(event_type,)))]
            after = [event async for event in bench.events.replay(types=event_type)]
            size = sum(os.path.getsize(url.removeprefix("file://")) for url in done.files)  # noqa: ASYNC240
        finally:
            for url in set(await log.archives()) - known:
                await log.remove_archive(url)
    check(done.events == count, f"{done.events} of {count} events were archived")
    check(not live, f"{sum(live)} archived events are in the store still")
    check(after == before, f"{len(after)} of {count} events came back, or changed")
    return f"{count} events moved to {size // 1000} kB of Parquet in {took:.2f} s, replayed as they were"


async def takeover(bench: Bench) -> str:
    """What a killed worker held is processed by another one within the visibility timeout and a second."""
    app = bench.workflow(visibility_timeout=1.0)
    event_type = bench.name()
    done = asyncio.Event()

    @app.step(event_type, name="work")
    async def work(event: Event, ctx: Context) -> None:
        if ctx.taken_over:
            done.set()

    await app.publish(event_type, data={"n": 1})
    async with process(bench, _WORKER, app.name, event_type) as worker:
        await line(worker)
        worker.kill()
        await worker.wait()
        killed = time.perf_counter()
    async with app.running():
        async with asyncio.timeout(30):
            await done.wait()
        took = time.perf_counter() - killed
        await app.drain(timeout=10)
    check(took <= 2.0, f"taken over only {took:.2f} s after SIGKILL, with a visibility timeout of 1 s")
    return f"taken over {took:.2f} s after SIGKILL, with a visibility timeout of 1 s"


async def order(bench: Bench) -> str:
    """Events of one subject are processed one at a time and in order."""
    app = bench.workflow()
    event_type = bench.name()
    seen: dict[str, list[int]] = {}
    running: set[str] = set()
    overlaps = 0

    @app.step(event_type, name="work", concurrency=16)
    async def work(event: Event) -> None:
        nonlocal overlaps
        subject = str(event.subject)
        overlaps += subject in running
        running.add(subject)
        await asyncio.sleep(0.001)
        running.discard(subject)
        seen.setdefault(subject, []).append(event.data["n"])

    async with app.running():
        for n in range(300):
            await app.publish(event_type, data={"n": n}, subject=f"s{n % 10}", priority=n % 4)
        await app.drain(timeout=30)
    check(overlaps == 0, f"{overlaps} events of one subject ran at once")
    check(all(numbers == sorted(numbers) for numbers in seen.values()), "a subject was processed out of order")
    return "300 events of 10 subjects, mixed priorities: in order, never two at once"


async def outbox(bench: Bench) -> str:
    """A step that runs again after a failure is heard once."""
    app = bench.workflow()
    event_type, output_type = bench.name(), bench.name()
    calls: dict[str, int] = {}

    @app.step(event_type, name="work", retry=Retry(attempts=3, initial=0.01))
    async def work(event: Event, ctx: Context) -> None:
        calls[event.id] = calls.get(event.id, 0) + 1
        await ctx.publish(output_type, {"n": event.data["n"]})
        if calls[event.id] == 1:
            raise ConnectionError("first attempt fails")

    async with app.running():
        for n in range(20):
            await app.publish(event_type, data={"n": n})
        await app.drain(timeout=30)
        outputs = [event.data["n"] async for event in app.events.replay(types=output_type)]
    check(sorted(outputs) == list(range(20)), f"{len(outputs)} outputs of 20 events")
    return f"{sum(calls.values())} calls of 20 events, 20 outputs"


async def dead_letters(bench: Bench) -> str:
    """A poison event ends in the dead letters with its error; nothing waits behind it."""
    app = bench.workflow()
    event_type = bench.name()
    processed: list[int] = []

    @app.step(event_type, name="work", retry=Retry(attempts=3, initial=0.01))
    async def work(event: Event) -> None:
        if event.data["n"] == 0:
            raise ValueError("poison")
        processed.append(event.data["n"])

    async with app.running():
        for n in range(20):
            await app.publish(event_type, data={"n": n})
        await app.drain(timeout=30)
        log = await app.events.log()
        letters = await log.dead_letters(f"{app.name}.work")
        await log.discard_dead_letters([(letter.group, letter.event_id) for letter in letters])
    check(len(letters) == 1 and letters[0].failure.attempts == 3, f"{len(letters)} dead letters instead of 1")
    check("poison" in letters[0].failure.traceback, "the dead letter lost its traceback")
    check(sorted(processed) == list(range(1, 20)), "an event waited behind the poison")
    return "1 dead letter after 3 attempts with its traceback, 19 events processed"


async def schedule(bench: Bench) -> str:
    """A delayed event arrives when it is due and not before."""
    app = bench.workflow()
    event_type = bench.name()
    arrived: list[float] = []

    @app.step(event_type, name="work")
    async def work(event: Event) -> None:
        arrived.append(time.time() - event.data["due"])

    async with app.running():
        await app.publish(event_type, data={"due": time.time() + 0.5}, delay=0.5)
        await app.drain(timeout=30)
    check(len(arrived) == 1 and arrived[0] >= -0.002, f"arrived {arrived} s after it was due")
    return f"delayed by 0.5 s, came {arrived[0] * 1000:.0f} ms after it was due"


async def breaker(bench: Bench) -> str:
    """A circuit breaker opens at its failure rate, refuses calls, and closes after good trials."""
    now = 0.0
    guard = CircuitBreaker("validate", minimum_calls=10, open_seconds=5.0, half_open_calls=2, clock=lambda: now)
    for number in range(10):
        try:
            with guard:
                if number % 2:
                    raise ConnectionError
        except ConnectionError:
            continue
    check(guard.state == "open", f"state {guard.state} after 5 failures in 10 calls")
    try:
        with guard:
            raise AssertionError("an open breaker let a call through")
    except CircuitOpen as refused:
        retry_after = refused.retry_after
    now = 5.1
    for _ in range(2):
        with guard:
            now += 0.001
    check(guard.state == "closed", f"state {guard.state} after two good trials")
    return f"opened after 5 of 10 failed, refused for {retry_after:.0f} s, closed after 2 good trials"


Proof = Callable[[Bench], Awaitable[str]]

PROOFS: list[tuple[str, Proof]] = [
    ("durable before told", durability),
    ("duplicates refused", deduplication),
    ("replay whole and in order", replay),
    ("archive whole and replayed", archive),
    ("order by subject", order),
    ("outputs exactly once", outbox),
    ("dead letters keep the story", dead_letters),
    ("delays are kept", schedule),
    ("a dead worker is replaced", takeover),
    ("circuit breaker", breaker),
    ("metrics exact over processes", metrics),
    ("logs tell ids and no secrets", logs),
    ("one trace over processes", traces),
    ("health turns and comes back", health),
    ("the port answers", server),
    ("tuning proves its gains", tuning),
]
