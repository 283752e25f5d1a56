"""What is logged through the standard library, by the project and by others, goes into the same pipe."""

from __future__ import annotations

import logging
import sys

from ag06.monitoring.log_levels import level_name
from ag06.monitoring.log_pipe import PIPE, Pipe

_OF_A_RECORD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


class PipeHandler(logging.Handler):
    """Hands records to a pipe; what `extra=` gave them becomes fields."""

    def __init__(self, pipe: Pipe = PIPE) -> None:
        """Write to `pipe`."""
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; sampling knows it by its logger, or by its message before the arguments are filled in."""
        level = record.levelno
        if not self._pipe.levels.passes(level, record.name, record.msg):
            return
        given = {key: value for key, value in vars(record).items() if key not in _OF_A_RECORD}
        if record.exc_info:
            given["exc_info"] = record.exc_info
        if record.stack_info:
            given["stack_info"] = record.stack_info
        fields = self._pipe.lines.fields(level_name(level), record.name, _message(record), given)
        self._pipe.put(fields, level)


def _message(record: logging.LogRecord) -> object:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format string costs the format, not the line
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        return [record.msg, *arguments]


class Takeover:
    """The handler on the root logger, and what it took the place of: handlers that write to the console."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._handler: PipeHandler | None = None
        self._removed: list[tuple[logging.Logger, logging.Handler]] = []
        self._silent: list[logging.Logger] = []
        self._level = logging.WARNING
        self._levels: dict[str, int] = {}

    @property
    def active(self) -> bool:
        """Whether the root logger leads into the pipe."""
        return self._handler is not None

    def begin(self, level: int) -> None:
        """Lead the root logger into the pipe from `level` on; no line is written twice, by another handler as well."""
        root = logging.getLogger()
        if self._handler is None:
            self._handler = PipeHandler()
            self._level = root.level
            root.addHandler(self._handler)
        root.setLevel(level)
        others = [logger for logger in list(root.manager.loggerDict.values()) if isinstance(logger, logging.Logger)]
        for logger in (root, *others):
            for handler in list(logger.handlers):
                if _writes_to_the_console(handler):
                    logger.removeHandler(handler)
                    self._removed.append((logger, handler))
                    if logger is not root and not logger.propagate:
                        logger.propagate = True
                        self._silent.append(logger)

    def set_level(self, name: str, level: int) -> None:
        """Give one logger of the standard library a level."""
        logger = logging.getLogger(name)
        self._levels.setdefault(name, logger.level)
        logger.setLevel(level)

    def end(self) -> None:
        """Put back what was there before."""
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        self._levels.clear()
        if self._handler is None:
            return
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._level)
        for logger, handler in self._removed:
            logger.addHandler(handler)
        for logger in self._silent:
            logger.propagate = False
        self._handler = None
        self._removed.clear()
        self._silent.clear()


def _writes_to_the_console(handler: logging.Handler) -> bool:
    if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return False
    if type(handler).__module__ != "logging":
        return False  # a subclass of somebody's may do more than write: capture, count, send
    return any(handler.stream is console for console in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))
