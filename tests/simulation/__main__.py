"""The command line of the simulation."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from .bugs import BUGS, plant

SECONDS_BETWEEN_NEWS = 10.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run whole workflows under a seeded scheduler, a virtual clock and injected faults.",
        epilog="example: python -m tests.simulation --seconds 600",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this one and print all that happens")
    what.add_argument("--seeds", metavar="A:B", help="run the seeds from A up to, not including, B")
    what.add_argument("--seconds", type=float, help="run for so long, with seeds that the time of day chooses")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    parser.add_argument("--hashes", action="store_true", help="print the hash of each seed's trace")
    parser.add_argument("--log", action="store_true", help="with --seed: let the package write its log too")
    parser.add_argument("--bug", choices=sorted(BUGS), help="break the package on purpose, in memory; stop when found")
    return parser.parse_args()


def _one(seed: int, *, log: bool) -> int:
    from .plan import plan_of
    from .run import simulate

    logging.disable(logging.NOTSET if log else logging.CRITICAL)
    print(plan_of(seed))
    outcome = simulate(seed, lambda line: print(line, flush=True))
    print(f"seed {seed}: trace {outcome.trace}, {outcome.events} events, faults {outcome.faults}")
    print(outcome.failure or "every promise was kept")
    return 1 if outcome.failure else 0


def _seeds(arguments: argparse.Namespace) -> Iterator[int]:
    if arguments.seeds:
        first, _, end = arguments.seeds.partition(":")
        return iter(range(int(first), int(end)))
    until = time.perf_counter() + arguments.seconds
    return itertools.takewhile(lambda _: time.perf_counter() < until, itertools.count(int(time.time()) * 1000))


def _many(arguments: argparse.Namespace) -> int:
    from .many import outcomes

    began = said = time.perf_counter()
    seeds = events = 0
    faults: Counter[str] = Counter()
    failed: list[int] = []
    for outcome in outcomes(_seeds(arguments), arguments.jobs, arguments.bug):
        seeds, events = seeds + 1, events + outcome.events
        faults.update(outcome.faults)
        if arguments.hashes:
            print(outcome.seed, outcome.trace)
        if outcome.failure:
            failed.append(outcome.seed)
            print(
                f"seed {outcome.seed}: {outcome.failure}\n  again: {_command(outcome.seed, arguments.bug)}", flush=True
            )
            if arguments.bug:
                break
        now = time.perf_counter()
        if now - said >= SECONDS_BETWEEN_NEWS:
            said = now
            rate = seeds / (now - began) * 3600
            print(f"... {seeds} seeds, {rate:,.0f} an hour, {len(failed)} failed", flush=True)
    took = time.perf_counter() - began
    print(f"{seeds} seeds in {took:.1f} s, {seeds / took * 3600:,.0f} an hour; {events:,} events; {dict(faults)}")
    print(f"{len(failed)} seeds failed" + (f": {failed}" if failed else ""))
    return 1 if failed else 0


def _command(seed: int, bug: str | None) -> str:
    """Return what to type to see a seed again."""
    planted = f" --bug {bug}" if bug else ""
    return f"{os.path.relpath(sys.executable)} -m tests.simulation --seed {seed}{planted}"


def main() -> int:
    """Run what was asked for; return the exit code."""
    arguments = _arguments()
    if arguments.seed is None:
        return _many(arguments)
    if arguments.bug:
        plant(arguments.bug)
    return _one(arguments.seed, log=arguments.log)


if __name__ == "__main__":
    sys.exit(main())
