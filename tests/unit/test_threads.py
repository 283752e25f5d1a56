from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from ag06.runtime.threads import CallThreads
from flows import SECONDS, until


def test_a_call_runs_in_a_thread_of_its_name_and_its_result_comes_back() -> None:
    threads = CallThreads(2, "ag06-bill")
    assert threads.submit(lambda a, b: (a, b), 1, b=2).result(SECONDS) == (1, 2)
    assert threads.submit(lambda: threading.current_thread().name).result(SECONDS).startswith("ag06-bill-")
    threads.shutdown()


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_call_raises_comes_back_and_the_thread_goes_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    threads = CallThreads(1, "t")
    assert threads.submit(fail).exception(SECONDS) is error
    assert threads.submit(int).result(SECONDS) == 0
    threads.shutdown()


def test_there_are_no_more_threads_than_calls_at_once_nor_than_the_limit() -> None:
    threads = CallThreads(3, "t")
    names = {threads.submit(lambda: threading.current_thread().name).result(SECONDS) for _ in range(20)}
    assert len(names) <= 2, "a thread that is just becoming free may be missed once"
    leave, full = threading.Event(), threading.Barrier(4)

    def wait() -> str:
        full.wait(SECONDS)
        leave.wait(SECONDS)
        return threading.current_thread().name

    first = [threads.submit(wait) for _ in range(3)]
    full.wait(SECONDS)
    fourth = threads.submit(lambda: threading.current_thread().name)
    assert not fourth.done()
    leave.set()
    assert fourth.result(SECONDS) in {call.result(SECONDS) for call in first}
    threads.shutdown()


def test_a_call_that_was_cancelled_before_its_turn_is_not_made() -> None:
    threads = CallThreads(1, "t")
    leave, made = threading.Event(), threading.Event()
    first = threads.submit(leave.wait, SECONDS)
    second = threads.submit(made.set)
    assert second.cancel()
    leave.set()
    assert first.result(SECONDS)
    assert threads.submit(int).result(SECONDS) == 0
    assert not made.is_set()
    threads.shutdown()


def test_every_thread_ends_after_a_shutdown() -> None:
    threads = CallThreads(2, "ended")
    for _ in range(2):
        threads.submit(int).result(SECONDS)
    running = [thread for thread in threading.enumerate() if thread.name.startswith("ended-")]
    assert running
    threads.shutdown()
    for thread in running:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_call_that_never_returns_does_not_keep_its_process_alive() -> None:
    source = (
        "import threading\n"
        "from ag06.runtime.threads import CallThreads\n"
        "entered = threading.Event()\n"
        "CallThreads(1, 't').submit(lambda: (entered.set(), threading.Event().wait()))\n"
        "entered.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", source], timeout=SECONDS, check=True).returncode == 0


def test_as_many_threads_as_calls_there_are_start_whatever_went_before() -> None:
    """A thread that was just becoming free is counted as free once, not for ever."""
    threads = CallThreads(1, "t")
    for _ in range(200):
        calls = [threads.submit(int) for _ in range(3)]
        assert [call.result(SECONDS) for call in calls] == [0] * 3
    threads.resize(8)
    leave, full = threading.Event(), threading.Barrier(9)

    def wait() -> None:
        full.wait(SECONDS)
        leave.wait(SECONDS)

    waiting = [threads.submit(wait) for _ in range(8)]
    full.wait(SECONDS)
    leave.set()
    for call in waiting:
        call.result(SECONDS)
    threads.shutdown()


async def test_threads_that_are_too_many_end_the_idle_at_once_and_the_busy_after_their_call() -> None:
    def alive() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("shrunk-")]

    threads = CallThreads(6, "shrunk")
    leave, full, half = threading.Event(), threading.Barrier(7), threading.Event()

    def wait(gate: threading.Event) -> None:
        full.wait(SECONDS)
        gate.wait(SECONDS)

    first = [threads.submit(wait, half) for _ in range(3)]
    last = [threads.submit(wait, leave) for _ in range(3)]
    full.wait(SECONDS)
    every = alive()
    assert len(every) == 6
    half.set()
    for call in first:
        call.result(SECONDS)
    threads.resize(1)
    leave.set()
    for call in last:
        call.result(SECONDS)
    await until(lambda: len(alive()) == 1)
    assert threads.submit(int).result(SECONDS) == 0
    threads.resize(2)
    full = threading.Barrier(3)
    both = threading.Event()
    both.set()
    calls = [threads.submit(wait, both) for _ in range(2)]
    full.wait(SECONDS)
    for call in calls:
        call.result(SECONDS)
    threads.shutdown()
