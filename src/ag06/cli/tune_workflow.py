"""The workflow that a `tune` command is about: which of a store's, and what its processes tell of tuning in notes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ag06.cli.opening import opened
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.ml.board import Board, Control, Posted, Saved
    from ag06.persistence import EventStore
    from ag06.persistence.log import EventLog

WorkflowOption = Annotated[
    str | None, typer.Option("--workflow", "-w", help="Which workflow; needed where the store knows several.")
]
_LEAST_HOLD = 45.0
"""A leader that posted no values saves its state about so often, at a window of five seconds."""


class Notes(msgspec.Struct, frozen=True):
    """What the notes of a workflow said at one moment; `None` where nothing was tuned yet."""

    control: Control
    posted: Posted | None
    saved: Saved | None

    def leader(self, now: float | None = None) -> str | None:
        """Return the worker that moves the knobs, as far as its notes tell: they are written every few seconds."""
        if self.saved is None or self.saved.state == "stopped":
            return None
        hold = max(_LEAST_HOLD, 0.0 if self.posted is None else self.posted.hold)
        return self.saved.leader if self.saved_ago(now) <= hold else None

    def saved_ago(self, now: float | None = None) -> float:
        """Return how many seconds ago a leader saved what it knows; clocks of machines may differ."""
        moment = time.time() if now is None else now
        return moment - self.saved.at if self.saved is not None and self.saved.at < moment else 0.0


class Tuned:
    """One workflow of an open store.

    Attributes:
        name: of the workflow.
        holder: a name of this command's own, to take the lead under.
    """

    def __init__(self, events: EventStore, log: EventLog, name: str) -> None:
        """Look at a workflow that the store knows."""
        from ag06.ml.board import Board

        self.events = events
        self.log = log
        self.name = name
        self.board: Board = Board(log, name)
        self.holder = f"cli-{os.getpid()}-{os.urandom(4).hex()}"

    async def notes(self) -> Notes:
        """Read what its processes tell each other."""
        return Notes(await self.board.control(), await self.board.posted(), await self.board.saved())

    async def lead(self, seconds: float) -> bool:
        """Be the one process that moves the knobs, for so many seconds; `False` while another one is."""
        return await self.log.lead(self.board.role, self.holder, seconds)

    async def give_up(self) -> None:
        """Let others lead at once."""
        await self.log.lead(self.board.role, self.holder, 0)


@asynccontextmanager
async def tuned(store: str | None, workflow: str | None) -> AsyncIterator[Tuned]:
    """Open the store and choose the workflow: the one that is named, or the only one there is."""
    async with opened(store) as events:
        log = await events.log()
        known = sorted({group.group.partition(".")[0] for group in await log.groups()})
        yield Tuned(events, log, _chosen(known, workflow))


def _chosen(known: list[str], workflow: str | None) -> str:
    if not known:
        raise ConfigurationError(
            "the store knows no workflow yet; run one first: ag06 run MODULE:APP (or name another store with --store)"
        )
    if workflow is None and len(known) > 1:
        raise ConfigurationError(f"the store knows several workflows; say which with --workflow: {', '.join(known)}")
    if workflow is not None and workflow not in known:
        raise ConfigurationError(f"the store knows no workflow {workflow!r}; it knows {', '.join(known)}")
    return known[0] if workflow is None else workflow
