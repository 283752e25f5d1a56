"""Logging, as a user and the runtime see it: one object a line, with what it belongs to, and without secrets."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from ag06.errors import ConfigurationError
from ag06.monitoring.log_context import bind_event, context, unbind_event, use_trace_source
from ag06.monitoring.log_handler import Takeover
from ag06.monitoring.log_levels import level_number
from ag06.monitoring.log_pipe import PIPE

if TYPE_CHECKING:
    from ag06.monitoring.context_logger import ContextLogger

__all__ = [
    "bind_event",
    "configure_logging",
    "context",
    "create_context_logger",
    "dropped",
    "flush",
    "restore_logging",
    "set_level",
    "set_sampling",
    "unbind_event",
    "use_trace_source",
]

_takeover = Takeover()


def create_context_logger(name: str | None = None, /, **fields: Any) -> ContextLogger:
    """Return a logger that carries `fields`; it is called `name`, or as the module that asks for it.

    The first one of a process reads the settings `log_level` and `log_format`, unless `configure_logging` did.
    """
    from ag06.monitoring.context_logger import logger

    _make_ready()
    return logger(name or _module_that_asks(), fields)


def configure_logging(
    level: str | int | None = None,
    format: str | None = None,  # noqa: A002 - the name of the setting
    stream: IO[Any] | None = None,
    *,
    secrets: tuple[str, ...] = (),
) -> None:
    """Write what is logged through this package, `logging` and structlog to `stream`, one line each.

    `level` and `format` ("json" or "text") are else the settings `AG06_LOG_LEVEL` and `AG06_LOG_FORMAT`; where neither
    says a format, a terminal gets coloured text and anything else JSON. `stream` is standard output unless given.
    Values of fields whose name contains one of `secrets` are hidden, beside those of `redaction.SECRET_WORDS`. May be
    called again; the last call counts. Raises `ConfigurationError`.
    """
    with PIPE.lock:
        PIPE.configure(level, format, stream, secrets)
        _takeover.begin(PIPE.levels.default)
    from ag06.monitoring.context_logger import lead_structlog_here

    lead_structlog_here()
    _flush_on_sigterm()


def restore_logging() -> None:
    """Write what is queued, forget levels, samplings and settings, and put back what `configure_logging` took over."""
    with PIPE.lock:
        PIPE.flush()
        _takeover.end()
        PIPE.forget()
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "structlog" in sys.modules:
        from ag06.monitoring.context_logger import let_structlog_go

        let_structlog_go()


def set_level(level: str | int | None, logger: str | None = None) -> None:
    """Let lines of `level` and above pass, from now on: everywhere, or for `logger` and those below it.

    `None` takes back a level that `logger` was given. Raises `ConfigurationError` for what is no level.
    """
    number = None if level is None else level_number(level)
    if number is None and logger is None:
        raise ConfigurationError("log level None without a logger; use debug, info, warning, error or critical")
    _make_ready()
    with PIPE.lock:
        PIPE.levels.set_level(number, logger)
        if logger is not None:
            _takeover.set_level(logger, logging.NOTSET if number is None else number)
        elif _takeover.active:
            logging.getLogger().setLevel(PIPE.levels.default)


def set_sampling(logger_or_event: str, rate: float) -> None:
    """Keep a share, `rate` from 0 (none) to 1 (all), of the lines of a logger and those below it, or of one event.

    Lines of level warning and above are always kept. Raises `ConfigurationError` for what is no rate.
    """
    with PIPE.lock:
        PIPE.levels.set_sampling(logger_or_event, rate)


def flush(timeout: float = 5.0) -> bool:
    """Wait until what was logged before is written, at most `timeout` seconds; return whether it is. It blocks."""
    return PIPE.flush(timeout)


def dropped() -> int:
    """Return how many lines were dropped since the process began, because nobody took them."""
    return PIPE.dropped


def _make_ready() -> None:
    with PIPE.lock:
        if not PIPE.ready:
            PIPE.configure()


def _module_that_asks() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "app"))
        if not name.startswith("ag06.monitoring."):
            return "app" if name == "__main__" else name
        frame = frame.f_back
    return "app"


def _flush_on_sigterm() -> None:
    """Write the queue out before SIGTERM ends a process that nothing else would end in order."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    PIPE.flush(1.0)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
