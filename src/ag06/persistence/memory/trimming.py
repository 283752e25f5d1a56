"""What leaves a log in memory: events that every group settled. Whoever calls holds the log's lock."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from ag06.persistence.log import Cut
from ag06.persistence.memory.state import State


def trim(state: State, now_ms: int, retention: float, by_type: Mapping[str, float]) -> None:
    """Delete events that all groups settled and that are older than the seconds their type stays; 0: for ever."""
    shortest = min([seconds for seconds in (retention, *by_type.values()) if seconds], default=0)
    if not shortest:
        return
    old = []
    for position, entry in state.entries.items():
        age_ms = now_ms - entry.stored.recorded_ms
        if age_ms <= shortest * 1000:
            break
        seconds = by_type.get(entry.type, retention)
        if seconds and age_ms > seconds * 1000 and not entry.open:
            old.append(position)
    for position in old:
        del state.entries[position]


def settled(state: State, before_ms: int, types: Sequence[str] | None) -> list[Cut]:
    """Return up to where all groups are done with each type and level, where there is something; see the port."""
    limit = min(before_ms << 20, state.position + 1)
    open_from: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], int] = {}
    for position, entry in state.entries.items():
        line = (entry.type, entry.level)
        if position >= limit:
            break
        if entry.open:
            open_from.setdefault(line, position)
        elif line not in open_from and (types is None or entry.type in types):
            found[line] = position
    return [Cut(*line, open_from.get(line, limit)) for line in sorted(found)]


def positions_in(state: State, cut: Cut) -> list[int]:
    """Return the positions of a cut, in order."""
    before = itertools.takewhile(lambda entry: entry.stored.position < cut.below, state.entries.values())
    return [entry.stored.position for entry in before if (entry.type, entry.level) == (cut.type, cut.level)]


def drop(state: State, positions: Sequence[int]) -> tuple[int, bool]:
    """Delete events up to the first that a group has open; return how many there were, and whether one is open."""
    count = 0
    for position in positions:
        entry = state.entries.get(position)
        if entry is not None and entry.open:
            return count, True
        if entry is not None:
            del state.entries[position]
            count += 1
    return count, False
