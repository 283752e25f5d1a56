"""The mixer example: real audio by reference, the same sound whatever the knobs, an event for every piece."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.mixer import recording, strip
from examples.mixer.app import app, batch_size, threads

ROOT = Path(__file__).parents[2]
PIECES = 8


def mixer(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "examples.mixer", *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env=os.environ | {"AG06_STORE": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def played(directory: Path, *settings: str) -> tuple[dict[str, Any], list[np.ndarray]]:
    asked = [word for setting in settings for word in ("--set", setting)]
    account = json.loads(mixer("--seconds", PIECES, "--output", directory, "--json", *asked).stdout)
    return account, [recording.read(str(path))[0] for path in sorted(directory.glob("*.wav"))]


def test_a_recording_sounds_the_same_whatever_the_knobs_and_every_piece_is_measured(tmp_path: Path) -> None:
    plain, before = played(tmp_path / "plain")
    tuned, after = played(tmp_path / "tuned", "block_size=2048", "batch_size=1", "threads=1")
    assert plain["knobs"] == {"block_size": 256, "batch_size": 100, "threads": 10}
    assert tuned["knobs"] == {"block_size": 2048, "batch_size": 1, "threads": 1}
    assert len(before) == len(after) == PIECES
    for account in (plain, tuned):
        assert (account["pieces"], account["measured"], account["dead"]) == (PIECES, PIECES, 0)
        assert account["largest_difference"] <= 1e-6
        assert 0.1 < account["peak"] <= 1.0
        assert -40 < account["quietest_lufs"] < account["loudest_lufs"] < -5
    assert tuned["results"] == PIECES
    assert plain["results"] < PIECES
    assert (plain["quietest_lufs"], plain["loudest_lufs"]) == (tuned["quietest_lufs"], tuned["loudest_lufs"])
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        dry, rate = recording.read(str(recording.BUNDLED), number * 44100, 44100)
        assert one.shape == dry.shape
        assert np.abs(one - other).max() <= 1e-6
        assert np.abs(one - dry).max() > 0.01  # the strip did something
        # 6 dB of gain and what the limiter makes up for, less what the compressor takes
        gain = (strip.loudness(one, rate) or 0) - (strip.loudness(dry, rate) or 0)
        assert 0 < gain < 15


def test_the_strip_takes_away_an_offset_and_keeps_the_sound_within_full_scale() -> None:
    dry, rate = recording.read(str(recording.BUNDLED))
    offset = np.float32(0.1)
    wet = strip.process(dry + offset, rate, 256)
    assert abs(float((dry + offset)[:, rate:].mean())) > 0.09
    assert abs(float(wet[:, rate:].mean())) < 0.001
    assert strip.peak(dry * 8) > 5
    assert strip.peak(strip.process(dry * 8, rate, 256)) <= 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--audio", "nowhere.wav"), "nowhere.wav: no such file"),
        (("--audio", "README.md"), "cannot be read as audio"),
        (("--set", "volume=11"), "no knob 'volume'; there are block_size, batch_size, threads"),
        (("--set", "block_size=1"), "block_size: 1 is outside [64, 16384]"),
        (("--set", "threads=many"), "'many' is no whole number"),
        (("--piece", "0.1"), "0.4 seconds, which loudness needs"),
        (("--seconds", "0"), "seconds above 0"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(arguments: tuple[str, ...], said: str) -> None:
    done = mixer(*arguments, code=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_knobs_are_those_of_the_steps_themselves() -> None:
    try:
        threads.set(3)
        batch_size.set(7)
        assert (app.steps["level"].concurrency, app.steps["measure"].max_size) == (3, 7)
    finally:
        threads.set(threads.default)
        batch_size.set(batch_size.default)
