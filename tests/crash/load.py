"""A workflow of two steps under a steady load in the process of the test, while something is done to its store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ag06 import Backpressure, Context, Event, OutcomeUnknown, StoreUnavailable, Workflow
from crash.account import count_up, read
from crash.results import Toll

PATIENCE = 120.0
"""Seconds for what must come to an end."""


def chain(url: str, **settings: Any) -> Workflow:
    """Return a workflow that passes on what is published as `a`: a → b → c."""
    app = Workflow("chain", store=url, **{"visibility_timeout": 2.0, "timeout": 5.0, **settings})

    @app.step("a")
    async def first(event: Event, ctx: Context) -> None:
        await ctx.publish("b", event.data, subject=event.subject)

    @app.step("b")
    async def second(event: Event, ctx: Context) -> None:
        await ctx.publish("c", event.data, subject=event.subject)

    return app


class Load:
    """Publishers that go on whatever happens, and a workflow that passes on what they say."""

    def __init__(self, url: str, *, publishers: int = 4, pause: float = 0.001, **settings: Any) -> None:
        """Each of the `publishers` waits `pause` seconds after each event; `settings` are those of the workflow."""
        self.app = chain(url, **settings)
        self.returned: list[str] = []
        self.refused = 0
        """How often a publisher was told that its event is not stored, or that nobody knows."""
        self._begun = 0
        self._publishers = publishers
        self._pause = pause
        self._stopped = asyncio.Event()

    @asynccontextmanager
    async def running(self, counted: Toll) -> AsyncIterator[Load]:
        """Run; at the end wait until everything is worked off, and count what it cost."""
        async with self.app.running():
            async with asyncio.TaskGroup() as group:
                for line in range(self._publishers):
                    group.create_task(self._publish(line))
                try:
                    yield self
                finally:
                    self._stopped.set()
            await self.app.drain(timeout=PATIENCE)
            count_up(counted, await read(self.app.events), self.returned, begun=self._begun)
            counted.lost += (await self.app.events.stats()).dead_letters

    async def some_more(self, count: int) -> None:
        """Wait until so many more ids were returned."""
        goal = len(self.returned) + count
        async with asyncio.timeout(PATIENCE):
            while len(self.returned) < goal:
                await asyncio.sleep(0.005)

    async def some_refused(self, count: int) -> None:
        """Wait until publishers were refused so many more times."""
        goal = self.refused + count
        async with asyncio.timeout(PATIENCE):
            while self.refused < goal:
                await asyncio.sleep(0.005)

    async def _publish(self, line: int) -> None:
        for number in itertools.count():
            if self._stopped.is_set():
                return
            self._begun += 1
            async with asyncio.timeout(PATIENCE):
                self.returned.append(await self._persist(line, number))
            await asyncio.sleep(self._pause)

    async def _persist(self, line: int, number: int) -> str:
        """Publish until the event is taken; an unknown outcome is repeated under the same id."""
        event_id = None
        while True:
            try:
                stored = await self.app.publish("a", data=[line, number], subject=f"s{line}", id=event_id)
            except OutcomeUnknown as error:
                event_id = error.event_id
            except (StoreUnavailable, Backpressure):
                pass
            else:
                assert stored is not None, "what was refused was remembered"
                return stored
            self.refused += 1
            await asyncio.sleep(0.02)
