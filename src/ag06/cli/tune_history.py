"""What the optimizer decided, and each window that it ran: from the events in the log, and from its own notes."""

from __future__ import annotations

import datetime as dt
import math
import shutil
import textwrap
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import typer

from ag06.cli.output import printable, say
from ag06.cli.tune_learned import changed, percent, said
from ag06.ml.decisions import EVENT_PREFIX, Decision, Kind

if TYPE_CHECKING:
    from ag06.cli.tune_workflow import Tuned
    from ag06.ml.board import Entry, Saved

_SAME = 2.0
"""Seconds between a decision in the notes and its event, at most."""
_WIDEST = 100
_INDENT = " " * 21
_INCUMBENT = ("control", "a", "watch", "rest")
"""Windows of these purposes ran what is known to be good."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A decision, or a window.

    Attributes:
        at: when, in seconds since the epoch.
        what: the kind of a decision, or the purpose of a window.
        is_window: which of the two it is.
        before: what ran before, or beside it, if that is known.
        score: a logarithm; 0 is as good as the baseline.
        source: where it was found: an event in the log, or the notes of the last leader.
    """

    at: float
    what: str
    is_window: bool
    config: dict[str, Any]
    before: dict[str, Any] | None = None
    score: float | None = None
    effect: float | None = None
    interval: tuple[float | None, float | None] | None = None
    windows: int | None = None
    reason: str = ""
    source: Literal["event", "notes"]

    @property
    def moment(self) -> dt.datetime:
        """When, in UTC."""
        return dt.datetime.fromtimestamp(self.at, dt.UTC)


class History(msgspec.Struct, frozen=True):
    """Decisions and windows, each oldest first; a `trial` is told among the windows alone."""

    decisions: list[Row]
    windows: list[Row]


async def history_of(tuned: Tuned, saved: Saved | None) -> History:
    """Gather what is known.

    Decisions are read from the log, archived events too: it is the record that stays. The notes add those whose events
    are not there, and the windows in which nothing new was tried, of which only the last few hundred are kept.
    """
    noted = [] if saved is None else saved.history
    recorded = [row async for row in _recorded(tuned)]
    rows = sorted([*recorded, *_missing(recorded, noted)], key=lambda row: row.at)
    windows = windows_of(noted)
    since = min((row.at for row in windows), default=float("inf"))
    older = [_as_window(row) for row in rows if row.what == "trial" and row.at < since]
    return History([row for row in rows if row.what != "trial"], [*older, *windows])


async def _recorded(tuned: Tuned) -> AsyncIterator[Row]:
    """Yield the decisions that are events in the log; an archive that is gone is told by the log, and passed over."""
    types = [EVENT_PREFIX + kind for kind in get_args(Kind)]
    async for event in tuned.events.replay(types=types, salvage=True):
        data = event.data
        if not isinstance(data, dict) or data.get("workflow") != tuned.name:
            continue
        try:
            yield _of_decision(msgspec.convert(data, Decision), float(data["at"]), "event")
        except (msgspec.ValidationError, KeyError, TypeError, ValueError):
            say(f"event {event.id} of type {event.type} is no decision that this release can read")


def _of_decision(decision: Decision, at: float, source: Literal["event", "notes"]) -> Row:
    return Row(
        at=at,
        what=decision.kind,
        is_window=False,
        config=decision.config,
        before=decision.before,
        score=decision.score,
        effect=decision.effect,
        interval=decision.interval,
        windows=decision.windows,
        reason=decision.reason,
        source=source,
    )


def _missing(recorded: Sequence[Row], noted: Iterable[Entry]) -> list[Row]:
    """Return the decisions in the notes whose events are not in the log."""
    known: dict[tuple[str, str], list[float]] = {}
    for row in recorded:
        known.setdefault((row.what, row.reason), []).append(row.at)
    found = []
    for entry in noted:
        decision = entry.decision
        if decision is None:
            continue
        moments = known.get((decision.kind, decision.reason), ())
        if not any(abs(entry.at - at) < _SAME for at in moments):
            found.append(_of_decision(decision, entry.at, "notes"))
    return found


