"""The rows on Redis and Valkey, all on one server."""

from __future__ import annotations

from benchmarks.report import Row, bounded
from benchmarks.rounds import in_turns, median, ratio


def rows(url: str, *, rounds: int, scale: float, durability: str = "server") -> list[Row]:
    """Measure every row; `scale` shortens all of them alike. With `fsync` the peers' rows are left out."""
    must = durability == "server"
    return [
        *_publish(url, rounds, int(30_000 * scale), durability, must),
        *_alone(url, rounds, int(3_000 * scale), durability, must),
        *_consume(url, rounds, int(20_000 * scale), durability, must),
        *_latency(url, rounds, 6 * scale, durability, must),
    ]


def _publish(url: str, rounds: int, count: int, durability: str, must: bool) -> list[Row]:
    label = f"publish, 100 in flight ({durability})"
    measurements = {
        label: ("publish.ours", {"url": f"{url}/1", "callers": 100, "count": count, "durability": durability}),
        f"XADD, 100 in flight ({durability})": (
            "publish.bare",
            {"url": f"{url}/1", "callers": 100, "count": count // 3},
        ),
        f"XADD, pipelines of 100 ({durability})": ("publish.pipelined", {"url": f"{url}/1", "count": count}),
        f"FastStream, 100 in flight ({durability})": (
            "publish.faststream",
            {"url": f"{url}/1", "callers": 100, "count": count // 4},
        ),
    }
    results = in_turns(rounds, measurements)
    ours = results.pop(label)
    bounds = (3.0, 0.9, 4.0)
    found = []
    for (other, theirs), bound in zip(results.items(), bounds, strict=True):
        times = ratio(ours, theirs)
        found.append(
            Row(
                label,
                f"{median(ours):,.0f}/s",
                f"{other}: {median(theirs):,.0f}/s",
                f"{times:.2f}",
                f">= {bound}" if must else "",
                times >= bound if must else None,
            )
        )
    return found


def _alone(url: str, rounds: int, count: int, durability: str, must: bool) -> list[Row]:
    label = f"publish, one caller ({durability})"
    other = f"XADD, one caller ({durability})"
    results = in_turns(
        rounds,
        {
            label: ("publish.ours", {"url": f"{url}/2", "callers": 1, "count": count, "durability": durability}),
            other: ("publish.bare", {"url": f"{url}/2", "callers": 1, "count": count}),
        },
    )
    times = ratio(results[label], results[other], "p50")
    p50, p99 = median(results[label], "p50"), median(results[label], "p99")
    beside = f"XADD: {median(results[other], 'p50'):.3f} ms"
    return [
        Row(
            f"{label}, p50",
            f"{p50:.3f} ms",
            beside,
            f"{times:.2f}",
            "<= 1.8" if must else "",
            times <= 1.8 if must else None,
        ),
        Row(f"{label}, p99", f"{p99:.3f} ms", must="< 1.5 ms" if must else "", met=p99 < 1.5 if must else None),
    ]


def _consume(url: str, rounds: int, count: int, durability: str, must: bool) -> list[Row]:
    label = f"no-op step end to end ({durability})"
    peers = {"FastStream": "consume.faststream", "taskiq-redis": "consume.taskiq"}
    found: list[Row] = []
    results: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        measurements = {
            label: (
                "consume.ours",
                {"url": f"{url}/3?log=c{turn}{durability}", "count": count, "durability": durability},
            )
        }
        if must:
            measurements |= {
                f"{name}, consume": (work, {"url": f"{url}/{4 + turn}", "count": count // 5})
                for name, work in peers.items()
            }
        for name, result in in_turns(1, measurements).items():
            results.setdefault(name, []).extend(result)
    ours = results.pop(label)
    if not results:
        return [Row(label, f"{median(ours):,.0f}/s")]
    for name, theirs in results.items():
        times = ratio(ours, theirs)
        found.append(
            Row(label, f"{median(ours):,.0f}/s", f"{name}: {median(theirs):,.0f}/s", f"{times:.1f}", ">= 8", times >= 8)
        )
    return found


def _latency(url: str, rounds: int, seconds: float, durability: str, must: bool) -> list[Row]:
    label = f"publish to step start at 500/s ({durability})"
    other = "FastStream, latency"
    results: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        measurements = {
            label: (
                "latency.ours",
                {"url": f"{url}/3?log=l{turn}{durability}", "seconds": seconds, "durability": durability},
            )
        }
        if must:
            measurements[other] = ("latency.faststream", {"url": f"{url}/{9 + turn}", "seconds": seconds})
        for name, result in in_turns(1, measurements).items():
            results.setdefault(name, []).extend(result)
    ours = results[label]
    p50, p99 = median(ours, "p50"), median(ours, "p99")
    if not must:
        return [Row(f"{label}, p50", f"{p50:.3f} ms"), Row(f"{label}, p99", f"{p99:.3f} ms")]
    theirs = results[other]
    low, high = ratio(ours, theirs, "p50"), ratio(ours, theirs, "p99")
    return [
        Row(
            f"{label}, p50",
            f"{p50:.3f} ms",
            f"FastStream: {median(theirs, 'p50'):.3f} ms",
            f"{low:.2f}",
            "<= 1.2",
            low <= 1.2,
        ),
        Row(
            f"{label}, p99",
            f"{p99:.3f} ms",
            f"FastStream: {median(theirs, 'p99'):.3f} ms",
            f"{high:.2f}",
            "< 1",
            high < 1,
        ),
        bounded(f"{label}, p99", p99, "ms", "< 1.5 ms", p99 < 1.5),
    ]
