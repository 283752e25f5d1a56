from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from ag06 import Context, Event, OutcomeUnknown, StoreUnavailable, Workflow
from crash.processes import account
from servers import ValkeyServer

KILLS = max(3, int(os.environ.get("AG06_CRASH_CYCLES", "20")) // 6)


async def _publish(app: Workflow, numbers: list[int], returned: dict[int, str], stopped: asyncio.Event) -> None:
    """Publish numbers; repeat under the same id what the server may not have taken."""
    while not stopped.is_set():
        number = len(numbers)
        numbers.append(number)
        event_id = None
        while number not in returned:
            try:
                stored = await app.publish("a", data={"n": number}, subject=f"s{number % 5}", id=event_id)
                assert stored is not None
                returned[number] = stored
            except OutcomeUnknown as error:
                event_id = error.event_id
            except StoreUnavailable:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.001)


@pytest.mark.timeout(7200)
async def test_a_killed_server_loses_nothing_and_its_workers_go_on(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always").start()
    app = Workflow("chain", store=server.url, durability="fsync", visibility_timeout=2.0, timeout=5.0)

    @app.step("a")
    async def first(event: Event, ctx: Context) -> None:
        await ctx.publish("b", event.data, subject=event.subject)

    @app.step("b")
    async def second(event: Event, ctx: Context) -> None:
        await ctx.publish("c", event.data)

    numbers: list[int] = []
    returned: dict[int, str] = {}
    stopped = asyncio.Event()
    try:
        async with app.running():
            publishers = [asyncio.create_task(_publish(app, numbers, returned, stopped)) for _ in range(4)]
            for _ in range(KILLS):
                await asyncio.sleep(random.uniform(0.2, 0.8))
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(random.uniform(0.0, 0.5))
                await asyncio.to_thread(server.start)
            await asyncio.sleep(0.5)
            stopped.set()
            await asyncio.wait_for(asyncio.gather(*publishers), 60)
            await app.drain(timeout=60)
            found = await account(app.events)
            stored = {event.id async for event in app.events.replay(types="a")}
    finally:
        server.stop()
    assert len(numbers) > KILLS
    assert set(returned.values()) == stored
    for event_type in ("a", "b", "c"):
        assert sorted(entry["n"] for entry in found[event_type]) == numbers, event_type
