"""Event ids: UUIDv7 (RFC 9562, section 5.7), fresh ones and ones derived from a parent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import blake2b

_VERSION_7 = 0x7000
_VARIANT = 0x8000


def _format(high48: int, mid16: int, low64: int) -> str:
    text = f"{high48:012x}{mid16:04x}{low64:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class IdSource:
    """Makes UUIDv7 ids that never decrease within one source, not even when the clock is set back.

    The 12 bits behind the version count up within a millisecond (RFC 9562, section 6.2, method 1), the last 62 bits
    are random. Randomness is drawn from the system for 256 ids at a time, and thrown away after a fork.
    """

    def __init__(self, clock: Callable[[], float] = time.time, entropy: Callable[[int], bytes] = os.urandom) -> None:
        """Take the clock (seconds since the epoch) and the source of random bytes, so that tests own both."""
        self._clock = clock
        self._entropy = entropy
        self._millis = 0
        self._counter = 0
        self._pool: list[int] = []

    def forget(self) -> None:
        """Drop prefetched randomness: two processes after a fork must not share it."""
        self._pool = []

    def __call__(self) -> str:
        """Return the next id as 36 characters of lower-case text."""
        millis = int(self._clock() * 1000)
        if millis > self._millis:
            self._millis, self._counter = millis, 0
        else:
            self._counter += 1
            if self._counter > 0xFFF:  # the millisecond is full: borrow the next one
                self._millis += 1
                self._counter = 0
        try:
            random = self._pool.pop()
        except IndexError:
            raw = self._entropy(256 * 8)
            mask = (1 << 62) - 1
            self._pool = [int.from_bytes(raw[i : i + 8]) & mask for i in range(0, len(raw), 8)]
            random = self._pool.pop()
        return _format(self._millis, _VERSION_7 | self._counter, (_VARIANT << 48) | random)


new_id = IdSource()
os.register_at_fork(after_in_child=new_id.forget)


def derived_id(parent_id: str, step: str, ordinal: int, millis: int) -> str:
    """Return the id of output number `ordinal` of `step` for the event `parent_id`: the same at every run.

    It has the form of a UUIDv7 whose time is `millis` (milliseconds since the epoch, the parent's recorded time), and
    whose random bits are BLAKE2b of the three parts.
    """
    digest = blake2b(f"{parent_id}\x00{step}\x00{ordinal}".encode(), digest_size=10).digest()
    number = int.from_bytes(digest)
    return _format(
        millis & ((1 << 48) - 1),
        _VERSION_7 | (number >> 68 & 0xFFF),
        (_VARIANT << 48) | (number & ((1 << 62) - 1)),
    )
