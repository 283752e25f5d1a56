"""What is published: about 200 bytes unless a size is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

TYPE = "bench.event"


def payload(number: int, size: int = 200) -> dict[str, Any]:
    return {"number": number, "text": "x" * max(0, size - 30)}


async def timed(callers: int, count: int, one: Callable[[int], Awaitable[Any]]) -> float:
    """Return calls a second of `one(number)` with so many callers in flight."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await one(number)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return count / (time.perf_counter() - started)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {"p50": ordered[len(ordered) // 2] * 1000, "p99": ordered[int(len(ordered) * 0.99)] * 1000}
