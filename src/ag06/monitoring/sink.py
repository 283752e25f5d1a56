"""Where log lines go: a bounded queue, and one thread that writes it out. A slow or dead reader never slows a step."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import select
import stat
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

MOST_LINES = 10_000
MOST_BYTES = 16 * 2**20
_CHUNK = 65_536
_ATOMIC = select.PIPE_BUF
"""Bytes that a pipe takes in one piece, whoever else writes into it."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)

Notice = Callable[[int], bytes]
"""Returns the line that says how many lines were dropped."""


def descriptor_of(stream: IO[Any]) -> int | None:
    """Return the file descriptor of a stream, `None` for one in memory or closed."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


class Sink:
    """Writes lines to the file descriptor behind a stream, from a thread that starts with the first line.

    While the queue is full, lines are dropped and counted; one of level error or above takes the place of the oldest
    one below. When the reader is back a single line says how many are missing.

    Attributes:
        dropped: lines that were never written.
        closed: whether what comes now is written at once or not at all.
    """

    def __init__(
        self, stream: IO[Any], *, lines: int = MOST_LINES, size: int = MOST_BYTES, notice: Notice | None = None
    ) -> None:
        """Write to `stream`, which must have a file descriptor; hold at most `lines` lines and `size` bytes of them."""
        self.dropped = 0
        self._most_lines, self._most_bytes, self._notice = lines, size, notice
        # A copy: the stream may be closed by its owner, and its number may then be some other file's.
        self._descriptor = os.dup(stream.fileno())
        found = os.fstat(self._descriptor)
        self._file = (found.st_dev, found.st_ino)
        self._shared = not stat.S_ISREG(found.st_mode)
        self._begin()
        _sinks.add(self)

    def _begin(self) -> None:
        # Reentrant: a signal handler, or a finalizer that the garbage collector runs, may log while this thread does.
        self._lock = threading.RLock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        self._lines: deque[tuple[int, bytes]] = deque()
        self._urgent: deque[tuple[int, bytes]] = deque()
        self._held = 0
        self._taken = 0
        self._number = 0
        self._reported = self.dropped
        self._idle = self._closing = self.closed = False
        self._thread: threading.Thread | None = None

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            self._check()
            os.close(self._descriptor)

    def forked(self) -> None:
        """Start anew in a child process: what is queued, and the thread, are the parent's."""
        self.dropped = 0
        self._begin()

    def write(self, line: bytes, urgent: bool = False) -> None:
        """Take a line, with its newline; when there is no room `urgent` ones come first. Never waits for a reader."""
        size = len(line)
        with self._lock:
            if self.closed:
                self._write_at_once(line)
                return
            if not self._has_room(size) and not (urgent and self._make_room(size)):
                self.dropped += 1
                return
            self._number += 1
            (self._urgent if urgent else self._lines).append((self._number, line))
            self._held += size
            if self._idle:
                self._idle = False
                self._filled.notify()
            elif self._thread is None:
                self._start()

    def _has_room(self, size: int) -> bool:
        waiting = len(self._lines) + len(self._urgent)
        return waiting < self._most_lines and self._held + self._taken + size <= self._most_bytes

    def _make_room(self, size: int) -> bool:
        while self._lines and size <= self._most_bytes and not self._has_room(size):
            self._held -= len(self._lines.popleft()[1])
            self.dropped += 1
        return self._has_room(size)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ag06 log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            self.closed = True
            self._write_at_once(self._take())
            return
        _close_at_the_end_of_a_child(self)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until what was taken before is written, at most `timeout` seconds; return whether it is."""
        with self._lock:
            return self._emptied.wait_for(lambda: self.closed or not (self._held or self._taken), timeout)

    def retire(self) -> None:
        """End the thread once it has written what is left; do not wait for that."""
        with self._lock:
            self._closing = True
            self.closed = self.closed or self._thread is None
            self._filled.notify()

    def close(self, timeout: float = 2.0) -> bool:
        """Write what is left, at most for `timeout` seconds, and end the thread; return whether nothing was left over.

        Lines that come later are written at once where that takes no waiting, and dropped otherwise.
        """
        lost = self.dropped
        self.retire()
        if self._thread is not None:
            self._thread.join(timeout)
        with self._lock:
            self._drop_all()
            return self.dropped == lost and not self._taken

    def _drop_all(self) -> None:
        self.dropped += len(self._lines) + len(self._urgent)
        self._lines.clear()
        self._urgent.clear()
        self._held = 0
        self.closed = True

    def _take(self) -> bytes:
        """Return lines from the head of the queue, in the order they came, as many as are written in one piece."""
        taken: list[bytes] = []
        size, most = 0, _ATOMIC if self._shared else _CHUNK
        ordinary, urgent = self._lines, self._urgent
        while ordinary or urgent:
            queue = ordinary if not urgent or (ordinary and ordinary[0][0] < urgent[0][0]) else urgent
            line = queue[0][1]
            if taken and size + len(line) > most:
                break
            queue.popleft()
            taken.append(line)
            size += len(line)
        self._held -= size
        self._taken = size
        return b"".join(taken)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._taken = 0
                while not self._held and self.dropped == self._reported and not self._closing:
                    self._emptied.notify_all()
                    self._idle = True
                    self._filled.wait()
                self._idle = False
                if self.closed or (self._closing and not self._held):
                    self.closed = True
                    self._emptied.notify_all()
                    return
                chunk = self._take() or self._missing()
            if not self._write(chunk):
                with self._lock:
                    self.dropped += chunk.count(b"\n")
                    self._taken = 0
                    self._drop_all()
                    self._emptied.notify_all()
                return

    def _missing(self) -> bytes:
        missing, self._reported = self.dropped - self._reported, self.dropped
        return b"" if self._notice is None else self._notice(missing)

    def _write(self, chunk: bytes) -> bool:
        """Write all of `chunk`, however long that takes; return whether it was, before the end."""
        left, failures = memoryview(chunk), 0
        while left:
            try:
                with _alone(self._descriptor, self._shared):
                    while left:
                        left = left[self._write_some(left) :]
                        failures = 0
            except OSError:
                # A full disk may have room later, a pipe another reader. At the end nothing is worth waiting for.
                if self._closing:
                    return False
                time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
        return True

    def _write_some(self, left: memoryview) -> int:
        self._check()
        try:
            return os.write(self._descriptor, left)
        except BlockingIOError:  # somebody made it non-blocking, for us as well
            if not self._takes_more(1.0) and self._closing:
                raise
            return 0

    def _takes_more(self, timeout: float) -> bool:
        # Not select(), which knows no descriptor from 1,024 on.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(timeout * 1_000))

    def _check(self) -> None:
        """Raise unless the descriptor is the file it was: a daemon that closes all of them may have opened others."""
        found = os.fstat(self._descriptor)
        if (found.st_dev, found.st_ino) != self._file:
            raise OSError(errno.EBADF, "the descriptor of the log is another file's now")

    def _write_at_once(self, line: bytes) -> None:
        try:
            self._check()
            left = memoryview(line)
            while left:
                if self._shared and not self._takes_more(0):
                    raise BlockingIOError
                left = left[os.write(self._descriptor, left[:_ATOMIC]) :]
        except (OSError, ValueError):
            self.dropped += line.count(b"\n")


class StreamSink:
    """Writes each line at once to a stream that has no file descriptor: a notebook, a buffer in memory, a test.

    Attributes:
        dropped: lines that the stream did not take.
        closed: whether another sink has taken its place.
    """

    def __init__(self, stream: IO[Any] | None) -> None:
        """Write to `stream`; without one every line is dropped."""
        self.dropped = 0
        self.closed = False
        self._stream = stream
        self._lock = threading.RLock()
        _sinks.add(self)

    def forked(self) -> None:
        """Start anew in a child process."""
        self._lock = threading.RLock()

    def write(self, line: bytes, urgent: bool = False) -> None:
        """Write a line; `urgent` means nothing here."""
        with self._lock:
            try:
                if self._stream is None:
                    raise ValueError("there is no stream")
                try:
                    self._stream.write(line.decode())
                except TypeError:
                    self._stream.write(line)
                self._stream.flush()
            except Exception:  # noqa: BLE001 - the stream is foreign code, and whoever logs is not to blame for it
                self.dropped += 1

    def flush(self, timeout: float = 5.0) -> bool:
        """Return at once: nothing is held back."""
        return True

    def retire(self) -> None:
        """Count as closed; the stream is its owner's."""
        self.closed = True

    def close(self, timeout: float = 2.0) -> bool:
        """Do nothing: the stream is its owner's."""
        return True


