"""Running workflows tuned from the shipped defaults, and the result put to the proof once more by an experiment.

`python -m benchmarks.tuning.live` runs a step that does nothing, one that waits, one that computes, and the mixer of
`examples/mixer`, each on a store of its own. What the optimizer kept is then compared with the defaults by
`run_experiment` with a fresh seed: that is the figure that is told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from tests.servers import ValkeyServer

from ag06 import Event, Workflow
from ag06.ml import Pace, ml_optimizer
from ag06.ml.live import SOURCE
from benchmarks.tuning.feeder import TYPE

WORKLOADS = ("noop", "io", "cpu", "mixer")
WAITING = {"noop": 4_000, "io": 500, "cpu": 200}
LEAST = 0.15
"""What is asked for, where there is something to gain."""


def noop() -> Workflow:
    app = Workflow("live")

    @app.step(TYPE, name="step")
    async def step(event: Event) -> None:
        """Nothing to do: what is measured is the runtime."""

    return app


def io() -> Workflow:
    app = Workflow("live")

    @app.step(TYPE, name="step")
    async def step(event: Event) -> None:
        """Waits, as for an answer of another service."""
        await asyncio.sleep(0.02)

    return app


def cpu() -> Workflow:
    app = Workflow("live")

    @app.step(TYPE, name="step")
    def step(event: Event) -> None:
        """Computes for some milliseconds in a thread, without the interpreter's lock."""
        hashlib.pbkdf2_hmac("sha256", b"password", event.id.encode(), 20_000)

    return app


@contextlib.asynccontextmanager
async def fed_by_a_process(name: str, url: str) -> AsyncIterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.tuning.feeder", url, str(WAITING[name])])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def fed_with_audio(scratch: Path) -> AsyncIterator[None]:
    from examples.mixer import recording, session

    source = recording.survey(recording.BUNDLED)
    feeder = session.Feeder()
    pieces = list(session.pieces(source, 30.0, 1.0, scratch))

    async def play() -> None:
        while True:
            await feeder.feed(pieces)

    task = asyncio.create_task(play())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def tune(name: str, url: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tune one workload for so many seconds or until the optimizer rests; return what was found."""
    made: dict[str, Callable[[], Workflow]] = {"noop": noop, "io": io, "cpu": cpu}
    if name == "mixer":
        from examples.mixer.app import app
    else:
        app = made[name]()
    app.use_store(url)
    pace = Pace() if options.explore is None else Pace(explore=options.explore)
    tuning = {"window": options.window, "settle": options.window / 4, "pace": pace, "seed": options.seed}
    if options.score:
        tuning["score"] = options.score
    ml_optimizer.configure(app, **tuning)
    began = time.monotonic()
    async with app.running(), fed_with_audio(scratch) if name == "mixer" else fed_by_a_process(name, url):
        await asyncio.sleep(3.0)
        defaults = {knob.name: knob.default for knob in (app.knobs | app.runtime_knobs).values()}
        await ml_optimizer.start(app)
        status: dict[str, Any] = {}
        while time.monotonic() - began < options.seconds:
            await asyncio.sleep(2.0)
            status = await ml_optimizer.get_optimization_status()
            if status["state"] == "rest":
                break
        await ml_optimizer.stop()
        status = await ml_optimizer.get_optimization_status()
        tuned_after = time.monotonic() - began
        kept = dict(status.get("incumbent") or defaults)
        changes = {knob: value for knob, value in kept.items() if defaults[knob] != value}
        proof = None
        if changes:
            proof = await ml_optimizer.ab_testing.run_experiment(
                variant_a=defaults, variant_b=kept, max_windows=60, timeout=options.seconds
            )
        dead = (await app.events.stats()).dead_letters
        decisions = [event.data async for event in app.events.replay(sources=SOURCE)]
    found = {
        "workload": name,
        "store": url.split(":", maxsplit=1)[0],
        "score": status["score"],
        "defaults": defaults,
        "changes": changes,
        "seconds_of_tuning": round(tuned_after, 1),
        "decisions": [
            {key: decision.get(key) for key in ("kind", "reason", "effect", "interval", "windows")}
            for decision in decisions
            if decision["kind"] != "trial"
        ],
        "proof": None if proof is None else msgspec.to_builtins(proof),
        "dead_letters": dead,
    }
    say(found)
    return found


def say(found: dict[str, Any]) -> None:
    proof = found["proof"]
    if proof is None:
        gain = "nothing better than the defaults was found"
    else:
        gain = f"winner {proof['winner']}, {proof['reason']}"
    sys.stdout.write(
        f"{found['workload']:6} {found['store']:7} {found['seconds_of_tuning']:6.1f} s  {gain}\n"
        f"       changed: {json.dumps(found['changes'])}\n"
    )
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning.live", description=__doc__)
    parser.add_argument("--only", choices=WORKLOADS, action="append")
    parser.add_argument("--store", choices=("redis", "sqlite"), help="unless given: redis, for the mixer sqlite")
    parser.add_argument("--window", type=float, default=1.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=300.0, help="of tuning, at most")
    parser.add_argument("--explore", type=int, help="windows before the best is put to the proof")
    parser.add_argument("--score", help="as `ml_optimizer.configure` takes it")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    found = []
    for name in options.only or WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="ag06-live-") as directory:
            if (options.store or ("sqlite" if name == "mixer" else "redis")) == "sqlite":
                found.append(asyncio.run(tune(name, f"sqlite:///{directory}/e.db", Path(directory), options)))
                continue
            server = ValkeyServer(Path(directory)).start()
            try:
                found.append(asyncio.run(tune(name, server.url, Path(directory), options)))
            finally:
                server.stop()
    if options.output is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "window_seconds": options.window,
            "seed": options.seed,
        }
        options.output.write_text(json.dumps({"about": about, "workloads": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
