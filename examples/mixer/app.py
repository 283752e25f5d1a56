"""The workflow: a piece of audio goes through the channel strip, then many at a time are measured."""

from __future__ import annotations

import msgspec
from examples.mixer import recording, strip

from ag06 import Context, Event, Retry, Workflow

app = Workflow("mixer")

PIECE = "audio.piece"
LEVELLED = "audio.levelled"
MEASURED = "audio.measured"

# The defaults are the runtime's own (concurrency of a step, size of a batch) and a usual buffer of a sound card.
block_size = app.knob("block_size", low=64, high=16384, default=256, scale="log", integer=True)
batch_size = app.knob("batch_size", low=1, high=256, default=100, scale="log", integer=True)
threads = app.knob("threads", low=1, high=32, default=10, scale="log", integer=True)


class Piece(msgspec.Struct, frozen=True):
    """A piece of a recording, by reference: `length` samples of `file` from `start`, to be written to `output`.

    `number` tells pieces apart that are the same stretch of the same file.
    """

    number: int
    file: str
    start: int
    length: int
    output: str


class Levelled(msgspec.Struct, frozen=True):
    """A piece that went through the strip: where its sound is, its seconds, its peak (full scale is 1.0)."""

    number: int
    output: str
    seconds: float
    peak: float


class Measurement(msgspec.Struct, frozen=True):
    """The loudness of a piece in LUFS; `None`: below the gate, as good as silent."""

    number: int
    seconds: float
    peak: float
    lufs: float | None


@app.step(PIECE, concurrency=threads, retry=Retry(attempts=3))
def level(event: Event[Piece], ctx: Context) -> None:
    """Take the piece through a strip of its own, block by block, and write what comes out."""
    piece = event.data
    audio, rate = recording.read(piece.file, piece.start, piece.length)
    levelled = strip.process(audio, rate, block_size.value)
    recording.write(piece.output, levelled, rate)
    seconds = levelled.shape[1] / rate
    ctx.publish(LEVELLED, Levelled(piece.number, piece.output, seconds, strip.peak(levelled)))


@app.batch_step(LEVELLED, max_size=batch_size, max_wait=0.02, concurrency=2, retry=Retry(attempts=3))
def measure(events: list[Event[Levelled]], ctx: Context) -> None:
    """Measure the loudness of each piece; up to `batch_size` of them make one result."""
    ctx.publish(MEASURED, [_measure(event.data) for event in events])


def _measure(piece: Levelled) -> Measurement:
    audio, rate = recording.read(piece.output)
    return Measurement(piece.number, piece.seconds, piece.peak, strip.loudness(audio, rate))
