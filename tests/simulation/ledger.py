"""What publishers were told, and the processes that publish."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from ag06 import Backpressure, OutcomeUnknown, Priority, StoreUnavailable, Workflow

from .flow import Fate, Order
from .plan import Plan
from .process import Process

_ORDER_FATES: Sequence[Fate] = ("fails", "late", "refuses", "rejected", "broken", "mended", "invalid", "killer")
_PART_FATES: Sequence[Fate] = ("fails", "refuses", "rejected", "mended")


class Said(msgspec.Struct):
    """What publishers said and were told of one order; `line`: who published it where in its subject, without twin."""

    order: Order
    subject: str | None
    priority: Priority
    delay: float | None
    ids: list[str] = msgspec.field(default_factory=list)
    """The ids returned; more than one only for an order that is published by two."""
    duplicates: int = 0
    tried: bool = False
    is_twin: bool = False
    line: tuple[str, int] | None = None


def orders(plan: Plan) -> list[Said]:
    """Return everything that is to be published."""
    rng = random.Random(f"orders {plan.seed}")
    said = []
    killers = 0
    for number in range(plan.orders):
        fate: Fate = rng.choice(_ORDER_FATES) if rng.random() < 0.3 else "done"
        if fate == "killer":
            killers += 1
            fate = fate if killers <= 1 else "done"
        parts = tuple(rng.choice(_PART_FATES) if rng.random() < 0.15 else "done" for _ in range(rng.randint(0, 3)))
        subject = f"s{rng.randrange(plan.subjects)}" if plan.subjects and rng.random() < 0.7 else None
        delay = rng.uniform(0.0, 2.0) if rng.random() < 0.1 else None
        said.append(Said(Order(number, fate, parts), subject, Priority(rng.randrange(4)), delay))
    return said


class Publisher:
    """One process that publishes orders, a few lanes at a time; each lane one after the other."""

    def __init__(self, plan: Plan, process: Process, app: Workflow, orders: Sequence[Said], number: int) -> None:
        """Publish `orders` as publisher number `number`."""
        self._plan = plan
        self._process = process
        self._app = app
        self._orders = orders
        self._rng = random.Random(f"publisher {plan.seed} {number}")
        self._number = number

    async def run(self) -> None:
        """Publish everything that is not published yet."""
        lanes: list[list[Said]] = [[] for _ in range(3)]
        for said in self._orders:
            lanes[sum(map(ord, said.subject or str(said.order.number))) % 3].append(said)
        await asyncio.gather(*(self._publish_lane(lane) for lane in lanes))

    async def _publish_lane(self, lane: Sequence[Said]) -> None:
        for place, said in enumerate(lane):
            await asyncio.sleep(self._pause())
            if await self._publish(said) and not said.is_twin and said.delay is None:
                said.line = self._process.name, place

    def _pause(self) -> float:
        """Return how long a lane waits before the next order, in seconds."""
        wait = self._plan.seconds / len(self._orders) * 2
        if self._plan.bursts:
            return self._rng.uniform(0.0, self._plan.seconds) if self._rng.random() < 0.1 else 0.0
        return self._rng.expovariate(1 / wait)

    async def _publish(self, said: Said) -> bool:
        """Publish one order; return whether the store took it. Some publishers give up on a store that is away."""
        chosen: str | None = None
        for _ in range(self._rng.choice([1, 3, 1000])):
            said.tried = True
            try:
                event_id = await self._app.publish(
                    "order",
                    "shop",
                    self._data(said),
                    said.priority,
                    subject=said.subject,
                    id=chosen,
                    idempotency_key=str(said.order.number) if said.is_twin else None,
                    delay=said.delay,
                )
            except OutcomeUnknown as error:
                chosen = error.event_id
            except (StoreUnavailable, Backpressure):
                pass
            else:
                if event_id is None:
                    said.duplicates += 1
                elif event_id not in said.ids:
                    said.ids.append(event_id)
                return event_id is not None
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        return False

    @staticmethod
    def _data(said: Said) -> Any:
        return {"number": said.order.number, "fate": "invalid"} if said.order.fate == "invalid" else said.order
