"""What a closed breaker costs around a call: microseconds over the bare call."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from ag06 import CircuitBreaker

Loop = Callable[[int], Awaitable[None]]


def work() -> None:
    """A call that does nothing, so that only the breaker is measured."""


async def work_async() -> None:
    """The same, awaited."""


def _loops(breaker: CircuitBreaker) -> dict[str, tuple[Loop, Loop]]:
    """For each way to use a breaker: the loop with it, and the same loop without."""

    async def bare(count: int) -> None:
        for _ in range(count):
            work()

    async def bare_async(count: int) -> None:
        for _ in range(count):
            await work_async()

    async def with_(count: int) -> None:
        for _ in range(count):
            with breaker:
                work()

    async def async_with(count: int) -> None:
        for _ in range(count):
            async with breaker:
                await work_async()

    guarded, guarded_async = breaker(work), breaker(work_async)

    async def decorated(count: int) -> None:
        for _ in range(count):
            guarded()

    async def decorated_async(count: int) -> None:
        for _ in range(count):
            await guarded_async()

    return {
        "with breaker": (with_, bare),
        "async with breaker": (async_with, bare_async),
        "@breaker": (decorated, bare),
        "@breaker, async": (decorated_async, bare_async),
    }


async def cost(count: int, rounds: int = 7) -> dict[str, float]:
    """Return for each way the microseconds of a guarded and of a bare call: the least of `rounds`, taken in turns."""
    breakers = {"": CircuitBreaker(), ", with slow calls": CircuitBreaker(slow_call_seconds=60.0)}
    found = {}
    for kind, breaker in breakers.items():
        for way, (guarded, bare) in _loops(breaker).items():
            takes = [(await _micros(guarded, count), await _micros(bare, count)) for _ in range(rounds)]
            found[f"{way}{kind}"] = min(take[0] for take in takes)
            found[f"bare {way}{kind}"] = min(take[1] for take in takes)
    return found


async def _micros(loop: Loop, count: int) -> float:
    started = time.perf_counter()
    await loop(count)
    return (time.perf_counter() - started) / count * 1e6
