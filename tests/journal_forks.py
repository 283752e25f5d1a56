"""A publisher that forks while its store is away, to be killed: `journal_forks.py URL DIRECTORY`.

Parent and child print each id that they were given, the child `ready` when it has some. Once its parent is gone it
opens the store again, drains what is left and prints `done`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from pathlib import Path

from ag06.persistence import EventStore
from journals import TYPE, gone, state, when


def say(line: str) -> None:
    """Write a line at once: two processes share the output."""
    os.write(1, f"{line}\n".encode())


async def publish(store: EventStore, source: str, first: int, count: int) -> None:
    """Publish from a few tasks at once."""

    async def one(number: int) -> None:
        say(str(await store.persist_event(TYPE, source, number)))

    for number in range(first, first + count, 5):
        await asyncio.gather(*(one(number + n) for n in range(5)))


async def parent(store: EventStore, url: str, directory: str) -> None:
    """Publish for ever, and fork on the way."""
    await publish(store, "parent", 0, 20)
    publishing = asyncio.create_task(publish(store, "parent", 20, 1_000_000))
    await asyncio.sleep(0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            asyncio.run(child(store, url, directory))
            code = 0
        finally:
            os._exit(code)
    await publishing


async def child(store: EventStore, url: str, directory: str) -> None:
    """Publish, outlive the parent, and drain both journals."""
    father = os.getppid()
    await publish(store, "child", 0, 20)
    say("ready")
    while os.getppid() == father:
        await asyncio.sleep(0.01)
    await store.close()
    heir = EventStore(url, journal=directory)
    await publish(heir, "heir", 0, 20)

    async def drained() -> bool:
        return not (await state(heir)).active

    await when(drained)
    await gone(Path(directory))
    await heir.close()
    say("done")


if __name__ == "__main__":
    asyncio.run(parent(EventStore(sys.argv[1], journal=sys.argv[2]), *sys.argv[1:]))
