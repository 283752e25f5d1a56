"""What can be said of a journal: for health, for `ag06 doctor`, for whoever waits."""

from __future__ import annotations

import msgspec


class JournalState(msgspec.Struct, frozen=True):
    """How a journal stands.

    Attributes:
        active: whether events go to the journal now, and not straight to the store.
        events: how many it holds that the store does not have, on disk and in memory; once the log is closed, how many
            stay on disk for the next process.
        oldest_ms: when the oldest of them was persisted, in milliseconds since the epoch.
        in_memory: how many of them are on no disk; their publishers wait.
        late_duplicates: events dropped while it was drained, because the store had the same from within their window.
        refused: events that the store refused for good since the log was opened.
        path: the file, if there is one.
        problem: what the store said last, while it is away.
        disk_problem: why the disk took no event when it was last tried; `None`: it did.
        dead_letters: events that the store refused for good and that are set aside, of every process that keeps its
            journals in the same directory for the same store; looked up every ten seconds.
    """

    active: bool
    events: int
    oldest_ms: int | None
    in_memory: int
    late_duplicates: int
    refused: int
    path: str | None
    problem: str | None
    disk_problem: str | None = None
    dead_letters: int = 0
