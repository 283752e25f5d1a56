"""Calls that happen once although the connection may break before the reply: they are sent again under a receipt."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
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

    `ids`: what it appends, one for each digit of its reply, for the case that its fate stays unknown.
    """

    name: str
    before: tuple[Any, ...]
    behind: tuple[Any, ...]
    ids: Sequence[str] = ()


class Receipts:
    """Sends rounds of calls over one wire, each call exactly once as far as the server lives to tell."""

    def __init__(self, wire: Wire) -> None:
        """Send over `wire`, which nobody else uses for such calls."""
        self._wire = wire
        self._name = os.urandom(8).hex()
        self._number = 0
        self._doubts: list[tuple[str, int, Sequence[str]]] = []

    async def send(self, calls: Sequence[Call], tail: Command | None = None) -> list[Any]:
        """Return the replies to `calls`, then to `tail`; a refused one has an exception in its place.

        Raises `StoreUnavailable` if none of them was done, `OutcomeUnknown` if that could not be learnt.
        """
        self._number += 1
        doubts = list(self._doubts)
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        while True:
            commands = [self._resolution(*doubt) for doubt in doubts]
            commands += [self._command(i, call, again=deadline is not None) for i, call in enumerate(calls)]
            if tail is not None:
                commands.append(tail)
            try:
                replies = await self._wire.request(commands)
            except OutcomeUnknown as error:
                deadline = deadline or loop.time() + min(_PATIENCE, self._wire.timeout)
                lost: StoreUnavailable = error
            except StoreUnavailable as error:
                if deadline is None:
                    raise
                lost = error
            else:
                refusals = [reply for reply in replies if isinstance(reply, Exception)]
                if deadline is None or not any(_may_pass(self._wire, error) for error in refusals):
                    del self._doubts[: len(doubts)]
                    return replies[len(doubts) :]
                lost = StoreUnavailable(str(refusals[0]))
            if loop.time() >= deadline:
                self._doubts += [(self._slot(i), self._number, call.ids) for i, call in enumerate(calls) if call.ids]
                raise OutcomeUnknown(f"{lost}; whether the call before was done is unknown")
            await asyncio.sleep(0.05 * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    def _slot(self, index: int) -> str:
        return f"{self._name}:{index}"

    def _command(self, index: int, call: Call, *, again: bool) -> Command:
        receipt = (self._slot(index), self._number, b"1" if again else b"0")
        return self._wire.call(script(call.name), *call.before, *receipt, *call.behind)

    def _resolution(self, slot: str, number: int, ids: Sequence[str]) -> Command:
        return self._wire.call(script("resolve"), slot, number, b"1", _pack(ids))


def _may_pass(wire: Wire, error: Exception) -> bool:
    return isinstance(wire.explain(error), StoreUnavailable)
