"""A process that publishes to a chain of steps and works on it: a → b → c, in order by subject, until it is killed.

It writes a line for every id that it was given, so that whoever killed it knows what must be there.
"""

from __future__ import annotations

import asyncio
import itertools
import os

from ag06 import Context, Event, OutcomeUnknown, StoreUnavailable, Workflow

DURABILITY = os.environ["AG06_LIFE_DURABILITY"]
RUN = os.environ["AG06_LIFE_RUN"]
CALLERS = int(os.environ["AG06_LIFE_CALLERS"])
TOLD = os.open(os.environ["AG06_LIFE_TOLD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

app = Workflow("life", durability=DURABILITY, visibility_timeout=1.0, grace=5.0, dedup_window=0)  # type: ignore[arg-type]


@app.step("a", concurrency=4)
async def first(event: Event, ctx: Context) -> None:
    await ctx.publish("b", event.data, subject=event.subject)


@app.step("b", concurrency=4)
async def second(event: Event, ctx: Context) -> None:
    await ctx.publish("c", event.data, subject=event.subject)


async def publish(caller: int) -> None:
    """Publish without end, in the order of the numbers; what is refused is tried again, under its id if it has one."""
    for number in itertools.count():
        event_id = refused_id = None
        while event_id is None:
            try:
                event_id = await app.publish("a", data=[RUN, caller, number], subject=f"{RUN}-{caller}", id=refused_id)
            except OutcomeUnknown as error:
                refused_id = error.event_id
            except StoreUnavailable:
                await asyncio.sleep(0.02)
        os.write(TOLD, f"{event_id} {RUN} {caller} {number}\n".encode())


async def main() -> None:
    publishing = [asyncio.create_task(publish(caller)) for caller in range(CALLERS)]
    await app.serve()
    for task in publishing:
        task.cancel()


asyncio.run(main())
