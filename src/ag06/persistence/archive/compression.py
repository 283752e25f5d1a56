"""How hard the archive compresses: a knob, read as each segment begins."""

from __future__ import annotations

from ag06.knob import Knob


def compression_level() -> Knob:
    """Return the level of zstd, 1 to 19: each takes longer than the one before, and leaves fewer bytes."""
    return Knob("archive_compression", low=1, high=19, default=3, integer=True)
