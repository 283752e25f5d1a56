"""Audio files: what is in them, one piece of them, and a piece written to one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from examples.mixer.strip import SHORTEST, Audio
from pedalboard.io import AudioFile

BUNDLED = Path(__file__).parent / "data" / "guit_em9.flac"
"""A recording that anybody may use; its source and licence are in `data/README.md`."""


class UnusableAudio(ValueError):  # noqa: N818 - reads as what is wrong
    """A file is no audio, is not there, or is too short; the message says which."""


class Recording(msgspec.Struct, frozen=True):
    """What is known of an audio file: its path, samples a second, length in samples (of each channel)."""

    path: str
    rate: int
    frames: int


def survey(path: Path) -> Recording:
    """Look at an audio file; raise `UnusableAudio` for what is none or holds less than loudness needs."""
    if not path.is_file():
        raise UnusableAudio(f"{path}: no such file; give --audio a WAV, FLAC, OGG or MP3 file")
    try:
        with AudioFile(str(path)) as file:
            found = Recording(str(path.resolve()), int(file.samplerate), file.frames)
    except ValueError as error:
        raise UnusableAudio(f"{path}: cannot be read as audio ({error}); give a WAV, FLAC, OGG or MP3 file") from None
    if found.frames < SHORTEST * found.rate:
        raise UnusableAudio(f"{path}: {found.frames / found.rate:.2f} s; loudness needs {SHORTEST} s or more")
    return found


def read(path: str, start: int = 0, length: int | None = None) -> tuple[Audio, int]:
    """Return `length` samples of a file from `start`, or all the rest, and its samples a second."""
    with AudioFile(path) as file:
        file.seek(start)
        return file.read(file.frames - start if length is None else length), int(file.samplerate)


def write(path: str, audio: Audio, rate: int) -> None:
    """Write 32-bit floats, which lose nothing, under `path`; whoever reads sees all of it or nothing.

    A step may run twice, and both write the same.
    """
    beside = f"{path}.{os.urandom(4).hex()}.part.wav"
    with AudioFile(beside, "w", samplerate=rate, num_channels=audio.shape[0], bit_depth=32) as file:
        file.write(audio)
    os.replace(beside, path)
