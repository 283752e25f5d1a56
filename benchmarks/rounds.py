"""Runs measurements as processes of their own, in turns, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

Result = dict[str, float]
Measurement = tuple[str, dict[str, Any]]
"""`module.function` and its arguments."""

raw: dict[str, list[Result]] = {}
"""Every single result, by label, for the JSON report."""


def measure(work: str, **arguments: Any) -> Result:
    """Run one measurement in a fresh process; its last line of output is the result."""
    command = [sys.executable, "-m", "benchmarks.child", work, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise RuntimeError(f"{work} failed:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def in_turns(rounds: int, measurements: dict[str, Measurement]) -> dict[str, list[Result]]:
    """Measure A B C, A B C, ...; return the results of each by its label."""
    results: dict[str, list[Result]] = {label: [] for label in measurements}
    for turn in range(rounds):
        for label, (work, arguments) in measurements.items():
            sys.stderr.write(f"\r\x1b[K{turn + 1}/{rounds} {label}")
            sys.stderr.flush()
            results[label].append(measure(work, **arguments))
    sys.stderr.write("\r\x1b[K")
    for label, found in results.items():
        raw.setdefault(label, []).extend(found)
    return results


def median(results: list[Result], key: str = "rate") -> float:
    return statistics.median(result[key] for result in results)


def ratio(ours: list[Result], theirs: list[Result], key: str = "rate") -> float:
    """Median of the ratios within each turn: the machine was equally fast for both."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))
