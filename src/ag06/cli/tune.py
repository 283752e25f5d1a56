"""`ag06 tune`: how a workflow tunes itself, what it decided and why, and who says whether it may."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from ag06.cli.output import JsonOption, StoreOption, YesOption, confirm, print_json, say
from ag06.cli.tune_workflow import Tuned, WorkflowOption, tuned
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.cli.tune_asking import Answer
    from ag06.cli.tune_learned import Learned
    from ag06.cli.tune_status import Standing

app = typer.Typer(
    help=(
        "How a workflow tunes itself, and who says whether it may.\n\n"
        "Workers heed what is asked for here within about a second, except where AG06_TUNE=off: those never look.\n\n"
        "Example: ag06 tune status"
    ),
    no_args_is_help=True,
)
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds to wait until it is done.")]
_WATCH_SECONDS = 1.0
R = TypeVar("R")


def _with(store: str | None, workflow: str | None, work: Callable[[Tuned], Awaitable[R]]) -> R:
    """Run `work` on the workflow that is meant and return what it returns."""

    async def run() -> R:
        async with tuned(store, workflow) as found:
            return await work(found)

    return asyncio.run(run())


def _tell(found: Tuned, answer: Answer) -> None:
    """Print what became of a request; end with 1 if it was not done in time."""
    if not answer.done:
        say(f"{found.name}: {answer.told}; see: ag06 tune status, or wait longer with --timeout")
        raise typer.Exit(1)
    typer.echo(f"{found.name}: {answer.told}")


@app.command("status")
def status(
    workflow: WorkflowOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show where the optimizer stands: mode, leader, score, knobs, the experiment under way, the budget.

    Example: ag06 tune status --watch
    """

    async def look(found: Tuned) -> None:
        if watch:
            await _watch(found, json)
        else:
            _show(await _standing(found), json)

    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        _with(store, workflow, look)


async def _standing(found: Tuned) -> Standing:
    from ag06.cli.tune_status import standing

    return standing(found.name, await found.notes())


def _show(now: Standing, json: bool) -> None:
    from ag06.cli.tune_status import as_json, print_standing

    if json:
        print_json(as_json(now))
    else:
        print_standing(now)


async def _watch(found: Tuned, json: bool) -> None:
    """Show it each time that something changed; on a terminal every second, in place."""
    from ag06.cli.tune_status import clock, seen, standing

    console = Console()
    shown: object = None
    while True:
        notes = await found.notes()
        in_place = console.is_terminal and not json
        if in_place or seen(notes) != shown:
            shown = seen(notes)
            if in_place:
                console.clear()
            _show(standing(found.name, notes), json)
            if in_place:
                say(f"{clock()}; Ctrl-C ends it")
            sys.stdout.flush()
        await asyncio.sleep(_WATCH_SECONDS)


