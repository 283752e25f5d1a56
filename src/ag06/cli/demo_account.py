"""The account of `ag06 demo`: read from the log alone, so that it proves what the log holds."""

from __future__ import annotations

from collections import Counter

import msgspec

from ag06.cli.demo_app import COUNTED, RECEIVED, TYPES, app
from ag06.persistence import EventStore
from ag06.runtime.dead_letters import list_dead_letters

_MOST = 1_000_000


class Fed(msgspec.Struct, frozen=True):
    """What the feeder saw: deliveries sent, ids returned, duplicates refused."""

    received: int
    accepted: tuple[str, ...]
    duplicates: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Where every delivery of one run went. `lost` must be 0, and so must `counted_twice`.

    Attributes:
        taken_over: deliveries that the killed workers held, processed by others.
        latency_p50_ms, latency_p99_ms: from received to counted, by the log's clock.
        events: what the log holds of this run: deliveries, and what the steps made of them.
        seconds: from the first delivery sent to the last one counted.
    """

    received: int
    duplicates_rejected: int
    accepted: int
    processed: int
    dead_letters: int
    taken_over: int
    lost: int
    counted_twice: int
    workers_killed: int
    latency_p50_ms: float
    latency_p99_ms: float
    events: int
    seconds: float
    events_per_second: float
    repositories: dict[str, int]

    @property
    def balances(self) -> bool:
        """Whether every delivery is accounted for exactly once, and a worker really died on the way."""
        return (
            self.received == self.accepted + self.duplicates_rejected
            and self.accepted == self.processed + self.dead_letters
            and self.lost == 0
            and self.counted_twice == 0
            and self.workers_killed > 0
        )


async def draw_up(events: EventStore, fed: Fed, *, seconds: float, taken_over: int, killed: int) -> Account:
    """Read the log from its beginning and say what became of each accepted delivery."""
    accepted = set(fed.accepted)
    received_ms: dict[str, float] = {}
    counted: Counter[str] = Counter()
    repositories: Counter[str] = Counter()
    latencies: list[float] = []
    total = 0
    async for event in events.replay(types=TYPES):
        root = event.correlation_id or event.id
        if root not in accepted or event.recorded is None:
            continue
        total += 1
        recorded_ms = event.recorded.timestamp() * 1000
        if event.type == RECEIVED:
            received_ms[root] = recorded_ms
        elif event.type == COUNTED:
            counted[root] += 1
            repositories[event.data["repository"]] += 1
            latencies.append(recorded_ms - received_ms.get(root, recorded_ms))
    dead = await _buried(events) & accepted
    latencies.sort()
    return Account(
        received=fed.received,
        duplicates_rejected=fed.duplicates,
        accepted=len(fed.accepted),
        processed=len(counted),
        dead_letters=len(dead),
        taken_over=taken_over,
        lost=len(accepted - counted.keys() - dead),
        counted_twice=sum(count - 1 for count in counted.values()),
        workers_killed=killed,
        latency_p50_ms=_quantile(latencies, 0.50),
        latency_p99_ms=_quantile(latencies, 0.99),
        events=total,
        seconds=round(seconds, 2),
        events_per_second=round(total / seconds, 1),
        repositories=dict(repositories.most_common()),
    )


async def _buried(events: EventStore) -> set[str | None]:
    """Return which deliveries ended in the dead letters of any of the steps."""
    log = await events.log()
    found: set[str | None] = set()
    for step in app.steps.values():
        found |= {letter.event.correlation_id for letter in await list_dead_letters(log, step.group, _MOST)}
    return found


def _quantile(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0
