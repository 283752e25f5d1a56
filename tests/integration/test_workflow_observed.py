"""What is counted, traced and said of the events of a running workflow, without a line of the user's."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from ag06 import CircuitBreaker, Event, Retry, Workflow
from ag06.monitoring import observability
from ag06.monitoring.log_context import identity
from flows import SECONDS, step_that_ends_in_every_way, until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
_numbers = itertools.count()
Grown = Callable[[], dict[str, Any]]


@pytest.fixture
def grown() -> Grown:
    """What was counted since the test began: counters, and the counts of histograms."""

    def numbers() -> dict[str, float]:
        found = observability.metrics.snapshot()
        return {name: value["count"] if isinstance(value, dict) else value for name, value in found.items()}

    before = numbers()

    def since() -> dict[str, Any]:
        now = {name: value - before.get(name, 0.0) for name, value in numbers().items()}
        return {name.removeprefix("ag06_workflow_"): value for name, value in now.items() if value}

    return since


def workflow(store_url: str) -> Workflow:
    """A workflow whose name, and so whose labels, no other test has."""
    return Workflow(f"seen{next(_numbers)}", store=store_url)


async def test_each_end_of_a_delivery_is_counted_once(store_url: str, grown: Grown) -> None:
    app = workflow(store_url)
    step_that_ends_in_every_way(app)

    async with app.running():
        for name in ("good", "fine", "retried", "delayed", "rejected", "broken"):
            await app.publish("order", data=name)
        await app.drain(SECONDS)
        await until(lambda: grown().get("events_processed_total") == 4)
    found, step = grown(), f'step="{app.name}.bill"'
    kinds = {"processed": 4, "retried": 2, "delayed": 1, "dead": 2}
    assert {kind: found[f'events_total{{type="order",outcome="{kind}"}}'] for kind in kinds} == kinds
    assert found["errors_total"] == 4
    assert found[f"retries_total{{{step}}}"] == 2
    assert found[f'dead_letters_total{{{step},reason="rejected"}}'] == 1
    assert found[f'dead_letters_total{{{step},reason="failed"}}'] == 1
    assert (
        found[f"step_duration_seconds{{{step}}}"] == found["processing_duration_seconds"] == 8
    )  # calls that were made
    assert found[f"event_age_seconds{{{step}}}"] == found["latency_milliseconds"] == 6  # events that were settled
    seen = observability.performance.snapshot(f"{app.name}.bill")
    assert (seen.count, seen.errors) == (8, 4)


async def test_a_batch_counts_its_events_and_one_call(grown: Grown) -> None:
    app = workflow("memory://")

    @app.batch_step("order", max_size=10, max_wait=5.0)
    async def bill(events: list[Event]) -> None: ...

    for number in range(10):
        await app.publish("order", data=number)
    async with app.running():
        await app.drain(SECONDS)
    found, step = grown(), f'step="{app.name}.bill"'
    assert found['events_total{type="order",outcome="processed"}'] == found["events_processed_total"] == 10
    assert found[f"step_duration_seconds{{{step}}}"] == found['batch_size{kind="step"}'] == 1
    assert found[f"event_age_seconds{{{step}}}"] == 10
    assert observability.performance.snapshot(f"{app.name}.bill").count == 10


async def test_data_that_does_not_fit_is_an_error_and_a_dead_letter(grown: Grown) -> None:
    app = workflow("memory://")

    @app.step("order")
    async def bill(event: Event[int]) -> None: ...

    async with app.running():
        await app.publish("order", data="seven")
        await app.drain(SECONDS)
    found = grown()
    assert found[f'dead_letters_total{{step="{app.name}.bill",reason="invalid"}}'] == found["errors_total"] == 1
    assert "processing_duration_seconds" not in found


async def test_what_a_breaker_refuses_is_no_call(grown: Grown) -> None:
    app = workflow("memory://")
    breaker = CircuitBreaker("crm", open_seconds=0.02)
    breaker.force_open()

    @app.step("order", breaker=breaker)
    async def bill(event: Event) -> None: ...

    async with app.running():
        await app.publish("order")
        await until(lambda: grown().get('events_total{type="order",outcome="delayed"}', 0) >= 1)
        assert "errors_total" not in grown()
        assert "processing_duration_seconds" not in grown()
        breaker.reset()
        await app.drain(SECONDS)
    assert grown()["processing_duration_seconds"] == 1


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_code_of_a_step_knows_its_event_and_trace(kind: str) -> None:
    app = workflow("memory://")
    seen: list[dict[str, Any]] = []
    if kind == "async":

        @app.step("order", name="bill")
        async def bill(event: Event) -> None:
            await asyncio.sleep(0)
            seen.append(identity())
    else:

        @app.step("order", name="bill")
        def bill_in_thread(event: Event) -> None:
            seen.append(identity())

    async with app.running():
        ids = [await app.publish("order", data=number, traceparent=TRACEPARENT) for number in range(2)]
        await app.drain(SECONDS)
    assert [line["event_id"] for line in seen] == ids
    for line in seen:
        assert (line["workflow"], line["step"], line["attempt"]) == (app.name, "bill", 1)
        assert line["correlation_id"] == line["event_id"]
        assert (line["trace_id"], line["span_id"]) == (TRACEPARENT[3:35], TRACEPARENT[36:52])


async def test_the_event_of_a_call_is_known_after_another_call_set_a_variable_of_its_own() -> None:
    app = workflow("memory://")
    seen: list[str] = []

    @app.step("order", concurrency=1)
    async def bill(event: Event) -> None:
        seen.append(identity()["event_id"])
        observability.context(number=event.data).__enter__()  # and it is never left

    async with app.running():
        ids = [await app.publish("order", data=number) for number in range(3)]
        await app.drain(SECONDS)
    assert seen == ids


async def test_lines_about_a_dead_letter_say_which_event_and_trace_they_are_about() -> None:
    app = workflow("memory://")
    known: list[tuple[str, dict[str, Any]]] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            known.append((record.getMessage(), identity()))

    notes = Notes()
    logging.getLogger("ag06.runtime").addHandler(notes)

    @app.step("order", retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event) -> None:
        raise ValueError("broken")

    try:
        async with app.running():
            event_id = await app.publish("order", traceparent=TRACEPARENT)
            await app.drain(SECONDS)
    finally:
        logging.getLogger("ag06.runtime").removeHandler(notes)
    retried = next(who for words, who in known if "attempt 1 of 2 failed" in words)
    dead = next(who for words, who in known if "is a dead letter" in words)
    assert (retried["event_id"], dead["event_id"]) == (event_id, event_id)
    assert (retried["attempt"], dead["attempt"]) == (1, 2)
    assert (dead["workflow"], dead["step"]) == (app.name, "bill")
    assert retried["trace_id"] == dead["trace_id"] == TRACEPARENT[3:35]
