"""Journals whose files were deleted, moved, replaced or cut off while in use: their content goes to new files."""

from __future__ import annotations

import asyncio
import logging
import weakref
from functools import partial

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.journal.place import JournalMoved
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.persistence.journal")


class Rescue:
    """Copies journals into new files; callers who need the same one wait for the same copy."""

    def __init__(self, claims: Claims) -> None:
        """Make new files where `claims` says."""
        self._claims = claims
        self._saving: dict[JournalFile, asyncio.Task[None]] = {}
        self._reported: weakref.WeakSet[JournalFile] = weakref.WeakSet()

    async def save(self, file: JournalFile) -> None:
        """Copy a journal to a new file and go on there, unless it is where it was opened.

        Raises `StoreError` if no disk takes it. Its events are then in this process alone, through the connection that
        is still open, and are drained from there all the same.
        """
        saving = self._saving.get(file)
        if saving is None:
            saving = self._saving[file] = start_task(self._save(file), "ag06 save journal")
            saving.add_done_callback(partial(self._saved, file))
        await asyncio.shield(saving)

    async def finish(self) -> None:
        """Wait for the copies that are under way, whose callers may have given up."""
        while self._saving:
            await asyncio.wait(list(self._saving.values()))

    def _saved(self, file: JournalFile, saving: asyncio.Task[None]) -> None:
        self._saving.pop(file, None)
        if not saving.cancelled():
            saving.exception()  # read, for perhaps no caller is left who does that

    async def _save(self, file: JournalFile) -> None:
        try:
            await file.check_place()
        except JournalMoved as moved:
            try:
                await self._copy(file)
            except (StoreError, OSError) as error:
                failed = StoreUnavailable(f"{moved}, and no new one can be made: {error}")
                if file not in self._reported:
                    self._reported.add(file)
                    _logger.error(  # noqa: TRY400 - the traceback says no more
                        "%s; its %d events end with this process unless the store takes them first", failed, file.events
                    )
                raise failed from None
            _logger.warning("%s; its %d events are in %s now", moved, file.events, file.path)
            self._reported.discard(file)

    async def _copy(self, file: JournalFile) -> None:
        claim = await asyncio.to_thread(self._claims.new)
        try:
            await file.move(claim)
        except BaseException:
            await asyncio.to_thread(claim.let_go, delete=True)
            raise
