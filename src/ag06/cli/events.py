"""`ag06 events`: follow the log, list its newest, replay a range, export it."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import msgspec
import typer

from ag06.cli.opening import opened
from ag06.cli.output import JsonOption, StoreOption, moment, print_json, print_table, progress

if TYPE_CHECKING:
    from ag06 import Event
    from ag06.persistence import EventStore

app = typer.Typer(help="Events in the log.", no_args_is_help=True)

TypeOption = Annotated[list[str] | None, typer.Option("--type", "-t", help="Only this type; may be repeated.")]
SourceOption = Annotated[list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")]
StartOption = Annotated[str | None, typer.Option(help="From here: ISO 8601, epoch seconds, or 15m ago: -15m.")]
EndOption = Annotated[str | None, typer.Option(help="Up to here, not included.")]
CorrelationOption = Annotated[str | None, typer.Option(help="Only what belongs to this correlation id.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many.")]

_encode = msgspec.json.Encoder().encode
_BATCH = 500


def _summary(event: Event[Any]) -> str:
    data = _encode(event.data).decode()
    return data if len(data) <= 80 else data[:79] + "…"


@app.command("list")
def list_events(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many of the newest.")] = 20,
    event_type: TypeOption = None,
    source: SourceOption = None,
    start: StartOption = None,
    end: EndOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the newest events, oldest first.

    Example: ag06 events list -n 50 --type order.placed --start -15m
    """
    found = asyncio.run(_newest(store, limit, event_type, source, start, end))
    if json:
        print_json(found)
        return
    rows = [
        (
            f"{event.recorded:%Y-%m-%d %H:%M:%S.%f}"[:-3],
            event.type,
            event.source,
            event.subject,
            event.id,
            _summary(event),
        )
        for event in found
    ]
    print_table("Events", ("recorded (UTC)", "type", "source", "subject", "id", "data"), rows)


async def _newest(
    store: str | None,
    limit: int,
    types: list[str] | None,
    sources: list[str] | None,
    start: str | None,
    end: str | None,
) -> list[Event[Any]]:
    from ag06.event import decode_event, to_millis
    from ag06.persistence.log import Query

    first, last = moment("--start", start), moment("--end", end)
    async with opened(store) as events:
        log = await events.log()
        found: list[Event[Any]] = []
        newest = limit
        while True:  # sources are not an index: look further back until there are enough
            query = Query(
                start_ms=0 if first is None else to_millis(first),
                end_ms=None if last is None else to_millis(last),
                types=None if not types else tuple(types),
                newest=newest,
            )
            seen = [decode_event(entry.body, entry.recorded_ms) async for page in log.read(query) for entry in page]
            found = [event for event in seen if not sources or event.source in sources]
            if len(found) >= limit or len(seen) < newest or newest > 100_000:
                return found[-limit:]
            newest *= 10


