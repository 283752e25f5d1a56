"""Event ids: UUIDv7 (RFC 9562, section 5.7), fresh ones and ones derived from a parent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import blake2b

_VERSION_7 = 0x7000
_VARIANT = 0x8000
_VARIANT_DIGITS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


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
        self._head = ""
        self._tails: list[str] = []

    def forget(self) -> None:
        """Drop prefetched randomness: two processes after a fork must not share it."""
        self._tails = []

    def __call__(self) -> str:
        """Return the next id as 36 characters of lower-case text."""
        millis = int(self._clock() * 1000)
        if millis > self._millis:
            self._begin(millis)
        else:
            self._counter += 1
            if self._counter > 0xFFF:  # the millisecond is full: borrow the next one
                self._begin(self._millis + 1)
        try:
            tail = self._tails.pop()
        except IndexError:
            self._tails = self._draw()
            tail = self._tails.pop()
        return f"{self._head}{self._counter:03x}{tail}"

    def _begin(self, millis: int) -> None:
        """Write what the ids of one millisecond have in common."""
        text = f"{millis:012x}"
        self._millis, self._counter, self._head = millis, 0, f"{text[:8]}-{text[8:]}-7"

    def _draw(self) -> list[str]:
        """Return the last two groups of 256 ids: the variant in two bits, 62 random ones."""
        digits = self._entropy(256 * 8).hex()
        return [
            f"-{_VARIANT_DIGITS[digits[at]]}{digits[at + 1 : at + 4]}-{digits[at + 4 : at + 16]}"
            for at in range(0, len(digits), 16)
        ]


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
