"""Short ways to say what the tests of a workflow say all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ag06 import CircuitOpen, Context, DeadLetter, Event, Reject, Retry, Workflow
from ag06.runtime.dead_letters import list_dead_letters

SECONDS = 20.0
"""How long a test waits for what must happen, before it calls it a hang."""


async def stored(app: Workflow, event_type: str) -> list[Event[Any]]:
    return [event async for event in app.events.replay(types=event_type)]


async def said(app: Workflow, event_type: str) -> list[Any]:
    """The data of every stored event of a type, in log order."""
    return [event.data for event in await stored(app, event_type)]


async def letters(app: Workflow) -> list[DeadLetter]:
    return await list_dead_letters(await app.events.log())


async def until(check: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a check holds; fail loudly when it does not."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {check}")
        await asyncio.sleep(0.005)


def step_that_ends_in_every_way(app: Workflow) -> None:
    """Declare a step `bill` of two attempts; the data of an `order` says how its delivery ends."""
    refused: set[str] = set()

    @app.step("order", retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        match event.data:
            case "retried" if ctx.attempt == 1:
                raise ConnectionError("away")
            case "delayed" if event.id not in refused:
                refused.add(event.id)
                raise CircuitOpen("crm", 0.01)
            case "rejected":
                raise Reject("no")
            case "broken":
                raise ValueError("broken")