@app.command("tail")
def tail_events(
    event_type: TypeOption = None,
    source: SourceOption = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest event.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Begin with so many of the newest.")] = 10,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Follow the log until Ctrl-C.

    Example: ag06 events tail --type order.placed
    """
    asyncio.run(_tail(store, event_type, source, None if from_start else lines, json))


async def _tail(
    store: str | None, types: list[str] | None, sources: list[str] | None, newest: int | None, json: bool
) -> None:
    from ag06.event import decode_event
    from ag06.persistence.log import Query

    async with opened(store) as events:
        log = await events.log()
        after = -1
        while True:
            query = Query(types=None if not types else tuple(types), after=after, newest=newest)
            async for page in log.read(query):
                for entry in page:
                    after = entry.position
                    event = decode_event(entry.body, entry.recorded_ms)
                    if not sources or event.source in sources:
                        _print_line(event, json)
                sys.stdout.flush()
            newest = None
            await asyncio.sleep(0.2)


def _print_line(event: Event[Any], json: bool) -> None:
    if json:
        print_json(event)
    else:
        time = f"{event.recorded:%H:%M:%S.%f}"[:-3]
        sys.stdout.write(f"{time} {event.type} {event.source} {event.subject or '-'} {event.id} {_summary(event)}\n")


@app.command("replay")
def replay_events(
    start: StartOption = None,
    end: EndOption = None,
    event_type: TypeOption = None,
    source: SourceOption = None,
    correlation_id: CorrelationOption = None,
    limit: LimitOption = None,
    to: Annotated[str | None, typer.Option(help="Copy into this store instead of printing; ids are kept.")] = None,
    store: StoreOption = None,
) -> None:
    """Print a range as JSON lines, in order; or copy it into another store.

    Example: ag06 events replay --start -1h --type order.placed --to sqlite:///copy.db
    """

    async def replay() -> int:
        async with opened(store) as events:
            found = _selected(events, start, end, event_type, source, correlation_id, limit)
            return await _copy(found, to) if to is not None else await _write(found, sys.stdout.buffer, _json_line)

    count = asyncio.run(replay())
    if to is not None:
        typer.echo(f"{count} events copied")


def _selected(
    events: EventStore,
    start: str | None,
    end: str | None,
    types: list[str] | None,
    sources: list[str] | None,
    correlation_id: str | None,
    limit: int | None,
) -> AsyncIterator[Event[Any]]:
    return events.replay(
        moment("--start", start), moment("--end", end), types or None, sources or None, correlation_id, limit
    )


async def _copy(found: AsyncIterator[Event[Any]], to: str) -> int:
    """Append events to another store under their ids: copying twice stores them once."""
    count = 0
    batch: list[Event[Any]] = []
    async with opened(to, create=True) as target:
        with progress() as display:
            task = display.add_task("copied", total=None)
            async for event in found:
                batch.append(event)
                if len(batch) == _BATCH:
                    await target.persist_events(batch)
                    count += len(batch)
                    batch.clear()
                    display.update(task, completed=count)
            await target.persist_events(batch)
    return count + len(batch)


@app.command("export")
def export_events(
    path: Annotated[str, typer.Argument(help="File to write, - for stdout; compressed if it ends in .gz.")],
    format_: Annotated[
        str, typer.Option("--format", help="jsonl, or cloudevents (one structured event a line).")
    ] = "jsonl",
    start: StartOption = None,
    end: EndOption = None,
    event_type: TypeOption = None,
    source: SourceOption = None,
    correlation_id: CorrelationOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
) -> None:
    """Write a range to a file, one event a line. The file appears when it is whole.

    Example: ag06 events export orders.jsonl.gz --type order.placed --start 2026-01-01
    """
    line = {"jsonl": _json_line, "cloudevents": _cloudevents_line}.get(format_)
    if line is None:
        raise typer.BadParameter(f"{format_!r}; use jsonl or cloudevents", param_hint="--format")

    async def export() -> int:
        async with opened(store) as events:
            found = _selected(events, start, end, event_type, source, correlation_id, limit)
            if path == "-":
                return await _write(found, sys.stdout.buffer, line)
            return await _write_file(found, Path(path), line)

    count = asyncio.run(export())
    if path != "-":
        typer.echo(f"{count} events written to {path}")


async def _write_file(found: AsyncIterator[Event[Any]], path: Path, line: Callable[[Event[Any]], bytes]) -> int:
    unfinished = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as raw:  # noqa: ASYNC230 - a command of its own, nobody else is on this loop
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
                    count = await _write(found, packed, line)
            else:
                count = await _write(found, raw, line)
        unfinished.replace(path)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="PATH") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return count


async def _write(
    found: AsyncIterator[Event[Any]], target: BinaryIO | gzip.GzipFile, line: Callable[[Event[Any]], bytes]
) -> int:
    count = 0
    with progress() as display:
        task = display.add_task("events", total=None)
        async for event in found:
            target.write(line(event) + b"\n")
            count += 1
            if count % 1000 == 0:
                display.update(task, completed=count)
    target.flush()
    return count


def _json_line(event: Event[Any]) -> bytes:
    return _encode(event)


def _cloudevents_line(event: Event[Any]) -> bytes:
    from ag06.cloudevents import to_structured

    return to_structured(event)
