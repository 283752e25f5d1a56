"""The metrics of all processes of a directory as one: each count once, whether its process lives or is dead.

What dead processes counted is folded into one file, `past.json`, which names them: a crash between writing it and
removing their files counts nothing twice, and one before it loses nothing. Readers take no lock: they read again where
`past.json` changed meanwhile. Work comes as generators, so that an event loop can be given its turn in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from ag06.monitoring.children import Sample, exemplars_in
from ag06.monitoring.exemplar import Exemplar
from ag06.monitoring.exposition import finished
from ag06.monitoring.metrics import MOST_CHILDREN, Home, Reading
from ag06.monitoring.names import OTHER, Declaration
from ag06.monitoring.processes import INDEX, SLOTS, Entry, join, lock
from ag06.monitoring.values import SLOT_BYTES

_logger = logging.getLogger("ag06.monitoring")

_PAST, _FOLDING, _NEXT = "past.json", "folding.lock", "past.next"
_MOST_READINGS = 20
_STRIDE = 64
"""How many label sets are merged between two turns of the event loop that may be asked for."""

Work: TypeAlias = Generator[None, None, None]
_Places: TypeAlias = list[tuple[tuple[str, ...], int]]


class Folded(msgspec.Struct, frozen=True):
    """What dead processes counted in one metric."""

    declaration: Declaration
    children: list[tuple[tuple[str, ...], list[float]]]


class Past(msgspec.Struct, frozen=True):
    """What dead processes counted. The files of those in `names` may still be there; they are in here already."""

    names: list[str] = []
    families: list[Folded] = []


class Sum:
    """Numbers added up over processes."""

    def __init__(self, contradictions: set[str]) -> None:
        """Start with nothing; add to `contradictions` the metrics that processes declare differently."""
        self._contradictions = contradictions
        self._families: dict[str, tuple[Declaration, dict[tuple[str, ...], Sample]]] = {}

    def children(self, declaration: Declaration) -> dict[tuple[str, ...], Sample] | None:
        """Return where the label sets of a metric are added up; `None` if it cannot be added to the others."""
        known, children = self._families.setdefault(declaration.name, (declaration, {}))
        if not known.same_as(declaration):
            if declaration.name not in self._contradictions:
                self._contradictions.add(declaration.name)
                _logger.warning("metric %s: declared as %r and as %r; the first counts", known.name, known, declaration)
            return None
        return children

    def reading(self) -> Reading:
        """Return every metric with its sums."""
        return ((declaration, children.values()) for declaration, children in self._families.values())

    def folded(self) -> list[Folded]:
        """Return the sums as they are kept in `past.json`."""
        return [
            Folded(declaration, [(sample.labels, list(sample.numbers)) for sample in children.values()])
            for declaration, children in self._families.values()
        ]


def add(children: dict[tuple[str, ...], Sample], declaration: Declaration, sample: Sample) -> None:
    """Add a label set to those of its metric; one too many is added to `other`."""
    key = sample.labels
    if key not in children and len(children) >= MOST_CHILDREN:
        key = (OTHER,) * len(key)
    known = children.get(key)
    if known is None:
        children[key] = sample if key == sample.labels else msgspec.structs.replace(sample, labels=key)
        return
    if declaration.aggregate == "sum":
        numbers = [one + other for one, other in zip(known.numbers, sample.numbers, strict=True)]
    else:
        numbers = [(max if declaration.aggregate == "max" else min)(known.numbers[0], sample.numbers[0])]
    exemplars = sample.exemplars
    if known.exemplars and exemplars:
        exemplars = tuple(map(_later, known.exemplars, exemplars))
    children[key] = Sample(key, numbers, exemplars or known.exemplars)


def _later(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return one if one.time >= other.time else other


class _Index:
    """What the index of one process says so far; it only grows, so each line is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = 0
        self.families: dict[str, tuple[Declaration, _Places]] = {}

    def update(self, descriptor: int) -> list[tuple[Declaration, _Places]]:
        """Take in the lines that were added, and return all; a line that is not complete stays for the next time."""
        with self._lock:
            added = os.pread(descriptor, os.fstat(descriptor).st_size - self._read, self._read)
            complete = added[: added.rfind(b"\n") + 1]
            for line in complete.splitlines():
                entry = msgspec.json.decode(line, type=Entry)
                if entry.declaration is not None:
                    self.families[entry.name] = (entry.declaration, [])
                self.families[entry.name][1].append((entry.labels, entry.position))
            self._read += len(complete)
            return [(declaration, places[:]) for declaration, places in self.families.values()]


