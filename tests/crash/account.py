"""What a log holds in the end, compared with what was promised."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ag06.persistence import EventStore
from crash.results import Toll

Found = dict[str, list[tuple[str, list[Any]]]]
"""Id and data of every event by type, in log order. Data is [line, number] or [line, line, number]; a line that begins
with `None` is of events without a subject."""


async def read(events: EventStore) -> Found:
    found: Found = defaultdict(list)
    async for event in events.replay():
        found[event.type].append((event.id, event.data))
    return found


def count_up(
    counted: Toll, found: Found, returned: Iterable[str], types: Sequence[str] = ("a", "b", "c"), begun: int = 0
) -> None:
    """Count ids that were returned and are not there, and numbers that did not come out of every step just once.

    `begun`: how many numbers must be there, whether their ids were returned or not; the others may.
    """
    ids = set(returned)
    counted.events += len(ids)
    counted.lost += len(ids - {event_id for event_id, _ in found[types[0]]})
    inputs = Counter(tuple(data) for _, data in found[types[0]])
    counted.lost += max(0, begun - len(inputs))
    for event_type in types:
        times = Counter(tuple(data) for _, data in found[event_type])
        counted.lost += len(inputs.keys() - times.keys())
        counted.doubled += sum(count - 1 for count in times.values())
        lines: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for _, (*line, number) in found[event_type]:
            lines[tuple(line)].append(number)
        counted.disordered += sum(line != sorted(line) for name, line in lines.items() if name[0] is not None)
