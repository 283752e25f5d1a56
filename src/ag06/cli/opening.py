"""Opens the store that a command names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from ag06.errors import ConfigurationError
from ag06.settings import resolve

if TYPE_CHECKING:
    from ag06.persistence import EventStore

R = TypeVar("R")


@asynccontextmanager
async def opened(store: str | None, *, create: bool = False) -> AsyncIterator[EventStore]:
    """Open the store for one command; a store that only looks does not create a missing file."""
    from ag06.persistence import EventStore

    setting = resolve("store", store)
    scheme, _, rest = setting.value.partition("://")
    if scheme == "sqlite" and not create and not os.path.exists(rest[1:].partition("?")[0]):  # noqa: ASYNC240 - once, before anything runs
        raise ConfigurationError(
            f"there is no store {setting.value} (from {setting.origin}); name one with --store or AG06_STORE"
        )
    events = EventStore(setting.value)
    try:
        await events.log()
        yield events
    finally:
        await events.close()


def with_store(store: str | None, work: Callable[[EventStore], Awaitable[R]]) -> R:
    """Run `work` on an existing store and return what it returns."""

    async def run() -> R:
        async with opened(store) as events:
            return await work(events)

    return asyncio.run(run())
