"""`ag06 steps`: which steps a store knows, how far behind they are, and how a retired one is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ag06.cli.opening import with_store
from ag06.cli.output import JsonOption, StoreOption, YesOption, age, confirm, print_json, print_table
from ag06.errors import ConfigurationError

if TYPE_CHECKING:
    from ag06.persistence import EventStore, GroupInfo

app = typer.Typer(help="Steps that the store knows.", no_args_is_help=True)


@app.command("list")
def list_steps(store: StoreOption = None, json: JsonOption = False) -> None:
    """Show each step with its backlog.

    Example: ag06 steps list --store redis://localhost:6379/0
    """

    async def look(events: EventStore) -> list[GroupInfo]:
        return await (await events.log()).groups()

    groups = with_store(store, look)
    if json:
        print_json(groups)
        return
    rows = [(g.group, g.type, g.backlog, g.in_flight, g.dead_letters, age(g.oldest_ms)) for g in groups]
    print_table("Steps", ("step", "listens to", "backlog", "in flight", "dead letters", "oldest waits"), rows)


@app.command("remove")
def remove_step(
    step: Annotated[str, typer.Argument(help="The step as `workflow.step`.")],
    store: StoreOption = None,
    yes: YesOption = False,
) -> None:
    """Forget a retired step, so that it holds the log back no more. Its dead letters stay.

    Example: ag06 steps remove shop.bill
    """
    confirm(f"Forget {step}, its place in the log and what waits for it?", yes)

    async def remove(events: EventStore) -> bool:
        return await (await events.log()).remove_group(step)

    if not with_store(store, remove):
        raise ConfigurationError(f"the store knows no step {step!r}; see: ag06 steps list")
    typer.echo(f"{step} is forgotten")
