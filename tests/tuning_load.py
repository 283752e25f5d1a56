"""A workflow with something to tune, under a load that never ends, as the tests of the optimizer need it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import pytest

from ag06 import Event, Knob, Outcome, Retry, StoreUnavailable, Workflow
from ag06.ml import Guardrails, Pace
from ag06.ml.active_optimizer import ActiveOptimizer
from ag06.ml.decisions import EVENT_PREFIX
from ag06.ml.live import SOURCE
from ag06.runtime import companions
from flows import SECONDS, said

_numbers = itertools.count()

FAST: dict[str, Any] = {
    "knobs": ("cost",),
    "window": 0.1,
    "settle": 0.02,
    "minimum_events": 5,
    "share": 1.0,
    "worst_loss": 1.0,
    "pace": Pace(explore=12, experiment=60, watch=2, rest=2),
    "guardrails": Guardrails(p99_factor=None, worst_loss=None),
}
"""Windows as short as they can be, as many trials as there can be, and no limit that a busy machine could break."""


def workflow_named(store_url: str, name: str | None = None) -> Workflow:
    """A workflow whose figures no other test has counted."""
    return Workflow(name or f"tuned{os.getpid()}x{next(_numbers)}", store=store_url, dedup_window=0)


class Slow:
    """A workflow that is many times faster where its knob `cost` is low: 32 ms an event at first, 1 ms at best."""

    def __init__(self, store_url: str, name: str | None = None, seen: Counter[str] | None = None) -> None:
        self.app = workflow_named(store_url, name)
        self.cost: Knob = self.app.knob("cost", low=1, high=64, default=32, scale="log")
        self.seen: Counter[str] = Counter() if seen is None else seen
        self.moved: list[float] = []
        self.cost.watch(lambda: self.moved.append(self.cost.value))

        @self.app.step("t", concurrency=8)
        async def work(event: Event) -> None:
            await asyncio.sleep(self.cost.value / 1000)
            self.seen[event.id] += 1


class Fragile:
    """A workflow that fails at every value of its knob `size` but the default; `told` are the values it was set to."""

    def __init__(self, store_url: str, *, setter_raises: bool = False) -> None:
        self.app = workflow_named(store_url)
        self.told: list[Any] = []
        self.size: Knob = self.app.knob(
            "size", low=1, high=100, default=10, integer=True, setter=self.set if setter_raises else None
        )
        self.size.watch(lambda: self.told.append(self.size.value))
        self.processed: list[str] = []

        @self.app.step("t", concurrency=8, retry=Retry(attempts=1000, initial=0.001, maximum=0.01))
        async def work(event: Event) -> None:
            await asyncio.sleep(0.002)
            if self.size.value != 10:
                raise ConnectionError("too big, or too small")
            self.processed.append(event.id)

    def set(self, value: Any) -> None:
        if value != 10:
            raise RuntimeError("the machine does not like it")


class Load:
    """Keeps so many events of type `t` under way while it is open; at its end it waits until all are done."""

    def __init__(self, app: Workflow, width: int = 16) -> None:
        self._app = app
        self._room = asyncio.Semaphore(width)
        self._tasks: list[asyncio.Task[None]] = []
        self.published: list[str] = []
        app.on_outcome(self._ended)

    def _ended(self, outcome: Outcome) -> None:
        if outcome.kind in ("processed", "dead"):
            self._room.release()

    async def _feed(self) -> None:
        while True:
            await self._room.acquire()
            try:
                event_id = await self._app.publish("t", data={})
            except StoreUnavailable:
                self._room.release()
                await asyncio.sleep(0.05)
                continue
            assert event_id is not None
            self.published.append(event_id)

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._feed()) for _ in range(4)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        if error is None:
            await self._app.drain(SECONDS)

    def assert_each_was_processed_once(self, seen: Counter[str]) -> None:
        # One that was on its way when the load ended may be stored though its publisher did not hear of it.
        assert set(self.published) <= set(seen)
        assert len(seen) - len(set(self.published)) <= len(self._tasks)
        assert set(seen.values()) == {1}


@asynccontextmanager
async def optimizer_of(monkeypatch: pytest.MonkeyPatch, setting: str = "manual") -> AsyncIterator[ActiveOptimizer]:
    """The optimizer of a process that has just begun, in the place of this one's; `setting` is its `AG06_TUNE`."""
    with monkeypatch.context() as patch:
        patch.setenv("AG06_TUNE", setting)
        optimizer = ActiveOptimizer()
        patch.setattr(companions, "_installed", lambda: (optimizer.accompany,))
        yield optimizer


async def decisions(app: Workflow, *kinds: str) -> list[dict[str, Any]]:
    """What the log tells of the decisions, in its order, of these kinds if any are named."""
    found = [event async for event in app.events.replay(sources=SOURCE)]
    assert all(event.type == f"{EVENT_PREFIX}{event.data['kind']}" for event in found)
    return [event.data for event in found if not kinds or event.data["kind"] in kinds]


async def decided(app: Workflow, kind: str, count: int = 1, seconds: float = 2 * SECONDS) -> dict[str, Any]:
    """Wait for so many decisions of a kind; return the last of them."""
    try:
        async with asyncio.timeout(seconds):
            while len(found := await said(app, EVENT_PREFIX + kind)) < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"no {kind} among {[(d['kind'], d['reason']) for d in await decisions(app)]}") from None
    decision: dict[str, Any] = found[count - 1]
    return decision


async def state_of(optimizer: ActiveOptimizer, **wanted: Any) -> dict[str, Any]:
    """Wait until the status says so; return it."""
    status: dict[str, Any] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while True:
                status = await optimizer.get_optimization_status()
                if all(status.get(name) == value for name, value in wanted.items()):
                    return status
                await asyncio.sleep(0.02)
    raise AssertionError(f"not {wanted}: {status}")
