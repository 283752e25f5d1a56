"""Asking the workers of a workflow for something, through a note, and waiting until one of them has done it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from ag06.cli.output import progress
from ag06.cli.tune_learned import Learned, changed, learned, said
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.cli.tune_workflow import Notes, Tuned
    from ag06.ml.board import Mode, Saved
    from ag06.ml.decisions import Decision

_LOOK = 0.25
_PROBE = 5.0
"""Workers look at the notes about once a second: where none has taken the lead by then, none will."""
_NOT_TAKEN_UP = "none runs, or AG06_TUNE=off keeps them from looking, or their logs say what is wrong"
_ASKED = "somebody asked for it, with ag06 tune rollback"
_LEASE = 60.0
"""Seconds of the lead while this command moves values itself; it gives it up as soon as it is done."""


class Waiting:
    """Looks at a workflow a few times a second, with a progress display, for at most so many seconds."""

    def __init__(self, what: str, patience: float) -> None:
        """Wait for `what`."""
        self._what = what
        self._patience = patience
        self.began = time.monotonic()

    async def looks(self) -> AsyncIterator[float]:
        """Yield the seconds that have passed, at once and at each look, until patience is over."""
        with progress() as display:
            display.add_task(self._what, total=None)
            while (passed := time.monotonic() - self.began) < self._patience:
                yield passed
                await asyncio.sleep(_LOOK)


class Answer(msgspec.Struct, frozen=True):
    """What became of a request, in words, and whether it was done in time."""

    told: str
    done: bool = True


async def start(tuned: Tuned, mode: Mode, patience: float) -> Answer:
    """Ask for `mode`, and say who does it."""
    before = await tuned.notes()
    if before.leader() and before.saved is not None and (before.saved.mode, before.control.mode) == (mode, mode):
        return Answer(f"{before.leader()} leads already")
    await tuned.board.ask(msgspec.structs.replace(before.control, mode=mode))
    probed = 0.0
    async for passed in Waiting(f"waiting for a worker of {tuned.name} to lead", patience).looks():
        notes = await tuned.notes()
        saved, leader = notes.saved, notes.leader()
        is_new = saved is not None and (before.saved is None or saved.at != before.saved.at)
        if leader and is_new and saved is not None and saved.mode == mode:
            return Answer(f"{leader} leads; see: ag06 tune status")
        if passed - probed >= _PROBE:
            probed = passed
            if await _nobody_leads(tuned):
                return Answer(f"no worker took it up: {_NOT_TAKEN_UP}; the next one that may will")
    return Answer(f"no worker has told of it within {patience:g} s: {_NOT_TAKEN_UP}, or it takes longer", done=False)


async def stop(tuned: Tuned, patience: float) -> Answer:
    """Ask for `off`, wait until nobody leads, and say what stays."""
    before = await tuned.notes()
    leader = before.leader()
    await tuned.board.ask(msgspec.structs.replace(before.control, mode="off"))
    async for _ in Waiting(f"waiting for the leader of {tuned.name} to end its window", patience).looks():
        notes = await tuned.notes()
        if notes.leader() is None or await _nobody_leads(tuned):
            if notes.saved is None:
                return Answer("nothing was tuned yet; no worker will begin by itself")
            who = f"{leader} has left" if leader else "no worker was tuning"
            return Answer(f"{who}; {_stays(learned(notes.saved))}")
    return Answer(f"{leader} has not left within {patience:g} s; it does at the end of its window", done=False)


async def rollback(tuned: Tuned, before: Learned, patience: float) -> Answer:
    """Have the last promotion undone, by the leader or else here, and say what runs instead of what ran `before`."""
    control = await tuned.board.control()
    wanted = control.rollbacks + 1
    await tuned.board.ask(msgspec.structs.replace(control, rollbacks=wanted))
    async for _ in Waiting(f"waiting for {tuned.name} to roll back", patience).looks():
        saved = await tuned.board.saved()
        if saved is not None and saved.rollbacks < wanted and await tuned.lead(_LEASE):
            try:
                saved = await _roll_back_here(tuned, saved, wanted)
            finally:
                await tuned.give_up()
        if saved is not None and saved.rollbacks >= wanted:
            told = f"rolled back: {said(learned(saved).incumbent, before.incumbent)}"
            return Answer(f"{told}{_tunes_on(await tuned.notes())}")
    return Answer(f"the leader has not rolled back within {patience:g} s; it does at the end of its window", done=False)


def _tunes_on(notes: Notes) -> str:
    """Say so where values go on being tried: whoever rolls back may think that it has come to rest."""
    leader = notes.leader()
    if leader is not None and notes.saved is not None and notes.saved.mode == "on":
        return f"; {leader} goes on to try other values; to have nothing tried: ag06 tune stop"
    if leader is None and notes.control.mode == "on":
        return "; the next worker that may will try other values; to have nothing tried: ag06 tune stop"
    return ""


async def _roll_back_here(tuned: Tuned, saved: Saved, wanted: int) -> Saved:
    """Do what a leader would, and return what is saved now; this process has the lead."""
    from ag06.event import Priority
    from ag06.ml.board import Entry, Posted
    from ag06.ml.live import SOURCE
    from ag06.ml.tuning_loop import HISTORY

    saved = await tuned.board.saved() or saved  # a leader that has just left may have done it
    if saved.rollbacks >= wanted:
        return saved
    saved, decisions = _rolled_back(saved)
    now = time.time()
    entries = [Entry(now, decision=decision) for decision in decisions]
    saved = msgspec.structs.replace(
        saved,
        at=now,
        leader=tuned.holder,
        state="stopped",
        rollbacks=wanted,
        history=[*saved.history, *entries][-HISTORY:],
    )
    await tuned.board.save(saved)
    await tuned.board.post(Posted(tuned.holder, 1, changed(learned(saved).incumbent, learned(saved).defaults)))
    for decision in decisions:
        data = {"workflow": tuned.name, "at": now, **msgspec.to_builtins(decision)}
        await tuned.events.persist_event(decision.event_type, SOURCE, data, Priority.LOW, dedup=False)
    return saved


def _rolled_back(saved: Saved) -> tuple[Saved, list[Decision]]:
    """Return what is saved once the campaign is rolled back, and what was decided.

    Where the campaign cannot be read (another release wrote it) the values go back all the same: whoever asks for a
    rollback may be in trouble.
    """
    from ag06.ml.campaign import Campaign
    from ag06.ml.decisions import Decision

    known = learned(saved)
    told = {**saved.told, "incumbent": known.rolled_back, "previous": None, "experiment": None}
    try:
        campaign = Campaign.restore(saved.campaign)
    except ConfigurationError:
        decision = Decision(kind="rolled_back", config=known.rolled_back, before=known.incumbent, reason=_ASKED)
        return msgspec.structs.replace(saved, told=told), [decision]
    decisions = campaign.roll_back(_ASKED)
    told |= {"incumbent": campaign.incumbent, "previous": campaign.previous, "phase": campaign.phase}
    return msgspec.structs.replace(saved, campaign=campaign.state(), told=told), decisions


async def reset(tuned: Tuned) -> bool:
    """Forget what was learned; `False`, and nothing is forgotten, while another process leads."""
    async for _ in Waiting(f"waiting for the lead of {tuned.name}", 20.0).looks():
        if await _known_leader(tuned) is not None:
            return False
        if await tuned.lead(_LEASE):
            try:
                await tuned.board.forget()
            finally:
                await tuned.give_up()
            return True
    return False


async def _known_leader(tuned: Tuned) -> str | None:
    """Return who leads; notes that cannot be read are those of nobody who lives: forgetting them is the way out."""
    try:
        return (await tuned.notes()).leader()
    except ConfigurationError:
        return None


async def _nobody_leads(tuned: Tuned) -> bool:
    """Whether the lead is free: a leader that was killed leaves notes behind which say that it leads."""
    if not await tuned.lead(1.0):
        return False
    await tuned.give_up()
    return True


def _stays(known: Learned) -> str:
    changes = said(known.incumbent, known.defaults)
    return f"what was proved stays: {changes}" if changes else "the defaults stay: nothing better was proved"
