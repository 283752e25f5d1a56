"""Opens the store that a command names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ag06.errors import ConfigurationError
from ag06.settings import resolve

if TYPE_CHECKING:
    from ag06.persistence import EventStore

R = TypeVar("R")


@asynccontextmanager
async def opened(store: str | None, *, create: bool = False, **settings: Any) -> AsyncIterator[EventStore]:
    """Open the store for one command; a store that only looks does not create a missing file.

    A command says at once that a store is away: nothing waits in a journal for it.
    """
    from ag06.persistence import EventStore

    setting = resolve("store", store)
    path = check_shared(setting.value)
    if path is not None and not create and not os.path.exists(path):  # noqa: ASYNC240 - once, before anything runs
        raise ConfigurationError(
            f"there is no store {setting.value} (from {setting.origin}); name one with --store or AG06_STORE"
        )
    events = EventStore(setting.value, journal="off", **settings)
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


def refuse_memory(url: str) -> None:
    """Refuse a store that no other process can reach."""
    if url.lower().startswith("memory://"):
        raise ConfigurationError(
            f"store {url!r} lives inside the process that made it; this command needs sqlite:// or redis://"
        )


def check_shared(url: str) -> str | None:
    """Return the file of a SQLite URL, `None` for a server's; refuse a URL that other processes cannot open too."""
    from ag06.persistence.log import LogOptions
    from ag06.persistence.stores import open_log, sqlite_file

    refuse_memory(url)
    open_log(url, LogOptions())  # not opened: it checks the URL
    return sqlite_file(url)


def check_apart(store: str | None, to: str) -> None:
    """Refuse to copy a store into itself."""
    if _place(resolve("store", store).value) == _place(to):
        raise ConfigurationError(f"--to {to} is the store that is read; name another one")


def _place(url: str) -> str:
    path = check_shared(url)
    return url if path is None else os.path.realpath(path)
