"""What runs beside each running workflow: it follows the values that a leader posts, or leads itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ag06.errors import ConfigurationError, StoreError
from ag06.ml.board import Control, Mode, Posted
from ag06.ml.controls import Controls
from ag06.ml.leadership import Leadership
from ag06.ml.live import FOLLOW_SECONDS, Live
from ag06.ml.tuning import Tuning
from ag06.ml.tuning_loop import TuningLoop
from ag06.runtime.companions import Running

_logger = logging.getLogger("ag06.ml")
LOOK_SECONDS = 1.0
"""Between two looks at the board while nothing is tuned."""
_LIVELY = 30.0
"""A leader is there if it posted so many seconds ago or less."""


class Agent:
    """Follows, and leads where it is wanted and nobody else does.

    Attributes:
        loop: the `TuningLoop` while this process leads.
        leader: who leads, as far as is known.
    """

    def __init__(self, running: Running, tuning: Tuning, wanted: Callable[[], Mode | None]) -> None:
        """Beside `running`; `wanted` says what this process wants, if nobody asks for something from outside."""
        self.running = running
        self.live = Live(running, tuning)
        self.board = self.live.board
        self.lead = Leadership(running.log, self.board.role, running.worker)
        self.loop: TuningLoop | None = None
        self.woken = asyncio.Event()
        self._wanted = wanted
        self._posted: Posted | None = None
        self._posted_at = -_LIVELY
        self._is_trial_over = False
        self._controls = Controls.of(running.workflow)
        self._warned = False

    @property
    def leader(self) -> str | None:
        """The worker that moves the knobs, as far as is known."""
        if self.loop is not None:
            return self.running.worker
        lively = self._posted is not None and time.monotonic() - self._posted_at < _LIVELY
        return self._posted.leader if lively and self._posted is not None else None

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            await self._begin()
            while True:
                try:
                    mode = await self.mode()
                    if mode in ("observe", "on") and await self.lead.take():
                        await self._lead(mode)
                    await self._follow()
                    self._warned = False
                except (StoreError, TimeoutError) as error:
                    _logger.debug("the optimizer of %s waits for the store: %r", self.running.workflow.name, error)
                except ConfigurationError as error:
                    if not self._warned:
                        _logger.warning("the optimizer of %s stands still: %s", self.running.workflow.name, error)
                    self._warned = True
                await self._pause(LOOK_SECONDS if self.leader is None else FOLLOW_SECONDS)
        finally:
            await asyncio.shield(asyncio.create_task(self.lead.give_up()))

    async def mode(self) -> Mode | None:
        """Return what is to be done now: what was asked for from outside has the last word."""
        async with asyncio.timeout(5.0):
            control: Control = await self.board.control()
        return control.mode or self._wanted()

    def wake(self) -> None:
        """Let it look at once."""
        self.woken.set()

    async def halt(self, patience: float) -> None:
        """Wait until this process leads no more: what it wants has changed."""
        loop = self.loop
        if loop is None:
            return
        loop.hurry()
        try:
            async with asyncio.timeout(patience):
                await loop.ended.wait()
        except TimeoutError:
            _logger.warning("the optimizer of %s is still in a window", self.running.workflow.name)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        except TimeoutError:
            return
        self.woken.clear()

    async def _begin(self) -> None:
        """Start with what was proved before; a trial that is posted may be that of a dead leader."""
        try:
            async with asyncio.timeout(5.0):
                self._posted = await self.board.posted()
            if self._posted is not None:
                self._controls.follow(self._posted.incumbent)
        except (StoreError, TimeoutError, ConfigurationError) as error:
            _logger.warning("the knobs of %s begin with their defaults: %r", self.running.workflow.name, error)

    async def _follow(self) -> None:
        async with asyncio.timeout(5.0):
            posted = await self.board.posted()
        if posted is None or posted.leader == self.running.worker:
            return
        now = time.monotonic()
        if self._posted is None or (posted.leader, posted.number) != (self._posted.leader, self._posted.number):
            self._posted, self._posted_at, self._is_trial_over = posted, now, False
            self._controls.follow(posted.trial or posted.incumbent)
        elif posted.trial is not None and not self._is_trial_over and now - self._posted_at > posted.hold:
            self._is_trial_over = True
            self._controls.follow(posted.incumbent)

    async def _lead(self, mode: Mode) -> None:
        """Tune until it is not wanted any more, or the lead is lost."""
        loop = self.loop = TuningLoop(self.live, mode, self._wanted)
        tasks = [
            asyncio.create_task(loop.run(), name="ag06 optimizer"),
            asyncio.create_task(self.lead.keep(), name="ag06 optimizer's lead"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.loop = None
        failed = None if tasks[0].cancelled() else tasks[0].exception()
        if failed is not None:
            _logger.error("the optimizer of %s failed: %r", self.running.workflow.name, failed, exc_info=failed)
            await asyncio.sleep(10 * LOOK_SECONDS)
