"""Where lines go: bounded, in order, whole, and never a wait for whoever says them."""

from __future__ import annotations

import errno
import io
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from ag06.monitoring import logs
from ag06.monitoring.log_pipe import PIPE
from ag06.monitoring.sink import Sink, StreamSink, open_sink

# From Python 3.12 on a fork beside threads is warned of; the sink is made for it.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Pipe:
    """Both ends of a pipe; what is read is kept."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.read = os.fdopen(read, "rb", buffering=0)
        self.write = os.fdopen(write, "wb", buffering=0)
        self.got = b""

    def until(self, done: Callable[[bytes], bool]) -> bytes:
        while not done(self.got):
            self.got += self.read.read(65_536) or b""
        return self.got

    def close(self) -> None:
        self.read.close()
        self.write.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def filled(pipe: Pipe) -> None:
    """Leave no room in the pipe, as a reader does that reads no more."""
    descriptor = pipe.write.fileno()
    os.set_blocking(descriptor, False)
    try:
        for piece in (65_536, 4_096, 1):
            while True:
                try:
                    os.write(descriptor, b"." * piece)
                except BlockingIOError:
                    break
    finally:
        os.set_blocking(descriptor, True)


def line(number: int, size: int = 20) -> bytes:
    return f"{number}".encode().rjust(size - 1, b"_") + b"\n"


def numbers_in(raw: bytes) -> list[int]:
    return [int(row.lstrip(b"_")) for row in raw.splitlines() if row.lstrip(b"_").isdigit()]


def notice(count: int) -> bytes:
    return f"missing {count}\n".encode()


def test_lines_come_out_whole_and_in_order_urgent_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        sink = Sink(file)
        for number in range(5_000):
            sink.write(line(number), urgent=number % 3 == 0)
        assert sink.flush()
        assert sink.close()
    assert numbers_in(path.read_bytes()) == list(range(5_000))
    assert sink.dropped == 0


def test_lines_of_many_threads_and_of_every_length_are_never_torn(pipe: Pipe) -> None:
    sink = Sink(pipe.write)
    sizes = (20, 300, 4_096, 4_097, 70_000)

    def say(letter: str) -> None:
        for number in range(200):
            sink.write((f"{letter}{number:04}" + letter * sizes[number % len(sizes)] + "\n").encode())

    threads = [threading.Thread(target=say, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    rows = pipe.until(lambda got: got.count(b"\n") == 800).decode().splitlines()
    for thread in threads:
        thread.join(10)
    assert sink.close()
    for letter in "abcd":
        mine = [row for row in rows if row[0] == letter]
        assert [int(row[1:5]) for row in mine] == list(range(200))
        assert all(set(row[5:]) == {letter} and len(row) == 5 + sizes[i % len(sizes)] for i, row in enumerate(mine))


@FORKS
def test_lines_of_processes_that_share_a_pipe_are_never_torn(pipe: Pipe) -> None:
    children = []
    for letter in "abcd":
        child = os.fork()
        if child == 0:
            sink = Sink(pipe.write)
            for number in range(100):
                sink.write((f"{letter}{number:04}" + letter * (10 if number % 2 else 30_000) + "\n").encode())
            os._exit(0 if sink.close(60.0) else 1)
        children.append(child)
    rows = pipe.until(lambda got: got.count(b"\n") == 400).decode().splitlines()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert all(len(set(row) - set("0123456789")) == 1 for row in rows)
    assert sorted(len(row) for row in rows) == [15] * 200 + [30_005] * 200


def test_nobody_waits_for_a_reader_that_does_not_read_and_what_is_missing_is_counted_and_told(pipe: Pipe) -> None:
    filled(pipe)
    before = 65_536
    sink = Sink(pipe.write, lines=100, notice=notice)
    sink.write(line(0))
    wait_for(lambda: sink._taken > 0)  # the thread holds it, and waits for the reader
    for number in range(1, 1_001):
        sink.write(line(number))  # a hang here is the failure
    dropped = sink.dropped
    assert dropped == 900
    assert not sink.flush(0.01)
    got = pipe.until(lambda got: b"missing" in got)[before:]
    kept = numbers_in(got)
    assert kept == list(range(101))  # what came first is kept, in order
    assert got.endswith(notice(dropped))
    sink.write(line(5_000))
    pipe.until(lambda got: got.endswith(line(5_000)))
    assert sink.close()
    assert pipe.got.count(b"missing") == 1
    assert sink.dropped == dropped


def test_an_error_takes_the_place_of_the_oldest_line_below_it_when_there_is_no_room(pipe: Pipe) -> None:
    filled(pipe)
    sink = Sink(pipe.write, lines=50)
    sink.write(b"first\n")
    wait_for(lambda: sink._taken > 0)  # the thread holds it, and waits for the reader
    for number in range(60):
        sink.write(line(number))
    for number in range(100, 170):
        sink.write(line(number), urgent=True)
    sink.write(line(999))
    assert sink.dropped == 10 + 50 + 20 + 1
    got = pipe.until(lambda got: got.endswith(line(149)))
    assert numbers_in(got[65_536:]) == list(range(100, 150))
    assert sink.close()


def test_the_queue_is_bounded_in_bytes_as_well(pipe: Pipe) -> None:
    filled(pipe)
    sink = Sink(pipe.write, size=100_000)
    for number in range(1_000):
        sink.write(line(number, 1_000))
        assert sink._held + sink._taken <= 100_000
    assert sink.dropped == 900
    sink.write(b"x" * 100_001, urgent=True)  # makes no room: it would never fit
    assert sink.dropped == 901
    pipe.until(lambda got: got.count(b"\n") == 100)
    assert sink.close()


def test_a_full_disk_keeps_lines_until_there_is_room_or_the_end() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink = Sink(full, lines=10)
        for number in range(30):
            sink.write(line(number))
        assert not sink.flush(0.2)
        assert not sink.close()
    assert sink.dropped == 30
    sink.write(line(31))
    assert sink.dropped == 31


def test_a_reader_that_went_away_harms_nobody(pipe: Pipe) -> None:
    sink = Sink(pipe.write, lines=10)
    pipe.read.close()
    for number in range(30):
        sink.write(line(number))
    assert not sink.close()
    assert sink.dropped == 30


def test_a_disk_that_was_full_gets_every_line_once_it_has_room(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = os.write, threading.Event()
    full.set()

    def write(descriptor: int, data: Any) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, "no space")
        return real(descriptor, data[:7])  # and then a few bytes at a time

    sink = Sink(pipe.write)
    monkeypatch.setattr("ag06.monitoring.sink.os.write", write)
    for number in range(50):
        sink.write(line(number))
    assert not sink.flush(0.05)
    full.clear()
    assert numbers_in(pipe.until(lambda got: got.count(b"\n") == 50)) == list(range(50))
    assert sink.close()


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.write.fileno(), False)
    sink = Sink(pipe.write)
    for number in range(9_000):
        sink.write(line(number, 100))
    wait_for(lambda: sink._taken > 0)
    assert numbers_in(pipe.until(lambda got: got.count(b"\n") == 9_000)) == list(range(9_000))
    assert sink.close()
    assert sink.dropped == 0


def test_a_stream_that_is_closed_is_written_on_and_its_number_is_never_mistaken_for_another_file(
    tmp_path: Path,
) -> None:
    first, other = tmp_path / "log", tmp_path / "data"
    file = first.open("wb")
    sink = Sink(file)
    file.close()
    with other.open("wb") as data:
        sink.write(line(1))
        assert sink.flush()
        # A daemon closes whatever is open, and opens files of its own under the same numbers.
        os.dup2(data.fileno(), sink._descriptor)
        sink.write(line(2))
        assert not sink.close(0.3)
        os.write(data.fileno(), b"mine")
    assert first.read_bytes() == line(1)
    assert other.read_bytes() == b"mine"
    assert sink.dropped == 1
    os.close(sink._descriptor)


def test_a_process_with_thousands_of_connections_logs_as_well(pipe: Pipe) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    os.set_blocking(pipe.write.fileno(), False)  # the case in which the sink waits for room
    low: list[int] = []
    try:
        while not low or low[-1] < 1_024:
            low.append(os.dup(pipe.write.fileno()))
        sink = Sink(pipe.write)
        assert sink._descriptor > 1_024
        for number in range(9_000):
            sink.write(line(number, 100))
        assert numbers_in(pipe.until(lambda got: got.count(b"\n") == 9_000)) == list(range(9_000))
        assert sink.close()
        sink.write(line(9_000))
        assert sink.dropped == 0
    finally:
        for descriptor in low:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_lines_after_the_close_are_written_at_once_or_dropped_but_never_waited_for(pipe: Pipe) -> None:
    sink = Sink(pipe.write)
    sink.write(line(1))
    assert sink.close()
    sink.write(line(2))
    sink.write(b"x" * 10_000 + b"\n")
    got = pipe.until(lambda got: got.count(b"\n") == 3)
    assert got == line(1) + line(2) + b"x" * 10_000 + b"\n"
    filled(pipe)
    sink.write(line(3))
    assert sink.dropped == 1


def test_a_retired_sink_writes_what_it_holds_and_ends_its_thread(pipe: Pipe) -> None:
    sink = Sink(pipe.write)
    filled(pipe)
    sink.write(line(1))
    thread = sink._thread
    assert thread is not None
    sink.retire()
    sink.write(line(2))
    pipe.until(lambda got: got.endswith(line(1) + line(2)))
    thread.join(10)
    assert not thread.is_alive()
    assert sink.closed
    assert sink.dropped == 0


@FORKS
def test_a_child_process_writes_its_own_lines_and_none_of_its_parents(pipe: Pipe) -> None:
    filled(pipe)
    sink = Sink(pipe.write)
    for number in range(10):
        sink.write(line(number))
    child = os.fork()
    if child == 0:
        sink.write(line(100))
        os._exit(0 if sink.close(60.0) else 1)
    got = pipe.until(lambda got: got.count(b"\n") == 11)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(numbers_in(got[65_536:])) == [*range(10), 100]
    assert sink.close()


def test_a_line_said_by_a_finalizer_or_a_signal_inside_of_write_does_not_lock_up(pipe: Pipe) -> None:
    sink = Sink(pipe.write)
    with sink._lock:  # where the interrupted code may be
        sink.write(line(1))
    assert pipe.until(lambda got: got.endswith(b"\n")) == line(1)
    assert sink.close()


class Binary(io.BytesIO):
    def fileno(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("stream", [io.StringIO(), Binary()])
def test_a_stream_in_memory_has_each_line_at_once(stream: IO[Any]) -> None:
    sink = open_sink(stream)
    sink.write("é\n".encode())
    assert stream.getvalue() in {"é\n", "é\n".encode()}  # type: ignore[attr-defined]
    assert sink.flush()
    assert sink.close()


def test_a_process_without_standard_output_counts_what_it_cannot_say() -> None:
    sink = open_sink(None)
    sink.write(b"x\n")
    closed = io.StringIO()
    closed.close()
    other = open_sink(closed)
    other.write(b"x\n")
    assert isinstance(sink, StreamSink)
    assert (sink.dropped, other.dropped) == (1, 1)


def test_a_process_that_has_no_descriptor_left_logs_all_the_same(pipe: Pipe) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(pipe.write.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        sink = open_sink(pipe.write)
        sink.write(line(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pipe.until(lambda got: got.endswith(b"\n")) == line(1)


def test_a_stream_that_raises_whatever_it_likes_is_a_dropped_line() -> None:
    class Odd(io.StringIO):
        def write(self, _: str) -> int:
            raise LookupError

    sink = open_sink(Odd())
    sink.write(b"x\n")
    assert sink.dropped == 1


def test_a_step_that_logs_into_a_dead_pipe_is_told_of_it_by_a_count_and_a_warning(pipe: Pipe) -> None:
    filled(pipe)
    before = logs.dropped()
    stream = os.fdopen(os.dup(pipe.write.fileno()), "w")
    logs.configure_logging("info", "json", stream)
    try:
        logger = logs.create_context_logger("app")
        for number in range(30_000):
            logger.info("x", number=number)
        missing = logs.dropped() - before
        assert missing > 10_000
        assert len(PIPE._sink._lines) <= 10_000  # type: ignore[union-attr]
        got = pipe.until(lambda got: b"log lines were dropped" in got and got.endswith(b"\n"))
        assert f'"dropped":{missing}'.encode() in got.splitlines()[-1]
        assert got.count(b"log lines were dropped") == 1
    finally:
        logs.restore_logging()
        stream.close()
