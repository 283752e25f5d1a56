"""What runs beside each running workflow: it follows the values that a leader posts, or leads itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ag06.errors import ConfigurationError, StoreError
from ag06.ml.board import Control, Mode, Posted, Saved
from ag06.ml.live import FOLLOW_SECONDS, PATIENCE, Live
from ag06.ml.optimizer_status import heading, told_by
from ag06.ml.tuning import Tuning
from ag06.ml.tuning_loop import TuningLoop
from ag06.runtime.companions import Running
from ag06.tasks import completed, end, start_task

_logger = logging.getLogger("ag06.ml")
LOOK_SECONDS = 1.0
"""Between two looks at what is asked for, and at who leads."""
_LIVELY = 30.0
"""A leader is there if it posted so many seconds ago or less."""
_AFTER_FAILURE = 10.0


class Agent:
    """Follows, and leads where it is wanted and nobody else does.

    Attributes:
        live: the workflow.
        event_loop: the one that it belongs to; nothing here may be awaited in another.
        loop: the `TuningLoop` while this process leads.
        mode: what is to be done, as far as is known; `None`: what was proved before is used.
        problem: what keeps it from leading, in words.
    """

    def __init__(self, running: Running, tuning: Callable[[], Tuning], wanted: Callable[[], Mode | None]) -> None:
        """Beside `running`; `tuning` says how this process wants it tuned by now, and `wanted` whether."""
        self.running = running
        self.live = Live(running)
        self.event_loop = asyncio.get_running_loop()
        self.board = self.live.board
        self.loop: TuningLoop | None = None
        self.mode: Mode | None = None
        self.problem: str | None = None
        self._tuning = tuning
        self._wanted = wanted
        self._woken = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._looked_at = self._failed_at = -_AFTER_FAILURE
        self._posted: Posted | None = None
        self._posted_at = 0.0
        self._is_trial_over = True
        self._rollbacks = 0  # so many were asked for, and nothing of them is left to be done

    @property
    def leader(self) -> str | None:
        """The worker that moves the knobs, as far as is known."""
        if self.loop is not None:
            return self.running.worker
        posted = self._posted
        if posted is None or posted.leader == self.running.worker:
            return None
        return posted.leader if time.monotonic() - self._posted_at < max(_LIVELY, posted.hold) else None

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            await self._begin()
            while True:
                try:
                    await self._look()
                except (StoreError, TimeoutError) as error:
                    _logger.debug("the optimizer of %s waits for the store: %r", self.running.workflow.name, error)
                except ConfigurationError as error:
                    self._stand_still(str(error))
                self._notice()
                await self._pause(LOOK_SECONDS if self.leader is None else FOLLOW_SECONDS)
        finally:
            self.live.over.set()
            await completed(self._wait_for_experiment())

    def wake(self) -> None:
        """Let it look at once at what is wanted now."""
        self._looked_at = self._failed_at = -_AFTER_FAILURE
        self._woken.set()

    def adopt(self) -> None:
        """Take the options of now, unless knobs are being moved; raises `ConfigurationError` as `Live.retune` does."""
        if self.loop is None and not self.live.moving.locked():
            self.live.retune(self._tuning())
            self.problem = None

    def as_configured(self) -> Live:
        """Return the workflow, tuned as it was configured by now; raises as `adopt` does, and forgets no problem."""
        if self.loop is None and not self.live.moving.locked():
            self.live.retune(self._tuning())
        return self.live

    async def halt(self, patience: float) -> None:
        """Return when this process does not lead any more, since what it wants has changed."""
        if self.loop is not None:
            self.loop.hurry()
        try:
            async with asyncio.timeout(patience):
                await self._at_rest.wait()
        except TimeoutError:
            _logger.warning("the optimizer of %s is still in a window", self.running.workflow.name)
        self.mode = "off" if self._wanted() == "off" else self.mode

    async def _wait_for_experiment(self) -> None:
        """Wait until an experiment of the user's has put the knobs back, while the store is still open."""
        try:
            async with asyncio.timeout(PATIENCE):
                async with self.live.moving:
                    return
        except TimeoutError:
            _logger.warning("an experiment of %s does not end", self.running.workflow.name)

    async def saved(self) -> Saved | None:
        """Return what a leader saved; raises `StoreError` or `TimeoutError` where the store does not answer."""
        async with asyncio.timeout(PATIENCE):
            return await self.board.saved()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    # Follow

    async def _begin(self) -> None:
        """Start with what was proved before; a trial that is posted may be that of a dead leader."""
        try:
            self.adopt()
        except ConfigurationError as error:
            self._stand_still(str(error))
        try:
            async with asyncio.timeout(PATIENCE):
                self._posted = await self.board.posted()
            if self._posted is not None:
                self.live.follow(self._posted, tries=False)
                self._tell_proved()
                self._posted_at = time.monotonic() - _LIVELY  # nobody knows whether its leader lives
        except (StoreError, TimeoutError, ConfigurationError) as error:
            _logger.warning("the knobs of %s begin with their defaults: %s", self.running.workflow.name, error)

    def _tell_proved(self) -> None:
        """Log what runs otherwise than the code says, since nothing else tells where nobody tunes."""
        proved = [
            f"{name} {knob.default} -> {knob.value}"
            for name, knob in self.live.controls.knobs.items()
            if knob.value != knob.default
        ]
        if proved:
            _logger.info(
                "workflow %s begins with what was proved before: %s", self.running.workflow.name, ", ".join(proved)
            )

    async def _look(self) -> None:
        """See to what is asked for, lead if that is wanted and possible, else follow."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            async with asyncio.timeout(PATIENCE):
                control = await self.board.control()
            self.mode = control.mode_beside(self._wanted())
            is_free = now - self._failed_at >= _AFTER_FAILURE and not self.live.moving.locked()
            if is_free and await self._is_wanted(control):
                await self._lead_if_nobody_does()
        await self._follow()

    async def _is_wanted(self, control: Control) -> bool:
        """Whether there is something to do for a leader; a rollback that was asked for is, in every mode."""
        if self.mode in ("observe", "on"):
            self._rollbacks = 0
            return True
        if control.rollbacks == self._rollbacks or self._wanted() == "off":
            return False
        saved = await self.saved()  # it is large: not to be read for a rollback that is over
        if saved is None or not saved.campaign or saved.rollbacks >= control.rollbacks:
            self._rollbacks = control.rollbacks
            return False
        return True

    async def _follow(self) -> None:
        """Take over what another worker posted."""
        async with asyncio.timeout(PATIENCE):
            posted = await self.board.posted()
        if posted is None or posted.leader == self.running.worker or self.live.lead.held:
            return
        now = time.monotonic()
        if self._posted is None or (posted.leader, posted.number) != (self._posted.leader, self._posted.number):
            self._posted, self._posted_at, self._is_trial_over = posted, now, posted.trial is None
            self.live.follow(posted, tries=True)
        elif not self._is_trial_over and now - self._posted_at > posted.hold:
            self._is_trial_over = True
            self.live.follow(posted, tries=False)

    # Lead

    async def _lead_if_nobody_does(self) -> None:
        self.live.retune(self._tuning())
        self.problem = None
        if not await self.live.lead.take():
            return
        try:
            await self._lead()
        finally:
            self.loop = None
            self._at_rest.set()
            await completed(self.live.lead.give_up())

    async def _lead(self) -> None:
        """Tune until it is not wanted any more, the lead is lost, or there are other options."""
        self._at_rest.clear()
        loop = self.loop = TuningLoop(self.live, self.mode or "off", self._wanted_as_tuned, self._notice)
        tuning = start_task(loop.run(), "ag06 optimizer")
        keeping = start_task(self.live.lead.keep(), "ag06 optimizer's lead")
        try:
            await asyncio.wait([tuning, keeping], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.live.over.set()  # the loop may itself wait for an experiment of the user's, which is to end too
            raise
        finally:
            await end(tuning, keeping)
        failed = None if tuning.cancelled() else tuning.exception()
        if isinstance(failed, StoreError | TimeoutError):
            raise failed
        if failed is not None:
            self._failed_at = time.monotonic()
            self.problem = f"the optimizer failed, and tries again: {failed!r}"
            _logger.error("the optimizer of %s failed: %r", self.running.workflow.name, failed, exc_info=failed)

    def _wanted_as_tuned(self) -> Mode | None:
        """Say what is wanted, and `off` where the options are others now: it begins again with them."""
        return "off" if self._tuning() != self.live.tuning else self._wanted()

    def _stand_still(self, problem: str) -> None:
        if problem != self.problem:
            _logger.warning("the optimizer of %s stands still: %s", self.running.workflow.name, problem)
        self.problem = problem

    def _notice(self) -> None:
        """Tell `/status` where it stands."""
        told = {} if self.loop is None else told_by(self.loop)
        self.running.told["optimizer"] = {**heading(self), **told}
