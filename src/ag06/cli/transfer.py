"""Takes events out of a log: as lines into a stream or a file, or as events into another store."""

from __future__ import annotations

import enum
import gzip
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from ag06.cli.opening import opened
from ag06.cli.output import progress
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06 import Event

_BATCH = 500
_LARGEST = 1 << 29
_encode = msgspec.json.Encoder().encode


class Format(enum.StrEnum):
    """How an event becomes a line."""

    JSONL = "jsonl"
    CLOUDEVENTS = "cloudevents"

    @property
    def line(self) -> Callable[[Event[Any]], bytes]:
        """The function that makes one line of one event."""
        from ag06.cloudevents import to_structured

        return _encode if self is Format.JSONL else to_structured


async def write_stdout(found: AsyncIterator[Event[Any]], form: Format) -> int:
    """Write events to standard output, one a line; return how many."""
    return await _write(found, sys.stdout.buffer, form, shown=not sys.stdout.isatty())


async def write_file(found: AsyncIterator[Event[Any]], path: Path, form: Format) -> int:
    """Write events to a file, one a line, compressed if its name ends in `.gz`; it appears when it is whole.

    A pipe or a device is written to as it is: it must not be replaced by a file.
    """
    try:
        if path.exists() and not path.is_file():  # noqa: ASYNC240 - a command of its own, nobody else is on this loop
            with open(path, "wb") as special:  # noqa: ASYNC230
                return await _write(found, special, form)
        path = path.resolve()  # noqa: ASYNC240 - a link stays, what it names is replaced
        with _replacing(path) as raw:
            if path.suffix != ".gz":
                return await _write(found, raw, form)
            with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
                return await _write(found, packed, form)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as raw:
            if path.exists():
                os.chmod(unfinished, stat.S_IMODE(path.stat().st_mode))
            yield raw
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


async def _write(
    found: AsyncIterator[Event[Any]], target: BinaryIO | gzip.GzipFile, form: Format, *, shown: bool = True
) -> int:
    line = form.line
    count = 0
    with progress(shown=shown) as display:
        task = display.add_task("events", total=None)
        async for event in found:
            target.write(line(event) + b"\n")
            count += 1
            if count % 1000 == 0:
                display.update(task, completed=count)
    target.flush()
    return count


async def copy(found: AsyncIterator[Event[Any]], to: str) -> tuple[int, int]:
    """Append events to another store under their ids. Return how many, and how many of them were there already."""
    count = new = 0
    batch: list[dict[str, Any]] = []
    async with opened(to, create=True, max_event_bytes=_LARGEST) as target:
        with progress() as display:
            task = display.add_task("copied", total=None)
            async for event in found:
                batch.append(_as_arguments(event))
                if len(batch) == _BATCH:
                    new += await target.merge_events(batch)
                    count += len(batch)
                    batch.clear()
                    display.update(task, completed=count)
            new += await target.merge_events(batch)
    count += len(batch)
    return new, count - new


def _as_arguments(event: Event[Any]) -> dict[str, Any]:
    """Return what publishes an event once more. The log took two that say the same thing, so does its copy."""
    return {
        "event_type": event.type,
        "source": event.source,
        "data": event.data,
        "priority": event.priority,
        "id": event.id,
        "subject": event.subject,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "traceparent": event.traceparent,
        "time": event.time,
        "dedup": False,
    }
