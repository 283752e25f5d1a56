"""What a log line costs the code that says it: microseconds, beside the standard library with a JSON formatter."""

from __future__ import annotations

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


def _reader(read: int) -> threading.Thread:
    """Read a pipe to its end, as a collector of logs would; in a thread, which costs both sides the same."""

    def run() -> None:
        while os.read(read, 65_536):
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _pipe() -> tuple[IO[str], threading.Thread]:
    read, write = os.pipe()
    return os.fdopen(write, "w"), _reader(read)


def _micros(say: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        say()
    return (time.perf_counter() - started) / count * 1e6


def _stdlib(stream: IO[str]) -> logging.Logger:
    logger = logging.Logger("benchmark")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger


def cost(count: int, rounds: int = 7) -> dict[str, float]:
    """Return the microseconds of each way to say a line: the least of `rounds`, taken in turns.

    Our lines are counted until the last one is in the pipe ("through") and until the caller may go on.
    """
    theirs, _ = _pipe()
    ours, _ = _pipe()
    stdlib = _stdlib(theirs)
    logs.configure_logging("info", "json", ours)
    moment = {"id": new_id(), "type": "order", "source": "shop", "data": {}}
    event = Event(time=time_now(), correlation_id=new_id(), **moment)
    logger = logs.create_context_logger("benchmark.ours", user_id="123")
    foreign = logging.getLogger("benchmark.foreign")

    def bound() -> None:
        token = logs.bind_event(event, "shop", "charge", 1)
        logs.unbind_event(token)

    def inside() -> None:
        token = logs.bind_event(event, "shop", "charge", 1)
        logger.info("Operation complete", duration_ms=15)
        logs.unbind_event(token)

    ways: dict[str, Callable[[], object]] = {
        "info": lambda: logger.info("Operation complete", duration_ms=15),
        "info in a step": inside,
        "info of logging": lambda: foreign.info("Operation complete", extra={"duration_ms": 15}),
        "info, standard library alone": lambda: stdlib.info(
            "Operation complete", extra={"user_id": "123", "duration_ms": 15}
        ),
        "debug, off": lambda: logger.debug("Operation complete", duration_ms=15),
        "an event bound": bound,
    }
    found: dict[str, float] = {}
    for _ in range(rounds):
        for way, say in ways.items():
            # Fewer than the queue holds: a dropped line costs less than one that is written.
            took = _micros(say, min(count, 5_000))
            logs.flush()
            found[way] = min(found.get(way, took), took)
        started = time.perf_counter()
        for _ in range(min(count, 5_000)):
            ways["info"]()
        logs.flush()
        took = (time.perf_counter() - started) / min(count, 5_000) * 1e6
        found["info, through"] = min(found.get("info, through", took), took)
    if logs.dropped():
        raise RuntimeError(f"{logs.dropped()} lines were dropped: the figures are too good")
    logs.restore_logging()
    return found


def time_now() -> Any:
    import datetime as dt

    return dt.datetime.now(dt.UTC)


if __name__ == "__main__":
    for name, micros in cost(5_000).items():
        sys.stdout.write(f"{name:<32}{micros:8.2f} us\n")