def windows_of(noted: Iterable[Entry]) -> list[Row]:
    """Return the windows of some notes, each with the configuration that it ran."""
    found = []
    noted = list(noted)
    known = (entry.decision.before for entry in noted if entry.decision is not None)
    incumbent = next(filter(None, known), None)
    for entry in noted:
        if entry.purpose is None:
            if entry.decision is not None and entry.decision.kind in ("started", "promoted", "rolled_back"):
                incumbent = entry.decision.config
            continue
        config = incumbent if entry.config is None else entry.config
        if entry.purpose in _INCUMBENT:
            incumbent = config
        found.append(
            Row(
                at=entry.at,
                what=entry.purpose,
                is_window=True,
                config=config or {},
                before=incumbent,
                score=entry.score,
                reason=entry.breach or "",
                source="notes",
            )
        )
    return found


def _as_window(trial: Row) -> Row:
    return msgspec.structs.replace(trial, what="explore", is_window=True, reason="")


def newest(history: History, limit: int, *, windows: bool) -> list[Row]:
    """Return the last rows, oldest first; with `windows` each window too."""
    rows = [*history.decisions, *history.windows] if windows else history.decisions
    return sorted(rows, key=lambda row: row.at)[-limit:]


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON has them."""
    return [
        {
            "at": row.moment.isoformat(),
            "what": row.what,
            "is_window": row.is_window,
            "changed": changed(row.config, row.before),
            **{name: getattr(row, name) for name in ("config", "before", "score", "effect", "interval", "windows")},
            "reason": row.reason,
            "source": row.source,
        }
        for row in rows
    ]


def print_rows(rows: Sequence[Row], history: History, *, windows: bool) -> None:
    """Print rows, each on as many lines as it needs, and say where they are from and what was left out."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for row in rows:
        typer.echo("\n".join(_lines(row, width)))
    told = [f"{len(rows)} of {len(history.decisions) + (len(history.windows) if windows else 0)} rows, times in UTC"]
    noted = sum(row.source == "notes" for row in rows if not row.is_window)
    told.append("decisions are the events ag06.optimizer.* of the log")
    if noted:
        told.append(f"{noted} of them are from the optimizer's notes alone: their events are not in the log")
    if windows:
        told.append("windows are from its notes, which keep the last few hundred rows")
    elif history.windows:
        told.append(f"{len(history.windows)} windows are left out; --all shows them")
    say("; ".join(told))


def _lines(row: Row, width: int) -> list[str]:
    """Return a row as lines: when and what, what it changed, what came of it, and why."""
    told = "; ".join(part for part in (moved(row), result(row)) if part)
    first = f"{row.moment:%Y-%m-%d %H:%M:%S}  {row.what}{': ' if told else ''}{told}"
    return [
        *textwrap.wrap(printable(first), width, subsequent_indent=_INDENT),
        *textwrap.wrap(printable(row.reason), width, initial_indent=_INDENT, subsequent_indent=_INDENT),
    ]


def moved(row: Row) -> str:
    """Return what of a configuration is new, in words; all of it at the start."""
    if row.what == "started":
        return said(row.config)
    return "" if row.before is None else said(row.config, row.before)


def result(row: Row) -> str:
    """Return what came of it: an effect with its interval, or a score."""
    if row.effect is not None:
        return f"{_effect(row.effect)}{_interval(row.interval)}"
    return "" if row.score is None else percent(row.score)


def _effect(effect: float) -> str:
    return percent(math.log1p(max(effect, -0.9999)))


def _interval(interval: tuple[float | None, float | None] | None) -> str:
    """Return an interval of effects in words; an end that nothing refutes is open."""
    if interval is None:
        return ""
    low, high = ("open" if end is None else _effect(end) for end in interval)
    return f" ({low} to {high})"
