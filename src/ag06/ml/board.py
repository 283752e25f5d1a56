"""What the processes of one workflow tell each other about tuning: notes beside the log in their store."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.decisions import Decision
from ag06.ml.windows import Window
from ag06.persistence.log import MOST_NOTE_BYTES, EventLog

Mode = Literal["off", "observe", "on"]
T = TypeVar("T")


MOST_BYTES = MOST_NOTE_BYTES // 2
"""Of what was learned: the next release may have more to say of it."""


class Posted(msgspec.Struct, frozen=True):
    """The values of the knobs, as the leader wants them everywhere.

    Attributes:
        leader, number: who posted it, and which of its notes it is.
        incumbent: what is known to be good, as far as it differs from the defaults that the leader's code declares.
        trial: what is tried for now, the values of all knobs; `None`: the incumbent.
        hold: seconds after which a trial that nobody replaced is over: its leader is gone.
    """

    leader: str
    number: int
    incumbent: dict[str, Any]
    trial: dict[str, Any] | None = None
    hold: float = 0.0


class Control(msgspec.Struct, frozen=True):
    """What somebody asked for from outside.

    Attributes:
        mode: what the optimizer is to do; `None`: what each process says.
        rollbacks: how often a rollback was asked for so far.
    """

    mode: Mode | None = None
    rollbacks: int = 0

    def mode_beside(self, wanted: Mode | None) -> Mode | None:
        """Return what a process is to do that wants something itself: what was asked for goes first, `off` before all.

        `None`: what was proved before is used, and nothing is tried.
        """
        return "off" if "off" in (self.mode, wanted) else self.mode or wanted


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of the history: a decision, or a window (`purpose`), and when (seconds since the epoch).

    A window without `config` ran the incumbent.
    """

    at: float
    decision: Decision | None = None
    purpose: str | None = None
    config: dict[str, Any] | None = None
    score: float | None = None
    breach: str | None = None


class Saved(msgspec.Struct, frozen=True):
    """All that the optimizer knows, so that it survives a restart, and so that others can look at it.

    Attributes:
        at: when it was saved, in seconds since the epoch.
        leader: by which worker.
        mode, state: what it does, and in one word where it stands.
        campaign: `Campaign.state()`.
        baseline: the window that scores are told beside; `reference` the one that guardrails are; `last` the last one.
        budget: `Budget.state()`.
        rollbacks: how many of those asked for it has seen to.
        history: the last decisions and windows, oldest first.
        suggestion: what it would change, in `observe` mode.
        told: what the status says of it.
    """

    at: float
    leader: str
    mode: Mode
    state: str
    campaign: dict[str, Any]
    score: str
    baseline: Window | None = None
    reference: Window | None = None
    budget: dict[str, float] = {}
    rollbacks: int = 0
    history: list[Entry] = []
    suggestion: dict[str, Any] | None = None
    last: Window | None = None
    told: dict[str, Any] = {}


class Board:
    """The notes of one workflow: the values of its knobs, what was asked for, and what was learned.

    All raise `StoreError` where the store does not answer.
    """

    def __init__(self, log: EventLog, workflow: str) -> None:
        """Beside `log`, for the workflow of that name."""
        self._log = log
        self._prefix = f"tuning.{workflow}"
        self.role = f"optimizer.{workflow}"
        """The lead of it (`EventLog.lead`): one process moves the knobs."""

    async def posted(self) -> Posted | None:
        """Return the values that the leader posted last."""
        return await self._read("values", Posted)

    async def post(self, posted: Posted) -> None:
        """Post values."""
        await self._write("values", posted)

    async def control(self) -> Control:
        """Return what was asked for."""
        return await self._read("control", Control) or Control()

    async def ask(self, control: Control) -> None:
        """Ask for something."""
        await self._write("control", control)

    async def saved(self) -> Saved | None:
        """Return what was learned."""
        return await self._read("saved", Saved)

    async def save(self, saved: Saved) -> int:
        """Save what was learned, with as much of the history as a note has room for; return its size in bytes."""
        while len(body := msgspec.json.encode(saved)) > MOST_BYTES and saved.history:
            saved = msgspec.structs.replace(saved, history=saved.history[len(saved.history) // 2 + 1 :])
        await self._log.write_note(f"{self._prefix}.saved", body)
        return len(body)

    async def _read(self, what: str, kind: type[T]) -> T | None:
        name = f"{self._prefix}.{what}"
        body = await self._log.read_note(name)
        if body is None:
            return None
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"the note {name!r} in the store cannot be read ({error}): another release wrote it; "
                "`ag06 tune reset` forgets what was learned"
            ) from error

    async def _write(self, what: str, note: msgspec.Struct) -> None:
        await self._log.write_note(f"{self._prefix}.{what}", msgspec.json.encode(note))

    async def forget(self) -> None:
        """Remove all of it: knobs go back to their defaults with the next start."""
        for what in ("values", "control", "saved"):
            await self._log.write_note(f"{self._prefix}.{what}", None)
