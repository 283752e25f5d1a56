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
from array import array
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from ag06.monitoring.children import Sample, exemplars_in
from ag06.monitoring.exemplar import Exemplar
from ag06.monitoring.exposition import finished
from ag06.monitoring.metrics import MOST_CHILDREN, Home, Reading
from ag06.monitoring.names import OTHER, Declaration
from ag06.monitoring.processes import INDEX, SLOTS, Entry, is_free, join, lock
from ag06.monitoring.values import SLOT_BYTES

_logger = logging.getLogger("ag06.monitoring")

_PAST, _FOLDING, _NEXT = "past.json", "folding.lock", "past.next"
_MOST_READINGS = 20
_INDEX_BYTES = 32_768
"""How much of an index is read in one go; more than its longest line."""
_STRIDE = 64
"""How many label sets are merged between two turns of the event loop that may be asked for."""

Work: TypeAlias = Generator[None, None, None]
_Labels: TypeAlias = tuple[str, ...]
_Places: TypeAlias = list[tuple[_Labels, int]]
_Exemplars: TypeAlias = tuple[Exemplar | None, ...]


class Folded(msgspec.Struct, frozen=True):
    """What dead processes counted in one metric; labels and numbers of each label set are decoded when needed."""

    declaration: Declaration
    children: msgspec.Raw


class Past(msgspec.Struct, frozen=True):
    """What dead processes counted. The files of those in `names` may still be there; they are in here already."""

    names: list[str] = []
    families: list[Folded] = []


class Sum:
    """Numbers added up over processes, in one array: thousands of small objects would call the garbage collector."""

    def __init__(self, contradictions: set[str]) -> None:
        """Start with nothing; add to `contradictions` the metrics that processes declare differently."""
        self._contradictions = contradictions
        self._families: dict[str, tuple[Declaration, dict[_Labels, int]]] = {}
        self._cells = array("d")
        self._exemplars: dict[int, _Exemplars] = {}

    def places(self, declaration: Declaration) -> dict[_Labels, int] | None:
        """Return where the label sets of a metric are added up; `None` if it cannot be added to the others."""
        known, places = self._families.setdefault(declaration.name, (declaration, {}))
        if known.same_as(declaration):
            return places
        if known.name not in self._contradictions:
            self._contradictions.add(known.name)
            _logger.warning("metric %s: declared as %r and as %r; the first counts", known.name, known, declaration)
        return None

    def add(
        self,
        places: dict[_Labels, int],
        declaration: Declaration,
        labels: _Labels,
        numbers: Sequence[float],
        first: int = 0,
    ) -> int:
        """Add the `numbers` from `first` on to those of a label set, or of `other` if it is one too many.

        Return where they are now.
        """
        cells, count = self._cells, declaration.numbers
        if labels not in places and len(places) >= MOST_CHILDREN:
            labels = (OTHER,) * len(labels)
        start = places.get(labels)
        if start is None:
            start = places[labels] = len(cells)
            cells.extend(numbers[first : first + count])
        elif declaration.aggregate == "sum":
            for index in range(count):
                cells[start + index] += numbers[first + index]
        else:
            cells[start] = (max if declaration.aggregate == "max" else min)(cells[start], numbers[first])
        return start

    def add_exemplars(self, start: int, exemplars: _Exemplars) -> None:
        """Keep the later exemplar of each bucket of the label set at `start`."""
        known = self._exemplars.get(start)
        self._exemplars[start] = tuple(map(_later, known, exemplars)) if known else exemplars

    def reading(self) -> Reading:
        """Return every metric with its sums."""
        return ((declaration, self._samples(declaration, places)) for declaration, places in self._families.values())

    def _samples(self, declaration: Declaration, places: dict[_Labels, int]) -> Iterator[Sample]:
        for labels, start in places.items():
            numbers = self._cells[start : start + declaration.numbers]
            yield Sample(labels, numbers, self._exemplars.get(start, ()))

    def folded(self) -> Generator[None, None, list[Folded]]:
        """Return the sums as they are kept in `past.json`."""
        families = []
        for declaration, samples in self.reading():
            children = [(sample.labels, list(sample.numbers)) for sample in samples]
            families.append(Folded(declaration, msgspec.Raw(msgspec.json.encode(children))))
            yield
        return families


