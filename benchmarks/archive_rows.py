"""The rows on the archive."""

from __future__ import annotations

import tempfile

from benchmarks.report import Row, bounded
from benchmarks.rounds import in_turns, median


def rows(redis: str, *, rounds: int, scale: float) -> list[Row]:
    """Archiving from SQLite and Redis, replay from there, and the size of real webhook deliveries."""
    count = int(500_000 * scale)
    found: list[Row] = []
    results: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            measurements = {
                "SQLite": ("archive.moved", {"url": f"sqlite:///{directory}/a.db", "count": count}),
                "Redis": ("archive.moved", {"url": f"{redis}/4?log=archive-{turn}", "count": count}),
            }
            for label, result in in_turns(1, measurements).items():
                results.setdefault(label, []).extend(result)
    for label, result in results.items():
        rate = median(result)
        beside = f"{median(result, 'cpu_us'):.1f} µs of our CPU an event"
        work = f"archive {count:,} events from {label}"
        found.append(Row(work, f"{rate:,.0f}/s", beside, must=">= 200,000/s", met=rate >= 200_000))
        found.append(Row("the same, until they left the live log", f"{median(result, 'moved'):,.0f}/s"))
        growth = median(result, "growth_mb")
        found.append(bounded("the same, memory", growth, "MB more", "flat (< 400 MB)", growth < 400))
        replay = median(result, "replay")
        found.append(bounded("replay of them from the archive", replay, "/s", ">= 50,000/s", replay >= 50_000))
        growth = median(result, "replay_growth_mb")
        found.append(bounded("the same, memory", growth, "MB more", "flat (< 200 MB)", growth < 200))
    for repeats in (1, 40):
        (result,) = in_turns(1, {f"webhooks {repeats}": ("archive.webhooks", {"repeats": repeats})}).values()
        times = median(result, "ratio")
        work = f"webhook data, {median(result, 'events'):,.0f} events"
        beside = f"gzip: {median(result, 'gzip_ratio'):.1f} times smaller"
        found.append(Row(work, f"{times:.1f} times smaller than JSON", beside, must=">= 5", met=times >= 5))
    return found
