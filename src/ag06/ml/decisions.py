"""What the optimizer decided, and why: an event in the log, a line in the log file, a row of the history."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

Kind = Literal[
    "started",
    "stopped",
    "trial",
    "suggested",
    "breach",
    "experiment",
    "promoted",
    "rejected",
    "kept",
    "rolled_back",
    "regime",
    "rested",
]
EVENT_PREFIX = "ag06.optimizer."
"""The type of a decision's event is this and its kind."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision.

    Attributes:
        kind: what was decided.
        config: the values of the knobs that it is about.
        reason: why, in plain language.
        before: what ran before, or beside it.
        score: of a trial: how much better than the baseline, a logarithm; `None` if it measured nothing.
        effect: of an experiment: what the new configuration gives beside the old one, 0.1 is 10%.
        interval: the effects that are not refuted; an end is `None` where none is, however far.
        windows: how many windows an experiment counted.
    """

    kind: Kind
    config: dict[str, Any]
    reason: str
    before: dict[str, Any] | None = None
    score: float | None = None
    effect: float | None = None
    interval: tuple[float | None, float | None] | None = None
    windows: int | None = None

    @property
    def event_type(self) -> str:
        """The type of its event."""
        return EVENT_PREFIX + self.kind


def bounded(interval: tuple[float, float] | None) -> tuple[float | None, float | None] | None:
    """Return an interval as JSON has it, which knows no infinity."""
    if interval is None:
        return None
    low, high = (end if math.isfinite(end) else None for end in interval)
    return low, high
