"""`ag06 events`: follow the log, list its newest, replay a range, export it, archive it."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ag06.cli.opening import check_apart, opened
from ag06.cli.output import JsonOption, StoreOption, moment, print_json, print_table, progress
from ag06.cli.transfer import Format, copy, write_file, write_stdout
from ag06.errors import ConfigurationError
from ag06.settings import resolve

if TYPE_CHECKING:
    from ag06 import Event
    from ag06.persistence import Archived, EventStore
    from ag06.persistence.archive import Progress
    from ag06.persistence.log import EventLog, Query

app = typer.Typer(help="Events in the log.\n\nExample: ag06 events tail", no_args_is_help=True)

TypeOption = Annotated[list[str] | None, typer.Option("--type", "-t", help="Only this type; may be repeated.")]
SourceOption = Annotated[list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")]
StartOption = Annotated[str | None, typer.Option(help="From here: ISO 8601, epoch seconds, or how long ago: 15m.")]
EndOption = Annotated[str | None, typer.Option(help="Up to here, not included.")]
CorrelationOption = Annotated[str | None, typer.Option(help="Only what belongs to this correlation id.")]
SalvageOption = Annotated[
    bool, typer.Option("--salvage", help="Read on behind what is damaged or gone of an archive; stderr says what.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many, the oldest first.")]

_encode = msgspec.json.Encoder().encode
_MOST_LISTED = 100_000
_SHORTENED = 80
_STAGES = {"waiting": "waiting for another run", "verified": "read back", "dropped": "trimmed"}


def _summary(event: Event[Any]) -> str:
    data = _encode(event.data).decode()
    return data if len(data) <= _SHORTENED else data[: _SHORTENED - 1] + "…"


@app.command("list")
def list_events(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=_MOST_LISTED, help="At most so many of the newest.")
    ] = 20,
    event_type: TypeOption = None,
    source: SourceOption = None,
    start: StartOption = None,
    end: EndOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the newest events, oldest first.

    Example: ag06 events list -n 50 --type order.placed --start 15m
    """
    found = asyncio.run(_list(store, limit, event_type, source, start, end))
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
    print_table("Events", ("recorded (UTC)", "type", "source", "subject", "id", "data"), rows, whole=("id", "type"))


async def _list(
    store: str | None,
    limit: int,
    types: list[str] | None,
    sources: list[str] | None,
    start: str | None,
    end: str | None,
) -> list[Event[Any]]:
    from ag06.event import to_millis
    from ag06.persistence.log import Query

    first, last = moment("--start", start), moment("--end", end)
    query = Query(
        start_ms=0 if first is None else max(0, to_millis(first)),
        end_ms=None if last is None else max(0, to_millis(last)),
        types=None if not types else tuple(types),
    )
    async with opened(store) as events:
        return [event for _, event in await _newest(await events.log(), query, limit, sources)]


async def _newest(log: EventLog, query: Query, limit: int, sources: list[str] | None) -> list[tuple[int, Event[Any]]]:
    """Return the newest events with their positions. Sources are no index: they may need a second, whole reading."""
    found: deque[tuple[int, Event[Any]]] = deque(maxlen=limit)
    seen = 0
    async for position, event in _read(log, msgspec.structs.replace(query, newest=limit)):
        seen += 1
        if not sources or event.source in sources:
            found.append((position, event))
    if len(found) < limit <= seen:
        found.clear()
        async for position, event in _read(log, query):
            if not sources or event.source in sources:
                found.append((position, event))
    return list(found)


async def _read(log: EventLog, query: Query) -> AsyncIterator[tuple[int, Event[Any]]]:
    from ag06.event import read_event

    async for page in log.read(query):
        for entry in page:
            yield entry.position, read_event(entry.body, entry.recorded_ms)


@app.command("tail")
def tail_events(
    event_type: TypeOption = None,
    source: SourceOption = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest event.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_MOST_LISTED, help="Begin with so many of the newest.")
    ] = 10,
    store: StoreOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event whole, as a line of JSON.")] = False,
) -> None:
    """Follow the log until Ctrl-C.

    Example: ag06 events tail --type order.placed
    """
    asyncio.run(_until_interrupted(_tail(store, event_type, source, None if from_start else lines, json)))


