"""Being the one process that moves the knobs of a workflow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from ag06.errors import StoreError
from ag06.persistence.log import EventLog

RENEWALS = 5
"""So often it is renewed in the time that it lasts."""


class Leadership:
    """The lead of a role; it ends by itself some seconds after its process did.

    Several parts of a process may have it at once, each from its `take` to its `give_up`.
    """

    def __init__(
        self, log: EventLog, role: str, holder: str, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is asked for yet. `seconds`: how long it lasts where it is not renewed."""
        self._log = log
        self._role = role
        self._holder = holder
        self._clock = clock
        self._until = 0.0
        self._parts = 0
        self._asking = asyncio.Lock()  # a question that overtakes another one would end what that one began
        self.seconds = seconds

    @property
    def held(self) -> bool:
        """Whether it surely is this process's still, also after a pause of the process."""
        return self._clock() < self._until

    async def take(self) -> bool:
        """Take it; `False` while another process has it.

        Raises `StoreError` or `TimeoutError` where the store does not answer.
        """
        self._parts += 1  # before the store is asked: a part that gives up meanwhile leaves it to this one
        led = False
        try:
            led = await self._ask()
        finally:
            if not led:
                self._parts -= 1
        return led

    async def keep(self) -> None:
        """Renew it; return when it is lost: another process may have it now."""
        while True:
            await asyncio.sleep(self.seconds / RENEWALS)
            with contextlib.suppress(StoreError, TimeoutError):  # it lasts for a while without the store
                await self._ask()
            if not self.held:
                return

    async def give_up(self) -> None:
        """End one part's use of it; after the last one another process may have it at once."""
        self._parts -= 1
        async with self._asking:
            if self._parts or not self.held:
                return
            self._until = 0.0
            try:
                async with asyncio.timeout(self.seconds / 3):
                    await self._log.lead(self._role, self._holder, 0)
            except (StoreError, TimeoutError):
                return  # it ends by itself

    async def _ask(self) -> bool:
        async with self._asking:
            asked = self._clock()
            async with asyncio.timeout(self.seconds / 3):
                led = await self._log.lead(self._role, self._holder, self.seconds)
            self._until = asked + self.seconds if led else 0.0
            return led
