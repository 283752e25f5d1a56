"""The rows on SQLite, of replay and of memory, and how cost grows."""

from __future__ import annotations

import tempfile

from benchmarks.report import Row, bounded
from benchmarks.rounds import in_turns, median, ratio


def sqlite_rows(*, rounds: int, scale: float) -> list[Row]:
    """Publishing beside one transaction an event and the bare sync of the disk; a no-op step."""
    many, alone, raw, sync, step = (
        "SQLite publish, 1,000 in flight",
        "SQLite publish, one caller",
        "SQLite, one transaction an event",
        "fdatasync of 512 bytes",
        "SQLite no-op step end to end",
    )
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            url = f"sqlite:///{directory}"
            fsync = {"durability": "fsync"}
            measurements = {
                many: ("publish.ours", {"url": f"{url}/a.db", "callers": 1000, "count": int(30_000 * scale), **fsync}),
                raw: ("limits.one_transaction_each", {"directory": directory, "count": int(4_000 * scale)}),
                alone: ("publish.ours", {"url": f"{url}/b.db", "callers": 1, "count": int(2_000 * scale), **fsync}),
                sync: ("limits.fsync", {"directory": directory, "count": int(2_000 * scale)}),
                step: ("consume.ours", {"url": f"{url}/c.db", "count": int(30_000 * scale)}),
            }
            for label, result in in_turns(1, measurements).items():
                results.setdefault(label, []).extend(result)
    times = ratio(results[many], results[raw])
    p50 = median(results[alone], "p50")
    rate = median(results[step])
    beside = f"{raw}: {median(results[raw]):,.0f}/s"
    return [
        Row(many, f"{median(results[many]):,.0f}/s", beside, f"{times:.2f}", ">= 5", times >= 5),
        Row(
            f"{alone}, p50",
            f"{p50:.3f} ms",
            f"{sync}: {median(results[sync], 'p50'):.3f} ms",
            f"{p50 / median(results[sync], 'p50'):.2f}",
            "< 1 ms",
            p50 < 1,
        ),
        bounded(step, rate, "/s", ">= 10,000/s", rate >= 10_000),
    ]


def replay_rows(redis: str, *, scale: float) -> list[Row]:
    count = int(200_000 * scale)
    with tempfile.TemporaryDirectory() as directory:
        results = in_turns(
            1,
            {
                "replay from SQLite": ("replay.ours", {"url": f"sqlite:///{directory}/r.db", "count": count}),
                "replay from Redis": ("replay.ours", {"url": f"{redis}/3?log=replay", "count": count}),
            },
        )
    found = []
    for (label, result), bound in zip(results.items(), (100_000, 50_000), strict=True):
        rate, growth = median(result), median(result, "growth_mb")
        found.append(bounded(label, rate, "/s", f">= {bound:,}/s", rate >= bound))
        found.append(bounded(f"{label}, memory", growth, "MB more", "flat (< 10 MB)", growth < 10))
    return found


def memory_rows(redis: str, *, scale: float) -> list[Row]:
    count = max(20_000, int(1_000_000 * scale) // 10_000 * 10_000)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for store, url in (("SQLite", f"sqlite:///{directory}/m"), ("Redis", f"{redis}/3?log=m")):
            idle, growth = f"idle worker, {store}", f"worker over {count:,} events, {store}"
            suffix = (".db", "g.db") if store == "SQLite" else ("i", "g")
            results = in_turns(
                1,
                {
                    idle: ("memory.idle", {"url": url + suffix[0]}),
                    growth: ("memory.growth", {"url": url + suffix[1], "count": count}),
                },
            )
            rss, more = median(results[idle], "rss_mb"), median(results[growth], "growth_mb")
            found.append(bounded(idle, rss, "MB", "< 90 MB", rss < 90))
            found.append(bounded(growth, more, "MB more", "< 10 MB", more < 10))
    return found


def growth_rows(redis: str, *, scale: float) -> list[Row]:
    """How cost grows with the size of the payload and the number of callers; for the record."""
    found = []
    for store in ("SQLite", "Redis"):
        with tempfile.TemporaryDirectory() as directory:
            for number, (callers, size) in enumerate(
                [(100, 200), (100, 2_000), (100, 20_000), (100, 200_000), (1, 200), (10, 200), (1000, 200)]
            ):
                count = max(50, int(min(10_000, 4_000_000 / size, callers * 2_000) * scale))
                url = f"sqlite:///{directory}/{number}.db" if store == "SQLite" else f"{redis}/3?log=g{number}"
                durability = "fsync" if store == "SQLite" else "server"
                label = f"{store} publish, {callers} callers, {size:,} bytes"
                arguments = {"url": url, "callers": callers, "count": count, "size": size, "durability": durability}
                rate = median(in_turns(1, {label: ("publish.ours", arguments)})[label])
                found.append(Row(label, f"{rate:,.0f}/s", f"{rate * size / 1e6:,.1f} MB/s"))
    return found


def backlog_rows(redis: str, *, scale: float) -> list[Row]:
    """What a long log costs; for the record."""
    found = []
    for events in (1_000, 100_000, int(10_000_000 * scale)):
        with tempfile.TemporaryDirectory() as directory:
            for store, url in (("SQLite", f"sqlite:///{directory}/b.db"), ("Redis", f"{redis}/3?log=b{events}")):
                label = f"{store}, {events:,} events behind"
                (result,) = in_turns(1, {label: ("backlog.ours", {"url": url, "events": events})})[label]
                found.append(Row(f"{label}: publish, 100 in flight", f"{result['publish']:,.0f}/s"))
                found.append(Row(f"{label}: publish, one caller, p50", f"{result['p50']:.3f} ms"))
                found.append(Row(f"{label}: no-op step", f"{result['process']:,.0f}/s"))
                found.append(Row(f"{label}: stats", f"{result['stats']:.3f} ms"))
    return found


def breaker_rows(*, rounds: int, scale: float) -> list[Row]:
    """What a closed breaker adds to a call, for each way to use one."""
    label = "closed breaker"
    results = in_turns(rounds, {label: ("breaker.cost", {"count": int(100_000 * scale)})})[label]
    found = []
    for way in [key for key in results[0] if not key.startswith("bare ")]:
        guarded, bare = median(results, way), median(results, f"bare {way}")
        more = guarded - bare
        times = f"{guarded / bare:.1f}"
        found.append(
            Row(f"{label}: {way}", f"{more:.2f} us more", f"bare call: {bare:.2f} us", times, "<= 2 us", more <= 2)
        )
    return found
