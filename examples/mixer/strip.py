"""The channel strip and the meter: what is done to one piece of audio."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyloudnorm
from pedalboard import Compressor, Gain, HighpassFilter, Limiter, Pedalboard

Audio = npt.NDArray[np.float32]
"""Samples of shape (channels, frames), full scale at 1.0."""

SHORTEST = 0.4
"""Seconds that loudness is defined for at least: one gating block of ITU-R BS.1770-4."""


def channel_strip() -> Pedalboard:
    """Return a strip at rest: high-pass, compressor, gain, limiter. One strip serves one thread."""
    return Pedalboard(
        [
            HighpassFilter(cutoff_frequency_hz=80),
            Compressor(threshold_db=-24, ratio=3, attack_ms=5, release_ms=120),
            Gain(gain_db=6),
            Limiter(threshold_db=-1, release_ms=100),
        ]
    )


def process(audio: Audio, rate: int, block_size: int) -> Audio:
    """Return `audio` (at `rate` samples a second) through a strip at rest, `block_size` samples at a time.

    The blocks are those of a mixer that plays while it works: each is done before the next is looked at. Every part of
    the strip works sample by sample, so the sound does not depend on the size of the blocks.
    """
    strip = channel_strip()
    # The same buffer_size all along, for the shorter block at the end too: another one would put the strip at rest.
    blocks = [
        strip(audio[:, start : start + block_size], rate, buffer_size=block_size, reset=False)
        for start in range(0, audio.shape[1], block_size)
    ]
    return np.concatenate(blocks, axis=1)


def loudness(audio: Audio, rate: int) -> float | None:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4); `None` where all is below its gate of -70 LUFS."""
    measured = float(pyloudnorm.Meter(rate).integrated_loudness(audio.T))
    return measured if math.isfinite(measured) else None


def peak(audio: Audio) -> float:
    """Return the largest magnitude of a sample; 1.0 is full scale."""
    return float(np.abs(audio).max(initial=0.0))
