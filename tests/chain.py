"""A workflow of two steps whose account can be drawn up: nothing lost, nothing twice, nobody dead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ag06 import Context, Event, OutcomeUnknown, StoreUnavailable, Workflow
from records import eventually


class Chain:
    """A workflow of two steps; every number that is published as `in` must come out once as `out`, and be `seen`."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = Workflow("chain", store=url, **{"visibility_timeout": 2.0, "timeout": 1.0, **settings})
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.seen: set[int] = set()
        self.refused: list[StoreUnavailable] = []

        @self.app.step("in")
        async def first(event: Event[int], ctx: Context) -> None:
            self.entered.set()
            await self.gate.wait()
            await ctx.publish("out", event.data, subject=event.subject)

        @self.app.step("out")
        async def second(event: Event[int]) -> None:
            self.seen.add(event.data)

    async def publish(self, number: int) -> None:
        """Publish until the store takes it; an unknown outcome is repeated by id."""
        event_id = None
        subject = f"s{number % 3}" if number % 2 else None
        while True:
            try:
                stored = await self.app.publish("in", data=number, subject=subject, id=event_id)
            except OutcomeUnknown as error:
                event_id = error.event_id
                self.refused.append(error)
            except StoreUnavailable as error:
                self.refused.append(error)
            else:
                # A duplicate here would mean that a refused event was stored all the same.
                assert stored is not None
                return
            await asyncio.sleep(0.02)

    async def publish_all(self, numbers: Iterable[int]) -> None:
        await asyncio.gather(*(self.publish(number) for number in numbers))

    async def was_refused(self, times: int = 3) -> None:
        async def check() -> bool:
            return len(self.refused) >= times

        await eventually(check, 20)

    async def account(self, numbers: Iterable[int]) -> None:
        """Wait for the end of all work, then look for each number, in the log and in what the steps saw."""
        await self.app.drain(timeout=30)
        for event_type in ("in", "out"):
            found = [event.data async for event in self.app.events.replay(types=event_type)]
            assert sorted(found) == sorted(numbers), event_type
        assert self.seen == set(numbers)
        assert (await self.app.events.stats()).dead_letters == 0
