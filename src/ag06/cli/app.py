"""The typer application: every command group, and what becomes of errors."""

from __future__ import annotations

import asyncio
import os
import sys

import typer
from rich.markup import escape

from ag06.cli import bench, dead_letters, demo, doctor, events, run, steps, validate
from ag06.cli.output import errors
from ag06.errors import AG06Error, ConfigurationError, InvalidEvent

FAILED = 1
USER_MISTAKE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="ag06",
    help="Durable event workflows: run them, look at them, prove them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.command)
app.command("validate")(validate.command)
app.command("run")(run.command)
app.add_typer(events.app, name="events")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(steps.app, name="steps")
app.command("bench")(bench.command)
app.command("doctor")(doctor.command)


def run_app() -> None:
    """Run the command line; a user's mistake is one line, never a traceback."""
    try:
        app()
    except (ConfigurationError, InvalidEvent) as error:
        _say(error)
        sys.exit(USER_MISTAKE)
    except AG06Error as error:
        _say(error)
        sys.exit(FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _say(error: AG06Error) -> None:
    errors().print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
