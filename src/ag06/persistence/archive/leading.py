"""Being the one process that does something, for as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from ag06.errors import StoreError
from ag06.persistence.log import EventLog
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.persistence")
_SECONDS = 30.0
_PAUSE = 0.5


@contextlib.asynccontextmanager
async def leading(log: EventLog, role: str, holder: str, *, wait: bool = False) -> AsyncIterator[bool]:
    """Lead while the block runs; gives `False` where another holder leads, unless it is to `wait` for its turn.

    A leader that was paused may find that another one leads: what it does must bear that, the lead only spares work.
    """
    led = await log.lead(role, holder, _SECONDS)
    while wait and not led:
        await asyncio.sleep(_PAUSE)
        led = await log.lead(role, holder, _SECONDS)
    if not led:
        yield False
        return
    renewing = start_task(_renew(log, role, holder), f"ag06 lead {role}")
    try:
        yield True
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])
        try:
            await log.lead(role, holder, 0)
        except StoreError as error:
            _logger.debug("%s: the lead ends by itself: %s", role, error)


async def _renew(log: EventLog, role: str, holder: str) -> None:
    while True:
        await asyncio.sleep(_SECONDS / 3)
        try:
            await log.lead(role, holder, _SECONDS)
        except StoreError as error:
            _logger.warning("%s: the lead cannot be renewed: %s", role, error)
