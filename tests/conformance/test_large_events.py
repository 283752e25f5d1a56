"""What every store promises of large events: they come in portions, in the order of dispatch, and none is left out."""

from __future__ import annotations

from ag06.event import Priority
from ag06.persistence.log import Delivery, EventLog, Query
from records import TYPE, eventually, numbers, record, registered

_COUNT = 40
_BODY = "x" * 400_000


async def test_large_events_of_several_priorities_come_in_the_order_of_dispatch(log: EventLog) -> None:
    subscription = await registered(log)
    for n in range(0, _COUNT, 10):
        await log.append([record([m, _BODY], priority=Priority(m % 4)) for m in range(n, n + 10)])
    found: list[Delivery] = []

    async def all_came() -> bool:
        found.extend(await subscription.fetch(1000, 0.1))
        return len(found) == _COUNT

    await eventually(all_came, 30)
    assert sorted(n for n, _ in numbers(found)) == list(range(_COUNT))
    keys = [delivery.key for delivery in found]
    assert keys == sorted(keys)


async def test_large_events_of_several_types_are_read_in_the_order_of_the_log(log: EventLog) -> None:
    await log.append([record([n, _BODY], event_type=f"{TYPE}.{n % 3}") for n in range(_COUNT)])
    for query in (Query(), Query(types=tuple(f"{TYPE}.{n}" for n in range(3)))):
        positions = [stored.position async for page in log.read(query) for stored in page]
        assert len(positions) == _COUNT
        assert positions == sorted(positions)
