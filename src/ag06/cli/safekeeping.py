"""`ag06 check` and `ag06 backup`: whether a store is sound, and a copy of it while it is in use."""

from __future__ import annotations

import os
import sqlite3
from typing import Annotated

import typer

from ag06.cli.opening import check_shared
from ag06.cli.output import JsonOption, StoreOption, print_json, printable, progress, say
from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.settings import resolve

DAMAGED = 2


def check(store: StoreOption = None, json: JsonOption = False) -> None:
    """Read a store's file from end to end and report what is damaged; exit 2 if anything is. Changes nothing.

    Workers may go on meanwhile.

    Example: ag06 check --store sqlite:///shop.db
    """
    from ag06.persistence.sqlite.integrity import inspect

    path = _file(store, "a server checks its own files (valkey-check-aof, valkey-check-rdb)")
    with progress() as display:
        task = display.add_task("checking", total=None)
        try:
            found = inspect(path, lambda events: display.update(task, completed=events))
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"store {path}: {error}; check permissions and who holds it") from error
    if json:
        print_json(found)
    elif not found.problems:
        typer.echo(f"{path} is sound: {found.events} events and {found.dead_letters} dead letters read")
    else:
        typer.echo(f"{path} is damaged: {found.events} events and {found.dead_letters} dead letters can be read")
        for problem in found.problems:
            typer.echo(f"  {printable(problem)}")
        say("stop what uses the store, keep a copy of its files, and restore a backup (docs/guides/backup.md)")
    raise typer.Exit(DAMAGED if found.problems else 0)


def backup(
    target: Annotated[str, typer.Argument(metavar="FILE", help="The new file; it appears when it is whole.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a store's file while it is in use; the copy is synced and read back before it gets its name.

    Example: ag06 backup /backup/shop-monday.db --store sqlite:///shop.db
    """
    from ag06.persistence.sqlite.backup import back_up

    path = _file(store, "copy a server's own files (BGSAVE, BGREWRITEAOF), or: ag06 events export")
    with progress() as display:
        task = display.add_task("copying", total=None)
        done = back_up(path, target, lambda stage, count: display.update(task, description=stage, completed=count))
    if json:
        print_json(done)
    else:
        size = done.bytes / 1e6
        typer.echo(f"{target}: {done.events} events and {done.dead_letters} dead letters, {size:.1f} MB, read back")


def _file(store: str | None, instead: str) -> str:
    """Return the real path of an existing SQLite store; for others name what to do `instead`."""
    from ag06.persistence.stores import masked

    setting = resolve("store", store)
    path = check_shared(setting.value)
    if path is None:
        raise ConfigurationError(f"store {masked(setting.value)} (from {setting.origin}) is no SQLite file; {instead}")
    if not os.path.isfile(path):
        raise ConfigurationError(
            f"there is no store {setting.value} (from {setting.origin}); name one with --store or AG06_STORE"
        )
    return os.path.realpath(path)
