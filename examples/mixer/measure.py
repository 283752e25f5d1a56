"""What each knob is worth from its default: `python -m examples.mixer.measure` prints the table of the README."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from examples.mixer import recording, strip
from examples.mixer.app import app
from examples.mixer.session import Feeder, pieces

CHANGES: tuple[dict[str, int], ...] = (
    {"block_size": 64},
    {"block_size": 2048},
    {"block_size": 16384},
    {"batch_size": 1},
    {"batch_size": 10},
    {"threads": 1},
    {"threads": 2},
    {"threads": 4},
    {"threads": 32},
    {"block_size": 2048, "threads": 2},
    {},
)
"""What is set beside the defaults; the last one is nothing, and shows what the noise alone does."""


async def workflow_rows(pairs: int, seconds: float) -> list[str]:
    """Run default and change in alternation on one running workflow, the order within a pair turning each time."""
    source = recording.survey(recording.BUNDLED)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ag06-mixer-") as scratch:
        app.use_store(f"sqlite:///{scratch}/events.db")
        fed = list(pieces(source, seconds, 1.0, Path(scratch)))
        feeder = Feeder()
        async with app.running():
            await feeder.feed(fed)  # what is imported and opened on the way the first time
            for change in CHANGES:
                default: list[float] = []
                changed: list[float] = []
                for turn in range(pairs):
                    for setting, rates in ((0, default), (1, changed))[:: -1 if turn % 2 else 1]:
                        for name, knob in app.knobs.items():
                            knob.set(change.get(name, knob.default) if setting else knob.default)
                        taken, _ = await feeder.feed(fed)
                        rates.append(seconds / taken)
                said = ", ".join(f"{name} {app.knobs[name].default} → {value}" for name, value in change.items())
                rows.append(row(said or "none (noise)", default, changed))
    return rows


def strip_row(pairs: int, low: int, high: int) -> str:
    """Compare two block sizes in the strip alone, in one thread: no file, no event."""
    audio, rate = recording.read(str(recording.BUNDLED))
    rates: dict[int, list[float]] = {low: [], high: []}
    for turn in range(pairs):
        for size in sorted(rates, reverse=bool(turn % 2)):
            started = time.perf_counter()
            strip.process(audio, rate, size)
            rates[size].append(audio.shape[1] / rate / (time.perf_counter() - started))
    return row(f"strip alone, one thread: block_size {low} → {high}", rates[low], rates[high])


def row(said: str, before: list[float], after: list[float]) -> str:
    """Return a line of the table: times real time before and after, and the ratio of each pair."""
    ratios = sorted(second / first for first, second in zip(before, after, strict=True))
    return (
        f"| {said} | {median(before):.0f} | {median(after):.0f} | {median(ratios):.2f} | "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m examples.mixer.measure", description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio in a run; whole seconds")
    asked = parser.parse_args()
    rows = asyncio.run(workflow_rows(asked.pairs, asked.seconds))
    rows += [strip_row(asked.pairs, 64, 2048), strip_row(asked.pairs, 256, 2048)]
    head = ["| change | before | after | ratio, median | of all pairs |", "|---|---|---|---|---|"]
    sys.stdout.write("\n".join(head + rows) + "\n")


if __name__ == "__main__":
    main()