class ProcessGroup:
    """All processes that count in one directory, living and dead."""

    def __init__(self, directory: Path) -> None:
        """Read what is in `directory`; nothing is opened before it is asked for."""
        self._directory = directory
        self._process = os.getpid()
        self._indexes: dict[str, _Index] = {}
        self._contradictions: set[str] = set()

    def merge(self) -> Generator[None, None, Reading]:
        """Fold what is dead, then return the metrics of all processes; raise `OSError` where they cannot be read."""
        if self._process != os.getpid():  # a lock may have been held while the parent forked
            self._process, self._indexes = os.getpid(), {}
        try:
            yield from self.fold()
        except OSError as error:
            _logger.warning("metrics in %s: %s; the files of ended processes stay for now", self._directory, error)
        for _ in range(_MOST_READINGS):
            version = self._version()
            total = Sum(self._contradictions)
            try:
                yield from self._add_all(total)
            except FileNotFoundError:  # folded meanwhile
                continue
            if version == self._version():
                return total.reading()
        raise OSError(f"{self._directory}: processes die faster than their metrics can be read; read again later")

    def _add_all(self, total: Sum) -> Work:
        past = self._past()
        yield from _add_past(total, past)
        names = self._names()
        for gone in self._indexes.keys() - set(names):
            self._indexes.pop(gone, None)
        for name in names:
            if name in past.names:
                continue
            with _opened(self._directory / (name + INDEX)) as index:
                yield from self._add_process(total, name, index, dead=_is_free(index))

    def _add_process(self, total: Sum, name: str, descriptor: int, *, dead: bool) -> Work:
        families = self._indexes.setdefault(name, _Index()).update(descriptor)
        try:
            numbers = memoryview((self._directory / (name + SLOTS)).read_bytes()).cast("d")
        except FileNotFoundError:
            if families:
                raise
            return  # its process ended, or is just beginning
        for declaration, places in families:
            children = None if dead and declaration.kind == "gauge" else total.children(declaration)
            if children is None:
                continue
            for count, (labels, position) in enumerate(places, 1):
                add(children, declaration, _sample(numbers, declaration, labels, position))
                if not count % _STRIDE:
                    yield
            yield

    def fold(self) -> Work:
        """Add what dead processes counted to `past.json` and remove their files; only one process does so at a time."""
        with contextlib.ExitStack() as open_files:
            dead = self._claim_dead(open_files)
            if not dead:
                return
            folding = open_files.enter_context(_opened(self._directory / _FOLDING, os.O_CREAT | os.O_RDWR))
            if not lock(folding, self._directory / _FOLDING):
                return
            past = self._past()
            new = {name: index for name, index in dead.items() if name not in past.names}
            if new:
                total = Sum(self._contradictions)
                yield from _add_past(total, past)
                for name, index in new.items():
                    yield from self._add_process(total, name, index, dead=True)
                left = [name for name in past.names if name in self._names()]
                self._replace_past(Past([*left, *new], total.folded()))
            for name in dead:
                for suffix in (SLOTS, INDEX):
                    (self._directory / (name + suffix)).unlink(missing_ok=True)

    def _claim_dead(self, open_files: contextlib.ExitStack) -> dict[str, int]:
        """Return the locked index of each process that is gone, by name."""
        dead: dict[str, int] = {}
        for name in self._names():
            path = self._directory / (name + INDEX)
            with contextlib.ExitStack() as attempt:
                try:
                    index = attempt.enter_context(_opened(path))
                except FileNotFoundError:
                    continue
                if lock(index, path):
                    dead[name] = index
                    open_files.push(attempt.pop_all())
        return dead

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(INDEX) for name in found if name.endswith(INDEX))

    def _version(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._directory / _PAST)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _past(self) -> Past:
        path = self._directory / _PAST
        try:
            return msgspec.json.decode(path.read_bytes(), type=Past)
        except FileNotFoundError:
            return Past()
        except msgspec.DecodeError as error:
            _logger.warning("%s: %s; what ended processes had counted is lost", path, error)
            return Past()

    def _replace_past(self, past: Past) -> None:
        new = self._directory / _NEXT
        new.write_bytes(msgspec.json.encode(past))
        new.replace(self._directory / _PAST)


def join_group(directory: Path) -> Home:
    """Return a home in `directory`, once what ended processes left there is folded: files must not pile up unread."""
    home = join(directory)
    with contextlib.suppress(OSError):  # `join` has warned of a directory that is of no use
        finished(ProcessGroup(directory).fold())
    return home


def _add_past(total: Sum, past: Past) -> Work:
    for family in past.families:
        children = total.children(family.declaration)
        if children is not None:
            for count, (labels, numbers) in enumerate(family.children, 1):
                add(children, family.declaration, Sample(labels, numbers))
                if not count % _STRIDE:
                    yield
        yield


def _sample(slots: memoryview[float], declaration: Declaration, labels: tuple[str, ...], position: int) -> Sample:
    numbers = slots[position : position + declaration.numbers].tolist()
    if not declaration.exemplars:
        return Sample(labels, numbers)
    end = (position + declaration.width) * SLOT_BYTES
    records = slots.cast("B")[(position + declaration.numbers) * SLOT_BYTES : end].tobytes()
    return Sample(labels, numbers, exemplars_in(records))


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor, process = os.open(path, flags | os.O_CLOEXEC, 0o600), os.getpid()
    try:
        yield descriptor
    finally:
        if process == os.getpid():  # a child forked meanwhile shares the lock: it must not end there, nor last as long
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
