"""`ag06 journal`: events that the store refused for good after they had waited in a journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ag06.cli.opening import opened
from ag06.cli.output import JsonOption, StoreOption, YesOption, confirm, print_json, print_table, printable, say
from ag06.errors import ConfigurationError
from ag06.settings import resolve

if TYPE_CHECKING:
    from ag06.persistence.journal.dead_letter_file import Retried
    from ag06.persistence.journal.dead_letters import JournalDeadLetter, JournalDeadLetters

app = typer.Typer(
    help="Events that the store refused for good after they had waited in a journal.\n\nExample: ag06 journal list",
    no_args_is_help=True,
)

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...", help="Ids of events.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]
_MOST = 1_000_000


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST, help="At most so many, oldest first.")] = 100,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the dead letters of the journal, oldest first; the store need not be there.

    Example: ag06 journal list --store redis://localhost:6379/0
    """
    opened_letters = _letters(store)
    letters = asyncio.run(opened_letters.list(limit))
    if json:
        print_json(letters)
        return
    if not letters:
        folder = opened_letters.letters.path.parent
        say(f"Dead letters of the journal: none in {folder}, where those of this store are kept")
        return
    rows = [
        (
            letter.event.id,
            letter.event.type,
            letter.reason,
            letter.attempts,
            f"{letter.last_failed:%Y-%m-%d %H:%M:%S}",
            f"{letter.error}: {letter.message}"[:100],
        )
        for letter in letters
    ]
    columns = ("event", "type", "reason", "attempts", "last failed (UTC)", "error")
    print_table("Dead letters of the journal", columns, rows, whole=("event", "type"))


@app.command("show")
def show_letter(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="Id of the event.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one dead letter of the journal whole: the event and the error.

    Example: ag06 journal show 019ad2c8-7c5e-7000-8000-5d3f0f6f1a2b
    """
    found = asyncio.run(_found(_letters(store), [event_id]))
    if json:
        print_json(found)
        return
    console = Console(soft_wrap=True, highlight=False)
    for letter in found:
        console.print(f"the store refused {printable(letter.event.id)}: {letter.reason}", markup=False)
        console.print(f"attempts: {letter.attempts}, from {letter.first_failed} to {letter.last_failed}", markup=False)
        console.print(f"{printable(letter.error)}: {printable(letter.message)}", style="red", markup=False)
        print_json(letter.event)


@app.command("retry")
def retry_letters(
    event_ids: IdsArgument = None, all_: AllOption = False, store: StoreOption = None, json: JsonOption = False
) -> None:
    """Send dead letters of the journal to the store again; exit 1 if it refuses one again.

    Example: ag06 journal retry --all
    """
    _check_choice(event_ids, all_)

    async def retry() -> Retried:
        from ag06.persistence.journal.dead_letters import JournalDeadLetters

        letters = _letters(store)
        await _found(letters, event_ids)
        async with opened(store) as events:
            return await JournalDeadLetters(letters.letters, events.log).retry(event_ids or None)

    retried = asyncio.run(retry())
    if json:
        print_json(retried)
    else:
        typer.echo(f"{retried.stored} stored")
    if retried.refused:
        say(f"{retried.refused} refused again; see: ag06 journal list")
        raise typer.Exit(1)


@app.command("discard")
def discard_letters(
    event_ids: IdsArgument = None,
    all_: AllOption = False,
    store: StoreOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete dead letters of the journal for good: these events are in no log.

    Example: ag06 journal discard 019ad2c8-7c5e-7000-8000-5d3f0f6f1a2b --yes
    """
    _check_choice(event_ids, all_)

    async def discard() -> int:
        letters = _letters(store)
        found = await _found(letters, event_ids)
        if not found:
            return 0
        confirm(f"Delete {len(found)} events for good? They are in no log.", yes)
        return await letters.discard([letter.event.id for letter in found])

    done = asyncio.run(discard())
    if json:
        print_json({"discarded": done})
    else:
        typer.echo(f"{done} discarded")


def _letters(store: str | None) -> JournalDeadLetters:
    """Return the dead letters for a store, which is not opened."""
    from ag06.persistence import EventStore

    return EventStore(resolve("store", store).value).journal_dead_letters


async def _found(letters: JournalDeadLetters, event_ids: Sequence[str] | None) -> list[JournalDeadLetter]:
    """Return those that are meant; an id that is none of them is a mistake."""
    found = await letters.list(_MOST, event_ids or None)
    known = {letter.event.id for letter in found}
    missing = next((event_id for event_id in event_ids or () if event_id not in known), None)
    if missing is not None:
        raise ConfigurationError(f"no dead letter of the journal for the event {missing!r}; see: ag06 journal list")
    return found


def _check_choice(event_ids: Sequence[str] | None, all_: bool) -> None:
    if bool(event_ids) == all_:
        raise ConfigurationError("say which: the ids of events, or --all")
