"""`ag06 steps`: which steps a store knows, how far behind they are, and how a retired one is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ag06.cli.opening import with_store
from ag06.cli.output import JsonOption, StoreOption, YesOption, age, confirm, print_json, print_table
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.persistence import EventStore, GroupInfo

app = typer.Typer(help="Steps that the store knows.\n\nExample: ag06 steps list", no_args_is_help=True)


@app.command("list")
def list_steps(store: StoreOption = None, json: JsonOption = False) -> None:
    """Show each step with its backlog.

    Example: ag06 steps list --store redis://localhost:6379/0
    """

    async def look(events: EventStore) -> list[GroupInfo]:
        return await (await events.log()).groups()

    groups = with_store(store, look)
    if json:
        print_json([_step(group) for group in groups])
        return
    rows = [(g.group, g.type, g.backlog, g.in_flight, g.dead_letters, age(g.oldest_ms)) for g in groups]
    columns = ("step", "listens to", "backlog", "in flight", "dead", "oldest")
    print_table("Steps", columns, rows, whole=("step",))


def _step(group: GroupInfo) -> dict[str, str | int | None]:
    return {
        "step": group.group,
        "type": group.type,
        "backlog": group.backlog,
        "in_flight": group.in_flight,
        "dead_letters": group.dead_letters,
        "oldest_ms": group.oldest_ms,
    }


@app.command("remove")
def remove_step(
    step: Annotated[str, typer.Argument(metavar="WORKFLOW.STEP", help="The step, as `ag06 steps list` shows it.")],
    store: StoreOption = None,
    yes: YesOption = False,
) -> None:
    """Forget a retired step, so that it holds the log back no more. Its dead letters stay.

    Example: ag06 steps remove shop.bill
    """

    async def remove(events: EventStore) -> None:
        log = await events.log()
        waiting = {group.group: group.backlog for group in await log.groups()}
        if step not in waiting:
            raise ConfigurationError(f"the store knows no step {step!r}; see: ag06 steps list")
        confirm(f"Forget {step}, its place in the log and the {waiting[step]} events that wait for it?", yes)
        await log.remove_group(step)

    with_store(store, remove)
    typer.echo(f"{step} is forgotten")
