"""How commands speak: tables or JSON on stdout, everything else on stderr, one line for a user's mistake."""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

_RELATIVE = re.compile(r"-?(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_encode = msgspec.json.Encoder().encode

StoreOption = Annotated[str | None, typer.Option("--store", help="Store URL; else AG06_STORE, ag06.toml, the default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def errors() -> Console:
    """Return the console for what is not the result."""
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    sys.stdout.write(_encode(value).decode() + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; cells are text, never markup."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    Console().print(table)


def progress() -> Progress:
    """Return a progress display on stderr that stays away where nobody looks."""
    console = errors()
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def moment(name: str, text: str | None) -> dt.datetime | None:
    """Return a point in time: ISO 8601, seconds since the epoch, or how long ago, such as `15m` or `-2h`."""
    if text is None:
        return None
    relative = _RELATIVE.match(text)
    if relative is not None:
        return dt.datetime.fromtimestamp(time.time() - float(relative[1]) * _SECONDS[relative[2]], dt.UTC)
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        found = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        message = f"{text!r} is not a time; write 2026-01-31T12:00:00+00:00, seconds since the epoch, or 15m ago: -15m"
        raise typer.BadParameter(message, param_hint=name) from None
    return found if found.tzinfo is not None else found.astimezone()


def age(millis: int | None) -> str:
    """Return how long ago a time in milliseconds since the epoch was."""
    if millis is None:
        return ""
    seconds = max(0.0, time.time() - millis / 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost; without a terminal the answer must be given as `--yes`."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Give --yes to answer without a terminal.", param_hint="--yes")
    typer.confirm(question, abort=True)
