"""How commands speak: tables or JSON on stdout, everything else on stderr, one line for a user's mistake."""

from __future__ import annotations

import datetime as dt
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ag06.errors import ConfigurationError

_RELATIVE = re.compile(r"-?(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEGIBLE = 16
"""A column of running text may be folded down to this width; below it a table is worse than a list."""
_UNBOUNDED = 1_000_000
_encode = msgspec.json.Encoder().encode


@contextmanager
def quiet_log(level: int) -> Iterator[None]:
    """Keep what the package logs below `level` to itself: the command tells what is worth telling."""
    logger = logging.getLogger("ag06")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


StoreOption = Annotated[str | None, typer.Option("--store", help="Store URL; else AG06_STORE, ag06.toml, the default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def errors() -> Console:
    """Return the console for what is not the result."""
    return Console(stderr=True)


def say(text: str) -> None:
    """Tell the user something that is not the result; it is not wrapped, so that what it names can be copied."""
    errors().print(text, soft_wrap=True, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    sys.stdout.write(_encode(value).decode() + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, whole: Sequence[str] = ()
) -> None:
    """Print a table; cells are text, never markup.

    Nothing is ever cut off. Cells of the columns `whole` (ids and names, which are there to be copied) stay on one
    line: a terminal too narrow for that gets a list instead, and what is not a terminal has no width at all.
    """
    lines = [[printable(cell) for cell in row] for row in rows]
    if not lines:
        say(f"{title}: none")
        return
    console = Console()
    if not console.is_terminal:
        console.width = _UNBOUNDED
    elif _narrowest(columns, lines, whole) > console.width:
        _print_list(console, title, columns, lines)
        return
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in whole)
    for line in lines:
        table.add_row(*(escape(cell) for cell in line))
    console.print(table)


def printable(cell: object) -> str:
    """Return what is told as one line that cannot command the terminal."""
    text = "" if cell is None else str(cell)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _narrowest(columns: Sequence[str], lines: list[list[str]], whole: Sequence[str]) -> int:
    """Return the least width at which a table of these cells is legible, frame included."""
    widths = []
    for index, name in enumerate(columns):
        longest = max(cell_len(line[index]) for line in lines)
        widths.append(max(longest if name in whole else min(longest, _LEGIBLE), min(len(name), _LEGIBLE)))
    return sum(widths) + 3 * len(widths) + 1


def _print_list(console: Console, title: str, columns: Sequence[str], lines: list[list[str]]) -> None:
    """Print each row as lines of name and cell, which the terminal may wrap without breaking what is copied."""
    margin = max(len(name) for name in columns)
    console.print(title, style="italic", markup=False)
    for line in lines:
        console.print()
        for name, cell in zip(columns, line, strict=True):
            console.print(f"[bold]{escape(name):{margin}}[/]  {escape(cell)}", soft_wrap=True, highlight=False)


def progress(*, shown: bool = True) -> Progress:
    """Return a progress display on stderr that stays away where nobody looks."""
    console = errors()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def moment(name: str, text: str | None) -> dt.datetime | None:
    """Return a point in time: ISO 8601, seconds since the epoch, or how long ago, such as `15m` or `-2h`."""
    if text is None:
        return None
    relative = _RELATIVE.match(text)
    try:
        if relative is not None:
            return dt.datetime.fromtimestamp(time.time() - float(relative[1]) * _SECONDS[relative[2]], dt.UTC)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        found = dt.datetime.fromisoformat(text)
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError, OSError):
        raise ConfigurationError(
            f"{name} {text!r} is not a time from year 1 to 9999; write 2026-01-31, 2026-01-31T12:00:00+00:00, "
            "seconds since the epoch, or how long ago: 15m, 2h, 7d"
        ) from None


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
        raise ConfigurationError(f"{question} Without a terminal, answer with --yes")
    typer.confirm(question, abort=True)
