"""The account of `ag06 demo`: read from the log alone, so that it proves what the log holds."""

from __future__ import annotations

from collections import Counter

import msgspec

from ag06.cli.demo_app import COUNTED, RECEIVED
from ag06.persistence import EventStore


class Fed(msgspec.Struct, frozen=True):
    """What the feeder saw: deliveries sent, ids returned, duplicates refused, seconds it took."""

    received: int
    accepted: tuple[str, ...]
    duplicates: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Where every delivery went. `lost` must be 0, and so must `counted_twice`."""

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
    async for event in events.replay():
        if event.recorded is None:
            continue
        total += 1
        root = event.correlation_id or event.id
        if event.type == RECEIVED and event.id in accepted:
            received_ms[event.id] = event.recorded.timestamp() * 1000
        elif event.type == COUNTED and root in accepted:
            counted[root] += 1
            repositories[event.data["repository"]] += 1
            latencies.append(event.recorded.timestamp() * 1000 - received_ms[root])
    log = await events.log()
    letters = await log.dead_letters(limit=1_000_000)
    dead = {letter.event_id for letter in letters} & accepted
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


def _quantile(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0
