"""The workflow under test: two steps on one type, a batch step behind them, one at the end; each event has its fate."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal

import msgspec

from ag06 import CircuitOpen, Context, Event, Priority, Reject, Retry, Workflow

from .plan import Plan
from .process import Process

Fate = Literal["done", "fails", "late", "refuses", "rejected", "broken", "mended", "invalid", "killer"]
"""What a step does with an event: finish; fail at first; outlast its timeout at first; find its circuit open at first;
reject; fail always; fail until somebody mends it; be declared for other data; kill its process."""

DEADLY: dict[str, str] = {
    "rejected": "rejected",
    "broken": "failed",
    "mended": "failed",
    "invalid": "invalid",
    "killer": "worker_died",
}
"""The reason of the dead letter that an event of such a fate becomes."""


class Order(msgspec.Struct, frozen=True):
    """What a publisher persists: its number, how many parts follow from it, their fates, its own."""

    number: int
    fate: Fate
    parts: tuple[Fate, ...]


class Part(msgspec.Struct, frozen=True):
    """Part number `part` of an order."""

    number: int
    part: int
    fate: Fate


class Output(msgspec.Struct, frozen=True):
    """What a step must have published for an event that it acknowledged."""

    type: str
    data: Any
    subject: str | None
    delay: float | None = None
    priority: Priority | None = None


def outputs_of(step: str, order: Order | Part, subject: str | None) -> list[Output]:
    """Return the outputs of a step for an event, in order."""
    if step == "split" and isinstance(order, Order):
        return [
            Output(
                "part",
                Part(order.number, index, fate),
                subject if index % 2 == 0 else None,
                delay=0.7 if index == 2 else None,
                priority=Priority(index % 4) if index else None,
            )
            for index, fate in enumerate(order.parts)
        ]
    if step == "collect" and isinstance(order, Part):
        return [Output("total", order, subject)]
    return []


class World:
    """What the steps of all processes share: whether somebody mended what is to be mended, and what they did."""

    def __init__(self) -> None:
        self.mended = False
        self.runs: Counter[tuple[str, str]] = Counter()
        self.raised: Counter[tuple[str, str]] = Counter()
        """Calls by (step, event id): all, and those that raised what costs an attempt."""


class Broken(Exception):  # noqa: N818 - reads as what happened
    """A step failed because its event's fate says so."""


def workflow(plan: Plan, process: Process, world: World) -> Workflow:
    """Return the workflow as one process declares it."""
    app = Workflow(
        "sim",
        store="memory://simulation",
        visibility_timeout=plan.visibility,
        max_backlog=plan.backlog,
        dedup_window=plan.window,
        grace=3.0,
        timeout=2.0,
        retention=3600.0,
    )
    retry = Retry(attempts=plan.attempts, initial=0.05, maximum=0.5)
    width = app.knob("width", low=1, high=8, default=plan.concurrency, integer=True)
    threads = app.knob("threads", low=1, high=4, default=2, integer=True)
    batches = app.knob("batches", low=1, high=4, default=2, integer=True)
    size = app.knob("size", low=1, high=12, default=6, integer=True)
    gather = app.knob("gather", low=0.0, high=1.0, default=plan.gather)

    async def meet(step: str, event: Event[Any], fate: Fate, attempt: int) -> None:
        """Do to a call what the event's fate has in store for it."""
        world.runs[step, event.id] += 1
        match fate:
            case "late" if attempt < plan.attempts:
                await asyncio.sleep(60)
            case "refuses" if world.runs[step, event.id] <= 2:
                raise CircuitOpen("elsewhere", 0.2)
            case "killer":
                await process.killed()
            case "rejected":
                raise Reject(f"{step} does not want it")
            case "fails" if attempt < plan.attempts:
                world.raised[step, event.id] += 1
                raise Broken(f"attempt {attempt}")
            case "broken":
                world.raised[step, event.id] += 1
                raise Broken("always")
            case "mended" if not world.mended:
                world.raised[step, event.id] += 1
                raise Broken("until it is mended")

    def publish(ctx: Context, step: str, event: Event[Any]) -> None:
        for output in outputs_of(step, event.data, event.subject):
            ctx.publish(
                output.type,
                output.data,
                subject=output.subject,
                delay=output.delay,
                priority=output.priority,
                cause=event,
            )

    @app.step("order", retry=retry, concurrency=width, timeout=1.0)
    async def split(event: Event[Order], ctx: Context) -> None:
        publish(ctx, "split", event)  # what a failed attempt leaves in its outbox must not be heard
        try:
            await asyncio.sleep(0.01 * (event.data.number % 4))
            await meet("split", event, event.data.fate, ctx.attempt)
        except asyncio.CancelledError:
            world.raised["split", event.id] += 1
            raise

    @app.step("order", name="audit", retry=retry, concurrency=threads)
    def audit(event: Event[Any], ctx: Context) -> None:
        world.runs["audit", event.id] += 1
        if event.data["number"] % 9 == 4 and ctx.attempt < plan.attempts:
            world.raised["audit", event.id] += 1
            raise Broken("the books do not agree yet")

    @app.batch_step("part", max_size=size, max_wait=gather, retry=retry, concurrency=batches)
    async def collect(events: list[Event[Part]], ctx: Context) -> None:
        for event in events:
            publish(ctx, "collect", event)
        await asyncio.sleep(0.01)
        if len(events) > 1 and any(event.data.fate != "done" for event in events):
            raise Broken("one of them spoils it for all")
        await meet("collect", events[0], events[0].data.fate, ctx.attempt)

    @app.step("total", retry=retry, concurrency=width)
    async def finish(event: Event[Part]) -> None:
        await meet("finish", event, "done", 1)

    return app
