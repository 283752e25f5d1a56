"""Durable, observable, self-tuning event workflows for Python asyncio."""

from __future__ import annotations

from ag06.breaker import CircuitBreaker
from ag06.errors import (
    AG06Error,
    ArchiveDamaged,
    ArchiveUnavailable,
    Backpressure,
    CircuitOpen,
    ConfigurationError,
    InvalidEvent,
    InvalidMetric,
    OutcomeUnknown,
    Reject,
    RetryAfter,
    StepFailed,
    StoreDamaged,
    StoreError,
    StoreReplaced,
    StoreUnavailable,
    TooLarge,
    Unstorable,
)
from ag06.event import Event, Priority
from ag06.knob import Knob
from ag06.persistence.archive import Retention
from ag06.retry import Retry
from ag06.runtime.context import Context
from ag06.runtime.dead_letters import DeadLetter
from ag06.runtime.outcome import Outcome
from ag06.runtime.workflow import Workflow

__all__ = [
    "AG06Error",
    "ArchiveDamaged",
    "ArchiveUnavailable",
    "Backpressure",
    "CircuitBreaker",
    "CircuitOpen",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "Event",
    "InvalidEvent",
    "InvalidMetric",
    "Knob",
    "Outcome",
    "OutcomeUnknown",
    "Priority",
    "Reject",
    "Retention",
    "Retry",
    "RetryAfter",
    "StepFailed",
    "StoreDamaged",
    "StoreError",
    "StoreReplaced",
    "StoreUnavailable",
    "TooLarge",
    "Unstorable",
    "Workflow",
]
