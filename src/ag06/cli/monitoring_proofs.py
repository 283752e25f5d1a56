"""The proofs behind `ag06 validate` of what can be seen: metrics, logs, traces, health and the server for them."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ag06 import Event
from ag06.cli.proving import Bench, check, line, process
from ag06.monitoring.checks import store
from ag06.monitoring.health import HealthRegistry
from ag06.monitoring.metrics import Registry
from ag06.monitoring.realtime_observer import MetricsFacade
from ag06.monitoring.traceparent import parse
from ag06.persistence import EventStore

_EVENTS = 200
_COUNTING = """
import asyncio, os, sys
from ag06 import Retry, Workflow
app = Workflow(sys.argv[1], journal="off")
@app.step(sys.argv[2], name="work", concurrency=4, retry=Retry(attempts=3, initial=0.01))
async def work(event, ctx):
    await asyncio.sleep(0.005)
    if event.data["n"] % 10 == 0 and ctx.attempt == 1:
        raise ConnectionError("first attempt fails")
    print("one", flush=True)
app.run()
"""
_SPEAKING = """
import sys
from ag06 import Workflow
from ag06.monitoring import observability
app = Workflow(sys.argv[1], journal="off")
logger = observability.create_context_logger(tenant="t1")
@app.step(sys.argv[3], name=sys.argv[2])
async def work(event, ctx):
    logger.info("said\\nand done", password="hunter2", url="redis://clerk:hunter3@127.0.0.1/0")
    if len(sys.argv) > 4:
        await ctx.publish(sys.argv[4], event.data)
