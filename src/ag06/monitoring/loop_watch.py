"""Whether an event loop keeps its time: how late its timers are, and where it stands while it does not answer."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

_logger = logging.getLogger("ag06.monitoring")

BEAT_SECONDS = 0.25
STALL_SECONDS = 1.0
_FRAMES = 3


class Stall(msgspec.Struct, frozen=True):
    """The loop did not answer from `began` on for `seconds` (so far, if `over` is false), and stood at `where`."""

    began: datetime
    seconds: float
    where: str
    over: bool


class LoopWatch:
    """A heartbeat in the running loop, and a thread that misses it when the loop is held up.

    Time in which the whole process stood still (suspended, stopped) is no stall: the thread stood still as well. Code
    that holds Python's global lock holds the thread too: that shows in the lateness alone.

    Args:
        on_lag: told how late each heartbeat came, in seconds; called in the loop.
        beat: seconds between heartbeats.
        stall: seconds without one that make a stall.
    """

    def __init__(
        self,
        on_lag: Callable[[float], None] | None = None,
        *,
        beat: float = BEAT_SECONDS,
        stall: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing yet; the class says what the arguments mean."""
        self._on_lag = on_lag
        self._beat = beat
        self._stall = stall
        self._clock = clock
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._loop_thread = 0
        self._ended = threading.Event()
        self.last_stall: Stall | None = None
        self.lag = 0.0
        """How late the last heartbeat was, in seconds."""

    def start(self) -> None:
        """Watch the running loop."""
        loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._due = self._clock() + self._beat
        self._handle = loop.call_later(self._beat, self._on_beat, loop)
        self._thread = threading.Thread(
            target=self._watch, args=(loop, self._ended), name="ag06-loop-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; waits for nothing."""
        self._ended.set()
        if self._handle is not None:
            self._handle.cancel()

    @property
    def stalled_seconds(self) -> float:
        """For how long the loop has not answered; 0 while it does."""
        stall = self.last_stall
        return 0.0 if stall is None or stall.over else stall.seconds

    def _on_beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        self.lag = max(0.0, now - self._due)
        self._due = now + self._beat
        self._handle = loop.call_later(self._beat, self._on_beat, loop)
        if self._on_lag is not None:
            self._on_lag(self.lag)

    def _watch(self, loop: asyncio.AbstractEventLoop, ended: threading.Event) -> None:
        """Run in the thread; each stall is told once when it is seen, and once when it is over."""
        current: Stall | None = None
        awake = self._clock()
        while not ended.wait(self._beat) and not loop.is_closed():
            now, due = self._clock(), self._due
            stood_still, awake = now - awake > self._stall, now
            late = now - due
            if current is not None and late < self._stall:
                self.last_stall = msgspec.structs.replace(current, over=True)
                _logger.warning("the event loop answers again; it was held up for %.1f s", current.seconds)
                current = None
            elif current is not None:
                current = self.last_stall = msgspec.structs.replace(current, seconds=late)
            elif late >= self._stall and not stood_still:
                began = datetime.now(UTC) - timedelta(seconds=late)
                current = self.last_stall = Stall(began, late, self._where(), over=False)
                _logger.warning("the event loop is held up: no answer for %.1f s, in %s", late, current.where)
        if current is not None:
            self.last_stall = msgspec.structs.replace(current, over=True)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return "a thread that has ended"
        stack = traceback.extract_stack(frame)[-_FRAMES:]
        return " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in stack)
