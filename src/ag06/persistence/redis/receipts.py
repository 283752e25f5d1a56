"""Calls that happen once although the connection may break before the reply: they are sent again under a receipt."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.redis.scripts import script
from ag06.persistence.redis.wire import Command, Wire

_PATIENCE = 3.0
"""Seconds to try for the fate of a call whose reply was lost, before `OutcomeUnknown`."""

_pack = msgspec.msgpack.Encoder().encode


class Call(msgspec.Struct):
    """One call of a script that keeps a receipt: its arguments before and behind those of the receipt.

    `ids`: tells what it appends, one for each digit of its reply, for the case that its fate stays unknown.
    """

    name: str
    before: tuple[Any, ...]
    behind: tuple[Any, ...]
    ids: Callable[[], Sequence[str]] | None = None


class Doubt(msgspec.Struct, frozen=True):
    """A call whose fate stayed unknown: where its receipt would be, and the ids that it would have stored."""

    slot: str
    number: int
    ids: Sequence[str]


class Receipts:
    """Sends rounds of calls over one wire, each call exactly once as far as the server lives to tell."""

    def __init__(self, wire: Wire, doubts: list[Doubt] | None = None) -> None:
        """Send over `wire`, which nobody else uses for such calls; whoever shares `doubts` settles them first."""
        self._wire = wire
        self._name = os.urandom(8).hex()
        self._number = 0
        self._doubts = [] if doubts is None else doubts

    async def send(self, calls: Sequence[Call], tail: Command | None = None) -> list[Any]:
        """Return the replies to `calls`, then to `tail`; a refused one has an exception in its place.

        Raises `StoreUnavailable` if none of them was done, `OutcomeUnknown` if that could not be learnt.
        """
        await self._settle_doubts()
        self._number += 1
        loop = asyncio.get_running_loop()
        latest = loop.time() + self._wire.timeout
        deadline: float | None = None
        while True:
            commands = [self._command(i, call, again=deadline is not None) for i, call in enumerate(calls)]
            if tail is not None:
                commands.append(tail)
            try:
                replies = await self._wire.request(commands, max(0.05, latest - loop.time()))
            except OutcomeUnknown as error:
                deadline = deadline or min(latest, loop.time() + _PATIENCE)
                lost: StoreUnavailable = error
            except StoreUnavailable as error:
                if deadline is None:
                    raise
                lost = error
            else:
                refusals = [reply for reply in replies if isinstance(reply, Exception)]
                if deadline is None or not any(_may_pass(self._wire, error) for error in refusals):
                    return replies
                lost = StoreUnavailable(str(refusals[0]))
            if loop.time() >= deadline:
                self._doubts += [
                    Doubt(self._slot(i), self._number, call.ids()) for i, call in enumerate(calls) if call.ids
                ]
                self._name = os.urandom(8).hex()  # these receipts must stay until somebody has read them
                raise OutcomeUnknown(f"{lost}; whether the call before was done is unknown")
            await asyncio.sleep(0.05 * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    async def _settle_doubts(self) -> None:
        """Before anything else is sent, let the server remember what calls of unknown fate have stored."""
        doubts = list(self._doubts)
        if doubts:
            resolve = script("resolve")
            await self._wire.ask(
                *[self._wire.call(resolve, doubt.slot, doubt.number, b"1", _pack(doubt.ids)) for doubt in doubts]
            )
            self._doubts[:] = [doubt for doubt in self._doubts if doubt not in doubts]

    def _slot(self, index: int) -> str:
        return f"{self._name}:{index}"

    def _command(self, index: int, call: Call, *, again: bool) -> Command:
        receipt = (self._slot(index), self._number, b"1" if again else b"0")
        return self._wire.call(script(call.name), *call.before, *receipt, *call.behind)


def _may_pass(wire: Wire, error: Exception) -> bool:
    return isinstance(wire.explain(error), StoreUnavailable)
