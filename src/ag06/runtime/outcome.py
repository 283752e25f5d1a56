"""What became of one delivery in one worker, told to whoever listens (metrics, logs, the demo's account)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

OutcomeKind = Literal["processed", "retried", "delayed", "dead", "fenced"]


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One delivery's end in this worker.

    Attributes:
        kind: `"processed"`: acknowledged; `"retried"`: failed, comes again; `"delayed"`: not tried (no retry budget, or
            an open circuit); `"dead"`: now a dead letter; `"fenced"`: another worker had taken it over, so nothing
            was kept.
        step: the step's name.
        event_id: the event.
        attempt: 1 for the first.
        taken_over: whether another worker died or lost its lease with it.
        recorded_ms: when the log took the event, milliseconds since the epoch.
        started: when the call began, seconds since the epoch.
        seconds: how long the call took.
        error: the exception as text, or `None`.
    """

    kind: OutcomeKind
    step: str
    event_id: str
    attempt: int
    taken_over: bool
    recorded_ms: int
    started: float
    seconds: float
    error: str | None = None


Listener = Callable[[Outcome], None]
"""Called in the worker's event loop after the store has accepted the outcome; must not block."""
