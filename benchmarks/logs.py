"""What a log line costs the code that says it: microseconds, beside the standard library with a JSON formatter."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from ag06.event import Event
from ag06.ids import new_id
from ag06.monitoring import logs


class _Json(logging.Formatter):
    """The formatter that everybody writes: a dictionary of what matters, through `json.dumps`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            "user_id": getattr(record, "user_id", None),
            "duration_ms": getattr(record, "duration_ms", None),
        }
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


def _pipe() -> IO[str]:
    """Return a pipe that a thread reads to its end, as a collector of logs would; it costs both sides the same."""
    read, write = os.pipe()

    def run() -> None:
        while os.read(read, 65_536):
            pass

    threading.Thread(target=run, daemon=True).start()
    return os.fdopen(write, "w")


def _stdlib(stream: IO[str]) -> logging.Logger:
    logger = logging.Logger("benchmark")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger


def _ways(stdlib: logging.Logger) -> dict[str, Callable[[], object]]:
    event: Event[None] = Event(
        id=new_id(), type="order", source="shop", data=None, time=dt.datetime.now(dt.UTC), correlation_id=new_id()
    )
    logger = logs.create_context_logger("benchmark.ours", user_id="123")
    foreign = logging.getLogger("benchmark.foreign")

    def bound() -> None:
        logs.unbind_event(logs.bind_event(event, "shop", "charge", 1))

    def inside() -> None:
        token = logs.bind_event(event, "shop", "charge", 1)
        logger.info("Operation complete", duration_ms=15)
        logs.unbind_event(token)

    return {
        "info": lambda: logger.info("Operation complete", duration_ms=15),
        "info in a step": inside,
        "info of logging, our pipe": lambda: foreign.info(
            "Operation complete", extra={"user_id": "123", "duration_ms": 15}
        ),
        "info of logging, its own handler": lambda: stdlib.info(
            "Operation complete", extra={"user_id": "123", "duration_ms": 15}
        ),
        "debug, off": lambda: logger.debug("Operation complete", duration_ms=15),
        "an event bound and unbound": bound,
    }


async def cost(count: int = 5_000, rounds: int = 7) -> dict[str, float]:
    """Return the microseconds of each way to say a line: the least of `rounds`, taken in turns.

    They are counted until the caller may go on, and for the first way, as "through", until the last line is in the pipe
    as well. `count` is at most what the queue holds: a line that is dropped costs less than one that is written.
    """
    logging.disable(logging.NOTSET)
    theirs, ours = _pipe(), _pipe()
    logs.configure_logging("info", "json", ours)
    ways = _ways(_stdlib(theirs))
    found: dict[str, float] = {}
    for _ in range(rounds):
        for way, say in ways.items():
            started = time.perf_counter()
            for _ in range(min(count, 5_000)):
                say()
            took = time.perf_counter() - started
            logs.flush()
            through = time.perf_counter() - started
            for name, seconds in ((way, took), (f"{way}, through", through)):
                micros = seconds / min(count, 5_000) * 1e6
                found[name] = min(found.get(name, micros), micros)
    if logs.dropped():
        raise RuntimeError(f"{logs.dropped()} lines were dropped: the figures are too good")
    logs.restore_logging()
    return {name: micros for name, micros in found.items() if name in ways or name == "info, through"}


if __name__ == "__main__":
    for name, micros in asyncio.run(cost()).items():
        sys.stdout.write(f"{name:<36}{micros:8.2f} us\n")
