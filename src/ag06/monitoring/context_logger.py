"""The logger that carries fields: structlog's bound logger, on the project's pipe. The only import of structlog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict

from ag06.monitoring.log_levels import CRITICAL, DEBUG, ERROR, INFO, WARNING, Gate, level_name, level_number
from ag06.monitoring.log_pipe import PIPE


class ContextLogger(structlog.BoundLoggerBase):
    """Says events with fields, and carries fields that every event gets.

    `%` in an event is filled from positional arguments, as in `logging`. `exc_info=` and `stack_info=` mean the same
    too. Any field may have any name and any value; no call raises for what it is told.
    """

    _logger: Gate

    def bind(self, /, **more: Any) -> ContextLogger:
        """Return a logger that carries these fields as well."""
        return ContextLogger(self._logger, self._processors, {**self._context, **more})

    def new(self, /, **fields: Any) -> ContextLogger:
        """Return a logger that carries these fields alone."""
        return ContextLogger(self._logger, self._processors, dict(fields))

    def unbind(self, *names: str) -> ContextLogger:
        """Return a logger without these fields; one that is not carried is a `KeyError`."""
        left = dict(self._context)
        for name in names:
            del left[name]
        return ContextLogger(self._logger, self._processors, left)

    def try_unbind(self, *names: str) -> ContextLogger:
        """Return a logger without these fields, whether they are carried or not."""
        return ContextLogger(self._logger, self._processors, {k: v for k, v in self._context.items() if k not in names})

    def debug(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what helps to find a fault."""
        if self._logger.level <= DEBUG:
            self._say(DEBUG, "debug", event, args, fields)

    def info(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what happened."""
        if self._logger.level <= INFO:
            self._say(INFO, "info", event, args, fields)

    def warning(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what may need somebody's attention."""
        if self._logger.level <= WARNING:
            self._say(WARNING, "warning", event, args, fields)

    warn = warning

    def error(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what went wrong."""
        if self._logger.level <= ERROR:
            self._say(ERROR, "error", event, args, fields)

    def critical(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what ends the work."""
        if self._logger.level <= CRITICAL:
            self._say(CRITICAL, "critical", event, args, fields)

    fatal = critical

    def exception(self, event: object, /, *args: object, **fields: Any) -> None:
        """Say what went wrong, with the exception being handled."""
        if self._logger.level <= ERROR:
            fields.setdefault("exc_info", True)
            self._say(ERROR, "error", event, args, fields)

    def log(self, level: int | str, event: object, /, *args: object, **fields: Any) -> None:
        """Say something at a level given by name or as `logging` counts them."""
        number = level_number(level)
        if self._logger.level <= number:
            self._say(number, level_name(number), event, args, fields)

    def is_enabled_for(self, level: int | str) -> bool:
        """Return whether a line of this level would be written, sampling aside."""
        return self._logger.level <= level_number(level)

    def _say(self, level: int, name: str, event: object, args: tuple[object, ...], fields: dict[str, Any]) -> None:
        given: Mapping[str, Any] = fields
        if self._context:
            given = {**self._context, **fields} if fields else self._context
        if self._processors:
            self._through_processors(level, name, event, args, dict(given))
        else:
            PIPE.say(level, name, self._logger.name, filled(event, args) if args else event, given)

    def _through_processors(
        self, level: int, name: str, event: object, args: tuple[object, ...], given: dict[str, Any]
    ) -> None:
        if "event" in given:
            given["event_"] = given.pop("event")
        given["event"] = filled(event, args) if args else event
        changed: Any = given
        try:
            for processor in self._processors:
                changed = processor(self._logger, name, changed)
        except structlog.DropEvent:
            return
        said: EventDict = dict(changed)
        PIPE.say(level, name, self._logger.name, said.pop("event", event), said)


def filled(event: object, args: tuple[object, ...]) -> object:
    """Return the event with `%` filled in as `logging` does; what does not fit is put behind it."""
    try:
        if len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
            return str(event) % args[0]
        return str(event) % args
    except Exception:  # noqa: BLE001 - a wrong format string costs the format, not the line; repr() of anything may raise
        return [event, *args]


def logger(name: str, fields: dict[str, Any]) -> ContextLogger:
    """Return the logger called `name` that carries `fields`."""
    return ContextLogger(PIPE.levels.gate(name), (), fields)


def lead_structlog_here() -> None:
    """Have `structlog.get_logger()` return this logger, unless the user has configured structlog otherwise."""
    if not structlog.is_configured():
        structlog.configure(
            processors=(),
            wrapper_class=ContextLogger,
            context_class=dict,
            logger_factory=_named,
            cache_logger_on_first_use=False,
        )


def let_structlog_go() -> None:
    """Undo `lead_structlog_here`, if nobody configured structlog since."""
    if structlog.get_config()["logger_factory"] is _named:
        structlog.reset_defaults()


def _named(*names: object) -> Gate:
    return PIPE.levels.gate(str(names[0]) if names else "app")