app.run()
"""
_SAID = "said\nand done"
_SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*(?:\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*\})?) (\S+)', re.ASCII)


async def metrics(bench: Bench) -> str:
    """What two processes count is exact in sum, and stays so when both are killed."""
    app, event_type = bench.workflow(), bench.name()
    app.step(event_type, name="work")(_nothing)
    for number in range(_EVENTS):
        await app.publish(event_type, data={"n": number})
    expected: dict[str, float] = {
        "ag06_workflow_events_processed_total": _EVENTS,
        "ag06_workflow_errors_total": _EVENTS // 10,
        f'ag06_workflow_retries_total{{step="{app.name}.work"}}': _EVENTS // 10,
        f'ag06_workflow_events_total{{type="{event_type}",outcome="processed"}}': _EVENTS,
        "ag06_workflow_latency_milliseconds_count": _EVENTS,
        "ag06_workflow_processing_duration_seconds_count": _EVENTS + _EVENTS // 10,
    }
    with tempfile.TemporaryDirectory(prefix="ag06-validate-") as directory:
        facade = MetricsFacade(Registry(), Path(directory))

        def seen() -> dict[str, float]:
            found = _samples(facade.exposition().decode())
            return {name: found.get(name, 0.0) for name in expected}

        arguments = (bench, _COUNTING, app.name, event_type)
        async with (
            process(*arguments, AG06_METRICS_DIR=directory) as one,
            process(*arguments, AG06_METRICS_DIR=directory) as other,
        ):
            await asyncio.gather(line(one), line(other))  # both are at work
            await app.drain(timeout=30)
            before = await _until(seen, expected)
            one.kill()
            other.kill()
            await asyncio.gather(one.wait(), other.wait())
        after = seen()
    for found, when in ((before, "while the processes lived"), (after, "when they were dead")):
        wrong = {name: (value, expected[name]) for name, value in found.items() if value != expected[name]}
        check(not wrong, f"{when} counted, expected: {wrong}")
    return f"{_EVENTS} events in 2 processes: {len(expected)} sums exact, before and after both were killed"


async def logs(bench: Bench) -> str:
    """A line of a step is one JSON object with what it belongs to; secrets are hidden, and no line can be forged."""
    app, event_type = bench.workflow(), bench.name()
    app.step(event_type, name="work")(_nothing)
    event_id = await app.publish(event_type, data={"n": 1})
    (event,) = [event async for event in bench.events.replay(types=event_type)]
    async with process(
        bench, _SPEAKING, app.name, "work", event_type, AG06_LOG_LEVEL="info", AG06_LOG_FORMAT="json"
    ) as it:
        text, found = await _own_line(it)
    expected = {
        "level": "info", "event": _SAID, "tenant": "t1", "event_id": event_id, "workflow": app.name, "step": "work",
        "correlation_id": event.correlation_id, "trace_id": _trace_id(event),
    }  # fmt: skip
    wrong = {name: found.get(name) for name, value in expected.items() if found.get(name) != value}
    check(not wrong, f"the line says {wrong}, not {expected}")
    check("hunter" not in text, f"a secret is in the log: {text}")
    check({"password", "url"} <= found.keys(), "a field is missing")
    return f"a line of {len(text)} bytes with {len(found)} fields; a password and a URL's hidden"


async def traces(bench: Bench) -> str:
    """Publish, step, output and the next step belong to one trace, in three processes and in their log lines."""
    app, event_type, output_type = bench.workflow(), bench.name(), bench.name()
    app.step(event_type, name="first")(_nothing)
    app.step(output_type, name="second")(_nothing)
    await app.publish(event_type, data={"n": 1})
    said = {"AG06_LOG_LEVEL": "info", "AG06_LOG_FORMAT": "json"}
    async with (
        process(bench, _SPEAKING, app.name, "first", event_type, output_type, **said) as first,
        process(bench, _SPEAKING, app.name, "second", output_type, **said) as second,
    ):
        (_, one), (_, other) = await asyncio.gather(_own_line(first), _own_line(second))
    events = [event async for event in bench.events.replay(types=(event_type, output_type))]
    check([event.type for event in events] == [event_type, output_type], f"{len(events)} events instead of 2")
    found = {_trace_id(event) for event in events} | {one.get("trace_id"), other.get("trace_id")}
    check(len(found) == 1 and None not in found, f"trace ids {found} instead of one")
    return "publish, 2 steps in 2 other processes, their output: 1 trace id, in the events and in the log lines"


async def health(_: Bench) -> str:
    """A store that fails turns the report to `fail`, and one that is back turns it to `pass`.

    It is a file made for this: the store that is proved must not fail for others.
    """
    with tempfile.TemporaryDirectory(prefix="ag06-validate-") as directory:
        events = EventStore(f"sqlite:///{directory}/broken.db", journal="off")
        registry = HealthRegistry(ttl=0)
        registry.register("store", store(events.stats))
        took = []
        try:
            statuses = [(await registry.check_health()).status]
            for name, away in (("counters", "away"), ("away", "counters")):
                with closing(sqlite3.connect(f"{directory}/broken.db", isolation_level=None)) as connection:
                    connection.execute(f"ALTER TABLE {name} RENAME TO {away}")
                begun = time.perf_counter()
                report = await registry.check_health()
                took.append((time.perf_counter() - begun) * 1000)
                statuses.append(report.status)
            told = report.components["store"].last_error
        finally:
            await registry.close()
            await events.close()
    check(statuses == ["pass", "fail", "pass"], f"reports {statuses} of a store that broke and was mended")
    check(bool(told), "the report does not say what was wrong")
    return f"pass; fail when the store broke, told in {took[0]:.1f} ms; pass when it was mended, in {took[1]:.1f} ms"


async def server(bench: Bench) -> str:
    """Health, metrics and status are answered on a free port while a workflow runs, and to nobody else's name."""
    app, event_type = bench.workflow(), bench.name()
    app.step(event_type, name="work")(_nothing)
    async with app.running(http_port=0):
        url = str(app.http_url)
        await app.publish(event_type, data={"n": 1})
        await app.drain(timeout=10)
        paths = ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/status")
        codes = {path: await asyncio.to_thread(_get, url + path) for path in paths}
        unknown = await asyncio.to_thread(_get, f"{url}/nothing")
        foreign = await asyncio.to_thread(_get, f"{url}/status", {"Host": "elsewhere.example"})
    after = await asyncio.to_thread(_get, f"{url}/health/live")
    check(set(codes.values()) == {200}, f"answers {codes}")
    check(
        (unknown, foreign) == (404, 421), f"answers {unknown} and {foreign} where there is nothing, and to other names"
    )
    check(after is None, "the port answers when the workflow has ended")
    return f"{len(codes)} paths answer on {url}; 404 and 421 to what is not for it; closed at the end"


async def _nothing(_: Event) -> None:
    """Do nothing with an event: a step of this process that another one runs."""


async def _own_line(it: asyncio.subprocess.Process) -> tuple[str, dict[str, Any]]:
    """Return the line of the step, as it came and decoded; each line before it must be JSON too."""
    while True:
        text = await line(it)
        found = json.loads(text)
        if found["event"] == _SAID:
            return text, found


async def _until(seen: Callable[[], dict[str, float]], expected: dict[str, float]) -> dict[str, float]:
    """Wait until what is seen is as expected, a few seconds at most; return it whatever it is."""
    found = seen()
    for _ in range(100):
        if found == expected:
            break
        await asyncio.sleep(0.05)  # an event is counted when its acknowledgement is stored, which others see sooner
        found = seen()
    return found


def _samples(text: str) -> dict[str, float]:
    """Return the samples of an exposition; one that cannot be read breaks the promise."""
    found: dict[str, float] = {}
    for row in text.splitlines():
        if row.startswith("#"):
            continue
        sample = _SAMPLE.fullmatch(row)
        check(sample is not None and sample[1] not in found, f"no sample, or one twice: {row}")
        if sample is not None:
            found[sample[1]] = float(sample[2])
    return found


def _trace_id(event: Event[Any]) -> str | None:
    found = parse(event.traceparent)
    return None if found is None else found.trace_id


def _get(url: str, headers: dict[str, str] | None = None) -> int | None:
    """Return the status of an answer, `None` where nobody answers."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - a URL of our own
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None