@app.command("history")
def history(
    workflow: WorkflowOption = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="At most so many of the last.")
    ] = 50,
    all_: Annotated[bool, typer.Option("--all", help="Each window too, not the decisions alone.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show what the optimizer decided and why, oldest first.

    Decisions are events of types `ag06.optimizer.*` in the log, which stay as long as the log keeps them.

    Example: ag06 tune history --all -n 200
    """
    from ag06.cli.tune_history import as_json, history_of, newest, print_rows

    async def look(found: Tuned) -> None:
        known = await history_of(found, await found.board.saved())
        rows = newest(known, limit, windows=all_)
        if json:
            print_json(as_json(rows))
        elif rows:
            print_rows(rows, known, windows=all_)
        else:
            say(f"nothing was decided for workflow {found.name} yet; begin with: ag06 tune start")

    _with(store, workflow, look)


@app.command("start")
def start(
    workflow: WorkflowOption = None,
    observe: Annotated[bool, typer.Option("--observe", help="Only suggest; move nothing.")] = False,
    timeout: TimeoutOption = 60.0,
    store: StoreOption = None,
) -> None:
    """Let the workers of a workflow tune it: one of them leads, the others follow. It holds until `stop`.

    Where no worker runs it takes effect with the next one. AG06_TUNE=off in a worker wins over this.

    Example: ag06 tune start --workflow shop --observe
    """
    from ag06.cli import tune_asking

    async def ask(found: Tuned) -> None:
        _tell(found, await tune_asking.start(found, "observe" if observe else "on", timeout))

    _with(store, workflow, ask)


@app.command("stop")
def stop(workflow: WorkflowOption = None, timeout: TimeoutOption = 60.0, store: StoreOption = None) -> None:
    """Have nobody tune a workflow, until `start`; what was proved stays. Returns when the leader has left.

    It wins over AG06_TUNE=on and AG06_TUNE=observe in the workers.

    Example: ag06 tune stop --workflow shop
    """
    from ag06.cli import tune_asking

    async def ask(found: Tuned) -> None:
        _tell(found, await tune_asking.stop(found, timeout))

    _with(store, workflow, ask)


@app.command("rollback")
def rollback(
    workflow: WorkflowOption = None, timeout: TimeoutOption = 60.0, store: StoreOption = None, yes: YesOption = False
) -> None:
    """Return to what ran before the last promotion, or to the defaults, in all workers; what ran is tried no more.

    Who tunes goes on to try other values; `ag06 tune stop` ends that.

    Example: ag06 tune rollback --workflow shop --yes
    """
    from ag06.cli import tune_asking
    from ag06.cli.tune_learned import said

    async def ask(found: Tuned) -> None:
        before = await _learned(found)
        back = said(before.rolled_back, before.incumbent)
        if not back:
            typer.echo(f"{found.name}: there is nothing to roll back, the defaults run")
            return
        confirm(f"Change {back}?", yes)
        _tell(found, await tune_asking.rollback(found, before, timeout))

    _with(store, workflow, ask)


async def _learned(found: Tuned) -> Learned:
    from ag06.cli.tune_learned import learned

    saved = await found.board.saved()
    known = None if saved is None else learned(saved)
    if known is None or not known.knobs:
        raise ConfigurationError(f"nothing of workflow {found.name!r} was tuned yet; begin with: ag06 tune start")
    return known


@app.command("reset")
def reset(workflow: WorkflowOption = None, store: StoreOption = None, yes: YesOption = False) -> None:
    """Forget all that was learned and asked for; the events `ag06.optimizer.*` stay in the log.

    Workers begin with the defaults when they start again; where AG06_TUNE=on, they begin anew at once.

    Example: ag06 tune reset --workflow shop --yes
    """
    from ag06.cli import tune_asking

    async def ask(found: Tuned) -> None:
        confirm(f"Forget all that was learned about workflow {found.name}?", yes)
        if not await tune_asking.reset(found):
            leader = (await found.notes()).leader()
            raise ConfigurationError(f"{leader or 'a worker'} tunes {found.name} now; first: ag06 tune stop")
        typer.echo(f"{found.name}: all is forgotten; workers begin with the defaults when they start again")

    _with(store, workflow, ask)


@app.command("report")
def report(
    workflow: WorkflowOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; else ag06-tune-WORKFLOW.html.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write one HTML file that shows it all: scores, experiments, where the knobs went, every decision.

    It needs no network and no script.

    Example: ag06 tune report --output tuning.html
    """
    from ag06.cli.tune_history import history_of
    from ag06.cli.tune_report import page, write
    from ag06.cli.tune_status import standing

    async def make(found: Tuned) -> tuple[Path, str]:
        notes = await found.notes()
        if notes.saved is None:
            raise ConfigurationError(f"nothing of workflow {found.name!r} was tuned yet; begin with: ag06 tune start")
        known = await history_of(found, notes.saved)
        path = output or Path(f"ag06-tune-{found.name}.html")
        return path, page(standing(found.name, notes), known)

    path, text = _with(store, workflow, make)
    write(path, text)
    typer.echo(f"{path}: {len(text) / 1000:.0f} kB")
