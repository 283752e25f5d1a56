"""The way of a line: sampling, then its fields, then text or JSON, then the sink. One for a whole process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

from ag06.monitoring.log_levels import ERROR, WARNING, Levels, level_number
from ag06.monitoring.log_lines import Fields, Lines, Render, as_coloured_text, as_json, as_text
from ag06.monitoring.log_values import Values
from ag06.monitoring.redaction import Redaction
from ag06.monitoring.sink import Sink, StreamSink, descriptor_of, open_sink
from ag06.settings import check_setting, resolve

KEY_VARIABLE = "AG06_HTTP_KEY"
_RENDERS: dict[str, Render] = {"json": as_json, "text": as_text}


class Pipe:
    """Takes what loggers say, and writes it as lines.

    Until it is configured, it takes the settings as they are when the first line comes, and writes to standard output,
    whatever `sys.stdout` is at the time.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self.levels = Levels()
        self.lines = Lines(Values(Redaction()))
        self.render: Render = as_json
        self.ready = False
        self._sink: Sink | StreamSink | None = None
        self._stream: IO[Any] | None = None
        self._follows = True
        self.lock = threading.RLock()
        self._retired: list[Sink | StreamSink] = []
        self._past = 0

    @property
    def dropped(self) -> int:
        """Lines that no sink took, since the process began."""
        with self.lock:
            sinks = self._retired if self._sink is None else [*self._retired, self._sink]
            return self._past + sum(sink.dropped for sink in sinks)

    def configure(
        self,
        level: str | int | None = None,
        format: str | None = None,  # noqa: A002 - the name of the setting
        stream: IO[Any] | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        """Take arguments, then settings; `stream=None` is standard output. Raises `ConfigurationError`."""
        target = sys.stdout if stream is None else stream
        least, render = self._chosen(level, format, target)
        key = os.environ.get(KEY_VARIABLE, "").strip()
        self.levels.set_level(least)
        self.lines = Lines(Values(Redaction(secrets, (key,))))
        self.render = render
        self._follows = stream is None
        self._open(target)
        self.ready = True

    def forget(self) -> None:
        """Be as before the first configuration; loggers that exist stay in use."""
        self.levels.forget()
        self.lines = Lines(Values(Redaction()))
        self.render = as_json
        self._follows, self.ready = True, False
        self._leave(None, None)

    def _chosen(self, level: str | int | None, form: str | None, stream: IO[Any] | None) -> tuple[int, Render]:
        if level is None:
            setting = resolve("log_level")
            check_setting(setting)
            level = setting.value
        setting = resolve("log_format", form)
        check_setting(setting)
        least = level_number(level)
        if setting.origin == "default" and _is_terminal(stream):
            return least, as_text if os.environ.get("NO_COLOR") else as_coloured_text
        return least, _RENDERS[setting.value.lower()]

    def _open(self, stream: IO[Any] | None) -> None:
        with self.lock:
            if self._sink is None or self._stream is not stream:
                self._leave(stream, open_sink(stream, self._missing))

    def _leave(self, stream: IO[Any] | None, sink: Sink | StreamSink | None) -> None:
        """Take `sink` instead of the one before, which writes what it holds and ends."""
        with self.lock:
            before, self._stream, self._sink = self._sink, stream, sink
            if before is not None:
                before.retire()
                sinks = [*self._retired, before]
                self._past += sum(old.dropped for old in sinks if old.closed)
                self._retired = [old for old in sinks if not old.closed]

    def _missing(self, count: int) -> bytes:
        return self.render(
            self.lines.fields(
                "warning", "ag06.monitoring", "log lines were dropped: the reader is slow", {"dropped": count}
            )
        )

    def put(self, fields: Fields, level: int) -> None:
        """Write a line of these fields."""
        sink = self._sink
        if sink is None or (self._follows and self._stream is not sys.stdout):
            self._open(sys.stdout)
            sink = self._sink
        if sink is not None:
            sink.write(self.render(fields), level >= ERROR)

    def say(self, level: int, name: str, logger: str, event: object, given: Mapping[str, Any]) -> None:
        """Write what a logger was told, if the sampling lets it pass."""
        if level < WARNING and not self.levels.passes(level, logger, event):
            return
        self.put(self.lines.fields(name, logger, event, given), level)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until what was said before is written, at most `timeout` seconds; return whether it is."""
        return self._sink is None or self._sink.flush(timeout)


def _is_terminal(stream: IO[Any] | None) -> bool:
    if stream is None:
        return False
    descriptor = descriptor_of(stream)
    return descriptor is not None and os.isatty(descriptor)


def _forked() -> None:
    PIPE.lock = threading.RLock()  # another thread of the parent may have held it


PIPE = Pipe()
os.register_at_fork(after_in_child=_forked)