def _later(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return one if one.time >= other.time else other


class _Index:
    """What the index of one process says so far; it only grows, so each line is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = 0
        self._families: dict[str, tuple[Declaration, _Places]] = {}

    def update(self, descriptor: int) -> bool:
        """Take in some of the lines that were added, and say whether there are more; one in the making has to wait."""
        with self._lock:
            added = os.pread(descriptor, _INDEX_BYTES, self._read)
            complete = added[: added.rfind(b"\n") + 1]
            for line in complete.splitlines():
                entry = msgspec.json.decode(line, type=Entry)
                if entry.declaration is not None:
                    self._families[entry.name] = (entry.declaration, [])
                self._families[entry.name][1].append((entry.labels, entry.position))
            self._read += len(complete)
            return len(added) == _INDEX_BYTES

    def families(self) -> list[tuple[Declaration, _Places]]:
        """Return each metric with the label sets known so far."""
        with self._lock:
            return [(declaration, places[:]) for declaration, places in self._families.values()]


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
                yield from self._add_process(total, name, index, dead=is_free(index))

    def _add_process(self, total: Sum, name: str, descriptor: int, *, dead: bool) -> Work:
        index = self._indexes.setdefault(name, _Index())
        while index.update(descriptor):
            yield
        families = index.families()
        try:
            numbers = memoryview((self._directory / (name + SLOTS)).read_bytes()).cast("d")
        except FileNotFoundError:
            if families:
                raise
            return  # its process ended, or is just beginning
        for declaration, places in families:
            sums = None if dead and declaration.kind == "gauge" else total.places(declaration)
            if sums is None:
                continue
            for count, (labels, position) in enumerate(places, 1):
                start = total.add(sums, declaration, labels, numbers, position)
                if declaration.exemplars:
                    total.add_exemplars(start, _exemplars(numbers, declaration, position))
                if not count % _STRIDE:
                    yield
            yield

    def fold(self) -> Work:
        """Add what dead processes counted to `past.json` and remove their files; only one process does so at a time."""
        with contextlib.ExitStack() as look:
            if not self._claim_dead(look):
                return
        with contextlib.ExitStack() as open_files:
            folding = open_files.enter_context(_opened(self._directory / _FOLDING, os.O_CREAT | os.O_RDWR))
            if not lock(folding, self._directory / _FOLDING):
                return
            dead = self._claim_dead(open_files)  # another one may have folded some of them since that look
            past = self._past()
            new = {name: index for name, index in dead.items() if name not in past.names}
            if new:
                total = Sum(self._contradictions)
                yield from _add_past(total, past)
                for name, index in new.items():
                    yield from self._add_process(total, name, index, dead=True)
                families = yield from total.folded()
                left = [name for name in past.names if name in self._names()]
                self._replace_past(Past([*left, *new], families))
            for name in dead:
                for suffix in (SLOTS, INDEX):  # as long as there is an index, its name stays in the past
                    self._remove(self._directory / (name + suffix))

    def _claim_dead(self, open_files: contextlib.ExitStack) -> dict[str, int]:
        """Return the locked index of each process that is gone, by name.

        The lock is a shared one: to others who read meanwhile these processes must not look alive.
        """
        dead: dict[str, int] = {}
        for name in self._names():
            path = self._directory / (name + INDEX)
            with contextlib.ExitStack() as attempt:
                try:
                    index = attempt.enter_context(_opened(path))
                except FileNotFoundError:
                    continue
                if lock(index, path, shared=True):
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

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

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
        sums = total.places(family.declaration)
        if sums is not None:
            children = msgspec.json.decode(family.children, type=list[tuple[_Labels, list[float]]])
            yield
            for count, (labels, numbers) in enumerate(children, 1):
                total.add(sums, family.declaration, labels, numbers)
                if not count % _STRIDE:
                    yield
        yield


def _exemplars(slots: memoryview[float], declaration: Declaration, position: int) -> _Exemplars:
    first, end = position + declaration.numbers, position + declaration.width
    return exemplars_in(slots.cast("B")[first * SLOT_BYTES : end * SLOT_BYTES].tobytes())


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor, process = os.open(path, flags | os.O_CLOEXEC, 0o600), os.getpid()
    try:
        yield descriptor
    finally:
        if process == os.getpid():  # a child forked meanwhile shares the lock: it must not end there, nor last as long
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
