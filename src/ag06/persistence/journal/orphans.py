"""Taking over the journals of processes that are gone."""

from __future__ import annotations

import asyncio
import logging

from ag06.errors import StoreUnavailable
from ag06.persistence.journal.claim import Claim, Claims
from ag06.persistence.journal.file import JournalFile

_logger = logging.getLogger("ag06.persistence.journal")


async def adopt(claims: Claims) -> list[JournalFile]:
    """Return the journals whose process is gone, oldest first, opened; one that cannot be opened is reported."""
    looking = asyncio.get_running_loop().run_in_executor(None, claims.orphans)
    try:
        found = await asyncio.shield(looking)
    except OSError as error:
        _logger.warning("cannot look for journals in %s: %s", claims.directory, error)
        return []
    except asyncio.CancelledError:
        looking.add_done_callback(_let_go)
        raise
    opened: list[JournalFile] = []
    try:
        for claim in found:
            file = JournalFile(claim)
            try:
                await file.open()
            except StoreUnavailable as error:
                _logger.error("%s; its events wait there", error)  # noqa: TRY400 - the traceback says no more
                claim.let_go(delete=False)
                continue
            opened.append(file)
            _logger.warning("journal %s of a process that is gone: %d events to hand on", file.path, file.events)
    except BaseException:
        for file in opened:
            file.abandon()
        for claim in found:
            claim.let_go(delete=False)
        raise
    return opened


def _let_go(looking: asyncio.Future[list[Claim]]) -> None:
    """Give up the claims that came too late for a caller who was cancelled."""
    if not looking.cancelled() and looking.exception() is None:
        for claim in looking.result():
            claim.let_go(delete=False)
