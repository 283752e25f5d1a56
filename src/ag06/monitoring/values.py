"""Where numbers live: slots of 64-bit floats, in memory of this process or in a file that other processes read.

What a metric does when it counts is `cells[slot] += value`, and that loses nothing with threads: CPython with its
global lock changes threads at calls, at jumps backwards and at the start of a function, and none of these lies between
reading a cell and writing it. A build without that lock may lose counts of threads. No lock is taken here, so a signal
handler or a fork can never meet one that is held.
A cell is eight aligned bytes of shared memory, so it is whole in the file whenever a process is killed.
"""

from __future__ import annotations

import mmap
import os
from typing import TypeAlias

import msgspec

SLOT_BYTES = 8

Cells: TypeAlias = "memoryview[float]"


class Place(msgspec.Struct, frozen=True):
    """`cells[first]` and what follows belong to one label set; `position` is where `first` lies in the whole file."""

    cells: Cells
    first: int
    position: int


class Slots:
    """Slots of this process alone, all zero at first. They never move: whoever has a `Place` may keep it."""

    chunk_bytes = 4_096

    def __init__(self) -> None:
        """Start without memory; it comes in chunks."""
        self._chunk: Cells = memoryview(b"").cast("d")
        self._used = 0
        self._before = 0

    def take(self, count: int) -> Place:
        """Return a place of `count` slots; raise `OSError` where the file cannot grow."""
        if self._used + count > len(self._chunk):
            size = -(-count * SLOT_BYTES // self.chunk_bytes) * self.chunk_bytes
            start = self._before + len(self._chunk)
            self._chunk, self._used, self._before = self._grow(start * SLOT_BYTES, size), 0, start
        first = self._used
        self._used += count
        return Place(self._chunk, first, self._before + first)

    def _grow(self, start: int, size: int) -> Cells:
        return memoryview(bytearray(size)).cast("d")


class FileSlots(Slots):
    """Slots in the file behind `descriptor`, which is empty and stays open."""

    chunk_bytes = max(65_536, mmap.ALLOCATIONGRANULARITY)

    def __init__(self, descriptor: int) -> None:
        """Map the file piece by piece as it grows."""
        super().__init__()
        self._descriptor = descriptor

    def _grow(self, start: int, size: int) -> Cells:
        # Without blocks of its own, a page of a full disk would end the process with SIGBUS when it is first written.
        os.posix_fallocate(self._descriptor, start, size)
        return memoryview(mmap.mmap(self._descriptor, size, offset=start)).cast("d")
