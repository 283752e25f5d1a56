"""One session: pieces are fed, never more than a few at a time, and what came of them is added up and checked."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import msgspec
import numpy as np
from examples.mixer import recording, strip
from examples.mixer.app import MEASURED, PIECE, Measurement, Piece, app, block_size

from ag06 import Outcome

IN_FLIGHT = 64
"""Pieces between their publisher and their loudness at once: latency is then that of the steps, not of a heap."""
TOLERANCE = 1e-6
"""Difference of two samples, full scale at 1.0, that is none; 16-bit audio has steps of 3e-5."""


class Account(msgspec.Struct, frozen=True):
    """What a session did.

    Attributes:
        pieces, audio_seconds: what was fed; `measured` of them have a loudness at the end, dead letters do not.
        seconds: how long it took; times_real_time and pieces_per_second follow from it.
        p99_ms: of all pieces, from the log that took it to the end of the strip.
        quietest_lufs, loudest_lufs: of the pieces; `silent` of them are below the gate. `None` where all are.
        peak: the largest sample, full scale at 1.0.
        results: events that hold the loudness of `batch_size` pieces or fewer.
        largest_difference: of any sample to the same piece in blocks of the default size; infinite where a piece's
            sound is missing or has another length.
    """

    pieces: int
    measured: int
    dead: int
    audio_seconds: float
    seconds: float
    times_real_time: float
    pieces_per_second: float
    p99_ms: float
    quietest_lufs: float | None
    loudest_lufs: float | None
    silent: int
    peak: float
    results: int
    largest_difference: float

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        wrong = []
        if self.measured != self.pieces or self.dead:
            wrong.append(f"{self.pieces} pieces were fed, {self.measured} measured, {self.dead} are dead letters")
        if self.largest_difference > TOLERANCE:
            wrong.append(f"samples differ by {self.largest_difference} from those of the default block size")
        if self.peak > 1.0:
            wrong.append(f"the peak is {self.peak}, above full scale")
        return wrong


def pieces(source: recording.Recording, seconds: float, piece: float, output: Path) -> Iterator[Piece]:
    """Yield so many `seconds` of a recording in pieces of `piece` seconds, from its start again when it is over.

    A rest at its end that is shorter than a piece is left out; a recording shorter than a piece is one.
    """
    length = min(round(piece * source.rate), source.frames)
    starts = itertools.cycle(range(0, source.frames - length + 1, length))
    for number, start in zip(range(math.ceil(seconds * source.rate / length)), starts, strict=False):
        yield Piece(number, source.path, start, length, str(output / f"{number:06}.wav"))


class Feeder:
    """Publishes pieces to the running workflow, and knows when each has come through."""

    def __init__(self) -> None:
        """Listen to what becomes of deliveries; once in a process, however many feeds there are."""
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._latencies: list[float] = []
        app.on_outcome(self._ended)

    def _ended(self, outcome: Outcome) -> None:
        if outcome.step == "level" and outcome.kind == "processed":
            self._latencies.append((outcome.started + outcome.seconds) * 1000 - outcome.recorded_ms)
        if outcome.kind == "dead" or (outcome.step == "measure" and outcome.kind == "processed"):
            self._room.release()

    async def feed(self, fed: list[Piece]) -> tuple[float, float]:
        """Publish all and wait until they are through; return the seconds taken and the 99th percentile in ms."""
        self._latencies.clear()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for piece in fed:
                await self._room.acquire()
                group.create_task(app.publish(PIECE, data=piece, dedup=False))
        for _ in range(IN_FLIGHT):
            await self._room.acquire()
        seconds = time.perf_counter() - started
        for _ in range(IN_FLIGHT):
            self._room.release()
        return seconds, percentile_99(self._latencies)


def percentile_99(values: list[float]) -> float:
    """Return the 99th percentile, between two values where it falls between; of none: 0."""
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else sum(values)


async def play(source: recording.Recording, seconds: float, piece: float, output: Path) -> Account:
    """Run the workflow on so many seconds of a recording, and account for them."""
    fed = list(pieces(source, seconds, piece, output))
    feeder = Feeder()
    async with app.running():
        taken, p99 = await feeder.feed(fed)
        batches = [event.data async for event in app.events.replay(types=MEASURED)]
        dead = (await app.events.stats()).dead_letters
    measured = msgspec.convert(list(itertools.chain(*batches)), list[Measurement])
    heard = [result.lufs for result in measured if result.lufs is not None]
    audio_seconds = sum(piece.length for piece in fed) / source.rate
    return Account(
        pieces=len(fed),
        measured=len({result.number for result in measured}),
        dead=dead,
        audio_seconds=round(audio_seconds, 3),
        seconds=round(taken, 3),
        times_real_time=round(audio_seconds / taken, 1),
        pieces_per_second=round(len(fed) / taken, 1),
        p99_ms=round(p99, 1),
        quietest_lufs=round(min(heard), 2) if heard else None,
        loudest_lufs=round(max(heard), 2) if heard else None,
        silent=len(measured) - len(heard),
        peak=max((result.peak for result in measured), default=0.0),
        results=len(batches),
        largest_difference=max(difference(piece) for piece in fed),
    )


def difference(piece: Piece) -> float:
    """Return how far a sample of a piece's output is from that of the default block size.

    Infinite where the output is missing or of another length.
    """
    audio, rate = recording.read(piece.file, piece.start, piece.length)
    expected = strip.process(audio, rate, int(block_size.default))
    if not Path(piece.output).exists():
        return math.inf
    written, _ = recording.read(piece.output)
    return float(np.abs(written - expected).max()) if written.shape == expected.shape else math.inf
