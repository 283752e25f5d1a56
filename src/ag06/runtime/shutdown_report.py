"""What a shutdown did with the work in flight, and the line of the log that reports it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

_logger = logging.getLogger("ag06.runtime")
_MOST_IDS = 10


class ShutdownCounts(msgspec.Struct):
    """Events that a worker held when its shutdown began; each counts once.

    Attributes:
        finished: their call ended, and the store took the result.
        given_back: given back to the store before a call took them up, or before the store had the result.
        cut_off: ids of those whose call was cancelled, or still runs in a thread; they were given back too.
        left: the store did not answer: other workers take them over after the visibility timeout.
    """

    finished: int = 0
    given_back: int = 0
    cut_off: list[str] = []
    left: int = 0


def total(counts: Iterable[ShutdownCounts]) -> ShutdownCounts:
    """Return the sum of the counts of several steps."""
    every = list(counts)
    return ShutdownCounts(
        finished=sum(one.finished for one in every),
        given_back=sum(one.given_back for one in every),
        cut_off=[event_id for one in every for event_id in one.cut_off],
        left=sum(one.left for one in every),
    )


def log_shutdown(workflow: str, counts: ShutdownCounts, journalled: int, seconds: float) -> None:
    """Log one line; a warning where calls were cut off or the store did not answer."""
    cut_off = f"{len(counts.cut_off)} cut off"
    if counts.cut_off:
        more = len(counts.cut_off) - _MOST_IDS
        ids = ", ".join(counts.cut_off[:_MOST_IDS]) + (f" and {more} more" if more > 0 else "")
        cut_off = f"{cut_off} ({ids})"
    left = f", {counts.left} left to their leases" if counts.left else ""
    _logger.log(
        logging.WARNING if counts.cut_off or counts.left else logging.INFO,
        "workflow %s stopped: %d finished, %d given back, %s, %d journalled%s, in %.1f s",
        workflow,
        counts.finished,
        counts.given_back,
        cut_off,
        journalled,
        left,
        seconds,
        extra={
            "workflow": workflow,
            "finished": counts.finished,
            "given_back": counts.given_back,
            "cut_off": len(counts.cut_off),
            "cut_off_ids": counts.cut_off[:_MOST_IDS],
            "journalled": journalled,
            "left": counts.left,
            "seconds": round(seconds, 3),
        },
    )
