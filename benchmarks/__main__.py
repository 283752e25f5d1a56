"""Everything, as a table and as JSON: `python -m benchmarks --output docs/results`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.servers import ValkeyServer

from benchmarks import archive_rows, lateness, observability, other_rows, outage, redis_rows, rounds
from benchmarks.report import Row, show, write

SECTIONS = (
    *("redis", "sqlite", "replay", "memory", "fsync", "growth", "backlog", "archive", "breaker"),
    *("observability", "outage", "lateness"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--output", type=Path, help="directory for bench.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: for a first look")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="one section; may be repeated")
    chosen = parser.parse_args()
    scale, turns = (0.1, 1) if chosen.quick else (1.0, 5)
    found: dict[str, list[Row]] = {}
    for name in chosen.only or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="ag06-bench-") as directory:
            config = {"appendonly": "yes", "appendfsync": "always"} if name == "fsync" else {}
            server = ValkeyServer(Path(directory), databases="32", **config).start()
            try:
                found[name] = _section(name, f"redis://127.0.0.1:{server.port}", turns, scale)
            finally:
                server.stop()
        show({name: found[name]})
    if chosen.output is not None:
        sys.stdout.write(f"written to {write(chosen.output, found, rounds.raw)}\n")
    if any(row.met is False for rows in found.values() for row in rows):
        sys.stdout.write("a bound is missed: see the rows marked NO\n")


def _section(name: str, redis: str, turns: int, scale: float) -> list[Row]:
    sections: dict[str, Callable[[], list[Row]]] = {
        "redis": lambda: redis_rows.rows(redis, rounds=turns, scale=scale),
        "sqlite": lambda: other_rows.sqlite_rows(rounds=turns, scale=scale),
        "replay": lambda: other_rows.replay_rows(redis, scale=scale),
        "memory": lambda: other_rows.memory_rows(redis, scale=scale),
        "fsync": lambda: redis_rows.rows(redis, rounds=min(turns, 2), scale=scale / 2, durability="fsync"),
        "growth": lambda: other_rows.growth_rows(redis, scale=scale),
        "archive": lambda: archive_rows.rows(redis, rounds=min(turns, 3), scale=scale),
        "backlog": lambda: other_rows.backlog_rows(redis, scale=scale),
        "observability": lambda: observability.rows(redis, rounds=turns, scale=scale),
        "outage": lambda: outage.rows(rounds=turns, scale=scale),
        "lateness": lambda: lateness.rows(redis),
        "breaker": lambda: other_rows.breaker_rows(rounds=turns, scale=scale),
    }
    return sections[name]()


if __name__ == "__main__":
    main()
