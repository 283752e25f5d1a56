"""`ag06 dead-letters`: events that a step gave up on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ag06.cli.opening import with_store
from ag06.cli.output import JsonOption, StoreOption, YesOption, confirm, print_json, print_table, progress, say
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.persistence import EventStore
    from ag06.persistence.log import EventLog
    from ag06.runtime.dead_letters import DeadLetter

app = typer.Typer(
    help="Events that a step gave up on.\n\nExample: ag06 dead-letters list --step shop.bill", no_args_is_help=True
)

StepOption = Annotated[str | None, typer.Option("--step", help="Only of this step, as `workflow.step`.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...", help="Ids of events.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, or all of --step.")]
_MOST = 1_000_000
_BATCH = 500


async def _find(events: EventStore, step: str | None, limit: int = _MOST) -> list[DeadLetter]:
    """Return the dead letters of a step, or of all; a step that nobody knows is a mistake, not an empty result."""
    from ag06.runtime.dead_letters import list_dead_letters

    log = await events.log()
    letters = await list_dead_letters(log, step, limit)
    if step is not None and not letters and step not in {group.group for group in await log.groups()}:
        raise ConfigurationError(f"the store knows no step {step!r}; see: ag06 steps list")
    return letters


@app.command("list")
def list_letters(
    step: StepOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST, help="At most so many, oldest first.")] = 100,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show dead letters, oldest first.

    Example: ag06 dead-letters list --step shop.bill
    """
    letters = with_store(store, lambda events: _find(events, step, limit))
    if json:
        print_json(letters)
        return
    rows = [
        (
            letter.event.id,
            letter.step,
            letter.reason,
            letter.attempts,
            f"{letter.last_failed:%Y-%m-%d %H:%M:%S}",
            f"{letter.error}: {letter.message}"[:100],
        )
        for letter in letters
    ]
    columns = ("event", "step", "reason", "attempts", "last failed (UTC)", "error")
    print_table("Dead letters", columns, rows, whole=("event", "step"))


@app.command("show")
def show_letter(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="Id of the event.")],
    step: StepOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one dead letter whole: the event, the error, the traceback.

    Example: ag06 dead-letters show 019ad2c8-7c5e-7000-8000-5d3f0f6f1a2b
    """
    letters = with_store(store, lambda events: _find(events, step))
    found = _chosen(letters, [event_id])
    if json:
        print_json(found)
        return
    console = Console(soft_wrap=True, highlight=False)
    for letter in found:
        console.print(f"[bold]{escape(letter.step)}[/] gave up on {escape(letter.event.id)}: {letter.reason}")
        console.print(f"failed attempts: {letter.attempts}, from {letter.first_failed} to {letter.last_failed}")
        console.print(f"{letter.error}: {letter.message}", style="red", markup=False)
        console.print(letter.traceback or "(no traceback)", markup=False)
        print_json(letter.event)


@app.command("retry")
def retry_letters(
    event_ids: IdsArgument = None, all_: AllOption = False, step: StepOption = None, store: StoreOption = None
) -> None:
    """Deliver dead letters again, each to the step that gave up on it, with all its attempts.

    Example: ag06 dead-letters retry --all --step shop.bill
    """
    from ag06.runtime.dead_letters import retry_dead_letters

    wanted = _ids(event_ids, all_)

    async def retry(events: EventStore) -> tuple[int, int]:
        letters = _chosen(await _find(events, step), wanted)
        return len(letters), await _in_batches("delivered again", await events.log(), letters, retry_dead_letters)

    asked, done = with_store(store, retry)
    typer.echo(f"{done} delivered again")
    if done < asked:
        say(f"{asked - done} were not: their step was removed or listens to another type now; see: ag06 steps list")
        raise typer.Exit(1)


@app.command("discard")
def discard_letters(
    event_ids: IdsArgument = None,
    all_: AllOption = False,
    step: StepOption = None,
    store: StoreOption = None,
    yes: YesOption = False,
) -> None:
    """Delete dead letters for good; the events stay in the log.

    Example: ag06 dead-letters discard 019ad2c8-7c5e-7000-8000-5d3f0f6f1a2b --yes
    """
    from ag06.runtime.dead_letters import discard_dead_letters

    wanted = _ids(event_ids, all_)

    async def discard(events: EventStore) -> int:
        letters = _chosen(await _find(events, step), wanted)
        if letters:
            confirm(f"Delete {len(letters)} dead letters for good?", yes)
        return await _in_batches("discarded", await events.log(), letters, discard_dead_letters)

    typer.echo(f"{with_store(store, discard)} discarded")


async def _in_batches(
    what: str,
    log: EventLog,
    letters: Sequence[DeadLetter],
    do: Callable[[EventLog, Sequence[DeadLetter]], Awaitable[int]],
) -> int:
    count = 0
    with progress() as display:
        task = display.add_task(what, total=len(letters))
        for start in range(0, len(letters), _BATCH):
            batch = letters[start : start + _BATCH]
            count += await do(log, batch)
            display.advance(task, len(batch))
    return count


def _ids(event_ids: list[str] | None, all_: bool) -> list[str] | None:
    """Return the chosen ids, or `None` for all; say so when the user chose neither or both."""
    if all_ == bool(event_ids):
        raise ConfigurationError("give either the ids of events, or --all")
    return event_ids or None


def _chosen(letters: Sequence[DeadLetter], event_ids: list[str] | None) -> list[DeadLetter]:
    if event_ids is None:
        return list(letters)
    known = {letter.event.id for letter in letters}
    for event_id in event_ids:
        if event_id not in known:
            raise ConfigurationError(f"no dead letter of the event {event_id!r}; see: ag06 dead-letters list")
    return [letter for letter in letters if letter.event.id in event_ids]
