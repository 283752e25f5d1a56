"""`ag06 dead-letters`: events that a step gave up on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ag06.cli.opening import with_store
from ag06.cli.output import JsonOption, StoreOption, YesOption, confirm, moment, print_json, print_table, progress, say
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.persistence import EventStore
    from ag06.persistence.log import EventLog
    from ag06.runtime.dead_letters import DeadLetter, DeadLetters, Filters

app = typer.Typer(
    help="Events that a step gave up on.\n\nExample: ag06 dead-letters list --step shop.bill", no_args_is_help=True
)

StepOption = Annotated[str | None, typer.Option("--step", help="Only of this step, as `workflow.step`.")]
TypeOption = Annotated[str | None, typer.Option("--type", "-t", help="Only events of this type.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only for this reason: failed, rejected, invalid, worker_died.")
]
ErrorOption = Annotated[str | None, typer.Option("--error", help="Only where the last error was of this class.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", help="Last failed then or later: ISO 8601, epoch seconds, or how long ago: 15m."),
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Last failed before that.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...", help="Ids of events.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]
_MOST = 1_000_000
_BATCH = 200


def _letters(events: EventStore) -> DeadLetters:
    from ag06.runtime.dead_letters import DeadLetters

    return DeadLetters(events.log)


@app.command("list")
def list_letters(
    event_ids: IdsArgument = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST, help="At most so many, oldest first.")] = 100,
    step: StepOption = None,
    event_type: TypeOption = None,
    reason: ReasonOption = None,
    error: ErrorOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show dead letters, oldest first.

    Example: ag06 dead-letters list --step shop.bill --error ConnectionError --since 2h
    """
    filters = _filters(event_ids, step, event_type, reason, error, since, until)

    async def find(events: EventStore) -> list[DeadLetter]:
        return await _letters(events).list(limit, **filters)

    letters = with_store(store, find)
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
    filters = _filters([event_id], step)

    async def find(events: EventStore) -> list[DeadLetter]:
        letters = await _letters(events).list(_MOST, **filters)
        await _check_known(events, filters, [letter.event.id for letter in letters])
        return letters

    found = with_store(store, find)
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
    event_ids: IdsArgument = None,
    all_: AllOption = False,
    step: StepOption = None,
    event_type: TypeOption = None,
    reason: ReasonOption = None,
    error: ErrorOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Deliver dead letters again, each to the step that gave up on it, with all its attempts.

    Example: ag06 dead-letters retry --step shop.bill --error ConnectionError
    """
    from ag06.runtime.dead_letters import retry_keys

    filters = _filters(event_ids, step, event_type, reason, error, since, until)
    _check_choice(filters, all_)

    async def retry(events: EventStore) -> tuple[int, int]:
        keys = await _keys(events, filters)
        return len(keys), await _in_batches("delivered again", await events.log(), keys, retry_keys)

    asked, done = with_store(store, retry)
    if json:
        print_json({"found": asked, "retried": done})
    else:
        typer.echo(f"{done} delivered again")
    if done < asked:
        say(f"{asked - done} were not: their step was removed or listens to another type now; see: ag06 steps list")
        raise typer.Exit(1)


@app.command("discard")
def discard_letters(
    event_ids: IdsArgument = None,
    all_: AllOption = False,
    step: StepOption = None,
    event_type: TypeOption = None,
    reason: ReasonOption = None,
    error: ErrorOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    store: StoreOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete dead letters for good; the events stay in the log.

    Example: ag06 dead-letters discard --step shop.bill --reason rejected --until 7d --yes
    """
    from ag06.runtime.dead_letters import discard_keys

    filters = _filters(event_ids, step, event_type, reason, error, since, until)
    _check_choice(filters, all_)

    async def discard(events: EventStore) -> tuple[int, int]:
        keys = await _keys(events, filters)
        if keys:
            confirm(f"Delete {len(keys)} dead letters for good?", yes)
        return len(keys), await _in_batches("discarded", await events.log(), keys, discard_keys)

    asked, done = with_store(store, discard)
    if json:
        print_json({"found": asked, "discarded": done})
    else:
        typer.echo(f"{done} discarded")


Key = tuple[str, str]


async def _keys(events: EventStore, filters: Filters) -> Sequence[Key]:
    """Return the step and event of each dead letter that is meant; an id that is none of them is a mistake."""
    keys = await _letters(events).keys(**filters)
    await _check_known(events, filters, [event_id for _, event_id in keys])
    return keys


async def _in_batches(
    what: str, log: EventLog, keys: Sequence[Key], do: Callable[[EventLog, Sequence[Key]], Awaitable[int]]
) -> int:
    count = 0
    with progress() as display:
        task = display.add_task(what, total=len(keys))
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            count += await do(log, batch)
            display.advance(task, len(batch))
    return count


def _filters(
    event_ids: list[str] | None,
    step: str | None,
    event_type: str | None = None,
    reason: str | None = None,
    error: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Filters:
    return {
        "ids": event_ids or None,
        "step": step,
        "type": event_type,
        "reason": reason,
        "error": error,
        "since": moment("--since", since),
        "until": moment("--until", until),
    }


def _check_choice(filters: Filters, all_: bool) -> None:
    """Let nobody hit every dead letter by leaving something out, or hit fewer than `--all` says."""
    named = any(value is not None for value in filters.values())
    if not named and not all_:
        raise ConfigurationError("say which: the ids of events, filters such as --step, or --all")
    if all_ and filters.get("ids"):
        raise ConfigurationError("give either the ids of events, or --all")


async def _check_known(events: EventStore, filters: Filters, found: Sequence[str]) -> None:
    """Refuse an id that is no dead letter, or that a filter beside it leaves out; say which of the two."""
    known = set(found)
    missing = next((event_id for event_id in filters.get("ids") or () if event_id not in known), None)
    if missing is None:
        return
    letters = await _letters(events).list(_MOST, ids=[missing])
    given = [f"--{name}" for name, value in filters.items() if name != "ids" and value is not None]
    if not letters or not given:
        raise ConfigurationError(f"no dead letter of the event {missing!r}; see: ag06 dead-letters list")
    those = "; ".join(
        f"step {letter.step}, type {letter.event.type}, reason {letter.reason}, error {letter.error}, "
        f"last failed {letter.last_failed.isoformat(timespec='seconds')}"
        for letter in letters
    )
    raise ConfigurationError(
        f"the event {missing!r} is a dead letter, but {' with '.join(given)} leaves it out; it is of {those}"
    )
