from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from ag06.monitoring.loop_watch import LoopWatch
from flows import SECONDS, until


def hold_the_loop_up_until_it_is_seen(watch: LoopWatch) -> None:
    deadline = time.monotonic() + SECONDS
    while not watch.stalled_seconds and time.monotonic() < deadline:
        time.sleep(0.005)


async def test_a_loop_that_is_held_up_is_seen_with_the_place_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    watch = LoopWatch(beat=0.02, stall=0.1)
    before = datetime.now(UTC)
    watch.start()
    with caplog.at_level(logging.WARNING, "ag06.monitoring"):
        hold_the_loop_up_until_it_is_seen(watch)
        stall = watch.last_stall
        assert stall is not None
        assert (stall.over, stall.seconds >= 0.1) == (False, True)
        assert before - timedelta(seconds=0.1) < stall.began < datetime.now(UTC) - timedelta(seconds=0.09)
        assert "hold_the_loop_up_until_it_is_seen (" in stall.where
        assert __file__.rsplit("/", 1)[-1] in stall.where
        await until(lambda: watch.last_stall is not None and watch.last_stall.over)
    assert watch.stalled_seconds == 0
    assert [record.message.split(";")[0].split(",")[0] for record in caplog.records] == [
        caplog.records[0].message.split(",")[0],
        "the event loop answers again",
    ]
    assert "the event loop is held up" in caplog.records[0].message
    watch.stop()


async def test_a_loop_that_waits_is_not_held_up_and_tells_how_late_its_timers_are() -> None:
    lags: list[float] = []
    watch = LoopWatch(lags.append, beat=0.01, stall=5.0)
    watch.start()
    await until(lambda: len(lags) >= 5)
    assert min(lags) >= 0
    before = len(lags)
    time.sleep(0.05)  # held up, though not for long enough to be a stall
    await until(lambda: len(lags) > before)
    assert max(lags[before:]) >= 0.03
    assert watch.last_stall is None
    watch.stop()
    seen = len(lags)
    await asyncio.sleep(0.05)
    assert len(lags) == seen


async def test_a_watch_can_be_started_again() -> None:
    watch = LoopWatch(beat=0.01, stall=0.05)
    for _ in range(2):
        watch.last_stall = None
        watch.start()
        hold_the_loop_up_until_it_is_seen(watch)
        assert watch.stalled_seconds
        await until(lambda: not watch.stalled_seconds)
        watch.stop()


async def test_a_stall_is_over_when_nobody_watches_any_more() -> None:
    watch = LoopWatch(beat=0.01, stall=0.05)
    watch.start()
    hold_the_loop_up_until_it_is_seen(watch)
    assert watch.stalled_seconds
    watch.stop()
    await until(lambda: not watch.stalled_seconds)


def test_a_loop_that_was_closed_is_watched_no_more() -> None:
    watch = LoopWatch(beat=0.01, stall=0.05)

    async def start() -> threading.Thread:
        watch.start()
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "ag06-loop-watch")
        return thread

    thread = asyncio.run(start())
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert watch.last_stall is None


class Script:
    """In the place of the event that ends a watch: each wait of the thread is one step of a test."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.steps = list(steps)

    def wait(self, _: float) -> bool:
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


def test_a_process_that_stood_still_as_a_whole_was_not_held_up_by_its_code() -> None:
    now = [0.0]
    watch = LoopWatch(beat=0.25, stall=1.0, clock=lambda: now[0])
    loop = asyncio.new_event_loop()

    def pass_time(seconds: float, *, beat: bool) -> Callable[[], None]:
        def step() -> None:
            now[0] += seconds
            if beat:
                watch._on_beat(loop)

        return step

    suspended = [pass_time(0.25, beat=True), pass_time(100, beat=False), pass_time(0.01, beat=True)]
    watch._watch(loop, Script(*suspended))  # type: ignore[arg-type]
    assert watch.last_stall is None
    held_up = [pass_time(0.25, beat=True), *[pass_time(0.25, beat=False)] * 5]
    watch._watch(loop, Script(*held_up))  # type: ignore[arg-type]
    assert watch.last_stall is not None
    loop.close()
