"""The typer application: every command group, and what becomes of errors."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from ag06.cli import bench, dead_letters, demo, doctor, events, journal, run, safekeeping, steps, tune, validate
from ag06.cli.output import errors
from ag06.errors import AG06Error, ConfigurationError, InvalidEvent, StoreDamaged

FAILED = 1
USER_MISTAKE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="ag06",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.command)
app.command("validate")(validate.command)
app.command("run")(run.command)
app.add_typer(events.app, name="events")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(journal.app, name="journal")
app.add_typer(steps.app, name="steps")
app.add_typer(tune.app, name="tune")
app.command("bench")(bench.command)
app.command("doctor")(doctor.command)
app.command("check")(safekeeping.check)
app.command("backup")(safekeeping.backup)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ag06 {importlib.metadata.version('ag06')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Durable event workflows: run them, look at them, prove them.

    Example: ag06 demo
    """


def run_app() -> None:
    """Run the command line; a user's mistake is one line, never a traceback."""
    try:
        app(prog_name="ag06")  # also as `python -m ag06`: completion is for the command
    except (ConfigurationError, InvalidEvent, StoreDamaged) as error:  # what no second try heals
        _say(error)
        sys.exit(USER_MISTAKE)
    except AG06Error as error:
        _say(error)
        sys.exit(FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(INTERRUPTED)
    except OSError as error:
        _say(error)
        # The disk behind our output may be full: Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _say(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    errors().print(f"[red]error:[/] {escape(text or type(error).__name__)}", soft_wrap=True, highlight=False)
