"""A publisher in a process of its own, to be killed: `journal_process.py URL DIRECTORY SUBJECT WINDOW`.

It publishes one event after the other, half of them of one subject, and prints each id that it was given.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from ag06.persistence import EventStore


async def main(url: str, directory: str, subject: str, window: str) -> None:
    store = EventStore(url, journal=directory, dedup_window=float(window))
    for number in itertools.count():
        ordered = await store.persist_event("order.placed", subject, number, subject=subject)
        print("ordered", ordered, flush=True)
        print("other", await store.persist_event("order.placed", subject, [number]), flush=True)
        await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
