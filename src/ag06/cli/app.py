"""The typer application: every command group in one place."""

from __future__ import annotations

import typer

from ag06.cli import demo, run

app = typer.Typer(name="ag06", no_args_is_help=True, pretty_exceptions_enable=False)
app.command("demo")(demo.command)
app.command("run")(run.command)
