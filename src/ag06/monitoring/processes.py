"""The numbers of one process where others can read them, exact even after SIGKILL.

Two files in a directory: `NAME.slots` holds the numbers, `NAME.index` says whose they are, one JSON line a label set,
written before the first event is counted there. The index is locked (`flock`) as long as its process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

import msgspec

from ag06.monitoring.children import UNSET
from ag06.monitoring.metrics import Home, Memory
from ag06.monitoring.names import Declaration
from ag06.monitoring.values import FileSlots, Place

INDEX, SLOTS = ".index", ".slots"

_logger = logging.getLogger("ag06.monitoring")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """Where the numbers of one label set begin. `declaration` comes with the first label set of a metric only."""

    name: str
    labels: tuple[str, ...]
    position: int
    declaration: Declaration | None = None


class ProcessFile:
    """The files of this process, as the home of a registry. Where the directory fails, counting goes on in memory."""

    def __init__(self, directory: Path) -> None:
        """Join the processes that count in `directory`, made if need be; raise `OSError` where that cannot be."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self.name, self._index = _create(directory)
        try:
            slots = os.open(directory / (self.name + SLOTS), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except BaseException:
            os.close(self._index)
            raise
        self._slots = FileSlots(slots)
        self._size = 0
        self._declared: set[str] = set()
        self._spare: Memory | None = None

    def place(self, declaration: Declaration, labels: tuple[str, ...]) -> Place:
        """Return slots, all zero, for one label set; they are in memory alone once the directory has failed."""
        if self._spare is None:
            try:
                return self._place(declaration, labels)
            except OSError as error:
                self._spare = Memory()
                _logger.warning(
                    "metrics in %s: %s; what this process counts under new label sets is missing from the sums of all",
                    self._directory,
                    error,
                )
        return self._spare.place(declaration, labels)

    def _place(self, declaration: Declaration, labels: tuple[str, ...]) -> Place:
        place = self._slots.take(declaration.width)
        if declaration.kind == "gauge":
            place.cells[place.first] = UNSET[declaration.aggregate]
        known = declaration.name in self._declared
        entry = Entry(declaration.name, labels, place.position, None if known else declaration)
        self._write(msgspec.json.encode(entry) + b"\n")
        self._declared.add(declaration.name)
        return place

    def _write(self, line: bytes) -> None:
        written = os.write(self._index, line)
        if written != len(line):
            os.ftruncate(self._index, self._size)
            raise OSError(f"the index took {written} of {len(line)} bytes")
        self._size += written

    def fresh(self) -> Home:
        """Return the home of a process that was just forked off: files of its own, or memory where that fails."""
        with contextlib.suppress(OSError):
            os.close(self._index)  # the lock stays with the parent, and ends with it
        return join(self._directory)


def join(directory: Path) -> Home:
    """Return a home in `directory`; in memory, with a warning, where the directory cannot be used."""
    try:
        return ProcessFile(directory)
    except OSError as error:
        _logger.warning("metrics in %s: %s; what this process counts is missing from the sums of all", directory, error)
        return Memory()


def _create(directory: Path) -> tuple[str, int]:
    """Create an index that nobody else holds; return its name and the locked descriptor."""
    while True:
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        path = directory / (name + INDEX)
        index = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if lock(index, path):
            return name, index
        os.close(index)  # whoever clears up was quicker


def lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Whether the lock of an open file could be had at once, and the file is still the one at `path`.

    A `shared` one can be had by many, but not while its process lives.
    """
    try:
        return _flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX) and (
            os.stat(path).st_ino == os.fstat(descriptor).st_ino
        )
    except FileNotFoundError:
        return False


def is_free(descriptor: int) -> bool:
    """Whether the process of an open index is gone; takes a shared lock of it."""
    return _flock(descriptor, fcntl.LOCK_SH)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
