"""The workflow that the crash tests run in processes of their own: a → b → c, in order by subject."""

from __future__ import annotations

import asyncio
import random

from ag06 import Context, Event, Outcome, Workflow

app = Workflow("chain", visibility_timeout=1.0, grace=5.0, dedup_window=0)


@app.step("a", concurrency=4)
async def first(event: Event, ctx: Context) -> None:
    await asyncio.sleep(random.uniform(0, 0.004))
    await ctx.publish("b", event.data, subject=event.subject)
    await asyncio.sleep(random.uniform(0, 0.002))


@app.step("b", concurrency=4)
def second(event: Event, ctx: Context) -> None:
    ctx.publish("c", event.data)


_told: set[str] = set()


@app.on_outcome
def _tell_once(outcome: Outcome) -> None:
    """Say on standard output that this process is at work: from now on its death does harm; and that it was fenced."""
    kind = "fenced" if outcome.kind == "fenced" else "at work"
    if kind not in _told:
        _told.add(kind)
        print(kind, flush=True)


if __name__ == "__main__":
    app.run()
