"""Short ways to say what the tests of a log say all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ag06.event import Event, decode_event
from ag06.persistence.admission import Admission
from ag06.persistence.log import (
    Acknowledge,
    Delivery,
    EventLog,
    Failure,
    Query,
    Record,
    StepSpec,
    Subscription,
)

ADMISSION = Admission()
TYPE = "order.placed"
GROUP = "shop.bill"


def record(number: Any, event_type: str = TYPE, **settings: Any) -> Record:
    return ADMISSION.admit(event_type, "test", {"number": number}, **settings)


def output(number: Any, event_type: str, parent: Delivery, **settings: Any) -> Record:
    event = decode_event(parent.body, parent.recorded_ms)
    return ADMISSION.output(f"{event.id}/{number}", event, event_type, "test", {"number": number}, **settings)


def number(delivery: Delivery) -> Any:
    return decode_event(delivery.body, delivery.recorded_ms).data["number"]


def numbers(deliveries: Sequence[Delivery]) -> list[Any]:
    return [number(delivery) for delivery in deliveries]


def done(*deliveries: Delivery, outputs: Sequence[Record] = ()) -> Acknowledge:
    return Acknowledge(tuple(deliveries), tuple(outputs))


def failure(reason: Any = "failed", message: str = "it broke") -> Failure:
    return Failure(reason, "ValueError", message, "Traceback ...", 3, 1_000, 2_000)


async def registered(
    log: EventLog,
    *,
    group: str = GROUP,
    event_type: str = TYPE,
    worker: str = "w1",
    visibility: float = 30.0,
    start: Any = None,
) -> Subscription:
    """Make a step known and return a worker's end of it."""
    await log.register(group.partition(".")[0], [StepSpec(group, event_type, start)])
    return log.subscribe(group, worker, visibility)


async def events(log: EventLog, **query: Any) -> list[Event[Any]]:
    return [decode_event(stored.body, stored.recorded_ms) async for page in log.read(Query(**query)) for stored in page]


async def collect(subscription: Subscription, count: int, seconds: float = 10.0) -> list[Delivery]:
    """Fetch until there are `count` deliveries; fail loudly when they do not come."""
    found: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(found)} deliveries instead of {count} after {seconds} s: {numbers(found)}")
        found += await subscription.fetch(count - len(found), 0.1)
    return found


async def nothing(subscription: Subscription) -> bool:
    """Whether two fetches in a row find nothing."""
    return not await subscription.fetch(10, 0.05) and not await subscription.fetch(10, 0.05)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait until a check holds; fail loudly when it does not."""
    deadline = time.monotonic() + seconds
    while not await check():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {check}")
        await asyncio.sleep(0.02)