def open_sink(stream: IO[Any] | None, notice: Notice | None = None) -> Sink | StreamSink:
    """Return the sink for a stream; `None` is a process without one."""
    if stream is None or descriptor_of(stream) is None:
        return StreamSink(stream)
    with suppress(OSError, ValueError):
        stream.flush()  # what was printed before comes before
    try:
        return Sink(stream, notice=notice)
    except OSError:  # no descriptor is left for a copy
        return StreamSink(stream)


class _alone:  # noqa: N801 - reads as a statement: with _alone(...)
    """Keep other processes that log in the same way out of a pipe they share: a long line goes in several pieces."""

    __slots__ = ("_descriptor", "_locked")

    def __init__(self, descriptor: int, shared: bool) -> None:
        self._descriptor = descriptor
        self._locked = shared

    def __enter__(self) -> None:
        if self._locked:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            except OSError:  # no such locks on this kind of file
                self._locked = False

    def __exit__(self, *_: object) -> None:
        if self._locked:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _close_at_the_end_of_a_child(sink: Sink) -> None:
    """Have `multiprocessing` close the sink in its children: they end without `atexit`."""
    if "multiprocessing.util" in sys.modules:
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(sink, sink.close, exitpriority=-100)


_sinks: weakref.WeakSet[Sink | StreamSink] = weakref.WeakSet()


def _close_all() -> None:
    for sink in list(_sinks):
        sink.close()


def _forked() -> None:
    for sink in list(_sinks):
        sink.forked()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forked)
