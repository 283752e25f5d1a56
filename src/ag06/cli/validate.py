"""`ag06 validate`: proves on this machine, on a store of your choice, what the README promises."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ag06.cli.opening import check_shared
from ag06.cli.output import JsonOption, print_json, print_table, progress, quiet_log

if TYPE_CHECKING:
    from ag06.cli.proofs import Proof
    from ag06.cli.proving import Bench

_LONGEST = 60.0


class Row(msgspec.Struct, frozen=True):
    """One promise, whether it held, and what was measured."""

    promise: str
    held: bool
    measured: str
    seconds: float


def command(
    store: Annotated[str | None, typer.Option(help="Store URL; a fresh SQLite file unless given.")] = None,
    json: JsonOption = False,
) -> None:
    """Prove here what is promised of events (never lost, doubled or out of order), of what can be seen, and of tuning.

    Exits with 1 if a row fails.

    A store that is given keeps a few thousand events of types `validate-...`; steps and dead letters are removed.

    Example: ag06 validate --store redis://localhost:6379/0
    """
    # Failures are made on purpose here.
    with quiet_log(logging.CRITICAL), tempfile.TemporaryDirectory(prefix="ag06-validate-") as directory:
        url = store or f"sqlite:///{directory}/events.db"
        check_shared(url)
        rows = asyncio.run(_validate(url))
    if json:
        print_json(rows)
    else:
        table = [(row.promise, "yes" if row.held else "NO", f"{row.measured} ({row.seconds:.2f} s)") for row in rows]
        print_table("Validation", ("promise", "held", "measured"), table)
    if not all(row.held for row in rows):
        raise typer.Exit(1)


async def _validate(url: str) -> list[Row]:
    from ag06.cli.proofs import PROOFS
    from ag06.cli.proving import Bench

    rows = []
    async with Bench(url) as bench:
        with progress() as display:
            task = display.add_task("", total=len(PROOFS))
            for promise, proof in PROOFS:
                display.update(task, description=promise)
                rows.append(await _prove(promise, proof, bench))
                display.advance(task)
    return rows


async def _prove(promise: str, proof: Proof, bench: Bench) -> Row:
    """Run one proof; whatever keeps it from its end, the promise has not held."""
    started = time.perf_counter()
    held = False
    try:
        async with asyncio.timeout(_LONGEST):
            measured = await proof(bench)
        held = True
    except TimeoutError:
        measured = "not finished in time"
    except AssertionError as error:
        measured = str(error)
    except Exception as error:  # noqa: BLE001 - it is told in the row, and fails it
        measured = f"{type(error).__name__}: {error}"
    return Row(promise, held, measured, round(time.perf_counter() - started, 3))
