"""Work on a running workflow while nobody else moves its knobs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ag06.ml.live import Live
from ag06.tasks import end, start_task


async def undisturbed(live: Live, work: Coroutine[Any, Any, None]) -> str | None:
    """Do some work, for as long as this process has the lead and the workflow runs.

    Returns why it was broken off, in words, or `None`. The caller holds `live.moving`, and has taken the lead.
    """
    working = start_task(work, "ag06 experiment")
    keeping = start_task(live.lead.keep(), "ag06 lead of an experiment")
    over = start_task(live.over.wait())
    try:
        await asyncio.wait([working, keeping, over], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(working, keeping, over)
    if not working.cancelled():
        working.result()
        return None
    if live.over.is_set():
        return "inconclusive: the workflow was shut down"
    return "inconclusive: another process has taken the lead"
