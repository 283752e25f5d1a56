"""Calls that happen once although the connection may break before the reply: they are sent again under a receipt."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Disconnected
from ag06.persistence.redis.client import Command
from ag06.persistence.redis.scripts import script
from ag06.persistence.redis.wire import Wire

_PATIENCE = 3.0
"""Seconds to try for the fate of a call whose reply was lost, before `OutcomeUnknown`."""

_pack = msgspec.msgpack.Encoder().encode


class Call(msgspec.Struct):
    """One call of a script that keeps a receipt: its arguments before and behind those of the receipt.

    `ids`: tells what it appends, one for each digit of its reply, for the case that its fate stays unknown. A call
    without them is expected once more in that case, the same but for numbers, which are bounds.
    """

    name: str
    before: tuple[Any, ...]
    behind: tuple[Any, ...]
    ids: Callable[[], Sequence[str]] | None = None

    def work(self) -> tuple[Any, ...]:
        """Return what this call has in common with its repetition."""
        return (self.name, *self.before, *[part for part in self.behind if type(part) is not int])


class Doubt(msgspec.Struct, frozen=True):
    """A call whose fate stayed unknown: where its receipt would be, and the ids that it would have stored."""

    slot: str
    number: int
    ids: Sequence[str]


class Receipt(msgspec.Struct, frozen=True):
    """Where the server keeps the replies to calls that were sent together, and for which of them."""

    name: str
    number: int

    def slot(self, index: int) -> str:
        """Return the name for one of the calls."""
        return f"{self.name}:{index}"


class Receipts:
    """Sends rounds of calls over one wire, each call exactly once as far as the server lives to tell."""

    def __init__(self, wire: Wire, doubts: list[Doubt] | None = None) -> None:
        """Send over `wire`, which nobody else uses for such calls; whoever shares `doubts` settles them first."""
        self._wire = wire
        self._name = os.urandom(8).hex()
        self._number = 0
        self.latest = Receipt(self._name, 0)
        self._doubts = [] if doubts is None else doubts
        self._unknown: tuple[list[tuple[Any, ...]], Receipt] | None = None  # calls without ids of unknown fate

    async def send(self, calls: Sequence[Call], tail: Command | None = None) -> list[Any]:
        """Return the replies to `calls`, then to `tail`; a refused one has an exception in its place.

        Raises `StoreUnavailable` if none of them was done, `OutcomeUnknown` if that could not be learnt; `Disconnected`
        (one of those) if the server closed every connection that carried them.
        """
        await self._settle_doubts()
        receipt = self._earlier(calls)
        again = receipt is not None
        if receipt is None:
            self._number += 1
            receipt = Receipt(self._name, self._number)
        self.latest = receipt
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline: float | None = None
        while True:
            commands = [self._command(call, receipt, i, again=again) for i, call in enumerate(calls)]
            if tail is not None:
                commands.append(tail)
            try:
                left = self._wire.timeout if deadline is None else deadline - loop.time()
                replies = await self._wire.request(commands, max(0.05, left))
            except OutcomeUnknown as error:
                again = True
                # The time that bytes were moving does not count.
                latest = max(began, self._wire.moved_at) + self._wire.timeout
                deadline = deadline or min(latest, loop.time() + _PATIENCE)
                lost: StoreUnavailable = error
            except StoreUnavailable as error:
                if deadline is None:
                    raise
                lost = error
            else:
                refusals = [reply for reply in replies if isinstance(reply, Exception)]
                if deadline is None or not any(_may_pass(self._wire, error) for error in refusals):
                    if again and not refusals:
                        self._unknown = None
                    return replies
                lost = StoreUnavailable(str(refusals[0]))
            if loop.time() >= deadline:
                self._doubt(calls, receipt)
                unknown = Disconnected if isinstance(lost, Disconnected) else OutcomeUnknown
                raise unknown(f"{lost}; whether the call before was done is unknown")
            await asyncio.sleep(0.05 * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    def _earlier(self, calls: Sequence[Call]) -> Receipt | None:
        """Return the receipt of these calls if they were sent before and their fate stayed unknown."""
        if self._unknown is None or self._unknown[0] != [call.work() for call in calls]:
            return None
        return self._unknown[1]

    def _doubt(self, calls: Sequence[Call], receipt: Receipt) -> None:
        """Note calls whose fate stays unknown; their receipts must stay until somebody has read them."""
        self._doubts += [Doubt(receipt.slot(i), receipt.number, call.ids()) for i, call in enumerate(calls) if call.ids]
        if not any(call.ids for call in calls):
            self.expect(calls, receipt)
        else:
            self.keep()

    def expect(self, calls: Sequence[Call], receipt: Receipt | None = None) -> None:
        """Let these calls be sent once more under their receipt, the latest unless given, whatever else is sent before.

        Besides those of unknown fate it is for calls that were answered, but not in time by what their tail waits for.
        """
        self._unknown = [call.work() for call in calls], receipt or self.latest
        self.keep()

    def keep(self) -> None:
        """Let the latest receipt stay: what is sent from now on has receipts under another name."""
        self._name = os.urandom(8).hex()

    async def _settle_doubts(self) -> None:
        """Before anything else is sent, let the server remember what calls of unknown fate have stored."""
        doubts = list(self._doubts)
        if doubts:
            resolve = script("resolve")
            await self._wire.ask(
                *[self._wire.call(resolve, doubt.slot, doubt.number, b"1", _pack(doubt.ids)) for doubt in doubts]
            )
            self._doubts[:] = [doubt for doubt in self._doubts if doubt not in doubts]

    def _command(self, call: Call, receipt: Receipt, index: int, *, again: bool) -> Command:
        known = (receipt.slot(index), receipt.number, b"1" if again else b"0")
        return self._wire.call(script(call.name), *call.before, *known, *call.behind)


def _may_pass(wire: Wire, error: Exception) -> bool:
    return isinstance(wire.explain(error), StoreUnavailable)