async def _until_interrupted(work: Any) -> None:
    """Run something endless; Ctrl-C and SIGTERM are its proper end."""
    task = asyncio.ensure_future(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise


async def _tail(
    store: str | None, types: list[str] | None, sources: list[str] | None, lines: int | None, json: bool
) -> None:
    from ag06.persistence.log import Query

    query = Query(types=None if not types else tuple(types))
    async with opened(store) as events:
        log = await events.log()
        after = -1
        if lines is not None:
            # Where the log ends is asked first: what comes while the newest are looked up is printed below.
            after = max([position for position, _ in await _newest(log, query, 1, None)], default=-1)
            for position, event in await _newest(log, query, lines, sources) if lines else []:
                if position <= after:
                    _print_line(event, json)
        while True:
            async for position, event in _read(log, msgspec.structs.replace(query, after=after)):
                after = position
                if not sources or event.source in sources:
                    _print_line(event, json)
            sys.stdout.flush()
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
    salvage: SalvageOption = False,
    store: StoreOption = None,
) -> None:
    """Print a range as JSON lines, in order; or copy it into another store, whose steps then process it.

    Example: ag06 events replay --start 1h --type order.placed --to sqlite:///copy.db
    """
    if to is not None:
        check_apart(store, to)

    async def replay() -> None:
        async with opened(store) as events:
            found = _selected(events, start, end, event_type, source, correlation_id, limit, salvage)
            if to is None:
                await write_stdout(found, Format.JSONL)
                return
            copied, known = await copy(found, to)
        typer.echo(f"{copied} events copied" + (f", {known} were there already" if known else ""))

    asyncio.run(replay())


def _selected(
    events: EventStore,
    start: str | None,
    end: str | None,
    types: list[str] | None,
    sources: list[str] | None,
    correlation_id: str | None,
    limit: int | None,
    salvage: bool,
) -> AsyncIterator[Event[Any]]:
    first, last = moment("--start", start), moment("--end", end)
    return events.replay(first, last, types or None, sources or None, correlation_id, limit, salvage)


@app.command("export")
def export_events(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File to write, - for stdout; compressed if it ends in .gz.")
    ],
    form: Annotated[
        Format, typer.Option("--format", help="One event a line: as `ag06 events replay`, or a structured CloudEvent.")
    ] = Format.JSONL,
    start: StartOption = None,
    end: EndOption = None,
    event_type: TypeOption = None,
    source: SourceOption = None,
    correlation_id: CorrelationOption = None,
    limit: LimitOption = None,
    salvage: SalvageOption = False,
    store: StoreOption = None,
) -> None:
    """Write a range to a file, one event a line. The file appears when it is whole.

    Example: ag06 events export orders.jsonl.gz --type order.placed --start 2026-01-01
    """

    async def export() -> int:
        async with opened(store) as events:
            found = _selected(events, start, end, event_type, source, correlation_id, limit, salvage)
            return await (write_stdout(found, form) if path == "-" else write_file(found, Path(path), form))

    count = asyncio.run(export())
    if path != "-":
        typer.echo(f"{count} events written to {path}")


@app.command("archive")
def archive_events(
    before: Annotated[
        str, typer.Option(help="What was recorded before: ISO 8601, epoch seconds, or how long ago: 30d.")
    ],
    to: Annotated[
        str | None,
        typer.Option(help="URL of the archive: file:///PATH, s3://BUCKET/PATH; else AG06_ARCHIVE, ag06.toml."),
    ] = None,
    event_type: TypeOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Move events that every step acknowledged out of the store into Parquet files. Replays read them there.

    Nothing leaves the store before it was written, read back and compared. What a killed run left is finished first.

    Example: ag06 events archive --before 30d --to file:///var/ag06/archive
    """
    target = resolve("archive", to)
    if not target.value:
        raise ConfigurationError("no archive is named; give --to URL, or set AG06_ARCHIVE")
    from ag06.persistence.archive.retention import check_lasting
    from ag06.persistence.stores import masked

    check_lasting(target.value)
    done = asyncio.run(_archive(store, moment("--before", before), target.value, event_type))
    if json:
        print_json(done)
    elif not done.events:
        typer.echo("nothing to archive: no event from before that is acknowledged by every step")
    else:
        typer.echo(
            f"{done.events} events recorded from {done.start:%Y-%m-%d %H:%M:%S} to {done.end:%Y-%m-%d %H:%M:%S} UTC "
            f"moved to {len(done.files)} files in {masked(done.url)}"
        )


async def _archive(store: str | None, before: dt.datetime | None, url: str, types: list[str] | None) -> Archived:
    if before is None:
        raise ConfigurationError("--before is needed: 30d, 2026-01-31")
    with progress() as display:
        task = display.add_task("archiving", total=None)

        def watch(now: Progress) -> None:
            display.update(task, completed=now.events, description=_STAGES.get(now.stage, "archiving"))

        async with opened(store) as events:
            return await events.archive_before(before, url, types or None, progress=watch)
