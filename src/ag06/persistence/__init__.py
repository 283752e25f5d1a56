"""The log: what is stored, where, and how it is handed out. `persistence` is the facade for a whole process."""

from __future__ import annotations

from ag06.event import Event, Priority
from ag06.persistence.archive import Archived, Retention
from ag06.persistence.event_store import EventStore
from ag06.persistence.log import Durability, GroupInfo, LogStats

EventPriority = Priority
"""Another name for `Priority`."""

persistence = EventStore()
"""The process-wide event store; call `await persistence.initialize()` before anything else."""

__all__ = [
    "Archived",
    "Durability",
    "Event",
    "EventPriority",
    "EventStore",
    "GroupInfo",
    "LogStats",
    "Priority",
    "Retention",
    "persistence",
]
