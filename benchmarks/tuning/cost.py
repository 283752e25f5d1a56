"""What the optimizer itself costs: processor time and memory of the process that leads.

`python -m benchmarks.tuning.cost` runs a workflow under a steady load with knobs that change nothing, so that all that
differs is the optimizer. Blocks with it and without it follow each other in pairs, in an order that is drawn; each pair
tells the processor time that it adds, as a share of one core. It explores all the time, with as many windows in its
memory as it keeps: the dearest that it does. Memory is that of a process before it leads and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from ag06 import Event, Workflow
from ag06.ml import Pace, ml_optimizer

KNOBS = ("a", "b", "c", "d")
KEPT = 150
"""Windows that the tuner remembers."""
TYPE = "bench.steady"


def workflow(url: str, steps: int) -> Workflow:
    app = Workflow("cost", store=url, dedup_window=0)
    for name in KNOBS:
        app.knob(name, low=1, high=1024, default=32, scale="log")
    for number in range(steps):

        @app.step(TYPE if number == 0 else f"{TYPE}.{number}", name=f"step{number}")
        async def step(event: Event) -> None:
            """Nothing to do: the knobs change nothing here."""

    return app


class Steady:
    """Publishes `rate` events a second, in tens, and counts them."""

    def __init__(self, app: Workflow, rate: float) -> None:
        self._app = app
        self._pause = 10 / rate
        self.count = 0

    async def run(self) -> None:
        due = time.monotonic()
        while True:
            await self._app.events.persist_events([{"event_type": TYPE, "source": "bench"}] * 10)
            self.count += 10
            due = max(due + self._pause, time.monotonic())
            await asyncio.sleep(due - time.monotonic())


async def windows() -> int:
    return int((await ml_optimizer.get_optimization_status()).get("windows", 0))


async def block(steady: Steady, seconds: float) -> dict[str, float]:
    """Processor time over some seconds: of the process a second, and an event."""
    cpu, count, began = time.process_time(), steady.count, time.monotonic()
    await asyncio.sleep(seconds)
    spent, passed = time.process_time() - cpu, time.monotonic() - began
    return {"percent": 100 * spent / passed, "us_per_event": 1e6 * spent / max(1, steady.count - count)}


async def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process: memory before and after, then the pairs."""
    with tempfile.TemporaryDirectory() as directory:
        app = workflow(f"sqlite:///{directory}/cost.db", arguments.steps)
        options: dict[str, Any] = {
            "knobs": KNOBS,
            "share": 1.0,
            "worst_loss": 1.0,
            "pace": Pace(explore=1_000_000),
            "surrogate": arguments.surrogate == "yes",
        }
        async with app.running():
            steady = Steady(app, arguments.rate)
            feeding = asyncio.create_task(steady.run())
            await asyncio.sleep(5)
            before = psutil.Process().memory_info().rss / 1e6
            await ml_optimizer.start(app, window=0.2, settle=0.0, minimum_events=1, **options)
            while await windows() < min(KEPT, arguments.warm):
                await asyncio.sleep(1)
            after = psutil.Process().memory_info().rss / 1e6
            ml_optimizer.configure(app, window=arguments.window, settle=0.5, minimum_events=30)
            await ml_optimizer.stop(app)
            pairs = await _pairs(app, steady, arguments)
            feeding.cancel()
    return {"rss_before_mb": before, "rss_added_mb": after - before, "windows": arguments.warm, "pairs": pairs}


async def _pairs(app: Workflow, steady: Steady, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    order = random.Random(arguments.seed)
    pairs = []
    for _ in range(arguments.pairs):
        pair: dict[str, Any] = {}
        for what in order.sample(["with", "without"], 2):
            if what == "with":
                await ml_optimizer.start(app)
                await asyncio.sleep(2)  # its beginning reads and restores what it knows
                pair[what] = await block(steady, arguments.seconds)
                await ml_optimizer.stop(app)
            else:
                await asyncio.sleep(2)
                pair[what] = await block(steady, arguments.seconds)
        pairs.append(pair)
    return pairs


def told(found: dict[str, Any]) -> dict[str, Any]:
    added = [pair["with"]["percent"] - pair["without"]["percent"] for pair in found["pairs"]]
    ratios = [pair["with"]["us_per_event"] / pair["without"]["us_per_event"] for pair in found["pairs"]]
    error = statistics.stdev(added) / len(added) ** 0.5 if len(added) > 1 else float("nan")
    return {
        "cpu_added_percent_of_a_core": round(statistics.mean(added), 3),
        "standard_error": round(error, 3),
        "median": round(statistics.median(added), 3),
        "cpu_per_event_ratio_median": round(statistics.median(ratios), 4),
        "without_percent": round(statistics.mean(pair["without"]["percent"] for pair in found["pairs"]), 2),
        "rss_before_mb": round(found["rss_before_mb"], 1),
        "rss_added_mb": round(found["rss_added_mb"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1, help="steps of the workflow; all but one are idle")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second")
    parser.add_argument("--window", type=float, default=5.0, help="seconds of a window")
    parser.add_argument("--seconds", type=float, default=33.0, help="seconds of a block: six windows")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--warm", type=int, default=KEPT, help="windows in its memory before the pairs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--surrogate", choices=("yes", "no"), help="in this process; without it: both, each in its own")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.surrogate:
        found = asyncio.run(measured(arguments))
        sys.stdout.write(json.dumps(found) + "\n")
        return
    results = {}
    for surrogate in ("yes", "no"):
        command = [sys.executable, "-m", "benchmarks.tuning.cost", *sys.argv[1:], "--surrogate", surrogate]
        environment = {**os.environ, "AG06_TUNE": "manual", "AG06_HTTP_PORT": "off"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        results[f"surrogate {surrogate}"] = told(found) | {"pairs": found["pairs"]}
        summary = {name: value for name, value in results[f"surrogate {surrogate}"].items() if name != "pairs"}
        sys.stdout.write(f"surrogate {surrogate}: {json.dumps(summary)}\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
